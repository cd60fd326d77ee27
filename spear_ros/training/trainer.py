"""The training loop: the same for SPEAR-1, SPEAR-VLM and MoGe, for one process and for many.

What a step does depends only on the config, the data and the step's number: noise, flow times and
augmentation are drawn from seeds made of (seed, step, process). Together with the saved position in
the data a resumed run gives bit by bit the weights of one that was never stopped.

Nothing is lost without a word: a loss that is not finite changes no weight, a sample that cannot be
read is passed over, a full disk leaves the previous checkpoint; each is said in one sentence,
counted, and too many of them end the run.
"""

import errno
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spear_ros.core.errors import UserError
from spear_ros.data.samples import stable_hash
from spear_ros.data.shards import write_json
from spear_ros.training import estimates
from spear_ros.training.checkpointing import CheckpointFolder, TrainState
from spear_ros.training.distributed import (
    Place,
    agree,
    barrier,
    is_lost_peer,
    shard,
    synchronize_gradients,
)
from spear_ros.training.ema import Ema
from spear_ros.training.logs import RunLog
from spear_ros.training.optimizer import (
    clip_gradients,
    gradient_norm,
    learning_rate,
    make_optimizer,
    set_learning_rate,
)
from spear_ros.training.run_folder import keep_config, keep_start, stop_signals
from spear_ros.training.task import Batch, BatchStream, Task
from spear_ros.training.weights import averaged_weights, fill, full_state

Validate = Callable[[Path], Mapping[str, float]]
"""Gets the folder of an exported checkpoint, on process 0, and returns figures."""

EXPORT, VALIDATION = 'export', 'validation'
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a call of :meth:`Trainer.run` ended."""

    finished: bool
    """False: stopped by a signal or by max_minutes; the same command goes on."""
    step: int
    checkpoint_id: str = ''
    """Of the export, once finished."""


@dataclass(slots=True)
class _Meter:
    """Figures since the last line of the log."""

    started: float = field(default_factory=time.perf_counter)
    waited_s: float = 0.0
    steps: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, losses: Mapping[str, Tensor]) -> None:
        self.steps += 1
        for name, value in losses.items():
            value = value.detach()
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()


class Trainer:
    """Runs one task in one folder.

    Args:
        task: what is trained.
        folder: of the run: checkpoints, ``metrics.jsonl``, ``config.json``, the export.
        place: this process.
        validate: roll-outs or the like; process 0 only, the others wait.
    """

    def __init__(
        self, task: Task[Any], folder: Path, place: Place, validate: Validate | None = None
    ) -> None:
        self.task, self.folder, self.place = task, folder, place
        self.config = task.config
        self._validate = validate
        self._deadline = time.monotonic() + 60.0 * self.config.max_minutes
        self._stop = False
        self._bad_in_row = 0
        self._meter = _Meter()

    # -- the whole run ---------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Train from the last checkpoint (or the start) to the end or the next stop.

        Raises:
            UserError: one sentence for whatever ended it; the last checkpoint is whole.
        """
        self._log = RunLog(self.folder, self.place, tensorboard=self.config.logging.tensorboard)
        try:
            with stop_signals(self._ask_to_stop):
                self._start()
                return self._loop()
        except torch.OutOfMemoryError:
            raise UserError(
                f'the device ran out of memory at step {self._step()}; raise accumulate, set '
                f'recompute=true or use more processes ({self._last()}).'
            ) from None
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            raise UserError(
                f'{self.folder}: the disk refuses to write ({error.strerror}) at step '
                f'{self._step()}; free some space and start the same command again '
                f'({self._last()}).'
            ) from None
        except RuntimeError as error:
            if self.place.world > 1 and is_lost_peer(error):
                raise UserError(
                    f'process {self.place.rank} lost touch with another one at step '
                    f'{self._step()} (it died or hangs, see its own last line); start the same '
                    f'command again ({self._last()}).'
                ) from None
            raise
        finally:
            self._log.close()
            if hasattr(self, '_stream'):
                self._stream.close()

    def _start(self) -> None:
        """Build everything and take up the newest checkpoint."""
        config, place = self.config, self.place
        _set_determinism(config.deterministic)
        keep_config(self.folder, config, place)
        keep_start(self.folder, config, place)
        self.task.prepare(place)
        with torch.device('meta'):
            self.module = self.task.make_module()
        _set_frozen_dtype(self.module, config.frozen_dtype)
        memory = estimates.estimate_memory(self.module, self.task.stacks(), config, place)
        self._log.say(memory.text())
        estimates.check_memory(memory, place, config.check_memory)
        shard(self.module, self.task.blocks(self.module), place, config)
        fill(self.module, self.task.initial_state, place)
        trained = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        self._trained = list(trained.values())
        self.state = TrainState(
            module=self.module,
            optimizer=make_optimizer(trained, config.optimizer),
            ema=Ema(trained, config.ema_decay),
            counters={'bad_updates': 0.0, 'bad_batches': 0.0},
        )
        self._stream: BatchStream = self.task.stream(place)
        self._checkpoints = CheckpointFolder(self.folder / 'checkpoints', place, config.saving.keep)
        data = self._checkpoints.load_latest(self.state, self._log.say)
        if data is not None:
            self._stream.load_state_dict(data)
            self._log.say(f'going on after step {self.state.step} of {config.steps}.')
        self._operations = estimates.operations(self.task.stacks()) * config.batch_size
        self._peak = estimates.peak_flops(place.device, config.precision) * place.world

    def _loop(self) -> Outcome:
        config, state = self.config, self.state
        self.module.train()
        self._meter = _Meter()
        while state.step < config.steps:
            losses = self._update()
            state.step += 1
            self._meter.add(losses)
            if state.step % config.logging.every_steps == 0 or state.step == config.steps:
                self._write_figures()
            stop = self._agreed_to_stop()
            if stop or state.step % config.saving.every_steps == 0 or state.step == config.steps:
                self._save(must=stop or state.step == config.steps)
            if stop and state.step < config.steps:
                self._tell_status(finished=False)
                self._log.say(
                    f'stopped after step {state.step} of {config.steps}; the same command goes on.'
                )
                return Outcome(finished=False, step=state.step)
            if config.validate_every and state.step % config.validate_every == 0:
                self.validate()
        return self._finish()

    def _finish(self) -> Outcome:
        # Exported first: a validation that fails must not take the weights with it.
        checkpoint_id = self.export(self.folder / EXPORT)
        if not (self.config.validate_every and self.config.steps % self.config.validate_every == 0):
            self.validate()
        self._tell_status(finished=True)
        self._log.say(f'finished {self.config.steps} steps: {self.folder / EXPORT}')
        return Outcome(finished=True, step=self.state.step, checkpoint_id=checkpoint_id)

    # -- one update ------------------------------------------------------------------------------

    def _update(self) -> dict[str, Tensor]:
        """One optimiser step; returns the mean losses of this process."""
        config, state = self.config, self.state
        total: dict[str, Tensor] = {}
        keys: list[str] = []
        for part in range(config.accumulate):
            batch, inputs = self._next_batch(part)
            keys += self.task.keys(batch)
            synchronize_gradients(self.module, part == config.accumulate - 1)
            with self._autocast():
                losses = self.module(**inputs)
            (losses['loss'] / config.accumulate).backward()
            for name, value in losses.items():
                share = value.detach() / config.accumulate
                total[name] = total[name] + share if name in total else share
        self.task.after_backward(self.module)
        norm = gradient_norm(self._trained)
        total['gradient_norm'] = norm
        finite = bool(torch.isfinite(total['loss']) & torch.isfinite(norm))
        everywhere = agree([float(not finite)], self.place)[0] == 0.0
        if everywhere:
            clip_gradients(self._trained, norm, config.optimizer.clip_norm)
            rate = learning_rate(state.step, config.steps, config.optimizer)
            set_learning_rate(state.optimizer, rate)
            state.optimizer.step()
            state.ema.update(state.step)
            self._bad_in_row = 0
        else:
            self._refuse_update(total, keys, finite)
        state.optimizer.zero_grad(set_to_none=True)
        return total

    def _refuse_update(self, losses: dict[str, Tensor], keys: list[str], finite: bool) -> None:
        """Count and record an update that is not finite; too many in a row end the run."""
        assert self.state.counters is not None
        self._bad_in_row += 1
        self.state.counters['bad_updates'] += 1
        broken = [n for n, v in losses.items() if not torch.isfinite(v)]
        if not finite:
            record = {
                'step': self.state.step,
                'process': self.place.rank,
                'not_finite': broken,
                'keys': keys,
            }
            self._log.append(self.folder / 'bad_updates.jsonl', record)
        text = (
            f'step {self.state.step}: {" and ".join(broken) or "the loss of another process"} not '
            'finite; no weight was changed, the samples are in bad_updates.jsonl'
        )
        for name in losses:  # keep the sums of the log finite
            losses[name] = torch.nan_to_num(losses[name], 0.0, 0.0, 0.0)
        if self._bad_in_row >= self.config.max_bad:
            raise UserError(
                f'{text}; that was {self._bad_in_row} times in a row: lower learning_rate or look '
                f'at those samples ({self._last()}).'
            )
        self._log.say(f'{text}.')

    def _next_batch(self, part: int) -> tuple[Batch, Mapping[str, Any]]:
        """Next batch of this process and the module's inputs made from it.

        What cannot be read is passed over and counted.
        """
        seed = stable_hash(self.config.seed, 'step', self.state.step, self.place.rank, part) >> 1
        started = time.perf_counter()
        assert self.state.counters is not None
        while True:
            try:
                batch = next(self._stream)
                inputs = self.task.inputs(batch, self.place.device, seed)
                break
            except UserError as error:
                self.state.counters['bad_batches'] += 1
                if self.state.counters['bad_batches'] > self.config.max_bad:
                    raise UserError(
                        f'more than {self.config.max_bad} batches could not be read, the last '
                        f'because {error} ({self._last()})'
                    ) from None
                self._log.say(f'a batch is passed over: {error}')
        self._meter.waited_s += time.perf_counter() - started
        return batch, inputs

    def _autocast(self) -> Any:
        if self.config.precision == 'float32':
            return nullcontext()
        return torch.autocast(self.place.device.type, torch.bfloat16)

    # -- between updates -------------------------------------------------------------------------

    def _ask_to_stop(self) -> None:
        self._stop = True

    def _agreed_to_stop(self) -> bool:
        late = self.config.max_minutes > 0 and time.monotonic() > self._deadline
        return agree([float(self._stop or late)], self.place)[0] > 0.0

    def _save(self, *, must: bool) -> None:
        """Write a checkpoint; a full disk in mid-run is said and tried again later."""
        try:
            self._checkpoints.save(self.state, self._stream.state_dict())
        except UserError as error:
            if must:
                raise
            self._log.say(f'{error} The run goes on; free some space.')

    def _write_figures(self) -> None:
        meter, config = self._meter, self.config
        names = sorted(meter.sums)
        values = [float(meter.sums[n]) / meter.steps for n in names]
        means = [v / self.place.world for v in agree(values, self.place, 'sum')]
        elapsed = time.perf_counter() - meter.started
        figures: dict[str, Any] = dict(zip(names, means, strict=True))
        figures['samples_per_s'] = meter.steps * config.batch_size / elapsed
        figures['flop_utilisation'] = meter.steps * self._operations / elapsed / self._peak
        figures['data_wait_share'] = meter.waited_s / elapsed
        figures['learning_rate'] = learning_rate(
            self.state.step - 1, config.steps, config.optimizer
        )
        figures.update(self.state.counters or {})
        if self.place.device.type == 'cuda':
            figures['memory_gb'] = torch.cuda.max_memory_allocated(self.place.device) / 1e9
        self._log.write('train', self.state.step, figures)
        self._log.say(
            f'step {self.state.step}/{config.steps} loss {figures["loss"]:.4f} '
            f'{figures["samples_per_s"]:.1f} samples/s, FLOP use '
            f'{100 * figures["flop_utilisation"]:.1f} %'
        )
        self._meter = _Meter()

    def validate(self) -> dict[str, float]:
        """Figures of the averaged weights: open-loop by the task, then ``validate`` on an export.

        The export stays in ``validation`` until the next one, so that a run can be tried on a robot
        before it ends. Process 0 runs ``validate`` while the others wait.
        """
        self.module.eval()
        with averaged_weights(self.module, self.state.ema), self._autocast():
            figures = dict(self.task.evaluate(self.module, self.place))
        folder = self.folder / VALIDATION
        self.export(folder)
        if self._validate is not None:
            if self.place.first:
                figures.update(self._validate(folder))
            barrier(self.place)
        self.module.train()
        if figures:
            self._log.write('validation', self.state.step, figures)
            shown = ', '.join(f'{n} {v:.4g}' for n, v in figures.items())
            self._log.say(f'step {self.state.step} validation: {shown}')
        self._meter = _Meter()
        return figures

    def export(self, folder: Path) -> str:
        """Write the averaged weights (the plain ones without an average) for others to load."""
        weights = full_state(self.module, self.state.ema, self.place)
        if not self.place.first:
            return ''
        return self.task.export(folder, weights, ema=bool(self.state.ema))

    def _tell_status(self, *, finished: bool) -> None:
        if self.place.first:
            status = {'finished': finished, 'step': self.state.step, 'steps': self.config.steps}
            write_json(self.folder / 'status.json', status)

    def _step(self) -> int:
        return self.state.step if hasattr(self, 'state') else 0

    def _last(self) -> str:
        steps = self._checkpoints.steps() if hasattr(self, '_checkpoints') else []
        return f'the checkpoint of step {steps[-1]} is whole' if steps else 'no checkpoint yet'


def _set_determinism(on: bool) -> None:
    torch.use_deterministic_algorithms(on, warn_only=False)
    torch.backends.cudnn.deterministic = on
    torch.backends.cudnn.benchmark = False


def _set_frozen_dtype(module: nn.Module, name: str) -> None:
    if name == 'bfloat16':
        for parameter in module.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
