"""Pictures and an instruction in, a chunk in model units out; same request, same bytes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spear_ros.core.errors import UserError
from spear_ros.inference import engine as engine_module
from spear_ros.inference.chunk_buffers import ChunkShape
from spear_ros.inference.denoiser import OutOfMemoryError
from spear_ros.inference.engine import (
    MAX_RUNNERS,
    Engine,
    EngineRequest,
    EngineSettings,
    check_device,
    chunk_noise,
    noise_seed,
    text_buckets,
)
from spear_ros.networks.spear1 import PrefixInputs, Spear1, Spear1Config
from spear_ros.processing.images import ImageSize, fit_image
from spear_ros.processing.tokens import TextTokens

CONFIG = Spear1Config.named('spear1_debug')


def make_model():
    torch.manual_seed(0)
    return Spear1(CONFIG)


@pytest.fixture(scope='module')
def engine():
    return Engine(make_model(), 'cpu', EngineSettings())


def request(seed=0, length=16, **changes):
    rng = np.random.default_rng(seed)
    base = EngineRequest(
        external=rng.integers(0, 256, (480, 640, 3), dtype=np.uint8),
        wrist=rng.integers(0, 256, (480, 640, 3), dtype=np.uint8),
        text=TextTokens(rng.integers(3, 500, length), np.arange(length) < 7),
        proprio=rng.normal(size=8),
        noise=chunk_noise(CONFIG, seed, 0),
    )
    return replace(base, **changes)


def test_a_chunk_is_what_the_networks_make_of_the_fitted_pictures(engine):
    r = request()
    result = engine.compute(r)
    assert result.actions.shape == (CONFIG.flow.horizon, 8)
    assert result.actions.dtype == np.float64
    pictures = [
        fit_image(torch.from_numpy(i), ImageSize(*s))[None]
        for i, s in ((r.external, CONFIG.external_size), (r.wrist, CONFIG.wrist_size))
    ]
    prefix = PrefixInputs(
        external=pictures[0], wrist=pictures[1], tokens=torch.from_numpy(r.text.ids[:7])[None]
    )
    expected = (
        make_model()
        .eval()
        .sample(prefix, torch.tensor(r.proprio).float()[None], torch.from_numpy(r.noise)[None])
    )
    np.testing.assert_allclose(result.actions, expected[0], atol=1e-5)


def test_the_same_request_gives_the_same_bytes_whatever_came_between(engine):
    first = engine.compute(request()).actions.tobytes()
    engine.compute(request(1, length=32))
    engine.compute(request(2, wrist=None))
    assert engine.compute(request()).actions.tobytes() == first
    assert (
        Engine(make_model(), 'cpu', EngineSettings()).compute(request()).actions.tobytes() == first
    )


def test_a_missing_wrist_picture_drops_its_tokens(engine):
    without = engine.compute(request(wrist=None)).actions
    black = engine.compute(request(wrist=np.zeros((480, 640, 3), np.uint8))).actions
    assert np.isfinite(without).all()
    assert not np.allclose(without, black)


def test_committed_actions_come_back(engine):
    owed = chunk_noise(CONFIG, 5, 5)[:2].astype(float)
    actions = engine.compute(request(committed=owed)).actions
    np.testing.assert_allclose(actions[:2], owed, atol=1e-5)


def test_pictures_may_be_views_read_only_or_of_any_size(engine):
    image = request().external
    plain = engine.compute(request()).actions
    flipped_twice = image[:, ::-1][:, ::-1]
    frozen = image.copy()
    frozen.flags.writeable = False
    for same in (flipped_twice, frozen):
        assert np.array_equal(engine.compute(request(external=same)).actions, plain)
    assert np.isfinite(engine.compute(request(external=image[:100, :37])).actions).all()


def test_pictures_that_cannot_be_used_are_one_sentence(engine):
    with pytest.raises(UserError, match='image of 640 x 8'):
        engine.compute(request(external=np.zeros((8, 640, 3), np.uint8)))


def test_a_nan_in_the_proprioception_is_not_hidden(engine):
    actions = engine.compute(request(proprio=np.full(8, np.nan))).actions
    assert np.isnan(actions).any()


def test_steps_can_be_fewer_and_change_the_result():
    fast = Engine(make_model(), 'cpu', EngineSettings(steps=2))
    full = Engine(make_model(), 'cpu', EngineSettings())
    assert not np.allclose(fast.compute(request()).actions, full.compute(request()).actions)
    with pytest.raises(UserError, match='steps = -1'):
        EngineSettings(steps=-1)


def test_few_shapes_are_kept():
    engine = Engine(make_model(), 'cpu', EngineSettings(steps=1))
    small = np.zeros((60, 80, 3), np.uint8)
    for length in range(11, 11 + MAX_RUNNERS + 3):
        engine.compute(request(length=length, external=small, wrist=None))
    assert len(engine._runners) == MAX_RUNNERS
    assert ChunkShape(11, (60, 80), None) not in engine._runners


def test_warm_up_prepares_without_needing_inputs():
    engine = Engine(make_model(), 'cpu', EngineSettings())
    engine.warm_up()
    assert list(engine._runners) == [ChunkShape(16, (480, 640), (480, 640))]
    assert engine.warnings == []
    engine.close()
    with pytest.raises(AssertionError, match='closed'):
        engine.compute(request())


def test_buckets_end_at_the_models_budget():
    assert text_buckets(CONFIG) == (16, 32)
    assert text_buckets(replace(CONFIG, text_length=40)) == (16, 32, 40)
    assert text_buckets(replace(CONFIG, text_length=8)) == (8,)


@given(st.integers(0, 2**31), st.integers(0, 2**63 - 1))
@settings(deadline=None, max_examples=50)
def test_noise_hangs_on_seed_and_observation_time_alone(seed, t):
    a = chunk_noise(CONFIG, seed, t)
    torch.rand(3)  # the global generator has no say
    assert a.tobytes() == chunk_noise(CONFIG, seed, t).tobytes()
    assert a.tobytes() != chunk_noise(CONFIG, seed + 1, t).tobytes()
    assert 0 <= noise_seed(seed, t) < 2**63
    np.testing.assert_allclose(np.linalg.norm(a[:, 3:7], axis=1), 1, atol=1e-6)
    assert (a[:, 3] >= 0).all()


def test_seed_and_time_are_not_interchangeable():
    assert noise_seed(1, 0) != noise_seed(0, 1)
    assert noise_seed(1, 23) != noise_seed(12, 3)


def test_the_noise_of_a_seed_never_changes_between_releases():
    # A bag that was replayed last year must give the same chunks today.
    assert noise_seed(0, 1_700_000_000_000_000_000) == 5421896066012982759


@pytest.mark.parametrize(
    ('device', 'words'), [('gpu', 'unknown'), ('mps', 'not supported'), ('cuda:99', 'sees')]
)
def test_a_device_that_is_not_there_is_refused(device, words):
    with pytest.raises(UserError, match=words):
        check_device(device)


def test_auto_is_a_device_that_is_there():
    assert check_device('auto').type == ('cuda' if torch.cuda.is_available() else 'cpu')


def test_every_bucket_is_prepared_with_and_without_the_wrist():
    settings = EngineSettings(external_camera=(60, 80), wrist_camera=(48, 48))
    shapes = Engine(make_model(), 'cpu', settings).shapes(wrist=True)
    assert {s.text for s in shapes} == set(text_buckets(CONFIG))
    assert {s.wrist for s in shapes} == {(48, 48), None}
    assert {s.external for s in shapes} == {(60, 80)}


class BrokenCapture:
    """Stands for a GPU whose driver cannot record: fails as ``CapturedRunner`` does."""

    error = UserError('capturing the graph failed (not permitted); mend it.')

    def __init__(self, network, shape, pool):
        raise self.error


class NoMemory(BrokenCapture):
    error = OutOfMemoryError('out of memory while capturing; free the device.')


def engine_that_captures(monkeypatch, runner, **changes):
    monkeypatch.setattr(engine_module, 'CapturedRunner', runner)
    engine = Engine(make_model(), 'cpu', EngineSettings(**changes))
    engine._captures = True  # as on a GPU
    return engine


def test_a_failed_capture_refuses_to_activate_unless_the_slow_way_is_allowed(monkeypatch):
    with pytest.raises(UserError, match='capturing the graph failed'):
        engine_that_captures(monkeypatch, BrokenCapture).warm_up()
    engine = engine_that_captures(monkeypatch, BrokenCapture, allow_eager=True)
    engine.warm_up()
    assert not engine.captures
    assert len(engine.warnings) == 1
    assert engine.warnings[0].startswith('running without graphs, several times slower: capturing')
    assert engine.compute(request()).times.denoise_ms > 0


def test_exhausted_memory_refuses_even_where_the_slow_way_is_allowed(monkeypatch):
    engine = engine_that_captures(monkeypatch, NoMemory, allow_eager=True)
    with pytest.raises(UserError, match='out of memory'):
        engine.warm_up()


def test_kernels_that_cannot_run_here_are_refused_by_name():
    with pytest.raises(UserError, match=r'kernels = triton cannot run: .*; choose auto or torch'):
        Engine(make_model(), 'cpu', EngineSettings(kernels='triton'))


def test_a_model_given_to_be_consumed_computes_the_same():
    eaten = Engine(make_model(), 'cpu', EngineSettings(), consume=True)
    kept = Engine(make_model(), 'cpu', EngineSettings())
    assert np.array_equal(eaten.compute(request()).actions, kept.compute(request()).actions)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_graphs_and_lines_agree_on_the_gpu_and_with_the_cpu():
    cpu = Engine(make_model(), 'cpu', EngineSettings()).compute(request()).actions
    eager = Engine(make_model(), 'cuda', EngineSettings(capture_graph=False))
    graphs = Engine(make_model(), 'cuda', EngineSettings())
    graphs.warm_up()
    a, b = eager.compute(request()).actions, graphs.compute(request()).actions
    np.testing.assert_allclose(a, b, atol=1e-6)
    np.testing.assert_allclose(a, cpu, atol=1e-2)  # TF32 and other kernels
    graphs.close()
