"""The training pass is the networks' own pass: one group, many groups, computed again."""

import pytest
import torch

from spear_ros.core.errors import UserError
from spear_ros.networks.flow_matching import make_sample, sample_noise, sample_tau
from spear_ros.networks.spear1 import PrefixInputs, Spear1Config
from spear_ros.training.vla_module import VlaModule, choose_trained, freeze_unused

CONFIG = Spear1Config.named('spear1_debug')


def make_inputs(batch=2, count=1):
    generator = torch.Generator().manual_seed(0)
    inputs = PrefixInputs(
        external=torch.rand(batch, 3, 84, 112, generator=generator),
        wrist=torch.rand(batch, 3, 56, 56, generator=generator),
        tokens=torch.randint(0, 500, (batch, 16), generator=generator),
        token_mask=torch.arange(16)[None] < torch.tensor([[16], [9]]),
        wrist_mask=torch.tensor([True, False]),
    )
    actions = sample_noise(batch * count, CONFIG.flow, generator)
    noise = sample_noise(batch * count, CONFIG.flow, generator)
    tau = sample_tau(batch * count, CONFIG.flow, generator)
    sample = make_sample(actions, noise, tau, CONFIG.flow)
    return inputs, torch.randn(batch, 8, generator=generator), sample


@pytest.fixture(scope='module')
def module():
    torch.manual_seed(0)
    return VlaModule(CONFIG)


def test_one_flow_time_is_the_networks_own_forward_pass(module):
    inputs, proprio, sample = make_inputs()
    ours = module.velocity(inputs, proprio, sample.actions, sample.tau)
    theirs = module.model(inputs, proprio, sample.actions, sample.tau)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_flow_times_of_one_sample_do_not_see_each_other(module):
    inputs, proprio, sample = make_inputs(count=3)
    together = module.velocity(inputs, proprio, sample.actions, sample.tau).unflatten(0, (2, 3))
    for i in range(3):
        actions, tau = sample.actions.unflatten(0, (2, 3))[:, i], sample.tau.view(2, 3)[:, i]
        alone = module.model(inputs, proprio, actions, tau)
        torch.testing.assert_close(together[:, i], alone, atol=1e-5, rtol=1e-5)


def test_computing_activations_again_changes_no_gradient(module):
    inputs, proprio, sample = make_inputs(count=2)
    again = VlaModule(CONFIG, recompute=True)
    again.load_state_dict(module.state_dict())
    gradients = []
    for one in (module, again):
        choose_trained(one.model, ('expert', 'vlm.siglip', 'vlm.language', 'projector'))
        freeze_unused(one.model)
        one.zero_grad()
        one(inputs, proprio, sample)['loss'].backward()
        gradients.append({n: p.grad.clone() for n, p in one.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    assert not any('.moge.' in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-6, rtol=1e-5)


def test_chunks_sampled_by_full_passes_are_those_of_the_cached_ones(module):
    inputs, proprio, _ = make_inputs()
    noise = sample_noise(2, CONFIG.flow, torch.Generator().manual_seed(4))
    with torch.no_grad():
        full = module(inputs, proprio, noise=noise)
        cached = module.model.sample(inputs, proprio, noise)
    torch.testing.assert_close(full, cached, atol=1e-4, rtol=1e-4)


def test_an_unknown_part_is_refused(module):
    with pytest.raises(UserError, match='"vlm.siglips" is none of'.replace('.', '[.]')):
        choose_trained(module.model, ('vlm.siglips',))
