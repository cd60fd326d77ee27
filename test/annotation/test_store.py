import numpy as np
import pytest

from spear_ros.annotation.store import Entry, Store, digest_of, write_atomically
from spear_ros.annotation.types import AnnotationError, FailureKind


def make(calls, value=1):
    def compute():
        calls.append(value)
        return Entry({'value': value}, {'a': np.arange(3)})

    return compute


def test_a_result_is_computed_once_for_the_same_content_and_settings(tmp_path):
    calls = []
    first, _ = Store(tmp_path).run('s', {'x': 1}, ['d'], make(calls))
    key, entry = Store(tmp_path).run('s', {'x': 1}, ['d'], make(calls))
    assert calls == [1]
    assert key == first
    assert entry.data == {'value': 1}
    np.testing.assert_array_equal(entry.arrays['a'], [0, 1, 2])


@pytest.mark.parametrize(
    ('stage', 'settings', 'inputs'),
    [('t', {'x': 1}, ['d']), ('s', {'x': 2}, ['d']), ('s', {'x': 1}, ['e'])],
)
def test_another_stage_setting_or_input_is_another_result(tmp_path, stage, settings, inputs):
    calls = []
    store = Store(tmp_path)
    store.run('s', {'x': 1}, ['d'], make(calls))
    store.run(stage, settings, inputs, make(calls))
    assert len(calls) == 2


def test_a_lasting_failure_is_stored_and_a_transient_one_is_not(tmp_path):
    calls = []

    def fail(transient):
        def compute():
            calls.append(transient)
            raise AnnotationError(FailureKind.REFUSED, 'no', transient=transient)

        return compute

    for transient in (False, True):
        for _ in range(2):
            with pytest.raises(AnnotationError) as caught:
                Store(tmp_path).run('s', {'t': transient}, [], fail(transient))
            assert caught.value.kind is FailureKind.REFUSED
    assert calls == [False, True, True]


@pytest.mark.parametrize('keep', [0, 10, 200])
def test_a_truncated_file_is_made_again(tmp_path, keep):
    calls = []
    Store(tmp_path).run('s', {}, [], make(calls))
    (path,) = tmp_path.rglob('*.npz')
    path.write_bytes(path.read_bytes()[:keep])
    _, entry = Store(tmp_path).run('s', {}, [], make(calls))
    assert calls == [1, 1]
    assert entry.data == {'value': 1}


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / 'a'
    write_atomically(path, b'old')

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr('os.replace', killed)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b'new')
    assert path.read_bytes() == b'old'
    assert list(tmp_path.iterdir()) == [path]


def test_digests_do_not_depend_on_the_order_of_keys():
    assert digest_of({'a': 1, 'b': 2}) == digest_of({'b': 2, 'a': 1})
    assert digest_of('a', 'b') != digest_of('ab')
