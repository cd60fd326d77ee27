"""Pictures for `spear data check`: what the numbers of the tables look like."""

from pathlib import Path

import matplotlib

matplotlib.use('Agg')  # no display on the machines that convert data

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from spear_ros.core.types import ActionSpec, FloatArray, NormStats
from spear_ros.data.samples import GRIPPER, TARGETS, VALID
from spear_ros.data.statistics import positions, translation_deltas

AXES = ('x', 'y', 'z')


def plot_dataset(
    name: str, numbers: FloatArray, spec: ActionSpec, stats: NormStats | None, folder: Path
) -> Path:
    """Write ``folder/NAME.png`` from (n, 1 + H, 9) numbers; returns the path."""
    folder.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(2, 4, figsize=(16, 7), constrained_layout=True)
    figure.suptitle(f'{name}: {len(numbers)} samples, {spec.embodiment}, {spec.rate_hz:g} Hz')
    deltas, places = translation_deltas(numbers, spec), positions(numbers)
    for i, axis in enumerate(AXES):
        panel = axes[0, i]
        panel.hist(deltas[:, i], bins=80, color='tab:blue')
        panel.set(title=f'translation delta {axis}', xlabel='m', yscale='log', ylabel='knots')
        _limits(panel, stats, 'translation', i)
    _grippers(axes[0, 3], numbers)
    for panel, (a, b) in zip(axes[1, :3], ((0, 1), (0, 2), (1, 2)), strict=True):
        if len(places):
            panel.plot(places[:, a], places[:, b], '.', ms=3, alpha=0.5)
        panel.set(
            title=f'position {AXES[a]}{AXES[b]}',
            xlabel=f'{AXES[a]}, m',
            ylabel=f'{AXES[b]}, m',
            aspect='equal',
        )
    _step_lengths(axes[1, 3], numbers)
    path = folder / f'{name}.png'
    _save(figure, path)
    return path


def _limits(panel: plt.Axes, stats: NormStats | None, which: str, axis: int) -> None:
    if stats is None:
        return
    low, high = getattr(stats, f'{which}_low')[axis], getattr(stats, f'{which}_high')[axis]
    if stats.kind == 'mean_std':
        low, high = low - high, low + high
    for value, label in ((low, 'statistics'), (high, None)):
        panel.axvline(value, color='tab:red', lw=1, label=label)
    panel.legend(loc='upper right', fontsize='small')


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
