"""Tables, JSON and contact sheets of roll-outs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from spear_ros.core.types import ImageArray
from spear_ros.evaluation.results import EpisodeResult, FamilySummary, summarize

COLUMNS = 10
LABEL_HEIGHT = 18
_GREEN, _RED = (40, 140, 40), (190, 40, 40)


def table(summaries: Sequence[FamilySummary]) -> str:
    """Return a Markdown table, one row per family."""
    lines = [
        '| family | success | 95 % interval | went to the target | median s | rejected chunks '
        '| holds | inference p50 / p99 ms | missed seeds |',
        '|---|---|---|---|---|---|---|---|---|',
    ]
    for s in summaries:
        missed = ' '.join(map(str, s.missed[:6])) + (' ...' if len(s.missed) > 6 else '')
        lines.append(
            f'| {s.family} | {s.successes}/{s.episodes} ({100 * s.rate:.0f} %) '
            f'| {100 * s.low:.0f} - {100 * s.high:.0f} % | {s.went_to_target}/{s.episodes} '
            f'| {s.median_s:.1f} | {s.rejected}/{s.chunks} | {s.holds} '
            f'| {s.inference_p50_ms:.1f} / {s.inference_p99_ms:.1f} | {missed or "-"} |'
        )
    return '\n'.join(lines)


def write_json(
    path: Path, results: Sequence[EpisodeResult], settings: Mapping[str, object]
) -> None:
    """Write settings, sums and every episode."""
    document = {
        'settings': dict(settings),
        'families': [s.as_dict() for s in summarize(results)],
        'episodes': [r.as_dict() for r in results],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + '\n', encoding='utf-8')


def write_contact_sheet(path: Path, results: Sequence[EpisodeResult]) -> bool:
    """Write one row of pictures per episode; return False when no episode kept any."""
    rows = [_row(r) for r in results if r.frames]
    if not rows:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.cvtColor(np.concatenate(rows), cv2.COLOR_RGB2BGR))
    return True


def _row(result: EpisodeResult) -> ImageArray:
    """Pictures spread evenly over the episode under a coloured line of text."""
    height, width = result.frames[0].shape[:2]
    chosen = np.linspace(0, len(result.frames) - 1, min(COLUMNS, len(result.frames)))
    blank = np.zeros((height, width, 3), np.uint8)
    pictures = [result.frames[round(i)] for i in chosen]
    pictures += [blank] * (COLUMNS - len(pictures))
    label = np.full((LABEL_HEIGHT, COLUMNS * width, 3), 255, np.uint8)
    text = f'{result.seed}  {result.instruction}  {result.outcome} {result.duration_s:.1f} s'
    text += f'  {result.reason}'
    cv2.putText(
        label, text, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42,
        _GREEN if result.success else _RED, 1, cv2.LINE_AA,
    )  # fmt: skip
    return np.concatenate([label, np.concatenate(pictures, axis=1)])
