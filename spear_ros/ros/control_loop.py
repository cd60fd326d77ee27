"""The control thread: ticks the executor on absolute deadlines and sends what it commands.

Nothing else happens in this thread: no subscription, no service, no disk. The stop flag of a
service call is judged by the next tick, at most one period later.
"""

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Protocol

from spear_ros.runtime.executor_types import Command

CONTROL_PRIORITY = 40
PROCESS_PRIORITY = 20
_NICE = -10
_SWITCH_INTERVAL_S = 0.0005
"""With Python's default of 5 ms, a callback that computes delays a 10 ms control period by half."""


class Ticking(Protocol):
    """What the loop needs of ``runtime.executor.Executor``."""

    def tick(self) -> Command | None:
        """Return the command of this period, None to send nothing."""
        ...


class ControlLoop:
    """Runs ``executor.tick`` at ``rate_hz`` in a thread and hands commands to ``send``.

    Args:
        executor: see :class:`Ticking`.
        send: publishes a command.
        rate_hz: control rate.
        after_tick: called after every period, in the control thread; must not block.
    """

    def __init__(
        self,
        executor: Ticking,
        send: Callable[[Command], None],
        rate_hz: float,
        after_tick: Callable[[], None],
    ) -> None:
        self._executor, self._send, self._after = executor, send, after_tick
        self._period_s = 1.0 / rate_hz
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name='control', daemon=True)
        self.priority = 'ordinary priority, as asked for'
        """What the scheduler granted; a sentence when it is less than asked for."""
        self.realtime = False
        self.failure = ''
        """Traceback of an error in the control thread; nothing is sent any more."""

    def start(self) -> None:
        """Start the thread."""
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the present period."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(2.0)

    def _run(self) -> None:
        if realtime_wanted():
            self.realtime, self.priority = raise_priority(CONTROL_PRIORITY)
        deadline = time.monotonic()
        while not self._stop.is_set():
            try:
                command = self._executor.tick()
                if command is not None:
                    self._send(command)
            except Exception:
                self.failure = traceback.format_exc()
                self._after()
                return
            self._after()
            deadline += self._period_s
            left = deadline - time.monotonic()
            if left > 0:
                time.sleep(left)
            elif left < -self._period_s:
                deadline = time.monotonic()  # the executor sees the gap by itself (CONTROL_GAP)


def prepare_process() -> None:
    """Raise the process, before it starts any thread, and let its threads alternate quickly.

    ``SPEAR_REALTIME=0`` in the environment leaves the priority alone, for measurements without it.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    if realtime_wanted():
        raise_priority(PROCESS_PRIORITY)


def realtime_wanted() -> bool:
    """Tell whether to ask the scheduler for priority: yes unless SPEAR_REALTIME=0."""
    return os.environ.get('SPEAR_REALTIME', '1') != '0'


def raise_priority(level: int) -> tuple[bool, str]:
    """Ask for SCHED_RR ``level``, then for nice -10, for the calling thread; say what was granted.

    Threads that it starts later inherit it. The whole process is raised, not only the control
    thread: a callback that holds Python's interpreter lock while an ordinary process of somebody
    else takes its core would keep the control thread waiting for both.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(level))
    except (OSError, AttributeError):
        pass
    else:
        return True, f'SCHED_RR {level}'
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
    except (OSError, AttributeError):
        return False, (
            'ordinary priority: real-time priority and nice -10 were both refused; allow them with '
            '"rtprio 99" and "nice -10" for your user in /etc/security/limits.conf.'
        )
    return False, (
        f'nice {_NICE}: real-time priority was refused; allow it with "rtprio 99" for your user in '
        '/etc/security/limits.conf.'
    )


def ordinary_priority() -> None:
    """Give the calling thread, and those it will start, back to the ordinary scheduler."""
    try:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    except (OSError, AttributeError):
        return
