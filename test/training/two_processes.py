"""One of the processes of test_distributed: ``python two_processes.py MODE OUT SHARDS...``."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from spear_ros.core.errors import UserError
from spear_ros.networks.flow_matching import make_sample, sample_noise, sample_tau
from spear_ros.networks.spear1 import PrefixInputs, Spear1Config
from spear_ros.training.distributed import Place, barrier, joined, shard
from spear_ros.training.ema import Ema
from spear_ros.training.optimizer import gradient_norm
from spear_ros.training.recipes import change, find_recipe
from spear_ros.training.trainer import Trainer
from spear_ros.training.vla_module import VlaModule, choose_trained, freeze_unused
from spear_ros.training.vla_task import VlaTask
from spear_ros.training.weights import averaged_weights, fill, full_state

PARTS = ('expert', 'vlm.siglip', 'vlm.language', 'projector')


def make_inputs(rows):
    config = Spear1Config.named('spear1_debug')
    generator = torch.Generator().manual_seed(0)
    external = torch.rand(4, 3, 84, 112, generator=generator)
    tokens = torch.randint(0, 500, (4, 16), generator=generator)
    proprio = torch.randn(4, 8, generator=generator)
    actions = sample_noise(4, config.flow, generator)
    noise = sample_noise(4, config.flow, generator)
    tau = sample_tau(4, config.flow, generator)
    sample = make_sample(actions[rows], noise[rows], tau[rows], config.flow)
    return PrefixInputs(external=external[rows], tokens=tokens[rows]), proprio[rows], sample


def make_module(recompute):
    with torch.device('meta'):
        module = VlaModule(Spear1Config.named('spear1_debug'), recompute)
    choose_trained(module.model, PARTS)
    freeze_unused(module.model)
    return module


def initial():
    torch.manual_seed(0)
    return VlaModule(Spear1Config.named('spear1_debug')).state_dict()


def gradients(place, recompute=False, reshard=False, replicas=1):
    """Gradients of one batch of four, whole, by name."""
    settings = [f'parallel.reshard={str(reshard).lower()}', f'parallel.replicas={replicas}']
    config = change(find_recipe('vla', 'spear1_debug'), settings)
    module = make_module(recompute)
    vlm = module.model.vlm
    blocks = [*vlm.siglip.blocks, *vlm.moge.blocks, *vlm.language.blocks]
    shard(module, [*blocks, *module.model.expert.blocks], place, config)
    fill(module, initial, place)
    share = 4 // place.world
    rows = slice(share * place.rank, share * (place.rank + 1))
    module(*make_inputs(rows))['loss'].backward()
    found = {}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            whole = getattr(parameter.grad, 'full_tensor', lambda g=parameter.grad: g)()
            found[name] = whole.clone()
    found['norm'] = gradient_norm(module.parameters()).clone()
    return module, found


def compare(place):
    """The sharded passes have the gradients of one process."""
    alone = gradients(Place())[1]
    for recompute, reshard in ((False, False), (True, True)):
        module, together = gradients(place, recompute, reshard)
        assert alone.keys() == together.keys(), alone.keys() ^ together.keys()
        for name, gradient in alone.items():
            torch.testing.assert_close(together[name], gradient, atol=2e-6, rtol=2e-4, msg=name)
        moge = [p for n, p in module.named_parameters() if '.moge.' in n]
        assert moge
        assert not any(hasattr(p, 'to_local') for p in moge)
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    ema = Ema(trained, 0.9)
    for shadow in ema.shadow.values():
        shadow.mul_(0.5)
    whole = full_state(module, ema, place)
    with averaged_weights(module, ema):
        swapped = full_state(module, Ema({}, 0.0), place)
    if place.first:
        start = initial()
        for name in start:
            factor = 0.5 if name in trained else 1.0
            assert torch.equal(whole[name], factor * start[name]), name
            assert torch.equal(swapped[name], whole[name]), name


def compare_replicas(place):
    """Two groups of shards (HSDP) have the gradients of one process, and lie on a 2 x 2 mesh."""
    alone = gradients(Place())[1]
    module, together = gradients(place, replicas=2)
    assert alone.keys() == together.keys(), alone.keys() ^ together.keys()
    for name, gradient in alone.items():
        torch.testing.assert_close(together[name], gradient, atol=2e-6, rtol=2e-4, msg=name)
    trained = next(p for p in module.parameters() if p.requires_grad)
    assert trained.device_mesh.mesh_dim_names == ('replicate', 'shard')
    assert tuple(trained.device_mesh.shape) == (2, 2)


def train(place, out, shards, replicas=1):
    """Straight to step 4; and with a stop after step 2: the same bits."""
    settings = [f'data.shards=[{",".join(shards)}]', 'batch_size=4', 'saving.every_steps=2',
                'steps=4', f'parallel.replicas={replicas}']  # fmt: skip
    config = change(find_recipe('vla', 'spear1_debug'), settings)
    Trainer(VlaTask(config, out / 'a'), out / 'a', place).run()

    class Stopped(VlaTask):
        calls = 0

        def inputs(self, batch, device, seed):
            self.calls += 1
            if self.calls == 2 and place.rank == 1:
                os.kill(os.getpid(), 15)  # only one of them is asked to stop
            return super().inputs(batch, device, seed)

    outcome = Trainer(Stopped(config, out / 'b'), out / 'b', place).run()
    assert (outcome.finished, outcome.step) == (False, 2), outcome
    assert Trainer(VlaTask(config, out / 'b'), out / 'b', place).run().finished
    if place.first:
        a, b = ((out / n / 'export' / 'model.safetensors').read_bytes() for n in 'ab')
        assert a == b


def lose_a_peer(place, out, shards):
    """Process 1 dies in step 2; process 0 says so in one sentence."""
    settings = [f'data.shards=[{",".join(shards)}]', 'batch_size=4', 'saving.every_steps=1',
                'steps=5']  # fmt: skip
    config = change(find_recipe('vla', 'spear1_debug'), settings)

    class Dying(VlaTask):
        calls = 0

        def inputs(self, batch, device, seed):
            self.calls += 1
            if self.calls == 2 and place.rank == 1:
                os._exit(9)
            return super().inputs(batch, device, seed)

    try:
        Trainer(Dying(config, out / 'c'), out / 'c', place).run()
    except UserError as error:
        sys.stdout.write(f'{error}\n')
        sys.stdout.flush()
        os._exit(0)
    os._exit(3)


def main():
    mode, out, shards = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    torch.set_num_threads(1)
    config = change(find_recipe('vla', 'spear1_debug'), ['parallel.timeout_s=60.0'])
    with joined(config) as place:
        if mode in ('all', 'replicas'):
            if mode == 'all':
                compare(place)
                train(place, out, shards)
            else:
                compare_replicas(place)
                train(place, out, shards, replicas=2)
            barrier(place)
            dist.barrier()
            # gloo now and then aborts while it is torn down.
            os._exit(0)
        lose_a_peer(place, out, shards)


if __name__ == '__main__':
    main()
