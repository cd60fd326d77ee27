"""What policy_node says about itself: PolicyStatus and /diagnostics."""

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from spear_msgs.msg import PolicyStatus, StreamStatus

from spear_ros.core.reasons import Reason
from spear_ros.policies.base import PolicyInfo
from spear_ros.processing.embodiments import spec_mismatch
from spear_ros.robots.spec import RobotSpec
from spear_ros.ros.conversions import header
from spear_ros.ros.inference_loop import LoopReport
from spear_ros.runtime.observation_buffer import StreamHealth


def status_message(
    now_ns: int,
    *,
    lifecycle_state: str,
    policy: str,
    info: PolicyInfo | None,
    report: LoopReport | None,
    robot: RobotSpec,
    problem: str,
) -> PolicyStatus:
    """Build the status from whatever is known: nothing before loading, all of it afterwards.

    ``problem`` is the sentence to show while there is no report: loading, failed, not configured.
    """
    message = PolicyStatus(
        header=header(now_ns, robot.base_frame),
        lifecycle_state=lifecycle_state,
        policy=policy,
        reason=int(Reason.POLICY_NOT_READY),
        text=problem,
    )
    if info is not None:
        message.checkpoint_id = info.checkpoint_id
        message.trained = info.trained
        message.embodiment = info.spec.embodiment
        message.ee_frame = info.spec.ee_frame
        message.step_s = info.spec.step_s
        message.horizon = info.spec.horizon
        message.spec_mismatch = spec_mismatch(info.spec, robot)
    if report is None or info is None:
        return message
    message.policy_session = report.session
    message.instruction = report.instruction
    message.instruction_id = report.instruction_id
    message.streams = [stream_message(s) for s in report.streams]
    message.inference_ms = report.inference_ms
    message.inference_p50_ms = report.inference_p50_ms
    message.inference_p99_ms = report.inference_p99_ms
    message.overhead_p50_ms = report.overhead_p50_ms
    message.overhead_p99_ms = report.overhead_p99_ms
    message.chunks = report.chunks
    if lifecycle_state != 'active':
        message.text = f'policy_node is {lifecycle_state}; activate it.'
    elif message.spec_mismatch:
        message.text = f'checkpoint and robot disagree: {message.spec_mismatch}'
    else:
        message.ready = report.ready
        message.reason = int(report.reason)
        message.text = report.text
    return message


def stream_message(stream: StreamHealth) -> StreamStatus:
    """One input stream."""
    return StreamStatus(
        name=stream.name,
        topic=stream.topic,
        age_s=float(stream.age_s),
        rate_hz=float(stream.rate_hz),
        stale=bool(stream.stale),
        frozen=bool(stream.frozen),
        shape=stream.shape,
        problem=stream.problem,
    )


def diagnostics_message(status: PolicyStatus) -> DiagnosticArray:
    """Return the same facts for rqt_robot_monitor: one entry for the policy, one per stream."""
    active = status.lifecycle_state == 'active'
    # A text beside chunks is a warning: slower than it could be, or slower than it was.
    warn = active and (not status.ready or bool(status.text))
    entries = [
        DiagnosticStatus(
            level=DiagnosticStatus.WARN if warn else DiagnosticStatus.OK,
            name='policy_node: policy',
            message=status.text or 'producing chunks',
            hardware_id=status.embodiment,
            values=[
                KeyValue(key='policy', value=status.policy),
                KeyValue(key='checkpoint_id', value=status.checkpoint_id),
                KeyValue(key='trained', value=str(status.trained)),
                KeyValue(key='reason', value=Reason(status.reason).name),
                KeyValue(key='inference_p50_ms', value=f'{status.inference_p50_ms:.1f}'),
                KeyValue(key='inference_p99_ms', value=f'{status.inference_p99_ms:.1f}'),
                KeyValue(key='chunks', value=str(status.chunks)),
            ],
        )
    ]
    for stream in status.streams:
        bad = stream.stale or stream.frozen or bool(stream.problem)
        entries.append(
            DiagnosticStatus(
                level=DiagnosticStatus.ERROR if bad else DiagnosticStatus.OK,
                name=f'policy_node: {stream.name}',
                message=stream.problem or ('stale' if stream.stale else 'healthy'),
                hardware_id=stream.topic,
                values=[
                    KeyValue(key='age_s', value=f'{stream.age_s:.3f}'),
                    KeyValue(key='rate_hz', value=f'{stream.rate_hz:.1f}'),
                    KeyValue(key='shape', value=stream.shape),
                ],
            )
        )
    return DiagnosticArray(header=status.header, status=entries)
