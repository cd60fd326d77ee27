"""At most one goal in flight: a new one waits until the old one has ended or was cancelled.

franka_gripper accepts every goal and runs each in a thread of its own without pre-emption, so two
goals in flight fight over the fingers; and a move into an object may block for minutes.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from action_msgs.msg import GoalStatus
from rclpy.action import ActionClient

_CANCEL_TIMEOUT_S = 2.0

Done = Callable[[bool, str], None]
"""Called with (success, error text) when a goal has ended."""


@dataclass
class _Request:
    client: ActionClient
    goal: Any
    done: Done


class GoalSlot:
    """Runs goals of one or several action clients one after another, newest wins."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._pending: _Request | None = None
        self._current: _Request | None = None
        self._handle: Any = None
        self._cancelled_at: float | None = None

    @property
    def busy(self) -> bool:
        """A goal is in flight or waits."""
        return self._current is not None or self._pending is not None

    def start(self, client: ActionClient, goal: Any, done: Done) -> None:
        """Send ``goal`` after what is in flight has been cancelled."""
        self._pending = _Request(client, goal, done)
        if self._current is None:
            self._next()
        else:
            self._cancel()

    def drop_pending(self) -> None:
        """Forget the goal that waits; the one in flight goes on."""
        self._pending = None

    def poll(self) -> None:
        """Give up a goal whose server is gone or does not answer the cancellation."""
        if self._current is None:
            return
        late = (
            self._cancelled_at is not None
            and self._monotonic() - self._cancelled_at > _CANCEL_TIMEOUT_S
        )
        if late or not self._current.client.server_is_ready():
            request = self._current
            self._forget_current()
            request.done(False, 'the action server does not answer')
            self._next()

    def _next(self) -> None:
        if self._pending is None:
            return
        request, self._pending = self._pending, None
        if not request.client.server_is_ready():
            request.done(False, 'the action server is not there')
            return
        self._current = request
        future = request.client.send_goal_async(request.goal)
        future.add_done_callback(lambda f: self._accepted(request, f.result()))

    def _accepted(self, request: _Request, handle: Any) -> None:
        if request is not self._current:
            return
        if not handle.accepted:
            self._forget_current()
            request.done(False, 'the goal was refused')
            self._next()
            return
        self._handle = handle
        handle.get_result_async().add_done_callback(lambda f: self._ended(request, f.result()))
        if self._pending is not None:
            self._cancel()

    def _ended(self, request: _Request, answer: Any) -> None:
        if request is not self._current:
            return
        self._forget_current()
        ok = answer.status == GoalStatus.STATUS_SUCCEEDED and getattr(
            answer.result, 'success', True
        )
        request.done(ok, getattr(answer.result, 'error', ''))
        self._next()

    def _cancel(self) -> None:
        if self._cancelled_at is None:
            self._cancelled_at = self._monotonic()
        if self._handle is not None:
            self._handle.cancel_goal_async()
            self._handle = None

    def _forget_current(self) -> None:
        self._current, self._handle, self._cancelled_at = None, None, None
