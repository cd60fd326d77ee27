"""What executor_node tells /diagnostics and /spear/executor_status, apart from the node."""

from spear_msgs.msg import ExecutorStatus

from spear_ros.core.reasons import Reason
from spear_ros.ros.control_loop import ControlLoop
from spear_ros.ros.conversions import executor_status_to_msg
from spear_ros.ros.diagnostics import ERROR, OK, WARN, Diagnosis
from spear_ros.ros.drivers.base import DriverReport
from spear_ros.runtime.executor_types import ExecutorSnapshot
from spear_ros.runtime.state_machine import State


def diagnoses(
    snapshot: ExecutorSnapshot, report: DriverReport, loop: ControlLoop | None
) -> list[Diagnosis]:
    """Executor, driver and, while active, control thread."""
    level = {State.FAULT: ERROR, State.HOLD: WARN}.get(snapshot.state, OK)
    text = f'{snapshot.state.name} {snapshot.reason.name} {snapshot.text}'
    if snapshot.state == State.RUNNING and snapshot.progress:
        level, text = WARN, f'{text} {snapshot.progress}'  # it gives way where it pushes
    figures = {
        'command_interval_p50_ms': snapshot.command_interval_p50_ms,
        'command_interval_p99_ms': snapshot.command_interval_p99_ms,
        'chunks_accepted': snapshot.chunks_accepted,
        'chunks_rejected': snapshot.chunks_rejected,
        **{f'rejected {r.name}': n for r, n in snapshot.reject_counts.items()},
    }
    healthy = report.reason == Reason.NONE
    result = [
        Diagnosis('executor', level, text, figures),
        Diagnosis('driver', OK if healthy else ERROR, report.text or 'healthy'),
    ]
    if loop is not None:
        level = ERROR if loop.failure else OK if loop.realtime else WARN
        result.append(Diagnosis('control thread', level, loop.failure or loop.priority))
    return result


def status(snapshot: ExecutorSnapshot, stamp_ns: int, loop: ControlLoop | None) -> ExecutorStatus:
    """Return the status message; a dead control thread is a FAULT that it cannot tell itself."""
    message = executor_status_to_msg(snapshot, stamp_ns)
    if loop is not None and loop.failure:
        message.state, message.reason = int(State.FAULT), int(Reason.INTERNAL_ERROR)
        message.text = f'the control thread died, restart the node: {loop.failure}'
    return message
