"""SPEAR-VLM against itself without depth, against random pixels, and against no picture at all.

    OMP_NUM_THREADS=1 python benchmarks/vlm_ablation.py --folder DIR --moge MOGE_EXPORT \\
        [--init models/spear_tiny] [--scenes 3500] [--seeds 3] [--minutes 9]

Every arm starts from one base that knows places in the picture but no depth (as PaliGemma does
before its 3D training), has the same network, the same number of samples and the same optimiser.
``--init`` is what the base starts from, and whose sizes and tokenizer all have: without it the base
has to learn in minutes what an object is. The arms:

- ``full``: questions about objects, frozen depth branch of ``moge_tiny``;
- ``no_depth``: the same without the depth branch;
- ``pixels``: the depth branch, but questions about random pixels instead of objects;
- ``constant``: per family the median of the training answers; no training.

Judged on scenes of held-out seeds by the questions about objects; ``pixels`` besides by its own
question at the true pixel of an object's centre, for it was never told what a red cube is.
The number of steps is what fits into --minutes of CPU time on this machine, timed once on the full
arm and kept in DIR/plan.json: a batch is so many pictures with all their questions. Resumable: data
by the hundred scenes, runs by their checkpoints; each finished run is a JSON in DIR/results. One
thread. Prints the table, and one JSON object in the last line.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import _vlm_scenes as scenes
import numpy as np
import torch
from _intervals import mean_and_half
from _machine import machine

from spear_ros.annotation.metrics import Judged, constant_answers, score
from spear_ros.annotation.questions import TEMPLATES
from spear_ros.checkpoints.spear1 import read_config
from spear_ros.cli.vlm_checkpoint import answer_all, judge, open_vlm
from spear_ros.processing.small_tokenizer import build_small_tokenizer
from spear_ros.processing.tokens import TextTokenizer
from spear_ros.simulation.catalogue import COLOURS, SHAPES
from spear_ros.training.distributed import Place
from spear_ros.training.question_data import Question, read_questions
from spear_ros.training.recipes import change, find_recipe
from spear_ros.training.trainer import Trainer
from spear_ros.training.vlm_task import VlmTask

ARMS = {
    'full': ('train', 'depth_branch=present'),
    'no_depth': ('train', 'depth_branch=absent'),
    'pixels': ('train_pixels', 'depth_branch=present'),
}
PIECES = 700


def tokenizer(folder):
    """A tokenizer whose words are those of the questions: short texts train faster."""
    path = folder / 'tokenizer.json'
    if not path.exists():
        names = [f'{c} {s}' for c in COLOURS for s in SHAPES]
        pairs = [(a, names[(7 * i + 3) % len(names)]) for i, a in enumerate(names)]
        texts = [t.format(a=a, b=b) for ts in TEMPLATES.values() for t in ts for a, b in pairs]
        texts += [
            f'The distance from the camera to the {a} is and to the {b}, so the {a} is closer.'
            for a, b in pairs
        ]
        texts += [scenes.PLACE_QUESTION.format(a=a) for a in names]
        texts += [scenes.PIXEL_QUESTION.format(place='')] * len(names)
        build_small_tokenizer(path, texts, PIECES)
    return path


def recipe(start):
    """The recipe of every run; with the sizes of ``start`` where there is one."""
    found = find_recipe('vlm', 'spear_vlm_ablation')
    if not start:
        return found
    # Its tokenizer spells the longer words of the questions letter by letter.
    data = replace(found.data, text_length=112)
    optimizer = replace(found.optimizer, learning_rate=0.5 * found.optimizer.learning_rate)
    return replace(found, model=read_config(start).model, data=data, optimizer=optimizer)


def train(folder, settings, start):
    """Run (or go on with) one training; return its export and the CPU seconds of this call."""
    started = time.process_time()
    if not (folder / 'export' / 'config.json').exists():
        config = change(recipe(start), settings)
        assert Trainer(VlmTask(config, folder), folder, Place()).run().finished
    return folder / 'export', time.process_time() - started


def make_plan(folder, minutes, batch, moge, start):
    """Steps of every run, from the CPU time of some steps of the full arm; made once."""
    path = folder / 'plan.json'
    name = str(start or '')
    if not path.exists():
        seconds = []
        for steps in (4, 16):
            with tempfile.TemporaryDirectory() as place:
                settings = [
                    f'data.questions={folder / "data" / "train"}', f'batch_size={batch}',
                    *tokens_of(folder, start), f'steps={steps}', 'device=cpu',
                    'optimizer.warmup_steps=1', *([f'moge={moge}'] if moge else []),
                ]  # fmt: skip
                seconds.append(train(Path(place), settings, start)[1])
        step_s = (seconds[1] - seconds[0]) / 12
        steps = max(100, int(60 * minutes / step_s))
        plan = {'steps': steps, 'batch': batch, 'step_s': step_s, 'init': name}
        path.write_text(json.dumps(plan))
    plan = json.loads(path.read_text())
    if plan.get('init', '') != name:
        raise SystemExit(f'{path}: init is "{plan["init"]}" there; choose another --folder.')
    return plan


def tokens_of(folder, start):
    """The setting that names the tokenizer, for a training from fresh weights or from ``start``."""
    return [f'init={start}'] if start else [f'tokenizer={tokenizer(folder)}']


def make_base(folder, steps, batch, start):
    """The start of every arm: places in two dimensions, without depth."""
    export, cpu_s = train(
        folder / 'runs' / 'base',
        [
            f'data.questions={folder / "data" / "train_places"}',
            *tokens_of(folder, start),
            'depth_branch=absent',
            f'steps={steps}',
            f'batch_size={batch}',
            'device=cpu',
        ],
        start,
    )
    path = folder / 'results' / 'base.json'
    if not path.exists():
        # The base has no bins (it never heard of lengths), so it is read as the trainer left it.
        figures = place_figures(export, folder)
        path.write_text(json.dumps({'arm': 'base', 'cpu_s': cpu_s, 'steps': steps, **figures}))
    return export


def place_figures(export, folder):
    """Where in the image the base says held-out objects are; errors in shares of the picture."""
    from spear_ros.checkpoints.spear1 import TOKENIZER, load_checkpoint
    from spear_ros.cli.vlm_checkpoint import OpenVlm
    from spear_ros.inference.vlm import VlmAnswerer
    from spear_ros.processing.spatial_bins import SpatialBins

    loaded = load_checkpoint(export, 'cpu', torch.float32)
    answerer = VlmAnswerer(loaded.model.vlm, TextTokenizer(export / TOKENIZER))
    vlm = OpenVlm(answerer, SpatialBins.normal(0, 1), 'metric', scenes.STORED, '')
    held_out = read_questions([str(folder / 'data' / 'held_out_places')], 'base')[:300]
    answers = answer_all(vlm, held_out)
    told = score([judge(q, a, vlm, 'median') for q, a in zip(held_out, answers, strict=True)])
    everywhere = constant(folder, 'train_places', held_out)
    return {'places': told['place'], 'constant': everywhere['place']}


def run_arm(folder, arm, seed, base, moge, plan):
    """Train and judge one arm with one seed; skipped where its result is there."""
    path = folder / 'results' / f'{arm}-{seed}.json'
    if path.exists():
        return
    data, depth = ARMS[arm]
    steps, batch = plan['steps'], plan['batch']
    settings = [
        f'data.questions={folder / "data" / data}', f'init={base}', f'seed={seed + 1}', depth,
        f'steps={steps}', f'batch_size={batch}', 'device=cpu',
    ]  # fmt: skip
    if arm != 'no_depth':
        settings.append(f'moge={moge}')
    start = Path(plan['init']) if plan['init'] else None
    export, cpu_s = train(folder / 'runs' / f'{arm}-{seed}', settings, start)
    started = time.process_time()
    result = {'arm': arm, 'seed': seed, 'steps': steps, 'pictures': steps * batch, 'cpu_s': cpu_s,
              **judge_arm(folder, export, arm)}  # fmt: skip
    result['evaluation_cpu_s'] = time.process_time() - started
    path.write_text(json.dumps(result))


def judge_arm(folder, export, arm):
    """Figures of an export on the held-out questions."""
    vlm = open_vlm(export)
    held_out = read_questions([str(folder / 'data' / 'held_out')], 'held out')
    answers = answer_all(vlm, held_out)
    figures = {
        how: score([judge(q, a, vlm, how) for q, a in zip(held_out, answers, strict=True)])
        for how in ('tokens', 'median')
    }
    free = answer_all(vlm, held_out[:64], free=True)
    wrong = [judge(q, a, vlm).told is None for q, a in zip(held_out, free, strict=False)]
    figures['malformed_without_grammar'] = float(np.mean(wrong))
    if arm == 'pixels':
        figures['told_the_pixel'] = told_the_pixel(folder, vlm)
    return figures


def told_the_pixel(folder, vlm):
    """Centres of objects from the pixel question at the true pixel of the centre."""
    file = folder / 'data' / 'held_out' / 'questions-00000.jsonl'
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    asked = [
        Question(
            key=line['key'], image=file.parent / line['image'], answer=line['answer'],
            question=scenes.PIXEL_QUESTION.format(place=line['centres'][0]), family='pixel',
            values=tuple(line['values'][0]),
        )
        for line in lines if line['family'] == 'centre_point'
    ]  # fmt: skip
    answers = answer_all(vlm, asked)
    return score([judge(q, a, vlm, 'median') for q, a in zip(asked, answers, strict=True)])['pixel']


def constant(folder, data, held_out):
    """Figures of the medians of the training answers."""
    known = read_questions([str(folder / 'data' / data)], 'constant')
    families = ('place', 'pixel')
    told = constant_answers(
        [q.family for q in known], [np.array(q.values) for q in known]
    ) or {}  # fmt: skip
    for family in families:
        mine = [q.values for q in known if q.family == family]
        if mine:
            told = {**told, family: np.median(np.array(mine), axis=0)}
    return score([
        Judged(
            family=q.family, scale_type='' if q.family in ('projection', 'place') else 'metric',
            truth=np.array(q.values), told=told[q.family], right_tokens=0.0, told_name='-',
        )
        for q in held_out
    ])  # fmt: skip


ROWS = (
    ('centre_point', 'error_mean'), ('centre_point', 'depth_error_mean'),
    ('closest_point', 'error_mean'),
    ('furthest_point', 'error_mean'), ('box', 'error_mean'), ('box', 'vertex_error_mean'),
    ('box', 'iou_mean'), ('distance', 'error_mean'), ('distance', 'length_error_mean'),
    ('projection', 'error_mean'), ('closer', 'error_mean'), ('closer', 'right_name'),
)  # fmt: skip


def table(folder):
    """Means over seeds with 95 % intervals, as rows of text; and the same as a dict."""
    results = [json.loads(f.read_text()) for f in sorted((folder / 'results').glob('*-*.json'))]
    held_out = read_questions([str(folder / 'data' / 'held_out')], 'held out')
    fixed = constant(folder, 'train', held_out)
    told = {}
    lines = [
        '| family, figure | full | no depth | random pixels | constant |',
        '|---|---|---|---|---|',
    ]
    for family, name in ROWS:
        cells = []
        for arm in ARMS:
            values = [r['median'][family][name] for r in results if r['arm'] == arm]
            told[f'{arm}/{family}/{name}'] = values
            cells.append(interval(values))
        base = fixed[family].get(name)
        told[f'constant/{family}/{name}'] = base
        shown = '-' if base is None or name == 'right_name' else f'{base:.3f}'
        lines.append(f'| {family}, {name} | {" | ".join(cells)} | {shown} |')
    for name, pick in (
        ('token accuracy, all families', lambda r: np.mean(
            [f['token_accuracy'] for f in r['tokens'].values()])),
        ('coverage of the 90 % interval, centre_point',
         lambda r: r['median']['centre_point']['coverage']),
        ('malformed answers without the grammar', lambda r: r['malformed_without_grammar']),
        ('CPU s of training', lambda r: r['cpu_s']),
    ):  # fmt: skip
        cells = [interval([pick(r) for r in results if r['arm'] == arm]) for arm in ARMS]
        lines.append(f'| {name} | {" | ".join(cells)} | - |')
    pixel = [r['told_the_pixel']['error_mean'] for r in results if 'told_the_pixel' in r]
    lines.append(f'| centre_point told its pixel, error_mean | - | - | {interval(pixel)} | - |')
    return lines, told


def interval(values):
    """Mean and 95 % interval of the mean (Student's t over seeds)."""
    if not len(values):
        return '-'
    if len(values) < 2:
        return f'{values[0]:.3f} (one seed)'
    return '{:.3f} ± {:.3f}'.format(*mean_and_half(values))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--folder', type=Path, required=True, help='state; goes on there')
    parser.add_argument(
        '--moge', type=Path, help='export of moge_tiny; without it no arm has depth'
    )
    parser.add_argument('--init', type=Path, help='checkpoint that the base starts from')
    parser.add_argument('--scenes', type=int, default=3500)
    parser.add_argument('--held-out', type=int, default=300)
    parser.add_argument('--minutes', type=float, default=9.0, help='CPU time of each training')
    parser.add_argument('--base-factor', type=float, default=1.0, help='times as long for the base')
    parser.add_argument('--batch', type=int, default=16, help='pictures')
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--only', default='', help='data, base, table, or an arm')
    args = parser.parse_args()
    torch.set_num_threads(1)
    (args.folder / 'results').mkdir(parents=True, exist_ok=True)
    if args.only != 'table':
        if not (args.folder / 'data' / 'bins.json').exists():
            scenes.render(args.folder / 'data', args.scenes, args.held_out)
            print(scenes.write_questions(args.folder / 'data'))
        if args.only == 'data':
            return
        plan = make_plan(args.folder, args.minutes, args.batch, args.moge, args.init)
        steps = int(args.base_factor * plan['steps'])
        base = make_base(args.folder, steps, plan['batch'], args.init)
        arms = [a for a in ARMS if args.only in ('', a) and (args.moge or a == 'no_depth')]
        for seed in range(args.seeds if args.only != 'base' else 0):
            for arm in arms:
                run_arm(args.folder, arm, seed, base, args.moge, plan)
    lines, told = table(args.folder)
    print('\n'.join(lines))
    print(json.dumps({'machine': machine(), 'figures': told}))


if __name__ == '__main__':
    main()
