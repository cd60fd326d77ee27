"""The action expert: time embedding, split mixing layer, blocks without a prefix."""

import math

import pytest
import torch
from torch.nn import functional as F

from spear_ros.networks.action_expert import ActionExpert, time_waves
from spear_ros.networks.config import ExpertConfig, Spear1Config

CONFIG = Spear1Config.named('spear1_debug')


@pytest.fixture
def expert(scramble):
    return scramble(ActionExpert(CONFIG.expert, CONFIG.language), 0.05)


def test_time_embedding_is_pi0s():
    pi0 = pytest.importorskip('transformers.models.pi0.modeling_pi0', reason='the oracle')
    from transformers import PI0Config

    oracle = pi0.PI0TimestepEmbeddings(PI0Config())
    tau = torch.rand(50)
    waves = time_waves(tau, ExpertConfig())
    assert waves.shape == (50, 1024)
    # float32 angles reach 1571 rad: the oracle itself is no better than this
    assert (waves - oracle(tau)).abs().max() < 2 * 2 * math.pi / 4e-3 * 2**-23


def test_time_embedding_has_log_spaced_periods_from_4_ms_to_4():
    period = torch.tensor([4e-3, 4.0], dtype=torch.float64)
    waves = time_waves(torch.tensor([0.0, 4e-3, 1.0], dtype=torch.float64), ExpertConfig())
    assert waves[0, :512].abs().max() == 0
    assert (waves[0, 512:] == 1).all()
    assert waves[1, 0].item() == pytest.approx(0, abs=1e-9)
    assert waves[2, 511].item() == pytest.approx(math.sin(2 * math.pi / period[1]))


@torch.no_grad()
def test_split_mixing_equals_the_concatenated_form(expert):
    actions, tau = torch.randn(3, 5, 8), torch.rand(3)
    tokens = expert.embed_actions(actions, expert.embed_time(tau))
    waves = time_waves(tau, CONFIG.expert).float()[:, None].expand(3, 5, -1)
    joined = expert.time_mix_in(torch.cat([expert.action_in(actions), waves], dim=-1))
    assert torch.allclose(tokens, expert.time_mix_out(F.silu(joined)), atol=1e-5)


@torch.no_grad()
def test_one_time_for_all_equals_a_time_per_token(expert):
    actions, tau = torch.randn(3, 5, 8), torch.rand(3)
    time = expert.embed_time(tau)
    each = time.expand(3, 5, -1)
    assert torch.equal(expert.embed_actions(actions, time), expert.embed_actions(actions, each))


@torch.no_grad()
def test_proprioception_does_not_look_at_actions_but_they_look_at_it(expert):
    proprio, actions, tau = torch.randn(2, 8), torch.randn(2, 5, 8), torch.rand(2)
    base = expert(proprio, actions, tau)
    assert base.shape == (2, 5, 8)
    assert not torch.allclose(expert(proprio + 1, actions, tau), base, atol=1e-4)
    moved = actions.clone()
    moved[:, 4] += 1
    assert not torch.allclose(expert(proprio, moved, tau)[:, 0], base[:, 0], atol=1e-4)


def test_fresh_head_is_not_silent():
    """A zero velocity has no direction: the cosine loss could not start from it."""
    expert = ActionExpert(CONFIG.expert, CONFIG.language)
    velocity = expert(torch.randn(8, 8), torch.randn(8, 5, 8), torch.rand(8))
    assert 0.3 < velocity.std() < 3
