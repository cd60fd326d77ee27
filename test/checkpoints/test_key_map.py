"""One table maps names both ways, and what fits no rule is named with its closest relative."""

import pytest
import torch

from spear_ros.checkpoints.key_map import (
    Rule,
    StateDictSource,
    compare,
    expand,
    our_shape,
    to_ours,
    to_published,
)
from spear_ros.core.errors import UserError

RULES = [
    Rule('embed', ('model.embed_tokens.weight',)),
    Rule('blocks.{i}.qkv', ('layers.{i}.q', 'layers.{i}.k', 'layers.{i}.v'), (4, 1, 1), layers=3),
    Rule('blocks.{i}.out', ('layers.{i}.o',), layers=3),
    Rule('token', ('cls',), lead=2),
]
TABLE = expand(RULES)
NEEDED = {'embed': (8, 2), 'token': (2,)} | {
    f'blocks.{i}.{n}': s for i in range(3) for n, s in (('qkv', (6, 2)), ('out', (2, 2)))
}


def published():
    generator = torch.Generator().manual_seed(0)
    shapes = {'model.embed_tokens.weight': (8, 2), 'cls': (1, 1, 2)}
    for i in range(3):
        shapes |= {f'layers.{i}.{n}': (r, 2) for n, r in (('q', 4), ('k', 1), ('v', 1), ('o', 2))}
    return {n: torch.randn(s, generator=generator) for n, s in shapes.items()}


def test_both_directions_are_inverse():
    state = published()
    source = StateDictSource(state)
    assert compare(TABLE, source, NEEDED).fits
    ours = {name: to_ours(TABLE[name], source) for name in NEEDED}
    assert {n: tuple(t.shape) for n, t in ours.items()} == NEEDED
    assert {n: our_shape(TABLE[n], source) for n in NEEDED} == NEEDED
    torch.testing.assert_close(ours['blocks.2.qkv'][4:5], state['layers.2.k'])
    back = to_published(TABLE, ours)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[n], state[n]) for n in state)


def test_a_renamed_tensor_is_reported_on_both_sides_with_the_closest_name():
    state = published()
    state['layers.1.out'] = state.pop('layers.1.o')
    report = compare(TABLE, StateDictSource(state), NEEDED)
    assert report.missing == ('layers.1.o',)
    assert report.unexpected == ('layers.1.out',)
    assert report.closest == {'layers.1.o': 'layers.1.out', 'layers.1.out': 'layers.1.o'}
    with pytest.raises(
        UserError, match=r'1 missing \(first "layers.1.o", closest is "layers.1.out"'
    ):
        report.require_fit('weights', 'mend it.')
    assert len(report.lines()) == 2


def test_a_wrong_shape_says_both_shapes():
    state = published()
    state['layers.0.k'] = torch.zeros(2, 2)
    report = compare(TABLE, StateDictSource(state), NEEDED)
    assert report.misshapen == (
        'layers.0.q + layers.0.k + layers.0.v has (7, 2), the config needs (6, 2)',
    )
    with pytest.raises(UserError, match=r'1 of wrong shape .*\(7, 2\)'):
        report.require_fit('weights', 'mend it.')


def test_known_and_unused_tensors_are_listed_but_do_not_hinder():
    state = published() | {'head.a': torch.ones(1), 'head.b': torch.ones(1)}
    report = compare(TABLE, StateDictSource(state), NEEDED, ignorable=(r'head\..*',))
    assert report.fits
    assert report.ignored == ('head.a', 'head.b')
    assert 'not used: 2 tensors' in report.lines()[0]
    assert not compare(TABLE, StateDictSource(state), NEEDED).fits


def test_a_leading_axis_that_is_not_one_is_a_wrong_shape():
    state = published() | {'cls': torch.zeros(3, 1, 2)}
    assert 'cls has (3, 1, 2)' in compare(TABLE, StateDictSource(state), NEEDED).misshapen[0]
