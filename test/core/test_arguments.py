"""Settings anywhere on the command line."""

import argparse

import pytest

from spear_ros.core.arguments import parse_with_settings


def make_parser(settings=True):
    parser = argparse.ArgumentParser(prog='x')
    own = parser.add_subparsers(dest='kind').add_parser('vla')
    own.add_argument('--out')
    if settings:
        own.add_argument('settings', nargs='*')
    return parser


@pytest.mark.parametrize(
    'words',
    ['a=1 b=2 --out r', '--out r a=1 b=2', 'a=1 --out r b=2'],
)
def test_settings_stand_before_between_and_after_options(words):
    args = parse_with_settings(make_parser(), ['vla', *words.split()])
    assert (args.out, args.settings) == ('r', ['a=1', 'b=2'])


@pytest.mark.parametrize('words', ['a=1 --out r --typo=3', 'a=1 --out r stray'])
def test_other_unknown_words_end_the_program(words, capsys):
    with pytest.raises(SystemExit):
        parse_with_settings(make_parser(), ['vla', *words.split()])
    assert 'unrecognized arguments' in capsys.readouterr().err


def test_a_command_without_settings_takes_none(capsys):
    with pytest.raises(SystemExit):
        parse_with_settings(make_parser(settings=False), ['vla', 'a=1'])
    assert 'a=1' in capsys.readouterr().err
