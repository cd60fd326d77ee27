"""Pictures for `spear data check`: what the numbers of the tables look like."""

from pathlib import Path

import matplotlib

matplotlib.use('Agg')  # no display on the machines that convert data

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from spear_ros.core.geometry import quat_conjugate, quat_log, quat_multiply
from spear_ros.core.types import ActionSpec, FloatArray, NormStats
from spear_ros.data.samples import GRIPPER, TARGETS, VALID, Q
from spear_ros.data.statistics import positions, translation_deltas

AXES = ('x', 'y', 'z')


def plot_dataset(
    name: str,
    numbers: FloatArray,
    spec: ActionSpec,
    stats: NormStats | None,
    folder: Path,
    note: str = '',
) -> Path:
    """Write ``folder/NAME.png`` from (n, 1 + H, 9) numbers; returns the path.

    ``note`` is a second line of the title: frames and rates.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(3, 4, figsize=(16, 10), constrained_layout=True)
    title = f'{name}: {len(numbers)} samples, {spec.embodiment}, {spec.rate_hz:g} Hz'
    figure.suptitle(f'{title}\n{note}' if note else title, fontsize='medium')
    deltas, places = translation_deltas(numbers, spec), positions(numbers)
    turns = np.degrees(_rotation_deltas(numbers, spec))
    for i, axis in enumerate(AXES):
        panel = axes[0, i]
        panel.hist(deltas[:, i], bins=80, color='tab:blue')
        panel.set(title=f'translation delta {axis}', xlabel='m', yscale='log', ylabel='knots')
        _limits(panel, stats, 'translation', i)
        axes[1, i].hist(turns[:, i], bins=80, color='tab:green')
        axes[1, i].set(
            title=f"rotation delta about the hand's {axis}",
            xlabel='degrees',
            yscale='log',
            ylabel='knots',
        )
    _grippers(axes[0, 3], numbers)
    _gripper_signs(axes[1, 3], numbers)
    for panel, (a, b) in zip(axes[2, :3], ((0, 1), (0, 2), (1, 2)), strict=True):
        if len(places):
            panel.plot(places[:, a], places[:, b], '.', ms=3, alpha=0.5)
            _box(panel, stats, (a, b))
        panel.set(
            title=f'position {AXES[a]}{AXES[b]}',
            xlabel=f'{AXES[a]}, m',
            ylabel=f'{AXES[b]}, m',
            aspect='equal',
        )
    _step_lengths(axes[2, 3], numbers)
    path = folder / f'{name}.png'
    _save(figure, path)
    return path


def _limits(panel: plt.Axes, stats: NormStats | None, which: str, axis: int) -> None:
    if stats is None:
        return
    low, high = _range(stats, which, axis)
    for value, label in ((low, 'statistics'), (high, None)):
        panel.axvline(value, color='tab:red', lw=1, label=label)
    panel.legend(loc='upper right', fontsize='small')


def _range(stats: NormStats, which: str, axis: int) -> tuple[float, float]:
    """Where normalised values begin and end; one deviation on both sides for ``mean_std``."""
    low, high = getattr(stats, f'{which}_low')[axis], getattr(stats, f'{which}_high')[axis]
    return (low - high, low + high) if stats.kind == 'mean_std' else (low, high)


def _box(panel: plt.Axes, stats: NormStats | None, axes: tuple[int, int]) -> None:
    if stats is None:
        return
    (left, right), (bottom, top) = (_range(stats, 'position', a) for a in axes)
    corners = ((left, bottom), (right, bottom), (right, top), (left, top), (left, bottom))
    panel.plot(*zip(*corners, strict=True), color='tab:red', lw=1, label='statistics')
    panel.legend(loc='upper right', fontsize='small')


def _rotation_deltas(numbers: FloatArray, spec: ActionSpec) -> FloatArray:
    """(m, 3) rad: rotation vectors of valid knots in the hand's frame, as the spec takes them."""
    q = numbers[..., Q]
    reference = q[:, :1] if spec.relative_to == 'chunk_start' else q[:, :-1]
    delta = quat_multiply(quat_conjugate(np.broadcast_to(reference, q[:, 1:].shape)), q[:, 1:])
    return quat_log(delta)[numbers[:, TARGETS, VALID] > 0.5]


def _gripper_signs(panel: plt.Axes, numbers: FloatArray) -> None:
    """Measured opening by command: a flipped sign shows as exchanged colours."""
    command, state = numbers[:, 1, GRIPPER], numbers[:, 0, GRIPPER]
    shown = [state[command > 0.5], state[command <= 0.5]]
    labels = [f'told to {w} ({len(v)})' for w, v in zip(('open', 'close'), shown, strict=True)]
    panel.hist(shown, bins=np.linspace(0, 1, 21).tolist(), label=labels)
    panel.set(title='measured opening by the next command', xlabel='0 closed, 1 open')
    panel.set(ylabel='samples')
    panel.legend(fontsize='small')


def _grippers(panel: plt.Axes, numbers: FloatArray) -> None:
    valid = numbers[:, TARGETS, VALID] > 0.5
    edges = np.linspace(0, 1, 21).tolist()
    panel.hist(
        [numbers[:, 0, GRIPPER], numbers[:, TARGETS, GRIPPER][valid]],
        bins=edges,
        density=True,
        label=['measured', 'target'],
    )
    panel.set(title='gripper opening', xlabel='0 closed, 1 open', ylabel='density')
    panel.legend(fontsize='small')


def _step_lengths(panel: plt.Axes, numbers: FloatArray) -> None:
    lengths = np.linalg.norm(np.diff(numbers[..., :3], axis=1), axis=-1)
    valid = numbers[:, TARGETS, VALID] > 0.5
    for knot in range(lengths.shape[1]):
        shown = np.sort(lengths[:, knot][valid[:, knot]])
        if len(shown):
            panel.plot(shown, np.linspace(0, 1, len(shown)), label=f'to knot {knot}')
    panel.set(title='length of steps', xlabel='m', ylabel='share of samples below')
    panel.legend(fontsize='small')


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=90)
    plt.close(figure)
