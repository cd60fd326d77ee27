"""Shared base of the lifecycle nodes, and the one ``main`` that runs a node.

rclpy's own signal handling shuts the context down at once, which would take away the publishers
before a node can bring its robot to rest. Nodes are therefore run with signal handlers of ours: the
first SIGINT or SIGTERM ends the spinning, then :meth:`AutostartNode.close` runs while everything
still works, then the context goes.
"""

import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, Protocol

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from spear_ros.core.errors import UserError

_WAKE_S = 0.2


class AutostartNode(LifecycleNode):
    """Lifecycle node that configures and activates itself unless ``autostart`` is false.

    Subclasses fill :meth:`configure`, :meth:`activate`, :meth:`deactivate` and :meth:`cleanup`; a
    UserError raised there is logged as one line and refuses the transition. A node whose loading
    takes long starts it in a thread in ``configure`` and overrides :meth:`ready_to_activate`.
    """

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name, **options)
        self.declare_parameter('autostart', True)
        self._autostart_timer = None
        if self.get_parameter('autostart').value:
            self._autostart_timer = self.create_timer(0.05, self._autostart)

    @property
    def lifecycle_state(self) -> str:
        """Label of the primary state: unconfigured, inactive, active or finalized."""
        # rclpy exposes the label only through its state machine object.
        return str(self._state_machine.current_state[1])

    def ready_to_activate(self) -> bool | None:
        """Tell the autostart to go on (True), to wait (None) or to give up (False)."""
        return True

    def configure(self) -> None:
        """Create publishers and subscriptions (unconfigured -> inactive)."""

    def activate(self) -> None:
        """Begin to work (inactive -> active)."""

    def deactivate(self) -> None:
        """Come to rest (active -> inactive); also before a shutdown, from whatever state."""

    def cleanup(self) -> None:
        """Undo :meth:`configure` (inactive -> unconfigured)."""

    def close(self) -> None:
        """Bring everything to rest; called once before the context is shut down."""

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Run :meth:`configure`."""
        return self._transition(self.configure)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Run :meth:`activate`."""
        return self._transition(self.activate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Run :meth:`deactivate`."""
        return self._transition(self.deactivate)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Run :meth:`cleanup`."""
        return self._transition(self.cleanup)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Come to rest as for a deactivation; the process itself goes on."""
        return self._transition(self.deactivate)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """A transition failed halfway: come to rest and end finalized; a new process is needed."""
        self._transition(self.deactivate)
        return TransitionCallbackReturn.FAILURE

    def _transition(self, step: Callable[[], None]) -> TransitionCallbackReturn:
        try:
            step()
        except UserError as error:
            self.get_logger().error(str(error))
            return TransitionCallbackReturn.FAILURE
        return TransitionCallbackReturn.SUCCESS

    def _autostart(self) -> None:
        if self.lifecycle_state == 'unconfigured':
            if self.trigger_configure() != TransitionCallbackReturn.SUCCESS:
                self._end_autostart()
        elif self.lifecycle_state == 'inactive':
            ready = self.ready_to_activate()
            if ready:
                self.trigger_activate()
            if ready is not None:
                self._end_autostart()
        else:
            self._end_autostart()

    def _end_autostart(self) -> None:
        if self._autostart_timer is not None:
            self.destroy_timer(self._autostart_timer)
            self._autostart_timer = None


class Closable(Protocol):
    """A node with a last act."""

    def close(self) -> None:
        """Bring everything to rest."""
        ...


def run_node(make_node: Callable[[], Node], args: list[str] | None = None) -> int:
    """Run one node in a single-threaded executor until SIGINT or SIGTERM; return the exit code.

    Exit codes: 0 after a signal, 2 for a UserError (printed as one line), 1 for anything else.
    """
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    node: Node | None = None
    executor = SingleThreadedExecutor()
    try:
        node = make_node()
        executor.add_node(node)
        while not stop.is_set():
            executor.spin_once(timeout_sec=_WAKE_S)
    except UserError as error:
        sys.stderr.write(f'{error}\n')
        return 2
    except (ExternalShutdownException, KeyboardInterrupt):
        pass
    finally:
        if node is not None:
            close = getattr(node, 'close', None)
            if close is not None:
                close()
            executor.remove_node(node)
            node.destroy_node()
        executor.shutdown()
        rclpy.try_shutdown()
    return 0
