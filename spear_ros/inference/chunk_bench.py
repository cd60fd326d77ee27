"""Times a chunk on the hardware at hand, stage by stage, against that hardware's roofline."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from time import perf_counter

import numpy as np
import torch

from spear_ros.inference import hardware
from spear_ros.inference.engine import Engine, EngineRequest, EngineSettings, StageTimes
from spear_ros.inference.roofline import CARDS, Card, Work, Workload, chunk_floor_ms, stage_work
from spear_ros.inference.stages import COPY_IN, COPY_OUT, HostInputs, StageBench, random_inputs
from spear_ros.inference.timing import Budget, Timing, capture, time_device, time_host, timing_of
from spear_ros.networks.spear1 import Spear1
from spear_ros.processing.images import ImageFit
from spear_ros.processing.tokens import TextTokens


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
    seconds: float = 2.0
    """Per measurement."""
    least_runs: int = 3
    """Of a measurement, and of its warm-up, however long they take."""

    @property
    def budget(self) -> Budget:
        """Of one measurement."""
        return Budget(seconds=self.seconds, least=self.least_runs, warm_up=self.least_runs)


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
            'engine_captures': self.engine_captures,
            'activation_s': round(self.activation_s, 3),
            'buckets': [row.as_dict() for row in self.buckets],
            'costs': [row.as_dict() for row in self.costs],
            'clocks': self.clocks,
            'memory': self.memory,
            'floor_of_other_cards_ms': self.predicted_ms,
            'hardware': self.hardware,
        }


def measure(model: Spear1, plan: Plan) -> Report:
    """Run a plan. The model is baked, and handed to engines, on its device."""
    model.eval().requires_grad_(False)
    model.bake()
    weight = model.vlm.language.norm.weight
    card, figures = hardware.measure_card(
        weight.device, weight.dtype, _largest_product(plan.load), plan.budget
    )
    report = Report(
        plan=plan,
        parameters=sum(p.numel() for p in model.parameters()),
        dtype=str(weight.dtype).removeprefix('torch.'),
        hardware=hardware.describe(weight.device),
        card=card,
        card_figures=figures,
    )
    inputs = random_inputs(plan.load, plan.camera)
    report.stages = _stage_rows(model, plan, inputs, card)
    _measure_engine(model, report, inputs)
    if plan.buckets:
        report.buckets = list(_bucket_rows(model, plan, card))
    if plan.cost_steps or plan.cost_horizons:
        report.costs = list(_cost_rows(model, plan, card))
    report.memory = hardware.peak_memory_mb(weight.device)
    return report


def request_of(inputs: HostInputs) -> EngineRequest:
    """The same inputs as the engine takes them."""
    return EngineRequest(
        external=inputs.pictures[0],
        wrist=inputs.pictures[1] if len(inputs.pictures) > 1 else None,
        text=TextTokens(inputs.tokens, np.ones(len(inputs.tokens), dtype=bool)),
        proprio=inputs.proprio.astype(np.float64),
        noise=inputs.noise,
    )


def _stage_rows(model: Spear1, plan: Plan, inputs: HostInputs, card: Card) -> list[Row]:
    bench = StageBench(model, plan.load, inputs, plan.image_fit)
    works = stage_work(plan.load)
    rows = []
    for name, function in bench.stages().items():
        if bench.device.type == 'cpu' and name in (COPY_IN, COPY_OUT):
            rows.append(Row(name=name, timing=None, note='nothing to copy on a CPU'))
            continue
        replay, note = capture(function, bench.device)
        timing = time_device(replay, plan.budget, bench.device)
        work = works.get(name)
        floor = None if work is None else card.floor_ms(work)
        quiet = note if bench.device.type == 'cuda' else ''
        rows.append(Row(name=name, timing=timing, work=work, floor_ms=floor, note=quiet))
    return rows


def _measure_engine(model: Spear1, report: Report, inputs: HostInputs) -> None:
    plan, request = report.plan, request_of(inputs)
    started = perf_counter()
    with _engine(model, plan, plan.load) as engine:
        engine.warm_up(wrist=plan.load.cameras > 1)
        report.activation_s = perf_counter() - started
        report.engine_captures = engine.captures
        times: list[StageTimes] = []
        host = time_host(lambda: times.append(engine.compute(request).times), plan.budget)
        del times[: -host.runs]
        report.clocks = _clocks_under_load(engine, request)
    floor = chunk_floor_ms(plan.load, report.card)
    report.engine = [
        *_engine_stages(times),
        Row(name='host to host', timing=host, floor_ms=floor),
    ]


def _engine_stages(times: list[StageTimes]) -> Iterator[Row]:
    """The engine's own figures, by the names of its fields."""
    for name in StageTimes.__dataclass_fields__:
        values = [getattr(t, name) for t in times]
        if all(isinstance(v, float) for v in values):
            yield Row(name=name.removesuffix('_ms').replace('_', ' '), timing=timing_of(values))


def _bucket_rows(model: Spear1, plan: Plan, card: Card) -> Iterator[Row]:
    with _engine(model, plan, plan.load) as engine:
        for length in engine.buckets:
            load = replace(plan.load, text=length)
            request = request_of(random_inputs(load, plan.camera))
            timing = time_host(lambda r=request: engine.compute(r), plan.budget)  # type: ignore[misc]
            yield Row(
                name=f'{length} text tokens', timing=timing, floor_ms=chunk_floor_ms(load, card)
            )


def _cost_rows(model: Spear1, plan: Plan, card: Card) -> Iterator[Row]:
    base = plan.load
    loads = {f'{n} camera{"s" * (n > 1)}': replace(base, cameras=n) for n in (1, 2)}
    loads |= {f'{n} step{"s" * (n > 1)}': replace(base, steps=n) for n in plan.cost_steps}
    for n in plan.cost_horizons:
        flow = replace(base.config.flow, horizon=n)
        loads[f'horizon {n}'] = replace(base, config=replace(base.config, flow=flow))
    for name, load in loads.items():
        request = request_of(random_inputs(load, plan.camera))
        with _engine(_same_weights(model, load), plan, load) as engine:
            timing = time_host(lambda e=engine, r=request: e.compute(r), plan.budget)  # type: ignore[misc]
        yield Row(name=name, timing=timing, floor_ms=chunk_floor_ms(load, card))


@contextmanager
def _engine(model: Spear1, plan: Plan, load: Workload) -> Iterator[Engine]:
    settings = EngineSettings(
        image_fit=plan.image_fit, steps=load.steps, capture_graph=plan.capture_graph
    )
    engine = Engine(model, model.vlm.language.norm.weight.device, settings)
    try:
        yield engine
    finally:
        engine.close()


def _same_weights(model: Spear1, load: Workload) -> Spear1:
    """The model itself, or with another horizon: no weight depends on it."""
    if load.config == model.config:
        return model
    with torch.device('meta'):
        other = Spear1(load.config)
    other.load_state_dict(model.state_dict(), strict=True, assign=True)
    return other.eval().requires_grad_(False)


def _clocks_under_load(engine: Engine, request: EngineRequest) -> dict[str, object]:
    """Ask for the clocks while chunks are computed: an idle card shows resting ones."""
    if engine.device.type != 'cuda':
        return {}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(hardware.gpu_state, engine.device)
        while not answer.done():
            engine.compute(request)
        return answer.result()


def _largest_product(load: Workload) -> tuple[int, int, int]:
    language = load.config.language
    return load.prefix, 2 * language.mlp_width, language.width


def table(report: Report) -> list[str]:
    """The report as lines of text."""
    hard, card = report.hardware, report.card
    where = hard.get('gpu') or f'{hard["processor"]}, {hard["threads"]} threads'
    load = report.plan.load
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
        f'activation: {report.activation_s:.1f} s; memory: '
        + ', '.join(f'{k.replace("_mb", "")} {v:.0f} MB' for k, v in report.memory.items()),
    ]
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
