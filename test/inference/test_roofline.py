"""Operations and bytes of one chunk: the model's true sizes, and the published table again."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from spear_ros.core.errors import UserError
from spear_ros.inference.roofline import (
    CARDS,
    DENOISE,
    MOGE,
    PREFILL,
    SIGLIP,
    STAGES,
    Card,
    Work,
    Workload,
    chunk_floor_ms,
    cost_table,
    find_card,
    floors_ms,
    stage_work,
)
from spear_ros.networks.flow_matching import sample_noise
from spear_ros.networks.spear1 import PrefixInputs, Spear1, Spear1Config

FULL = Spear1Config.named('spear1')
LOAD = Workload(config=FULL)


def card(part):
    return next(c for c in CARDS if part in c.name)


@pytest.mark.parametrize(('name', 'expected'), [('H200', 4.08), ('RTX 4090', 18.82)])
def test_the_floor_of_a_chunk_is_the_one_worked_out_by_hand(name, expected):
    assert chunk_floor_ms(LOAD, card(name)) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ('stage', 'gflop', 'gb'),
    [(SIGLIP, 313.2, 0.83), (MOGE, 236.9, 0.62), (PREFILL, 1505.1, 3.75), (DENOISE, 41.3, 6.36)],
)
def test_each_stage_is_the_one_worked_out_by_hand(stage, gflop, gb):
    work = stage_work(LOAD)[stage]
    assert work.bytes == pytest.approx(gb * 1e9, rel=0.01)
    # The table counts proprioception in every step, we once: 5 tokens instead of 6.
    if stage == DENOISE:
        assert 5 / 6 * gflop * 1e9 < work.flop < gflop * 1e9
    else:
        assert work.flop == pytest.approx(gflop * 1e9, rel=0.002)


@pytest.mark.parametrize(('steps', 'expected'), [(5, 3.34), (4, 3.19), (2, 2.90)])
def test_fewer_steps_cost_what_the_table_says(steps, expected):
    load = Workload(config=FULL, steps=steps)
    assert chunk_floor_ms(load, card('H200')) == pytest.approx(expected, rel=0.01)


def test_fp8_at_twice_the_rate_halves_everything():
    h200 = card('H200')
    double = replace(h200, tflop_s=2 * h200.tflop_s)
    load = Workload(config=FULL, weight_bytes=1)
    assert chunk_floor_ms(load, double) == pytest.approx(2.05, rel=0.02)


@pytest.mark.parametrize('name', Spear1Config.names())
def test_the_weights_counted_are_the_weights_of_the_model(name):
    config = Spear1Config.named(name)
    with torch.device('meta'):
        model = Spear1(config)

    def count(module, ends):
        named = module.named_parameters()
        return sum(p.numel() for n, p in named if p.ndim > 1 and not n.endswith(ends))

    work = stage_work(Workload(config=config, text=1, steps=1))
    vlm, language, skipped = model.vlm, config.language, ('table', 'embedding.weight')
    for stage, encoder, projector in (
        (SIGLIP, vlm.siglip, vlm.siglip_projector),
        (MOGE, vlm.moge, vlm.moge_projector),
    ):
        weights = count(encoder, skipped) + projector.weight.numel()
        assert work[stage].bytes == 2 * weights
    # the last layer gives keys and values alone
    last = vlm.language.blocks[-1]
    unused = count(last, ()) - 2 * language.kv_heads * language.head_dim * language.width
    assert work[PREFILL].bytes == 2 * (count(vlm.language, skipped) - unused + language.width)
    # the time half of the mixing layer is a table, proprioception's embedding is not in a step
    expert = count(model.expert, ('proprio_in.weight',)) - config.expert.width**2
    keys = config.external_tokens + config.wrist_tokens + 1 + config.suffix_tokens
    kv = 2 * language.layers * language.kv_heads * language.head_dim * keys
    assert work[DENOISE].bytes == 2 * (expert + kv)


def counted(function):
    """Operations as torch counts them; the fused attention of CPUs is unknown to its counter."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        function()
    return counter.get_total_flops()


def test_counted_operations_are_those_that_torch_counts():
    config = Spear1Config.named('spear1_debug')
    vlm = Spear1(config).eval().vlm
    pixels = torch.zeros(1, 3, *config.external_size)
    work = stage_work(Workload(config=config, cameras=1))
    assert counted(lambda: vlm.siglip_projector(vlm.siglip(pixels))) == work[SIGLIP].flop
    assert counted(lambda: vlm.moge_projector(vlm.moge(pixels))) == work[MOGE].flop


def test_no_operation_of_a_chunk_is_forgotten():
    config = Spear1Config.named('spear1_debug')
    model = Spear1(config).eval()
    inputs = PrefixInputs(
        external=torch.zeros(1, 3, *config.external_size),
        wrist=torch.zeros(1, 3, *config.wrist_size),
        tokens=torch.ones(1, 32, dtype=torch.int64),
    )
    noise = sample_noise(1, config.flow)
    total = counted(lambda: model.sample(inputs, torch.zeros(1, 8), noise))
    floor = sum(work.flop for work in stage_work(Workload(config=config)).values())
    assert floor == pytest.approx(total, rel=0.01)


def test_a_second_camera_costs_vision_and_prefill_and_hardly_a_step():
    one, two = (stage_work(Workload(config=FULL, cameras=n)) for n in (1, 2))
    for stage in (SIGLIP, MOGE, PREFILL):
        assert two[stage].flop > 1.15 * one[stage].flop
        assert two[stage].bytes == one[stage].bytes
    assert two[DENOISE].bytes < 1.01 * one[DENOISE].bytes


def test_a_stage_takes_the_longer_of_products_and_bytes():
    toy = Card(name='toy', tflop_s=1.0, gb_s=1.0, source='made up')
    assert toy.floor_ms(Work(flop=5e9, bytes=1e6)) == pytest.approx(5.0)
    assert toy.floor_ms(Work(flop=1e9, bytes=7e6)) == pytest.approx(7.0)
    floors = floors_ms(LOAD, toy)
    assert tuple(floors) == STAGES
    assert sum(floors.values()) == pytest.approx(chunk_floor_ms(LOAD, toy))


def test_the_cost_table_grows_with_what_is_asked():
    rows = dict(cost_table(FULL, card('H200')))
    assert rows['1 camera'] < rows['2 cameras'] == rows['10 steps'] == rows['horizon 5']
    assert rows['5 steps'] < rows['10 steps'] < rows['20 steps']
    assert rows['16 text tokens'] < rows['64 text tokens']
    assert rows['horizon 5'] < rows['horizon 50']


@pytest.mark.parametrize(
    ('driver', 'expected'),
    [
        ('NVIDIA H200', 'H200 SXM (measured rates)'),
        ('NVIDIA H100 80GB HBM3', 'H100 SXM (measured rates)'),
        ('NVIDIA GeForce RTX 4090', 'RTX 4090'),
        ('NVIDIA GeForce RTX 4090 Laptop GPU', None),
        ('NVIDIA H100 PCIe', None),
        ('Some Other Card', None),
    ],
)
def test_a_card_is_found_by_the_drivers_name_and_never_guessed(driver, expected):
    found = find_card(driver)
    assert (found and found.name) == expected


def test_every_card_names_its_source():
    assert all(len(c.source) > 15 for c in CARDS)


@pytest.mark.parametrize('wrong', [{'cameras': 3}, {'text': 0}, {'steps': -1}, {'weight_bytes': 3}])
def test_a_workload_that_cannot_be_is_refused(wrong):
    with pytest.raises(UserError):
        Workload(config=FULL, **wrong)
