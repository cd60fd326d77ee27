"""/diagnostics: one publisher per node, a few named statuses, once a second."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node

from spear_ros.ros.qos import DIAGNOSTICS

OK, WARN, ERROR, STALE = (
    DiagnosticStatus.OK,
    DiagnosticStatus.WARN,
    DiagnosticStatus.ERROR,
    DiagnosticStatus.STALE,
)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One line of a diagnostics viewer."""

    name: str
    level: bytes = OK
    text: str = ''
    values: Mapping[str, object] = field(default_factory=dict)


class Diagnostics:
    """Publishes what ``collect`` returns, at 1 Hz.

    Args:
        node: publishes and gives its name.
        hardware_id: the robot, or the computer.
        collect: called in the thread that spins the node.
    """

    def __init__(
        self, node: Node, hardware_id: str, collect: Callable[[], list[Diagnosis]]
    ) -> None:
        self._node, self._hardware_id, self._collect = node, hardware_id, collect
        self._publisher = node.create_publisher(DiagnosticArray, '/diagnostics', DIAGNOSTICS)
        node.create_timer(1.0, self.publish)

    def publish(self) -> None:
        """Send one array now."""
        array = DiagnosticArray()
        array.header.stamp = self._node.get_clock().now().to_msg()
        array.status = [self._status(d) for d in self._collect()]
        self._publisher.publish(array)

    def _status(self, diagnosis: Diagnosis) -> Any:
        return DiagnosticStatus(
            level=diagnosis.level,
            name=f'{self._node.get_name()}: {diagnosis.name}',
            message=diagnosis.text,
            hardware_id=self._hardware_id,
            values=[KeyValue(key=k, value=_text(v)) for k, v in diagnosis.values.items()],
        )


def _text(value: object) -> str:
    return f'{value:.4g}' if isinstance(value, float) else str(value)
