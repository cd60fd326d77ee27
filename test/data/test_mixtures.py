import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spear_ros.core.errors import UserError
from spear_ros.data.mixtures import (
    Mixture,
    MixturePart,
    MixtureSampler,
    StreamId,
    action_specs,
    load_mixture,
    mixture_hash,
    probabilities,
    without_missing,
)
from spear_ros.data.rows import load_rows
from spear_ros.processing.embodiments import default_action_specs


class FakeDataset:
    """Sizes and identity of a shard folder, without files."""

    def __init__(self, name, sizes, spec=None):
        self.sizes = np.array(sizes, np.int64)
        self.content_hash = f'hash-of-{name}-{sum(sizes)}'
        self.card = type('Card', (), {'spec': spec or default_action_specs()['widowx_bridge']})

    def __len__(self):
        return int(self.sizes.sum())


def mix(weight_is='probability', **weights):
    parts = tuple(MixturePart(dataset=n, weight=w, weight_from='ours') for n, w in weights.items())
    return Mixture(name='m', weight_is=weight_is, parts=parts)


DATA = {'a': FakeDataset('a', [5, 7, 3]), 'b': FakeDataset('b', [40] * 10)}


def draws(sampler, n):
    return list(islice(sampler, n))


def test_weights_are_probabilities_or_multiply_the_size():
    sizes = {'a': 100, 'b': 300}
    assert probabilities(mix(a=1.0, b=3.0), sizes) == {'a': 0.25, 'b': 0.75}
    multiplied = probabilities(mix('size_multiplier', a=1.0, b=1.0), sizes)
    assert multiplied == {'a': 0.25, 'b': 0.75}
    assert probabilities(mix('size_multiplier', a=3.0, b=1.0), sizes)['a'] == 0.5


def test_a_part_without_data_is_named_and_can_be_left_out():
    with pytest.raises(UserError, match='no converted data for b'):
        probabilities(mix(a=1.0, b=3.0), {'a': 100})
    reduced, gone = without_missing(mix(a=1.0, b=3.0), {'a'})
    assert gone == ['b']
    assert reduced.name == 'm-partial'
    assert 'Left out: b' in reduced.note
    assert probabilities(reduced, {'a': 100}) == {'a': 1.0}


def test_the_published_mixture_has_four_weights_of_the_paper_and_sums_to_a_hundred():
    mixture = load_mixture('oxe_spear_like_24')
    paper = {p.dataset: p.weight for p in mixture.parts if p.weight_from == 'paper'}
    assert paper == {'droid': 35.0, 'bridge_orig': 18.0, 'fractal20220817_data': 12.0, 'kuka': 4.0}
    assert len(mixture.parts) == 24
    assert sum(p.weight for p in mixture.parts) == pytest.approx(100)
    assert mixture.weight_is == 'probability'
    assert {p.dataset for p in mixture.parts} == set(load_rows())


@pytest.mark.parametrize('name', ['bridge', 'droid'])
def test_the_post_training_mixtures_name_known_rows(name):
    assert {p.dataset for p in load_mixture(name).parts} <= set(load_rows())


@pytest.mark.parametrize(
    ('text', 'what'),
    [
        ('name: x\nweight_is: percent\nparts: []', 'weight_is'),
        ('name: x\nweight_is: probability\nparts: []', 'parts is empty'),
        (
            'name: x\nweight_is: probability\nparts:\n'
            '  - {dataset: a, weight: 1.0, weight_from: ours}\n'
            '  - {dataset: a, weight: 2.0, weight_from: ours}',
            'a is listed twice',
        ),
        (
            'name: x\nweight_is: probability\nparts:\n'
            '  - {dataset: a, weight: -1.0, weight_from: ours}',
            'must be positive',
        ),
    ],
)
def test_bad_mixture_files_name_the_fault(tmp_path, text, what):
    (tmp_path / 'm.yaml').write_text(text)
    with pytest.raises(UserError, match=what):
        load_mixture(str(tmp_path / 'm.yaml'))


def test_draws_follow_the_probabilities():
    sampler = MixtureSampler(mix(a=1.0, b=3.0), DATA, seed=0)
    counts = Counter(a.dataset for a in draws(sampler, 8000))
    assert counts['a'] / 8000 == pytest.approx(0.25, abs=0.02)


def test_every_sample_is_drawn_once_in_an_epoch():
    sampler = MixtureSampler(mix(b=1.0), DATA, seed=0, open_shards=3)
    seen = draws(sampler, 400)
    assert len({(a.shard, a.index) for a in seen}) == 400
    assert sampler.epochs() == {'b': 0}
    again = draws(sampler, 400)
    assert sampler.epochs() == {'b': 1}
    assert len({(a.shard, a.index) for a in again}) == 400
    assert [(a.shard, a.index) for a in seen] != [(a.shard, a.index) for a in again]


@pytest.mark.parametrize('open_shards', [6, 60])
def test_large_shards_are_not_left_for_the_end_of_an_epoch(open_shards):
    data = {'c': FakeDataset('c', [20] * 50 + [200] * 5)}
    sampler = MixtureSampler(mix(c=1.0), data, seed=0, open_shards=open_shards)
    large = np.array([address.shard >= 50 for address in draws(sampler, 2000)])
    assert large.sum() == 1000
    if open_shards == 60:
        assert np.abs(large.reshape(10, 200).mean(1) - 0.5).max() < 0.12
    else:
        # Few are open at a time: the order of the shards decides, but an open one is not put off.
        assert large[-400:].mean() < 0.95


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=12),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_streams_share_a_data_set_without_overlap(sizes, world, workers, seed):
    data = {'a': FakeDataset('a', sizes)}
    if sum(sizes) < world * workers:
        return
    seen = []
    for rank in range(world):
        for worker in range(workers):
            stream = StreamId(rank=rank, world=world, worker=worker, workers=workers)
            sampler = MixtureSampler(mix(a=1.0), data, seed=seed, stream=stream)
            for address in sampler:
                if sampler.epochs()['a'] > 0:
                    break
                seen.append((address.shard, address.index))
    assert len(seen) == len(set(seen))
    assert len(seen) <= sum(sizes)
    # With enough shards a stream may be at its end while the others go on; nothing is lost.
    assert set(seen) == {(s, i) for s, n in enumerate(sizes) for i in range(n)}


@given(st.integers(0, 700), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_the_draw_after_a_saved_position_is_the_same(count, seed):
    mixture = mix(a=1.0, b=3.0)
    stream = StreamId(rank=1, world=2, worker=0, workers=2)
    first = MixtureSampler(mixture, DATA, seed=seed, stream=stream, open_shards=2)
    first.advance(count)
    state = json.loads(json.dumps(first.state_dict()))
    expected = draws(first, 50)
    second = MixtureSampler(mixture, DATA, seed=seed, stream=stream, open_shards=2)
    second.load_state_dict(state)
    assert draws(second, 50) == expected
    third = MixtureSampler(mixture, DATA, seed=seed, stream=stream, open_shards=2)
    third.advance(count)
    assert draws(third, 50) == expected


@pytest.mark.parametrize(
    ('change', 'field'),
    [
        ({'seed': 1}, 'seed'),
        ({'stream': StreamId(rank=1, world=2)}, 'stream'),
        ({'open_shards': 4}, 'open_shards'),
    ],
)
def test_a_position_of_another_run_names_the_field(change, field):
    options = {'seed': 0, 'open_shards': 8}
    state = MixtureSampler(mix(a=1.0), DATA, **options).state_dict()
    other = MixtureSampler(mix(a=1.0), DATA, **{**options, **change})
    with pytest.raises(UserError, match=f'{field} is'):
        other.load_state_dict(state)


def test_a_position_of_an_older_version_says_how_to_go_on():
    sampler = MixtureSampler(mix(a=1.0), DATA, seed=0)
    with pytest.raises(UserError, match=r'format is 1, .*start a new run with init=EXPORT'):
        sampler.load_state_dict({**sampler.state_dict(), 'format': 1})


def test_a_position_of_other_data_is_refused():
    state = MixtureSampler(mix(a=1.0), DATA, seed=0).state_dict()
    grown = {'a': FakeDataset('a', [5, 7, 4])}
    with pytest.raises(UserError, match='data is'):
        MixtureSampler(mix(a=1.0), grown, seed=0).load_state_dict(state)


def test_seeds_of_draws_differ_between_draws_and_streams():
    def seeds(rank):
        stream = StreamId(rank=rank, world=2)
        return {a.seed for a in draws(MixtureSampler(mix(b=1.0), DATA, seed=0, stream=stream), 500)}

    assert len(seeds(0)) == 500
    assert not seeds(0) & seeds(1)


def test_the_position_does_not_grow_with_the_number_of_draws():
    sampler = MixtureSampler(mix(a=1.0, b=3.0), DATA, seed=0)
    sampler.advance(100)
    early = len(json.dumps(sampler.state_dict()))
    sampler.advance(100_000)
    assert len(json.dumps(sampler.state_dict())) < early + 100


def test_more_streams_than_samples_are_refused():
    with pytest.raises(UserError, match='a has 15 samples for 16 streams'):
        MixtureSampler(mix(a=1.0), DATA, seed=0, stream=StreamId(rank=0, world=16))


def test_the_hash_ties_weights_and_data():
    hashes = {
        mixture_hash(mix(a=1.0, b=3.0), DATA),
        mixture_hash(mix(a=1.0, b=2.0), DATA),
        mixture_hash(mix('size_multiplier', a=1.0, b=3.0), DATA),
        mixture_hash(mix(a=1.0, b=3.0), {**DATA, 'a': FakeDataset('a', [5, 7, 4])}),
    }
    assert len(hashes) == 4


def test_one_embodiment_has_one_spec():
    specs = default_action_specs()
    droid = {'c': FakeDataset('c', [3], specs['franka_droid'])}
    assert set(action_specs(mix(a=1.0, c=1.0), {**DATA, **droid})) == set(specs)
    from dataclasses import replace

    odd = {'c': FakeDataset('c', [3], replace(specs['widowx_bridge'], relative_to='previous_step'))}
    with pytest.raises(UserError, match='relative_to = previous_step'):
        action_specs(mix(a=1.0, c=1.0), {**DATA, **odd})
