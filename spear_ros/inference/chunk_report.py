"""What ``spear benchmark`` is asked and what it answers: rows, a table of text, a JSON object."""

from dataclasses import dataclass, field, replace

import torch

from spear_ros.inference.kernels import ATTENTION, Kernels
from spear_ros.inference.roofline import CARDS, Card, Work, Workload, chunk_floor_ms
from spear_ros.inference.timing import Budget, Timing
from spear_ros.processing.images import ImageFit

ON_DEVICE, HOST_TO_HOST = 'all on the device', 'host to host'


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is measured."""

    name: str
    load: Workload
    camera: tuple[int, int] = (480, 640)
    """(height, width) of the cameras' pictures."""
    image_fit: ImageFit = 'crop'
    buckets: bool = False
    cost_steps: tuple[int, ...] = ()
    """Numbers of Euler steps to compare; empty = none, and cameras are not compared either."""
    cost_horizons: tuple[int, ...] = ()
    """Horizons to compare, on the same weights."""
    capture_graph: bool = True
    kernels: Kernels = 'auto'
    seconds: float = 2.0
    """Per measurement."""
    least_runs: int = 3
    """Of a measurement, and of its warm-up, however long they take."""

    @property
    def budget(self) -> Budget:
        """Of one measurement."""
        return Budget(seconds=self.seconds, least=self.least_runs, warm_up=self.least_runs)

    @property
    def long_budget(self) -> Budget:
        """Of the two rows that count most: a 99th percentile wants some hundred runs."""
        return replace(self.budget, seconds=4 * self.seconds)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of a table; None = not measured, or nothing to hold it against."""

    name: str
    timing: Timing | None
    work: Work | None = None
    floor_ms: float | None = None
    note: str = ''

    @property
    def share(self) -> float | None:
        """Floor over median, 1 = as fast as the hardware allows."""
        if self.timing is None or self.floor_ms is None:
            return None
        return self.floor_ms / self.timing.p50

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        found: dict[str, object] = {'name': self.name, 'note': self.note}
        if self.work is not None:
            found |= {'gflop': self.work.flop / 1e9, 'gb': self.work.bytes / 1e9}
        if self.floor_ms is not None:
            found['floor_ms'] = round(self.floor_ms, 5)
        if self.timing is not None:
            found['ms'] = self.timing.as_dict()
        if self.share is not None:
            found['share'] = round(self.share, 4)
        return found


@dataclass(kw_only=True, slots=True)
class Report:
    """Everything that was measured."""

    plan: Plan
    parameters: int
    dtype: str
    hardware: dict[str, object]
    card: Card
    card_figures: dict[str, float]
    stages: list[Row] = field(default_factory=list)
    engine: list[Row] = field(default_factory=list)
    activation_s: float = 0.0
    engine_captures: bool = False
    buckets: list[Row] = field(default_factory=list)
    costs: list[Row] = field(default_factory=list)
    clocks: dict[str, object] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    """The engine's: what runs slower than it could."""
    missing: dict[str, str] = field(default_factory=dict)
    """Parts that failed or have not run yet, and why."""

    @property
    def host_share_ms(self) -> float | None:
        """Checks, copies and Python: host to host less all on the device, medians."""
        p50 = {row.name: row.timing.p50 for row in self.engine if row.timing is not None}
        if HOST_TO_HOST not in p50 or ON_DEVICE not in p50:
            return None
        return p50[HOST_TO_HOST] - p50[ON_DEVICE]

    @property
    def predicted_ms(self) -> dict[str, float]:
        """Floors of the cards of the table, for the same chunk in bfloat16."""
        load = replace(self.plan.load, weight_bytes=2)
        return {card.name: round(chunk_floor_ms(load, card), 3) for card in CARDS}

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        load = self.plan.load
        return {
            'benchmark': 'spear benchmark',
            'model': self.plan.name,
            'parameters': self.parameters,
            'dtype': self.dtype,
            'cameras': load.cameras,
            'text_tokens': load.text,
            'steps': load.euler_steps,
            'horizon': load.config.flow.horizon,
            'camera_size': self.plan.camera,
            'roofline': {
                'tflop_s': round(self.card.tflop_s, 4),
                'gb_s': round(self.card.gb_s, 2),
                'source': self.card.source,
                **{k: round(v, 4) for k, v in self.card_figures.items()},
            },
            'stages': [row.as_dict() for row in self.stages],
            'engine': [row.as_dict() for row in self.engine],
            'host_share_ms': self.host_share_ms,
            'engine_captures': self.engine_captures,
            'activation_s': round(self.activation_s, 3),
            'buckets': [row.as_dict() for row in self.buckets],
            'costs': [row.as_dict() for row in self.costs],
            'clocks': self.clocks,
            'memory': self.memory,
            'warnings': self.warnings,
            'attention': [backend.name for backend in ATTENTION],
            'missing': self.missing,
            'floor_of_other_cards_ms': self.predicted_ms,
            'hardware': self.hardware,
        }


def table(report: Report) -> list[str]:
    """The report as lines of text."""
    hard, card = report.hardware, report.card
    where = hard.get('gpu') or f'{hard["processor"]}, {hard["threads"]} threads'
    load, share = report.plan.load, report.host_share_ms
    lines = [
        f'{report.plan.name}: {report.parameters / 1e6:.1f} M weights in {report.dtype}, '
        f'{load.cameras} cameras, {load.text} text tokens, {load.euler_steps} steps, horizon '
        f'{load.config.flow.horizon}',
        f'on {where}; torch {torch.__version__}',
        f'roofline measured here: {card.tflop_s:.4g} TFLOP/s, {card.gb_s:.4g} GB/s; the product of '
        f"the model's own size reaches {report.card_figures['model_gemm_tflop_s']:.4g} TFLOP/s",
        '',
        *_block('stage, alone', report.stages),
        '',
        *_block('engine' + (', graphs' if report.engine_captures else ', eager'), report.engine),
        *([] if share is None else [f"the host's own share: {share:.3f} ms"]),
        f'activation: {report.activation_s:.1f} s; memory: '
        + ', '.join(f'{k.replace("_mb", "")} {v:.0f} MB' for k, v in report.memory.items()),
    ]
    lines += [f'warning: {text}' for text in report.warnings]
    lines += [f'not measured: {name}: {why}' for name, why in report.missing.items()]
    if report.clocks:
        lines.append(
            'clocks under load: ' + ', '.join(f'{k} {v}' for k, v in report.clocks.items())
        )
    for title, rows in (('host to host by', report.buckets), ('host to host by', report.costs)):
        lines += ['', *_block(title, rows)] if rows else []
    return lines


def _block(title: str, rows: list[Row]) -> list[str]:
    head = ('GFLOP', 'GB', 'floor ms', 'p50 ms', 'p99 ms', 'share')
    lines = [f'{title:<22}' + ''.join(f'{h:>11}' for h in head)]
    for row in rows:
        work, timing = row.work, row.timing
        cells = (
            '' if work is None else f'{work.flop / 1e9:.4g}',
            '' if work is None else f'{work.bytes / 1e9:.3g}',
            '' if row.floor_ms is None else f'{row.floor_ms:.3f}',
            '' if timing is None else f'{timing.p50:.3f}',
            '' if timing is None else f'{timing.p99:.3f}',
            '' if row.share is None else f'{100 * row.share:.1f} %',
        )
        lines.append(
            f'{row.name:<22}' + ''.join(f'{c:>11}' for c in cells) + f'  {row.note}'.rstrip()
        )
    return lines
