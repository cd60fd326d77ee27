"""A first ablation in the shape of the paper's Tables 1, 10 and 11, at a size that a CPU trains.

    python benchmarks/vla_ablation.py --out RUN --demonstrations DIR --validation DIR --moge DIR
        [--start DIR] [--vlm DIR] [--arms base,s3_mse] [--seeds 0,1,2] [--minutes 10]
        [--episodes 50]

One robot, touch and pick, the same data, scenes and number of updates for every arm; an arm differs
from ``base`` (S3 path, cosine + geodesic loss, quantiles, MoGe frozen) in the one thing that it is
named after. ``--start`` is what all arms but ``vlm`` start from and whose sizes all have, such as
the base of ``vlm_ablation.py``, which has not heard of three dimensions; without it weights are
fresh, and a few minutes are not enough to learn which word is which object. The number of updates
is what the dearest arm manages in --minutes of CPU time, measured at the beginning and kept in
RUN/plan.json. A run that is done is one file, RUN/results/ARM-SEED.json; the same command goes on
with the others, and inside of a run where it was killed. Roll-outs are in lockstep on validation
scenes: published figures of the bundled checkpoint use others. The last line is one JSON object,
RUN/table.md the table with Wilson intervals.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from _intervals import mean_and_half
from _machine import machine

from spear_ros.checkpoints.spear1 import read_config
from spear_ros.core.errors import UserError
from spear_ros.data.shards import write_json
from spear_ros.evaluation.intervals import wilson
from spear_ros.evaluation.results import summarize
from spear_ros.evaluation.rollouts import RolloutConfig, roll_out
from spear_ros.policies.registry import create_policy
from spear_ros.robots.registry import get_robot
from spear_ros.runtime.safety import load_limits
from spear_ros.simulation.grippers import get_gripper
from spear_ros.simulation.tasks import VALIDATION_SEEDS
from spear_ros.simulation.world import World
from spear_ros.training.config import VlaConfig
from spear_ros.training.distributed import Place
from spear_ros.training.logs import read_metrics
from spear_ros.training.recipes import change, find_recipe
from spear_ros.training.trainer import Trainer
from spear_ros.training.vla_task import VlaTask

ERRORS = ('mm', 'deg', 'gripper_wrong')
SPARE = 0.85
"""Share of --minutes that is planned for updates; the rest is start, validation and export."""


@dataclass(frozen=True)
class Arm:
    """What an arm changes and where the paper compares it."""

    group: str
    text: str
    settings: tuple[str, ...] = ()
    paper: float | None = None
    """Success in the paper's table, %; of another robot, data and size."""


ROTATION, NORMALISATION, DEPTH = 'Table 11, rotation', 'Table 10, normalisation', 'Table 1, 3D'
ARMS = {
    'base': Arm('all', 'S3, cosine + geodesic; quantiles; MoGe frozen; no SPEAR-VLM'),
    's3_mse': Arm(ROTATION, 'S3, MSE', ('model.flow.rotation_loss=mse',), 57.3),
    'linear_cos': Arm(ROTATION, 'linear, cosine', ('model.flow.rotation_path=linear',), 52.1),
    'linear_mse': Arm(
        ROTATION,
        'linear, MSE',
        ('model.flow.rotation_path=linear', 'model.flow.rotation_loss=mse'),
        50.0,
    ),
    'minmax': Arm(NORMALISATION, 'min-max', ('data.stats_kind=minmax',), 65.6),
    'mean_std': Arm(NORMALISATION, 'mean-std', ('data.stats_kind=mean_std',), 49.0),
    'moge_trained': Arm(DEPTH, 'MoGe trained', ('depth_branch=trained',), 18.8),
    'moge_absent': Arm(DEPTH, 'no MoGe', ('depth_branch=absent',), 20.8),
    'vlm': Arm(DEPTH, 'from SPEAR-VLM', ('init={vlm}',), 35.4),
    'vlm_moge_trained': Arm(
        DEPTH, 'from SPEAR-VLM, MoGe trained', ('init={vlm}', 'depth_branch=trained'), 18.8
    ),
}
DEAREST = 'moge_trained'


def main() -> int:
    """Do what is not done yet, then print the table."""
    args = arguments()
    try:
        plan = make_plan(args)
        for seed in args.seeds:
            for arm in args.arms:
                if not result_file(args.out, arm, seed).exists():
                    run_arm(args, plan, arm, seed)
    except UserError as error:
        sys.stderr.write(f'vla_ablation: {error}\n')
        return 2
    results = read_results(args.out)
    table = make_table(results)
    (args.out / 'table.md').write_text(table)
    print(table)
    print(json.dumps({'plan': plan, 'machine': machine(), 'results': results}))
    return 0


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--demonstrations', nargs='+', required=True, help='shard folders')
    parser.add_argument('--validation', nargs='*', default=[], help='shards for open-loop errors')
    parser.add_argument('--moge', default='', help='export of moge_tiny')
    parser.add_argument('--start', default='', help='checkpoint of all arms that name none')
    parser.add_argument('--vlm', default='', help='export of a SPEAR-VLM of the same sizes')
    parser.add_argument('--recipe', default='spear_ablation')
    parser.add_argument('--arms', type=names, default=None, help=', '.join(ARMS))
    parser.add_argument('--seeds', type=numbers, default=(0, 1, 2))
    parser.add_argument('--minutes', type=float, default=10.0, help='CPU minutes of one training')
    parser.add_argument('--robot', default='wx250s')
    parser.add_argument('--families', type=names, default=('touch', 'pick'))
    parser.add_argument('--episodes', type=int, default=50, help='per family and run')
    parser.add_argument('--limit', type=float, default=20.0, help='simulated s per episode')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('settings', nargs='*', metavar='key=value', help='for all arms')
    args = parser.parse_args()
    if args.arms is None:
        args.arms = tuple(a for a, arm in ARMS.items() if args.vlm or '{vlm}' not in str(arm))
    for arm in args.arms:
        if arm not in ARMS:
            parser.error(f'arm "{arm}" is none of {", ".join(ARMS)}')
        if '{vlm}' in str(ARMS[arm]) and not args.vlm:
            parser.error(f'arm "{arm}" needs --vlm')
    torch.set_num_threads(args.threads)
    return args


def names(text: str) -> tuple[str, ...]:
    """Names between commas."""
    return tuple(part.strip() for part in text.split(',') if part.strip())


def numbers(text: str) -> tuple[int, ...]:
    """Integers between commas."""
    return tuple(int(part) for part in names(text))


# -- the plan --------------------------------------------------------------------------------------


def make_plan(args: argparse.Namespace) -> dict:
    """What all runs share; kept, so that a later command cannot mix two experiments.

    Raises:
        UserError: the folder holds another experiment; names the field.
    """
    path = args.out / 'plan.json'
    asked = {
        'recipe': args.recipe,
        'demonstrations': [str(Path(d).resolve()) for d in args.demonstrations],
        'validation': [str(Path(d).resolve()) for d in args.validation],
        'moge': args.moge,
        'start': args.start,
        'vlm': args.vlm,
        'robot': args.robot,
        'families': list(args.families),
        'episodes': args.episodes,
        'limit_s': args.limit,
        'minutes': args.minutes,
        'settings': list(args.settings),
    }
    if path.exists():
        plan = json.loads(path.read_text())
        for name, value in asked.items():
            if plan.get(name) != value:
                raise UserError(
                    f'{path}: {name} is {plan.get(name)!r} there and {value!r} now; choose another '
                    '--out, or the same.'
                )
        return plan
    args.out.mkdir(parents=True, exist_ok=True)
    each = seconds_per_update(args)
    steps = max(2, int(60 * args.minutes * SPARE / each))
    plan = {**asked, 'cpu_s_per_update_of_dearest': round(each, 4), 'steps': steps}
    write_json(path, plan)
    print(f'{each:.3f} CPU s for an update of "{DEAREST}": {steps} updates a run', flush=True)
    return plan


def seconds_per_update(args: argparse.Namespace, steps: int = 9) -> float:
    """CPU seconds of an update of the dearest arm: the middle one of a few after the first two."""
    marks: list[float] = []

    class Timed(VlaTask):
        def inputs(self, batch, device, seed):
            marks.append(time.process_time())
            return super().inputs(batch, device, seed)

    folder = args.out / 'timing'
    shutil.rmtree(folder, ignore_errors=True)
    train(args, DEAREST, 0, steps, folder, Timed)
    shutil.rmtree(folder, ignore_errors=True)
    return float(np.median(np.diff(marks)[2:]))


# -- one run ---------------------------------------------------------------------------------------


def run_arm(args: argparse.Namespace, plan: dict, arm: str, seed: int) -> None:
    """Train, roll out, write the result; what is big is deleted then."""
    folder = args.out / 'runs' / f'{arm}-{seed}'
    print(f'{arm}, seed {seed}', flush=True)
    started = time.process_time()
    train(args, arm, seed, plan['steps'], folder)
    trained = time.process_time()
    families = rolled_out(args, folder / 'export', seed)
    validation = read_metrics(folder, 'validation')[-1]
    last = read_metrics(folder, 'train')[-1]
    result = {
        'arm': arm,
        'seed': seed,
        'steps': plan['steps'],
        'families': families,
        'open_loop': {e: first_ending(validation, e) for e in ERRORS},
        'open_loop_on': 'held-out demonstrations' if args.validation else 'training data',
        'loss': last['loss'],
        'bad_updates': last['bad_updates'],
        # Of this call only, where a run was killed in between.
        'train_cpu_s': round(trained - started, 1),
        'rollout_cpu_s': round(time.process_time() - trained, 1),
    }
    write_json(result_file(args.out, arm, seed), result)
    for big in ('checkpoints', 'export', 'validation'):
        shutil.rmtree(folder / big, ignore_errors=True)


def result_file(out: Path, arm: str, seed: int) -> Path:
    """Where the result of a run lies once it is done."""
    path = out / 'results' / f'{arm}-{seed}.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def first_ending(values: dict, ending: str) -> float:
    """The open-loop figure of a kind; its name says which data it is of."""
    return next(v for n, v in values.items() if n.startswith('open_loop') and n.endswith(ending))


def train(
    args: argparse.Namespace,
    arm: str,
    seed: int,
    steps: int,
    folder: Path,
    task: type[VlaTask] = VlaTask,
) -> None:
    """Train one arm to the end, or on from where it was."""
    settings = [
        f'data.shards=[{",".join(args.demonstrations)}]',
        f'data.validation=[{",".join(args.validation)}]',
        f'moge={args.moge}',
        f'seed={seed}',
        f'steps={steps}',
        f'optimizer.warmup_steps={max(1, steps // 20)}',
        *(s.format(vlm=args.vlm) for s in ARMS[arm].settings),
        *args.settings,
    ]
    if args.vlm and '{vlm}' in str(ARMS[arm]):
        settings.remove(f'moge={args.moge}')  # the depth encoder is the VLM's own
    elif args.start:
        settings.append(f'init={args.start}')
    config = change(sized(find_recipe('vla', args.recipe), args.start), settings)
    outcome = Trainer(task(config, folder), folder, Place()).run()
    if not outcome.finished:
        raise UserError(f'{arm}, seed {seed} was stopped at step {outcome.step}; run it again.')


def sized(recipe: VlaConfig, start: str) -> VlaConfig:
    """The recipe with the sizes of ``start``, where there is one."""
    if not start:
        return recipe
    model = replace(read_config(Path(start)).model, flow=recipe.model.flow)
    sizes = {'external_size': model.external_size, 'wrist_size': model.wrist_size}
    return replace(recipe, model=model, data=replace(recipe.data, **sizes))


def rolled_out(args: argparse.Namespace, checkpoint: Path, seed: int) -> dict:
    """Successes by family, on the same scenes for every arm and seed."""
    gripper = get_gripper(get_robot(args.robot), None).name
    robot = get_robot(args.robot, gripper)
    config = RolloutConfig(
        families=tuple(args.families),
        episodes=args.episodes,
        first_seed=VALIDATION_SEEDS.start + 50_000,
        limit_s=args.limit,
    )
    policy = create_policy('spear1', robot=robot, checkpoint=checkpoint, device='cpu', seed=seed)
    world = World(robot, gripper)
    try:
        results = roll_out(world, policy, load_limits(robot), config)
    finally:
        policy.close()
        world.close()
    return {
        s.family: {
            'successes': s.successes,
            'episodes': s.episodes,
            'went_to_target': s.went_to_target,
            'rejected': s.rejected,
            'chunks': s.chunks,
        }
        for s in summarize(results)
    }


# -- the table -------------------------------------------------------------------------------------


def read_results(out: Path) -> list[dict]:
    """All runs that are done."""
    return [json.loads(p.read_text()) for p in sorted((out / 'results').glob('*.json'))]


def make_table(results: list[dict]) -> str:
    """Markdown: success pooled over seeds with a 95 % Wilson interval, seeds apart, open loop."""
    families = list(dict.fromkeys(f for r in results for f in r['families']))
    base = {r['seed']: r for r in results if r['arm'] == 'base'}
    head = ['arm', 'seeds', *families, 'mean by seed', 'minus base']
    head += ['mm', 'deg', 'gripper wrong', 'paper']
    lines = [f'| {" | ".join(head)} |', f'|{"---|" * len(head)}']
    group = ''
    for name, arm in ARMS.items():
        mine = [r for r in results if r['arm'] == name]
        if not mine:
            continue
        if arm.group != group:
            group = arm.group
            lines.append(f'| **{group}** |{" |" * (len(head) - 1)}')
        cells = [f'{name}: {arm.text}', str(len(mine))]
        cells += [pooled(r['families'][f] for r in mine) for f in families]
        cells.append(', '.join(f'{100 * mean_success(r):.0f}' for r in mine))
        pairs = [(r, base[r['seed']]) for r in mine if r['seed'] in base and name != 'base']
        cells.append(difference([100 * (mean_success(a) - mean_success(b)) for a, b in pairs]))
        cells += [spread([r['open_loop'][e] for r in mine], e) for e in ERRORS]
        cells.append('-' if arm.paper is None else f'{arm.paper:.1f}')
        lines.append(f'| {" | ".join(cells)} |')
    lines += [
        '',
        'Success in %, episodes of all seeds pooled, 95 % Wilson interval: it counts episodes, not '
        'trainings; the seeds apart show those. "minus base": mean difference in points, seed by '
        'seed (same weights before, same order of the data, same scenes), with the 95 % interval '
        "of Student's t over seeds. Open-loop errors: mean over seeds (lowest to "
        'highest). The paper has another robot, other data and 400 times the size.',
        '',
    ]
    return '\n'.join(lines)


def pooled(rows: Iterable[dict]) -> str:
    """Success of some runs together."""
    rows = list(rows)
    hits, tried = (sum(r[k] for r in rows) for k in ('successes', 'episodes'))
    low, high = wilson(hits, tried)
    return f'{100 * hits / tried:.0f} [{100 * low:.0f}, {100 * high:.0f}]'


def mean_success(result: dict) -> float:
    """Mean over families."""
    rates = [f['successes'] / f['episodes'] for f in result['families'].values()]
    return float(np.mean(rates))


def difference(points: list[float]) -> str:
    """Mean of differences, with its 95 % interval where there are two or more."""
    if not points:
        return '-'
    if len(points) == 1:
        return f'{points[0]:+.0f}'
    mean, half = mean_and_half(points)
    return f'{mean:+.0f} [{mean - half:+.0f}, {mean + half:+.0f}]'


def spread(values: list[float], kind: str) -> str:
    """Mean and range."""
    form = '{:.3f}' if kind == 'gripper_wrong' else '{:.1f}'
    mean, low, high = (form.format(f(values)) for f in (np.mean, min, max))
    return f'{mean} ({low} to {high})'


if __name__ == '__main__':
    sys.exit(main())
