"""The error that came first, however it was wrapped."""

from spear_ros.core.errors import root_cause


def caught(function):
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError('nothing was raised')


def test_the_first_error_is_told_in_one_line():
    def wrapped():
        try:
            raise ValueError('out of resource:\n  shared memory')
        finally:
            raise RuntimeError('operation failed due to a previous error during capture')

    assert root_cause(caught(wrapped)) == 'ValueError: out of resource: shared memory'
    assert root_cause(KeyError('alone')) == "KeyError: 'alone'"


def test_a_named_cause_counts_more_than_what_was_handled_meanwhile():
    def wrapped():
        try:
            raise LookupError('meanwhile')
        except LookupError:
            raise RuntimeError('late') from OSError('the cause')

    assert root_cause(caught(wrapped)) == 'OSError: the cause'


def test_errors_that_are_each_others_cause_end():
    first, second = ValueError('first'), ValueError('second')
    first.__cause__, second.__cause__ = second, first
    assert 'second' in root_cause(first)
