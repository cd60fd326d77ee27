"""Starts and stops the processes of ``bringup`` outside of ``ros2 launch``.

Used by ``spear demo`` and by the cross-process tests. Each process leads a session of its own, so
that Ctrl-C in the terminal reaches only the caller, which then stops them in order; rclpy swallows
SIGTERM in some states, therefore every stop ends with SIGKILL.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from spear_ros.ros.bringup import ParameterValue, ProcessSpec

_GRACE_S = 4.0


def command_line(spec: ProcessSpec) -> list[str]:
    """Return the command that starts ``spec`` in this interpreter's environment."""
    command = [sys.executable, '-m', f'spear_ros.ros.nodes.{spec.executable}', '--ros-args']
    command += ['-r', f'__node:={spec.name}']
    for name, value in spec.parameters.items():
        command += ['-p', f'{name}:={_yaml_scalar(value)}']
    return command


class ProcessGroup:
    """A set of named processes with one log file each.

    Args:
        log_folder: ``<name>.log`` of every process goes here.
        environment: on top of the inherited one, for all processes.
    """

    def __init__(self, log_folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self._folder = log_folder
        self._environment = dict(environment or {})
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._logs: dict[str, IO[bytes]] = {}
        log_folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> 'ProcessGroup':
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self, specs: Iterable[ProcessSpec]) -> None:
        """Start all, in order."""
        for spec in specs:
            self.start_one(spec)

    def start_one(self, spec: ProcessSpec, command: Sequence[str] | None = None) -> None:
        """Start one process; a process of the same name must not be running.

        Args:
            spec: name, parameters and environment.
            command: instead of :func:`command_line`, for a stand-in that takes the same arguments.
        """
        assert spec.name not in self.alive(), spec.name
        log = (self._folder / f'{spec.name}.log').open('ab')
        self._logs[spec.name] = log
        self._running[spec.name] = subprocess.Popen(
            command_line(spec) if command is None else list(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **self._environment, **spec.environment, 'PYTHONUNBUFFERED': '1'},
            start_new_session=True,
        )

    def alive(self) -> list[str]:
        """Names of the processes that run."""
        return [name for name, process in self._running.items() if process.poll() is None]

    def dead(self) -> dict[str, int]:
        """Names and exit codes of the processes that ended by themselves."""
        codes = {name: process.poll() for name, process in self._running.items()}
        return {name: code for name, code in codes.items() if code is not None}

    def pid(self, name: str) -> int:
        """Process id of a started process."""
        return self._running[name].pid

    def send_signal(self, name: str, number: int) -> None:
        """Send a signal to the process and everything it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._running[name].pid, number)

    def log_tail(self, name: str, lines: int = 15) -> str:
        """Return the last lines that the process printed."""
        path = self._folder / f'{name}.log'
        text = path.read_text(errors='replace') if path.exists() else ''
        return '\n'.join(text.splitlines()[-lines:])

    def stop(self, names: Iterable[str] | None = None) -> None:
        """Stop the named processes (default all): SIGINT, after some seconds SIGKILL."""
        names = list(self._running if names is None else names)
        for name in names:
            if self._running[name].poll() is None:
                self.send_signal(name, signal.SIGCONT)
                self.send_signal(name, signal.SIGINT)
        deadline = time.monotonic() + _GRACE_S
        for name in names:
            process = self._running[name]
            try:
                process.wait(max(0.05, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.send_signal(name, signal.SIGKILL)
                process.wait()
            self._logs[name].close()
            del self._running[name]


def _yaml_scalar(value: ParameterValue) -> str:
    if isinstance(value, bool):
        return 'true' if value else 'false'
    if isinstance(value, str):
        # Quoted, so that "1e3", "true" or an empty text stay text for the parameter parser.
        escaped = value.replace("'", "''")
        return f"'{escaped}'"
    return repr(value)
