"""Times a chunk on the hardware at hand, stage by stage, against that hardware's roofline."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from time import perf_counter

import numpy as np
import torch

from spear_ros.core.errors import UserError, root_cause
from spear_ros.inference import hardware
from spear_ros.inference.chunk_buffers import ChunkShape
from spear_ros.inference.chunk_report import HOST_TO_HOST, ON_DEVICE, Plan, Report, Row
from spear_ros.inference.denoiser import CapturedRunner
from spear_ros.inference.engine import Engine, EngineRequest, EngineSettings
from spear_ros.inference.roofline import (
    DENOISE,
    MOGE,
    PREFILL,
    SIGLIP,
    Card,
    Work,
    Workload,
    chunk_floor_ms,
    stage_work,
)
from spear_ros.inference.stages import (
    COPY_IN,
    COPY_OUT,
    HostInputs,
    Stage,
    StageBench,
    random_inputs,
)
from spear_ros.inference.timing import capture, time_device, time_host
from spear_ros.networks.spear1 import Spear1
from spear_ros.processing.tokens import TextTokens

Listener = Callable[[Report], object]


def measure(model: Spear1, plan: Plan, listen: Listener | None = None) -> Report:
    """Run a plan. The model is baked, and handed to engines, on its device.

    Args:
        model: loaded.
        plan: what to measure.
        listen: is given the report after each part, so that nothing is lost where time runs out;
            what has not run yet stands in ``missing``.

    Returns:
        The report. A part that failed stands in ``missing`` with its reason, and costs no other.
    """
    model.eval().requires_grad_(False)
    model.bake()
    weight = model.vlm.language.norm.weight
    card, figures = hardware.measure_card(
        weight.device, weight.dtype, _largest_product(plan.load), plan.budget
    )
    if weight.device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(weight.device)  # the large products are not the model's
    report = Report(
        plan=plan,
        parameters=sum(p.numel() for p in model.parameters()),
        dtype=str(weight.dtype).removeprefix('torch.'),
        hardware=hardware.describe(weight.device),
        card=card,
        card_figures=figures,
    )
    parts = {'engine': _measure_engine, 'stages': _measure_stages}
    if plan.buckets:
        parts['buckets'] = _measure_buckets
    if plan.cost_steps or plan.cost_horizons:
        parts['costs'] = _measure_costs
    report.missing = dict.fromkeys(parts, 'not run yet')
    for name, part in parts.items():
        why = _reason(partial(part, model, report))
        report.missing.pop(name)
        if why:
            report.missing[name] = why
        report.memory |= hardware.peak_memory_mb(weight.device)
        if listen is not None:
            listen(report)
    return report


def _reason(run: Callable[[], object]) -> str:
    """Run; why it failed, or nothing. Out of memory, a failed capture: other parts may still do."""
    try:
        run()
    except UserError as error:
        return str(error)
    except Exception as error:
        return root_cause(error)
    return ''


def request_of(inputs: HostInputs) -> EngineRequest:
    """The same inputs as the engine takes them."""
    return EngineRequest(
        external=inputs.pictures[0],
        wrist=inputs.pictures[1] if len(inputs.pictures) > 1 else None,
        text=TextTokens(inputs.tokens, np.ones(len(inputs.tokens), dtype=bool)),
        proprio=inputs.proprio.astype(np.float64),
        noise=inputs.noise,
    )


def _measure_stages(model: Spear1, report: Report) -> None:
    plan, card, rows = report.plan, report.card, report.stages
    inputs = random_inputs(plan.load, plan.camera)
    bench = StageBench(model, plan.load, inputs, plan.image_fit)
    works = stage_work(plan.load)
    for name, function in bench.stages().items():
        if bench.device.type == 'cpu' and name in (COPY_IN, COPY_OUT):
            rows.append(Row(name=name, timing=None, note='nothing to copy on a CPU'))
            continue
        replay, note = capture(function, bench.device)
        timing = time_device(replay, plan.budget, bench.device, one_launch=not note)
        work = works.get(name)
        floor = None if work is None else card.floor_ms(work)
        quiet = note if bench.device.type == 'cuda' else ''
        rows.append(Row(name=name, timing=timing, work=work, floor_ms=floor, note=quiet))


def _measure_engine(model: Spear1, report: Report) -> None:
    plan = report.plan
    request = request_of(random_inputs(plan.load, plan.camera))
    device = model.vlm.language.norm.weight.device
    before = _allocated_mb(device)
    started = perf_counter()
    with _engine(model, plan, plan.load) as engine:
        engine.warm_up(wrist=plan.load.cameras > 1)
        report.activation_s = perf_counter() - started
        report.engine_captures = engine.captures
        if device.type == 'cuda':
            report.memory['engine_device_mb'] = round(_allocated_mb(device) - before, 1)
        report.warnings = list(engine.warnings)
        host = time_host(lambda: engine.compute(request), plan.long_budget)
        floor = chunk_floor_ms(plan.load, report.card)
        report.clocks = _clocks_under_load(engine, request)
        try:
            report.engine.extend(_engine_stages(engine, plan, report.card))
        finally:
            report.engine.append(Row(name=HOST_TO_HOST, timing=host, floor_ms=floor))


def _engine_stages(engine: Engine, plan: Plan, card: Card) -> Iterator[Row]:
    """The engine's stages by graphs of their own, then all of them in one, on the device."""
    wrist = plan.camera if plan.load.cameras > 1 else None
    runner = engine.runner(ChunkShape(plan.load.text, plan.camera, wrist))
    works = _engine_works(plan.load)
    functions: dict[str, Stage] = {
        stage.name: (lambda run=stage.run: run(runner.buffers)) for stage in runner.stages
    }
    if isinstance(runner, CapturedRunner):
        graphs = runner.capture_stages()
        functions = {name: graph.replay for name, graph in graphs.items()}
    on_cpu = engine.device.type == 'cpu'
    with torch.no_grad():
        for name, function in functions.items():
            parts = works.get(name, ())
            timing = time_device(function, plan.budget, engine.device, one_launch=runner.captured)
            yield Row(
                name=name,
                timing=None if on_cpu and name in ('upload', 'download') else timing,
                work=sum(parts[1:], parts[0]) if parts else None,
                floor_ms=sum(card.floor_ms(work) for work in parts) if parts else None,
                note='nothing to copy on a CPU'
                if on_cpu and name in ('upload', 'download')
                else '',
            )
        whole = time_device(
            runner.launch, plan.long_budget, engine.device, one_launch=runner.captured
        )
    yield Row(name=ON_DEVICE, timing=whole, floor_ms=chunk_floor_ms(plan.load, card))


def _engine_works(load: Workload) -> dict[str, tuple[Work, ...]]:
    """What the engine's stages compute; "vision" is both encoders, beside each other on a GPU."""
    works = stage_work(load)
    return {
        'vision': (works[SIGLIP], works[MOGE]),
        PREFILL: (works[PREFILL],),
        DENOISE: (works[DENOISE],),
    }


def _allocated_mb(device: torch.device) -> float:
    return torch.cuda.memory_allocated(device) / 2**20 if device.type == 'cuda' else 0.0


def _measure_buckets(model: Spear1, report: Report) -> None:
    plan = report.plan
    with _engine(model, plan, plan.load) as engine:
        for length in engine.buckets:
            load = replace(plan.load, text=length)
            report.buckets.append(
                _call_row(f'{length} text tokens', load, report, partial(nullcontext, engine))
            )


def _measure_costs(model: Spear1, report: Report) -> None:
    plan, base = report.plan, report.plan.load
    loads = {f'{n} camera{"s" * (n > 1)}': replace(base, cameras=n) for n in (1, 2)}
    loads |= {f'{n} step{"s" * (n > 1)}': replace(base, steps=n) for n in plan.cost_steps}
    for n in plan.cost_horizons:
        flow = replace(base.config.flow, horizon=n)
        loads[f'horizon {n}'] = replace(base, config=replace(base.config, flow=flow))
    for name, load in loads.items():
        report.costs.append(_call_row(name, load, report, partial(_engine, model, plan, load)))


def _call_row(
    name: str, load: Workload, report: Report, engine: Callable[[], AbstractContextManager[Engine]]
) -> Row:
    """A whole call of another load, host to host; a failure is the row's note."""
    plan, timings = report.plan, []
    request = request_of(random_inputs(load, plan.camera))

    def run() -> None:
        with engine() as there:
            timings.append(time_host(lambda: there.compute(request), plan.budget))

    note = _reason(run)
    floor = chunk_floor_ms(load, report.card)
    return Row(name=name, timing=timings[0] if timings else None, floor_ms=floor, note=note)


@contextmanager
def _engine(model: Spear1, plan: Plan, load: Workload) -> Iterator[Engine]:
    settings = EngineSettings(
        image_fit=plan.image_fit,
        steps=load.steps,
        capture_graph=plan.capture_graph,
        kernels=plan.kernels,
        external_camera=plan.camera,
        wrist_camera=plan.camera,
    )
    weight = model.vlm.language.norm.weight
    engine = Engine(_same_weights(model, load), weight.device, settings)
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
