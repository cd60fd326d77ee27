"""What ``spear benchmark`` times: the stages add up to the model's own chunk; empty stays empty."""

import json
from dataclasses import replace

import pytest
import torch

from spear_ros.core.errors import UserError
from spear_ros.inference import chunk_bench
from spear_ros.inference.chunk_bench import measure, request_of
from spear_ros.inference.chunk_report import Plan, Report, Row, table
from spear_ros.inference.engine import Engine, EngineSettings
from spear_ros.inference.roofline import CARDS, MOGE, SIGLIP, STAGES, Card, Work, Workload
from spear_ros.inference.stages import COPY_IN, COPY_OUT, PREPROCESS, StageBench, random_inputs
from spear_ros.inference.timing import Timing
from spear_ros.networks.spear1 import Spear1, Spear1Config

CONFIG = Spear1Config.named('spear1_debug')
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    model = Spear1(CONFIG).eval().requires_grad_(False)
    model.bake()
    return model


@pytest.fixture
def load():
    return Workload(config=CONFIG, text=16, steps=2, weight_bytes=4)


@pytest.mark.parametrize('cameras', [1, 2])
def test_the_stages_one_after_the_other_compute_the_chunk(model, load, cameras):
    load = replace(load, cameras=cameras)
    inputs, others = random_inputs(load, (64, 80), 1), random_inputs(load, (64, 80), 2)
    bench = StageBench(model, load, inputs)
    stages = bench.stages()
    assert tuple(stages) == (COPY_IN, PREPROCESS, *STAGES, COPY_OUT)
    for stage in stages.values():
        stage()
    settings = EngineSettings(steps=load.steps)
    expected = Engine(model, 'cpu', settings).compute(request_of(inputs)).actions
    torch.testing.assert_close(bench.chunk[0].double(), torch.tensor(expected), rtol=0, atol=2e-4)
    assert not torch.allclose(StageBench(model, load, others).chunk, bench.chunk)


def test_inputs_of_a_seed_are_always_the_same(load):
    a, b, c = (random_inputs(load, (64, 80), seed) for seed in (3, 3, 4))
    assert (a.pictures[0] == b.pictures[0]).all()
    assert (a.noise == b.noise).all()
    assert (a.pictures[0] != c.pictures[0]).any()


@pytest.fixture(scope='module')
def report(model):
    load = Workload(config=CONFIG, text=16, steps=1, weight_bytes=4)
    plan = Plan(
        name='debug',
        load=load,
        camera=(64, 80),
        buckets=True,
        cost_steps=(1, 2),
        cost_horizons=(5, 50),
        seconds=0.0,
        least_runs=1,
    )
    return measure(model, plan)


def test_every_stage_has_a_floor_and_copies_of_a_cpu_stay_empty(report):
    rows = {row.name: row for row in report.stages}
    for stage in STAGES:
        assert rows[stage].timing.p50 > 0
        assert rows[stage].share > 0
    for copy in (COPY_IN, COPY_OUT):
        assert rows[copy].timing is None
        assert 'CPU' in rows[copy].note
    names = [row.name for row in report.engine]
    assert names[:6] == ['upload', 'preprocess', 'vision', 'prefill', 'denoise', 'download']
    assert names[6:] == ['all on the device', 'host to host']
    engine = {row.name: row for row in report.engine}
    assert engine['upload'].timing is engine['download'].timing is None
    assert engine['vision'].floor_ms == pytest.approx(rows[SIGLIP].floor_ms + rows[MOGE].floor_ms)
    assert engine['host to host'].share > 0
    whole, call = (engine[n].timing.p50 for n in ('all on the device', 'host to host'))
    assert report.host_share_ms == pytest.approx(call - whole)


def test_costs_vary_cameras_steps_and_horizon_and_buckets_the_text(report):
    names = {row.name for row in report.costs}
    assert {'1 camera', '2 cameras', '1 step', '2 steps', 'horizon 5', 'horizon 50'} <= names
    assert [row.name for row in report.buckets] == ['16 text tokens', '32 text tokens']


def test_the_json_line_holds_hardware_versions_and_the_floors_of_other_cards(report):
    found = json.loads(json.dumps(report.as_dict()))
    assert found['hardware']['versions']['torch'] == torch.__version__
    assert set(found['floor_of_other_cards_ms']) == {card.name for card in CARDS}
    assert found['stages'][0]['name'] == COPY_IN
    assert 'ms' not in found['stages'][0]
    assert found['roofline']['tflop_s'] > 0


def test_the_table_shows_a_number_or_nothing(report):
    lines = table(report)
    copy = next(line for line in lines if line.startswith(COPY_IN))
    assert not any(ch.isdigit() for ch in copy)
    assert any(line.startswith('host to host') and '%' in line for line in lines)


def test_a_part_that_fails_costs_no_other_and_is_named(model, load, monkeypatch):
    def out_of_memory(*_args):
        raise torch.OutOfMemoryError('CUDA out of memory. Tried 2 GiB')

    monkeypatch.setattr(chunk_bench, 'StageBench', out_of_memory)
    plan = Plan(name='x', load=load, camera=(64, 80), buckets=True, seconds=0.0, least_runs=1)
    seen = []
    found = measure(model, plan, lambda report: seen.append(dict(report.missing)))
    assert list(seen[0]) == ['stages', 'buckets']  # what has not run stands there with that reason
    assert 'out of memory' in found.missing['stages']
    assert len(found.buckets) == 2
    assert any(line.startswith('not measured: stages: OutOfMemoryError') for line in table(found))


def test_a_row_that_fails_says_why_and_the_others_are_measured(model, load, monkeypatch):
    def refuse_one(model, plan, load):
        if load.cameras == 1:
            raise UserError('out of memory while capturing; free the device.')
        return whole(model, plan, load)

    whole = chunk_bench._engine
    monkeypatch.setattr(chunk_bench, '_engine', refuse_one)
    plan = Plan(name='x', load=load, camera=(64, 80), cost_steps=(1,), seconds=0.0, least_runs=1)
    rows = {row.name: row for row in measure(model, plan).costs}
    assert rows['1 camera'].timing is None
    assert 'free the device' in rows['1 camera'].note
    assert rows['1 step'].timing.p50 > 0


def test_share_is_floor_over_median():
    timing = Timing(5, 4.0, 5.0, 3.0, 5.0)
    row = Row(name='x', timing=timing, work=Work(1.0, 1.0), floor_ms=1.0)
    assert row.share == pytest.approx(0.25)
    assert Row(name='x', timing=timing).share is None
    assert Row(name='x', timing=None, floor_ms=1.0).share is None


def test_a_report_without_measurements_prints_empty_cells(load):
    card = Card(name='toy', tflop_s=1.0, gb_s=1.0, source='made up for a test')
    blank = Report(
        plan=Plan(name='none', load=load),
        parameters=1,
        dtype='float32',
        hardware={'processor': 'none', 'threads': 1},
        card=card,
        card_figures={'model_gemm_tflop_s': 0.0},
    )
    assert any('none' in line for line in table(blank))
    assert blank.as_dict()['stages'] == []
    assert blank.host_share_ms is None


@pytest.mark.gpu
@needs_cuda
def test_every_stage_is_captured_on_a_gpu(model, load):
    import copy

    there = copy.deepcopy(model).cuda()
    found = measure(there, Plan(name='debug', load=load, camera=(64, 80), seconds=0.05))
    assert [row.note for row in found.stages] == [''] * len(found.stages)
    assert all(row.timing.p50 > 0 for row in found.stages)
    assert found.clocks
