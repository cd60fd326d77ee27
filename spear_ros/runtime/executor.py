"""The execution core: everything between a chunk and a command, without ROS (signatures first)."""

from collections.abc import Callable, Sequence

from spear_ros.core.types import ActionChunk, FloatArray
from spear_ros.robots.spec import RobotSpec
from spear_ros.runtime.executor_types import (
    Answer,
    Command,
    DriverState,
    ExecutorSettings,
    ExecutorSnapshot,
    PolicyHealth,
)
from spear_ros.runtime.safety import Rejection, SafetyLimits


class Executor:
    """State machine + watchdog + player + gate + inverse kinematics on an injected clock.

    Thread rule: every ``on_*``, request and ``snapshot`` may be called from any thread and returns
    at once; ``tick`` is called from one thread at the control rate.
    """

    def __init__(
        self,
        robot: RobotSpec,
        limits: SafetyLimits,
        clock_ns: Callable[[], int],
        settings: ExecutorSettings | None = None,
        steady_ns: Callable[[], int] | None = None,
    ) -> None: ...

    # inputs: times are of clock_ns
    def on_joints(
        self, stamp_ns: int, received_ns: int, names: Sequence[str], q: FloatArray
    ) -> None:
        """Measured joints as they came; names may be in any order and may contain others."""

    def on_gripper(self, stamp_ns: int, received_ns: int, opening: float) -> None:
        """Measured gripper opening, 1 = open."""

    def on_driver(self, state: DriverState) -> None:
        """What the driver adapter knows."""

    def on_chunk(self, chunk: ActionChunk, received_ns: int) -> Rejection | None:
        """Check a chunk; None = accepted."""

    def on_policy_status(self, health: PolicyHealth) -> None:
        """Health of the policy process."""

    def on_publisher_count(self, n: int) -> None:
        """Publishers on the command topic, ourselves included."""

    # requests
    def arm(self) -> Answer: ...
    def disarm(self) -> Answer: ...
    def stop(self) -> Answer: ...
    def reset(self) -> Answer: ...
    def home(self) -> Answer: ...
    def recover(self) -> Answer:
        """FAULT only: the driver's recovery is due; see take_recovery."""

    # recovery is carried out by the driver adapter in the node
    def take_recovery(self) -> bool:
        """True once after an accepted ``recover``: run the driver's recovery now."""

    def on_recovery(self, text: str, finished: bool = False, success: bool = False) -> None:
        """Progress of the driver's recovery, shown in ExecutorStatus.progress."""

    def set_speed_scale(self, speed_scale: float) -> None:
        """0.05 to 1; raises UserError."""

    # control thread
    def tick(self) -> Command | None: ...

    # outputs
    def snapshot(self) -> ExecutorSnapshot: ...
    def preview(self) -> FloatArray:
        """(K, 4, 4) poses of the newest valid chunk from the anchor on; (0, 4, 4) = none."""
