"""Strict configuration: every mistake is one sentence that names the key and the mend."""

from dataclasses import dataclass
from typing import Literal

import pytest

from spear_ros.core.config import from_mapping, load_yaml, to_mapping
from spear_ros.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate_hz: float
    kind: Literal['a', 'b'] = 'a'


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    inner: Inner
    box: tuple[float, float, float] = (0.0, 0.0, 0.0)
    topics: dict[str, str | None] | None = None
    count: int = 1

    def __post_init__(self):
        if self.count < 0:
            raise UserError(f'count = {self.count} must not be negative.')


GOOD = {'name': 'x', 'inner': {'rate_hz': 5, 'kind': 'b'}, 'box': [1, 2, 3], 'topics': {'w': None}}


def test_a_good_mapping_becomes_typed_values_and_back():
    value = from_mapping(Outer, GOOD, 'here')
    assert value.inner.rate_hz == 5.0
    assert isinstance(value.inner.rate_hz, float)
    assert value.box == (1.0, 2.0, 3.0)
    assert from_mapping(Outer, to_mapping(value), 'again') == value


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'nmae': 'x'}, ['nmae', 'did you mean "name"']),
        ({'inner': {'rate_hz': 'fast'}}, ['inner: rate_hz', "'fast'", 'float']),
        ({'inner': {}}, ['inner', 'rate_hz', 'missing']),
        ({'inner': {'rate_hz': 1.0, 'kind': 'c'}}, ['kind', "'c'", "'a', 'b'"]),
        ({'inner': 3}, ['inner', 'mapping', '3']),
        ({'box': [1, 2]}, ['box', 'expected 3']),
        ({'box': 'no'}, ['box', 'list']),
        ({'count': True}, ['count', 'int']),
        ({'count': -1}, ['here', 'count = -1']),
        ({'inner': {'rate_hz': float('nan')}}, ['rate_hz', 'finite']),
        ({'topics': {'w': 3}}, ['topics', 'w', 'str']),
    ],
)
def test_every_mistake_names_the_key_and_the_value(change, words):
    with pytest.raises(UserError) as caught:
        from_mapping(Outer, {**GOOD, **change}, 'here')
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ('content', 'word'), [(b'a: [1', 'YAML'), (b'\xff\xfe', 'YAML'), (b'- 1', 'mapping')]
)
def test_a_broken_file_is_one_sentence(tmp_path, content, word):
    path = tmp_path / 'c.yaml'
    path.write_bytes(content)
    with pytest.raises(UserError, match=word) as caught:
        load_yaml(path, Outer)
    assert str(path) in str(caught.value)
    assert '\n' not in str(caught.value)


def test_a_missing_or_oversized_file_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match='check the path'):
        load_yaml(tmp_path / 'none.yaml', Outer)
    big = tmp_path / 'big.yaml'
    big.write_bytes(b'#' * (2 << 20))
    with pytest.raises(UserError, match='too large'):
        load_yaml(big, Outer)
