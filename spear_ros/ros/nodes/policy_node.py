"""policy_node: cameras and joint states in, action chunks out, instructions by a service call.

Loading and inference have threads of their own; the node's single-threaded executor only stores
messages, answers services and publishes the status, in every lifecycle state. The node knows
nothing of the robot's motion: it infers at 5 Hz whenever it is active, has an instruction and fresh
inputs, whatever the executor does with the chunks.
"""

import os
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from sensor_msgs.msg import CompressedImage, Image, JointState
from spear_msgs.msg import ActionChunk as ActionChunkMsg
from spear_msgs.msg import ExecutorStatus, ObjectPoses, PolicyStatus
from spear_msgs.srv import SetInstruction

from spear_ros.core.errors import UserError
from spear_ros.core.types import ActionChunk
from spear_ros.policies.base import Policy
from spear_ros.policies.registry import create_policy
from spear_ros.robots.registry import get_robot
from spear_ros.ros import qos
from spear_ros.ros.config import WiringParameters, robot_config
from spear_ros.ros.conversions import chunk_to_msg
from spear_ros.ros.inference_loop import Inbox, InferenceLoop, LoopSettings
from spear_ros.ros.lifecycle import AutostartNode, run_node
from spear_ros.ros.parameters import declare_parameters
from spear_ros.ros.policy_inputs import PolicyInputs
from spear_ros.ros.policy_report import diagnostics_message, status_message
from spear_ros.runtime.decode import check_instruction

_STATUS_HZ = 10.0
_AFTER_FAILURE_S = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyParameters:
    """ROS parameters of policy_node beside those of the wiring."""

    policy: str = field(
        default='spear1', metadata={'description': 'spear1, scripted, recorded or hold'}
    )
    checkpoint: str = field(default='', metadata={'description': 'checkpoint folder'})
    untrained: str = field(
        default='', metadata={'description': 'size of an untrained SPEAR-1 (spear1_debug), tests'}
    )
    device: str = field(default='auto', metadata={'description': 'auto, cpu, cuda, cuda:1'})
    seed: int = field(
        default=0, metadata={'description': 'seed of the noise', 'min': 0, 'max': 2**31 - 1}
    )
    threads: int = field(
        default=0, metadata={'description': 'CPU threads of torch; 0 = all cores but one'}
    )
    realtime_chunking: bool = field(
        default=False, metadata={'description': 'hand committed actions back to the policy'}
    )


class PolicyNode(AutostartNode):
    """See the module's docstring."""

    def __init__(self) -> None:
        super().__init__('policy_node')
        wiring = declare_parameters(self, WiringParameters)
        self._parameters = declare_parameters(self, PolicyParameters)
        self._simulated = wiring.simulated
        self._config = robot_config(wiring)
        self._robot = get_robot(self._config.model)
        self._loaded: Policy | UserError | None = None
        self._loop: InferenceLoop | None = None
        self._thread: threading.Thread | None = None
        self._running = threading.Event()
        self._executor_status: ExecutorStatus | None = None
        self._sent: tuple[object, ...] = ()
        self._status_publisher = self.create_publisher(
            PolicyStatus, '/spear/policy_status', qos.STATUS
        )
        self._chunk_publisher = self.create_publisher(
            ActionChunkMsg, '/spear/action_chunk', qos.CHUNK
        )
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', qos.DIAGNOSTICS)
        self.create_service(
            SetInstruction, '/spear/policy_node/set_instruction', self._set_instruction
        )
        self.create_subscription(
            ExecutorStatus, '/spear/executor_status', self._on_executor_status, qos.STATUS
        )
        self._inputs = PolicyInputs(self._config, self._robot)
        self._inbox = Inbox(self._inputs.depths)
        self._subscribe()
        self.create_timer(1.0 / _STATUS_HZ, self._publish_status)
        self.create_timer(1.0, self._publish_diagnostics)

    # ----------------------------------------------------------------------------------- lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start loading the policy in a thread; the status tells how it goes."""
        self._loaded = None
        self._thread = threading.Thread(target=self._load, name='load', daemon=True)
        self._thread.start()
        return TransitionCallbackReturn.SUCCESS

    def ready_to_activate(self) -> bool | None:
        """Wait for the loading thread; give up when it failed."""
        if self._loaded is None:
            return None
        return not isinstance(self._loaded, UserError)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start inferring; refused with the reason while loading or after a failure."""
        if self._loaded is None or isinstance(self._loaded, UserError):
            self.get_logger().error(f'cannot activate: {self._loaded or "still loading"}')
            return TransitionCallbackReturn.FAILURE
        last = self._thread
        if last is not None and last.name == 'inference' and last.is_alive():
            self.get_logger().error('cannot activate: the last chunk is still being computed')
            return TransitionCallbackReturn.FAILURE
        self._running.set()
        self._thread = threading.Thread(target=self._infer, name='inference', daemon=True)
        self._thread.start()
        return super().on_activate(state)

    def deactivate(self) -> None:
        """Stop inferring after the chunk that is being computed."""
        self._stop_inference()

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Give the policy's memory and device back."""
        self._stop_inference()
        if self._loaded is not None and not isinstance(self._loaded, UserError):
            self._loaded.close()
        self._loaded, self._loop = None, None
        return TransitionCallbackReturn.SUCCESS

    def close(self) -> None:
        """Last act before the context goes."""
        self._stop_inference()

    def _load(self) -> None:
        p = self._parameters
        try:
            check_checkpoint(p.policy, p.checkpoint or p.untrained, simulated=self._simulated)
            _limit_threads(p.threads)
            options: dict[str, object] = {'untrained': p.untrained} if p.untrained else {}
            policy = create_policy(
                p.policy,
                robot=self._robot,
                checkpoint=Path(p.checkpoint).expanduser() if p.checkpoint else None,
                seed=p.seed,
                device=p.device,
                options=options,
            )
            policy.warm_up()
            info = policy.describe()
            self._loop = InferenceLoop(
                policy,
                self._inputs.make_buffer(info),
                self._inputs.decoders(),
                self._publish_chunk,
                clock_ns=self._now_ns,
                settings=LoopSettings(
                    period_s=info.execute_steps * info.spec.step_s,
                    realtime_chunking=p.realtime_chunking,
                ),
                inbox=self._inbox,
            )
            self._loaded = policy
            self.get_logger().info(f'policy {p.policy} is loaded')
        except UserError as error:
            self._refuse(error)
        except Exception as error:
            # Out of memory, a failed graph capture, a broken installation: the node stays up,
            # inactive, and says why, instead of leaving the operator with a dead process.
            text = ' '.join(str(error).split())[:400]
            self._refuse(UserError(f'policy {p.policy} failed to load: {text}'))

    def _refuse(self, error: UserError) -> None:
        self.get_logger().error(str(error))
        self._loaded = error

    def _infer(self) -> None:
        loop = self._loop
        assert loop is not None
        while self._running.is_set():
            try:
                loop.step()
            except Exception as error:  # the thread must not end while the status says "ready"
                loop.fail(error)
                self.get_logger().error(traceback.format_exc(), throttle_duration_sec=5.0)
                time.sleep(_AFTER_FAILURE_S)

    def _stop_inference(self) -> None:
        if self._running.is_set():
            self._running.clear()
            self._inbox.wake()
            assert self._thread is not None
            self._thread.join(5.0)

    # --------------------------------------------------------------------------------- in and out

    def _subscribe(self) -> None:
        kinds: dict[str, Any] = {
            'image': Image,
            'compressed': CompressedImage,
            'joints': JointState,
            'poses': ObjectPoses,
        }
        images = ('image', 'compressed')
        for topic in self._inputs.topics:

            def store(message: object, names: tuple[str, ...] = topic.names) -> None:
                for name in names:
                    self._inbox.put(name, message, self._now_ns())

            profile = qos.IMAGE_INPUT if topic.kind in images else qos.JOINTS_INPUT
            self.create_subscription(kinds[topic.kind], topic.topic, store, profile)

    def _now_ns(self) -> int:
        return self.get_clock().now().nanoseconds

    def _publish_chunk(self, chunk: ActionChunk) -> None:
        if self._running.is_set():
            self._chunk_publisher.publish(chunk_to_msg(chunk))

    def _set_instruction(
        self, request: SetInstruction.Request, response: SetInstruction.Response
    ) -> SetInstruction.Response:
        try:
            check_instruction(request.instruction)
            if self._loop is None:
                detail = f': {self._loaded}' if self._loaded else '; wait and try again'
                raise UserError(f'the policy is not loaded{detail}')
            response.instruction_id = self._loop.set_instruction(request.instruction)
            response.success, response.message = True, self._instruction_note()
            self._publish_status()
        except UserError as error:
            response.success, response.message = False, str(error)
        return response

    def _instruction_note(self) -> str:
        status = self._executor_status
        if self.lifecycle_state != 'active':
            return f'accepted, but policy_node is {self.lifecycle_state}: no chunks are computed.'
        if status is None:
            return 'accepted, but executor_node is not heard: nothing will move.'
        if status.state == ExecutorStatus.DISARMED:
            return 'accepted; the robot is disarmed: watch /spear/preview, then call arm.'
        if status.state == ExecutorStatus.FAULT:
            return f'accepted, but the executor is in FAULT: {status.text}'
        return 'accepted.'

    def _on_executor_status(self, message: ExecutorStatus) -> None:
        before, self._executor_status = self._executor_status, message
        if self._loop is None:
            return
        running = message.state == ExecutorStatus.RUNNING
        self._loop.on_followed(message.sequence if running else None)
        if before is None or before.state == message.state:
            return
        if ends_episode(before.state, message.state):
            self._loop.end_episode()
        if message.state in (ExecutorStatus.ARMED, ExecutorStatus.HOMING):
            self._loop.on_arm_or_home(self._now_ns())

    # -------------------------------------------------------------------------------------- status

    def _publish_status(self) -> None:
        message = self._status()
        self._status_publisher.publish(message)

    def _status(self) -> PolicyStatus:
        error = self._loaded if isinstance(self._loaded, UserError) else None
        policy = None if error else self._loaded
        report = self._loop.report() if self._loop is not None else None
        loading = 'loading the policy' if self.lifecycle_state == 'inactive' else 'not configured'
        return status_message(
            self._now_ns(),
            lifecycle_state=self.lifecycle_state,
            policy=self._parameters.policy,
            info=policy.describe() if isinstance(policy, Policy) else None,
            report=report,
            robot=self._robot,
            problem=str(error) if error else ('' if report else loading),
        )

    def _publish_diagnostics(self) -> None:
        self._diagnostics.publish(diagnostics_message(self._status()))


def ends_episode(before: int, after: int) -> bool:
    """Whether an executor that went from one state to another has left the instruction behind.

    Disarmed; or sent home from a hold: whoever does that in the middle of a task does not want the
    arm to go back to it by itself. Home after ``arm`` is how an episode begins.
    """
    if after == ExecutorStatus.HOMING:
        return before in (ExecutorStatus.RUNNING, ExecutorStatus.HOLD)
    return after == ExecutorStatus.DISARMED


def check_checkpoint(policy: str, chosen: str, *, simulated: bool) -> None:
    """Refuse to fall back on the bundled checkpoint, which knows no real picture, on a real robot.

    Raises:
        UserError: spear1 without a checkpoint outside of the simulation.
    """
    if policy == 'spear1' and not chosen and not simulated:
        raise UserError(
            'checkpoint is empty, and the bundled models/spear_tiny has seen simulated pictures '
            'only; give the folder of a checkpoint for this robot (checkpoint:=FOLDER).'
        )


def _limit_threads(threads: int) -> None:
    """Leave a core to the executor and the cameras; must come before torch is loaded.

    OpenMP's threads wait for each other by spinning: with as many as there are cores, one that the
    scheduler has put aside keeps all others busy, and an inference of 20 ms was seen to take 4 s.
    """
    chosen = threads or max(1, len(os.sched_getaffinity(0)) - 1)
    os.environ.setdefault('OMP_NUM_THREADS', str(chosen))
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')


def main(args: list[str] | None = None) -> int:
    """Console script."""
    return run_node(PolicyNode, args)


if __name__ == '__main__':
    raise SystemExit(main())
