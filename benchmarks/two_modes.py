"""Does the flow keep the shares of two modes? The action expert alone learns two poses.

    python benchmarks/two_modes.py [--losses mse cos+geo] [--steps 1500] [--seeds 3]

The target is a mixture: with probability 0.7 a chunk around pose A, else around pose B (spread 0.02
in every component, each pose turned 40 degrees, about another axis). A regression to the mean, a
collapsed mode or a wrong path on S^3 would show in the shares, or in samples near neither pose.
Prints one JSON object in the last line.
"""

import argparse
import json
import platform
import time

import torch

from spear_ros.networks import flow_matching as fm
from spear_ros.networks import s3
from spear_ros.networks.action_expert import ActionExpert
from spear_ros.networks.config import ExpertConfig, FlowConfig, GemmaConfig

SHARE_A = 0.7
SPREAD = 0.02
POSE_A = (0.4, -0.2, 0.3, 0.9397, 0.3420, 0.0, 0.0, 1.0)  # 40 degrees about x
POSE_B = (-0.4, 0.2, 0.1, 0.9397, 0.0, 0.0, -0.3420, -1.0)  # -40 degrees about z


def draw_targets(count, horizon, generator):
    """Chunks (count, horizon, 8) of one mode each, and which."""
    is_a = torch.rand(count, 1, 1, generator=generator) < SHARE_A
    pose = torch.where(is_a, torch.tensor(POSE_A), torch.tensor(POSE_B))
    actions = pose + SPREAD * torch.randn(count, horizon, 8, generator=generator)
    actions[..., fm.QUATERNION] = s3.canonical(s3.normalize(actions[..., fm.QUATERNION]))
    return actions


def make_expert(width=64, layers=2):
    language = GemmaConfig(
        vocab_size=1, width=width, layers=layers, heads=2, kv_heads=1, head_dim=32, mlp_width=1
    )
    return ActionExpert(ExpertConfig(width=width, mlp_width=2 * width), language)


def train(config, steps, batch, seed=0):
    """Train an expert on the mixture; return it with its averaged weights."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    expert = make_expert()
    average = {n: p.detach().clone() for n, p in expert.named_parameters()}
    optimizer = torch.optim.AdamW(expert.parameters(), lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    proprio = torch.zeros(batch, 8)
    for step in range(steps):
        actions = draw_targets(batch, config.horizon, generator)
        noise = fm.sample_noise(batch, config, generator)
        sample = fm.make_sample(actions, noise, fm.sample_tau(batch, config, generator), config)
        loss = fm.flow_loss(expert(proprio, sample.actions, sample.tau), sample, config)['loss']
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(expert.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        decay = min(0.99, step / (step + 10))
        for name, parameter in expert.named_parameters():
            average[name].lerp_(parameter.detach(), 1 - decay)
    expert.load_state_dict(average)
    return expert.eval()


@torch.no_grad()
def sample_shares(expert, config, count, seed=1):
    """Share of samples near A, near B (by rotation and by translation) and near neither."""
    generator = torch.Generator().manual_seed(seed)
    noise = fm.sample_noise(count, config, generator)
    proprio = torch.zeros(count, 8)

    def velocity(actions, i):
        return expert(proprio, actions, torch.full((count,), i / config.steps))

    chunk = fm.integrate(velocity, noise, config)
    a, b = torch.tensor(POSE_A), torch.tensor(POSE_B)
    turn_a, turn_b = (2 * s3.angle(chunk[..., 3:7], p[3:7])[..., 0].mean(1) for p in (a, b))
    move_a, move_b = ((chunk[..., :3] - p[:3]).norm(dim=-1).mean(1) for p in (a, b))
    near_a = (turn_a < turn_b) & (move_a < move_b)
    near_b = (turn_b < turn_a) & (move_b < move_a)
    lost = torch.minimum(turn_a, turn_b) > 0.35
    return {
        'share_a': near_a.float().mean().item(),
        'share_b': near_b.float().mean().item(),
        'torn': 1 - (near_a | near_b).float().mean().item(),
        'rotation_near_neither': lost.float().mean().item(),
        'median_rotation_error_deg': torch.rad2deg(torch.minimum(turn_a, turn_b).median()).item(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--losses', nargs='+', default=['mse', 'cos+geo'])
    parser.add_argument('--steps', type=int, default=1500)
    parser.add_argument('--seeds', type=int, default=1)
    parser.add_argument('--batch', type=int, default=256)
    parser.add_argument('--samples', type=int, default=4000)
    parser.add_argument('--horizon', type=int, default=2)
    parser.add_argument('--threads', type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = {}
    for loss in arguments.losses:
        config = FlowConfig(rotation_loss=loss, horizon=arguments.horizon)
        for seed in range(arguments.seeds):
            started = time.perf_counter()
            expert = train(config, arguments.steps, arguments.batch, seed)
            shares = sample_shares(expert, config, arguments.samples, seed + 1)
            shares = {name: round(value, 4) for name, value in shares.items()}
            shares['seconds'] = round(time.perf_counter() - started, 1)
            results.setdefault(loss, []).append(shares)
            print(loss, seed, shares, flush=True)
    print(
        json.dumps(
            {
                'benchmark': 'two_modes',
                'true_share_a': SHARE_A,
                'results': results,
                'arguments': vars(arguments),
                'torch': torch.__version__,
                'machine': platform.machine(),
            }
        )
    )


if __name__ == '__main__':
    main()
