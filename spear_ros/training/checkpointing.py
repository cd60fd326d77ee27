"""Checkpoints to resume from: weights, optimiser, average, data position and random states.

A folder per step, ``step-00001000``, written as ``step-00001000.part`` by all processes with
torch.distributed.checkpoint and renamed when every byte is on the disk: whatever kills a process,
the previous checkpoint is whole. ``complete.json`` holds size and SHA-256 of every file; a folder
that does not match it is passed over in favour of the one before, with a sentence.

These are not the checkpoints that a robot loads: those are exported from them
(:mod:`spear_ros.checkpoints.spear1`).
"""

import json
import os
import random
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from spear_ros.checkpoints.tensor_files import file_sha256
from spear_ros.core.errors import UserError
from spear_ros.data.shards import write_json
from spear_ros.training.distributed import Place, barrier, gather
from spear_ros.training.ema import Ema

FORMAT = 1
PREFIX = 'step-'
COMPLETE = 'complete.json'
SPARE_SHARE = 1.1
"""A checkpoint is begun only with this many times its size free on the disk."""

Report = Callable[[str], None]


@dataclass(kw_only=True)
class TrainState:
    """Everything that a run is made of at one step."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema
    step: int = 0
    """Updates done."""
    counters: dict[str, float] | None = None
    """Further numbers that must survive (samples seen, bad batches)."""


class CheckpointFolder:
    """The checkpoints of one run."""

    def __init__(self, root: Path, place: Place, keep: int) -> None:
        self.root, self._place, self._keep = root, place, keep
        if place.first:
            root.mkdir(parents=True, exist_ok=True)
            for stray in root.glob(f'{PREFIX}*.part'):
                shutil.rmtree(stray, ignore_errors=True)
        barrier(place)

    def steps(self) -> list[int]:
        """Steps of the folders that were finished, ascending."""
        return sorted(
            int(p.name[len(PREFIX) :])
            for p in self.root.glob(f'{PREFIX}*')
            if p.name[len(PREFIX) :].isdigit()
        )

    def path(self, step: int) -> Path:
        """Folder of a step."""
        return self.root / f'{PREFIX}{step:08d}'

    def save(self, state: TrainState, data: Mapping[str, Any]) -> None:
        """Write a checkpoint; the previous ones stay until it is complete.

        Args:
            state: as it is after update ``state.step``.
            data: position of this process's stream, in JSON types.

        Raises:
            UserError: no room, or the disk refuses; nothing that was there is touched.
        """
        final = self.path(state.step)
        if final.exists():
            return
        building = final.with_name(final.name + '.part')
        problem = self._prepare(building, state)
        # Nobody may raise alone: the others would wait for it in the next collective.
        if not any(gather(problem, self._place)):
            try:
                self._write(building, state, data)
            except (OSError, dcp.api.CheckpointException) as error:
                problem = _reason(error)
        self._finish(building, final, problem)

    def _prepare(self, building: Path, state: TrainState) -> str:
        """Make the empty folder; return what is in the way, '' = nothing."""
        needed = SPARE_SHARE * state_bytes(state)
        try:
            free = shutil.disk_usage(self.root).free
            if needed > free:
                return f'{needed / 1e6:.0f} MB needed and {free / 1e6:.0f} MB free on the disk'
            if self._place.first:
                shutil.rmtree(building, ignore_errors=True)
                building.mkdir(parents=True)
        except OSError as error:
            return _reason(error)
        return ''

    def _write(self, folder: Path, state: TrainState, data: Mapping[str, Any]) -> None:
        with warnings.catch_warnings():
            # Said by torch whenever one process saves alone, which is meant here.
            warnings.filterwarnings('ignore', message='torch.distributed is disabled')
            dcp.save(
                tensors_of(state),
                storage_writer=dcp.FileSystemWriter(folder, thread_count=2),
                no_dist=self._place.world == 1,
            )
        own = {
            'format': FORMAT,
            'step': state.step,
            'world': self._place.world,
            'counters': state.counters or {},
            'data': data,
            'random': random_state(self._place.device),
        }
        write_json(folder / f'process-{self._place.rank:05d}.json', own)

    def _finish(self, building: Path, final: Path, problem: str) -> None:
        """Hash the files, rename the folder, delete old ones; or clean up and say why."""
        problems = [str(p) for p in gather(problem, self._place) if p]
        if not problems and self._place.first:
            try:
                files = sorted(p for p in building.iterdir() if p.is_file())
                write_json(
                    building / COMPLETE,
                    {p.name: [p.stat().st_size, file_sha256(p)] for p in files},
                )
                _sync(building)
                os.replace(building, final)
                _sync(self.root)
            except OSError as error:
                problems = [_reason(error)]
        problems = problems or [str(p) for p in gather(problems, self._place)[:1] if p]
        if problems:
            if self._place.first:
                shutil.rmtree(building, ignore_errors=True)
            steps = self.steps()
            last = f'the one of step {steps[-1]} is whole' if steps else 'there is none yet'
            raise UserError(f'{final}: the checkpoint was not written ({problems[0]}); {last}.')
        if self._place.first:
            for step in self.steps()[: -self._keep]:
                shutil.rmtree(self.path(step), ignore_errors=True)
        barrier(self._place)

    def load_latest(self, state: TrainState, report: Report) -> dict[str, Any] | None:
        """Restore the newest whole checkpoint into ``state``; None where there is none.

        Returns:
            This process's data position.

        Raises:
            UserError: there are checkpoints and none is whole, or it is of another number of
                processes.
        """
        steps = self.steps()
        for step in reversed(steps):
            fault = self._fault(step)
            if not fault:
                return self._load(step, state)
            if self._place.first:
                report(f'{self.path(step)} is damaged ({fault}); taking the one before.')
        if steps:
            raise UserError(
                f'{self.root}: none of the {len(steps)} checkpoints is whole; start in another '
                'folder, or restore one from a backup.'
            )
        return None

    def _fault(self, step: int) -> str:
        """What is wrong with a checkpoint, as rank 0 sees it; '' = nothing."""
        fault = fault_of(self.path(step)) if self._place.first else ''
        return str(gather(fault, self._place)[0])

    def _load(self, step: int, state: TrainState) -> dict[str, Any]:
        folder = self.path(step)
        own = self._own(folder)
        tensors = tensors_of(state)
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='torch.distributed is disabled')
            dcp.load(
                tensors,
                storage_reader=dcp.FileSystemReader(folder),
                no_dist=self._place.world == 1,
            )
        set_optimizer_state_dict(state.module, state.optimizer, tensors['optimizer'])
        state.step = int(own['step'])
        state.counters = dict(own['counters'])
        restore_random_state(own['random'], self._place.device)
        return dict(own['data'])

    def _own(self, folder: Path) -> dict[str, Any]:
        path = folder / 'process-00000.json'
        first = json.loads(path.read_text(encoding='utf-8'))
        if first['world'] != self._place.world:
            raise UserError(
                f'{folder}: saved by {first["world"]} processes, this run has {self._place.world}; '
                'resume with as many, the position in the data belongs to them.'
            )
        path = folder / f'process-{self._place.rank:05d}.json'
        return json.loads(path.read_text(encoding='utf-8'))


def tensors_of(state: TrainState) -> dict[str, Any]:
    """What torch.distributed.checkpoint stores: views of the live tensors."""
    options = StateDictOptions(ignore_frozen_params=True)
    return {
        'model': get_model_state_dict(state.module, options=options),
        'optimizer': get_optimizer_state_dict(state.module, state.optimizer, options=options),
        'ema': dict(state.ema.shadow),
    }


def fault_of(folder: Path) -> str:
    """Compare a folder with its ``complete.json``; '' where every byte is as written."""
    try:
        files = json.loads((folder / COMPLETE).read_text(encoding='utf-8'))
        for name, (size, digest) in files.items():
            path = folder / name
            if path.stat().st_size != size:
                return f'{name} has {path.stat().st_size} bytes of {size}'
            if file_sha256(path) != digest:
                return f'{name} has other content than was written'
    except (OSError, ValueError, AttributeError) as error:
        return _reason(error)
    return ''


def state_bytes(state: TrainState) -> int:
    """Bytes of a checkpoint over all processes: weights, two moments and the average."""
    trained = sum(p.numel() for p in state.module.parameters() if p.requires_grad)
    return 4 * trained * (3 + bool(state.ema))


def random_state(device: torch.device) -> dict[str, Any]:
    """States of all generators that code may draw from without saying so."""
    version, inner, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()
    found: dict[str, Any] = {
        'python': [version, list(inner), gauss],
        'numpy': [kind, keys.tolist(), *rest],  # type: ignore[attr-defined, union-attr]
        'torch': torch.get_rng_state().numpy().tobytes().hex(),
    }
    if device.type == 'cuda':
        found['cuda'] = torch.cuda.get_rng_state(device).numpy().tobytes().hex()
    return found


def restore_random_state(saved: Mapping[str, Any], device: torch.device) -> None:
    """Take up :func:`random_state`."""
    version, inner, gauss = saved['python']
    random.setstate((version, tuple(inner), gauss))
    kind, keys, *rest = saved['numpy']
    np.random.set_state((kind, np.array(keys, np.uint32), *rest))
    torch.set_rng_state(_bytes(saved['torch']))
    if device.type == 'cuda' and 'cuda' in saved:
        torch.cuda.set_rng_state(_bytes(saved['cuda']), device)


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


def _reason(error: BaseException) -> str:
    """One line of what went wrong."""
    failures = getattr(error, 'failures', None)
    if failures:
        error = next(iter(failures.values()))
        error = error[0] if isinstance(error, tuple) else error
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return ' '.join(str(error).split())[:160] or type(error).__name__


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
