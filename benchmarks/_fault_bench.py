"""A whole system over DDS with hands on its faults: used by test/faults and the benchmarks.

The processes are those of ``bringup``; only the policy is one that sways (``_sway_policy``). The
bench plays the operator, throws switches, kills processes, and judges every command.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
import yaml
from geometry_msgs.msg import PoseStamped
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from spear_msgs.msg import ExecutorStatus
from std_msgs.msg import String

sys.path.insert(0, str(Path(__file__).resolve().parent))

import _camera_relay
import _sway_policy
from _braking import usual_drop_m_s
from _commands import CommandLog, Sent, distance
from _fault_table import Fault

from spear_ros.core.errors import UserError
from spear_ros.core.reasons import Reason
from spear_ros.core.resources import share_file
from spear_ros.robots.registry import get_robot
from spear_ros.ros import qos
from spear_ros.ros.bringup import BringupOptions, ProcessSpec, processes
from spear_ros.ros.config import load_robot_config
from spear_ros.ros.conversions import time_from_ns
from spear_ros.ros.drivers.base import messages
from spear_ros.ros.operator_client import STATE_NAMES, OperatorClient
from spear_ros.ros.process_group import ProcessGroup, command_line
from spear_ros.runtime.safety_limits import load_limits

POLICY, EXECUTOR, ROBOT = 'policy_node', 'executor_node', 'sim_robot_node'
CAMERA = 'external_camera'
_STILL_COMMANDS = 4
_START_S = 90.0
_COMMANDS_QOS = QoSProfile(depth=1000, reliability=ReliabilityPolicy.BEST_EFFORT)
_CLOCK_HZ = 250.0
# The control thread may just be sending while the node's thread says that it is over.
_UNDER_WAY_NS = 20_000_000


class MaskedError(Exception):
    """Something else happened first, usually because the machine was busy: try again."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change of (state, reason) of the executor."""

    received_s: float
    """Monotonic."""
    sent_ns: int
    """When the executor said so (source timestamp)."""
    state: str
    reason: Reason
    text: str
    last_reject: Reason


def listen_first() -> None:
    """Let this thread, and those that it starts, run before ordinary programs where allowed.

    The judge of the commands must hear them in time also where the machine is busy; the lowest
    real-time priority stays below those of executor and simulated robot.
    """
    if os.environ.get('SPEAR_REALTIME', '1') != '0':
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


def ordinary(pid: int) -> None:
    """Take the inherited priority of :func:`listen_first` from a process that was just started."""
    with contextlib.suppress(PermissionError, ProcessLookupError):
        os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0))


class OrdinaryProcesses(ProcessGroup):
    """Starts each process at ordinary priority; the nodes ask for more by themselves.

    ``nice`` of the bench counts for them too: Linux's autogroups make it count within a session
    only, and each process has a session of its own.
    """

    def start_one(self, spec: ProcessSpec, command: Sequence[str] | None = None) -> None:
        super().start_one(spec, command)
        ordinary(self.pid(spec.name))
        group_nice(self.pid(spec.name))


def group_nice(pid: int) -> None:
    """Give a session's autogroup the niceness of this thread."""
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    with contextlib.suppress(OSError):
        Path(f'/proc/{pid}/autogroup').write_text(str(nice))


class Peer:
    """A node in this process with a thread of its own."""

    def __init__(self, name: str, domain_id: int) -> None:
        self._context = Context()
        rclpy.init(context=self._context, domain_id=domain_id)
        self.node = Node(name, context=self._context, enable_rosout=False)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        with contextlib.suppress(ExternalShutdownException):
            self._executor.spin()

    def close(self) -> None:
        self._executor.shutdown(timeout_sec=2.0)
        self._thread.join(2.0)
        self.node.destroy_node()
        rclpy.try_shutdown(context=self._context)


def wiring(folder: Path, robot: str) -> Path:
    """Write the robot's file with age limits that a loaded test machine keeps too.

    The arm's stay those of the simulated robot; pictures stay below the delay of ``camera_delay``.
    """
    values = yaml.safe_load(share_file(f'config/robots/{robot}.yaml').read_text())
    values['sim'].update(camera_max_age_s=0.45, gripper_max_age_s=1.0)
    if robot == 'widowx':  # one camera as JPEG: cut short it is another fault than raw pictures
        values['cameras']['wrist'].update(topic='/wrist/image_raw/compressed', compressed=True)
    path = folder / f'{robot}.yaml'
    path.write_text(yaml.safe_dump(values))
    return path


class SimulatedTime(threading.Thread):
    """Publishes /clock: real time plus an offset that jumps on demand."""

    def __init__(self, node: Node) -> None:
        super().__init__(daemon=True)
        self._publisher = node.create_publisher(Clock, '/clock', qos.CLOCK)
        self._ended = threading.Event()
        self.offset_s = 0.0

    def run(self) -> None:
        while not self._ended.wait(1.0 / _CLOCK_HZ):
            now = time.time_ns() + round(self.offset_s * 1e9)
            self._publisher.publish(Clock(clock=time_from_ns(now)))

    def end(self) -> None:
        self._ended.set()
        self.join(2.0)


class FaultBench:
    """One robot's whole system.

    Args:
        robot: a file of config/robots with a simulated twin: franka, franka_trajectory, widowx.
        folder: logs and the wiring go here.
        patient: age limits for a loaded machine instead of the shipped ones.
        simulated_time: the nodes follow /clock, which the bench publishes.
        camera_process: the external pictures come from a process of their own, as from a camera
            driver, which can be frozen and killed without the robot's.
        environment: for the processes, on top of the inherited one.
    """

    def __init__(
        self,
        robot: str,
        folder: Path,
        *,
        patient: bool = True,
        simulated_time: bool = False,
        camera_process: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.robot, self.folder = robot, folder
        self._environment = {
            'ROS_DOMAIN_ID': str(20 + secrets.randbelow(80)),
            'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST',
            'OMP_NUM_THREADS': '1',
            **(environment or {}),
        }
        self._before = {name: os.environ.get(name) for name in self._environment}
        os.environ.update(self._environment)
        self.domain_id = int(self._environment['ROS_DOMAIN_ID'])
        path = wiring(folder, robot) if patient else share_file(f'config/robots/{robot}.yaml')
        self.config = load_robot_config(path).simulated()
        self.spec = get_robot(self.config.model, self.config.gripper)
        limits = load_limits(self.spec)
        self.log = CommandLog(self.spec, limits)
        self.drop_m_s = usual_drop_m_s(limits.nominal.linear_m_s2, 1.0 / self.spec.control_rate_hz)
        self.changes: list[Change] = []
        self.statuses = 0
        """Status messages of the executor so far."""
        self.q: np.ndarray | None = None
        self.joints_s = 0.0
        listen_first()
        group_nice(os.getpid())
        self._healing: list[str] = []
        self._intruder: Peer | None = None
        self.peer = Peer('fault_bench', self.domain_id)
        self._connect()
        self.operator = OperatorClient(self.domain_id)
        self.clock = SimulatedTime(self.peer.node) if simulated_time else None
        self.processes = OrdinaryProcesses(folder)
        self._camera_process = camera_process
        self.specs = self._specs(path)
        if self.clock is not None:
            self.clock.start()
        for name in self.specs:
            self.start(name)
        try:
            self.wait_ready()
        except UserError:
            self.close()
            raise

    def _connect(self) -> None:
        node, config = self.peer.node, self.config
        if config.franka:
            self.topic = config.franka.command_topic
            if config.franka.command == 'target_pose':
                self.kind, handler = PoseStamped, self.log.on_pose
            else:
                self.kind = messages('trajectory_msgs.msg').JointTrajectory
                handler = self.log.on_trajectory
        else:
            assert config.widowx is not None
            self.kind = messages('interbotix_xs_msgs.msg').JointGroupCommand
            self.topic = f'{config.widowx.namespace}/commands/joint_group'
            handler = self.log.on_group
        node.create_subscription(self.kind, self.topic, handler, _COMMANDS_QOS)
        node.create_subscription(
            ExecutorStatus, '/spear/executor_status', self._on_status, qos.STATUS
        )
        node.create_subscription(JointState, config.arm.topic, self._on_joints, qos.RAW_POLL)
        self._switches = {
            'sim': node.create_publisher(String, '/sim/fault', 10),
            'policy': node.create_publisher(String, _sway_policy.TOPIC, 10),
        }

    def _specs(self, path: Path) -> dict[str, ProcessSpec]:
        options = BringupOptions(
            robot=self.robot, sim=True, policy=_sway_policy.NAME, robot_config=str(path)
        )
        specs = {spec.name: spec for spec in processes(options)}
        if self._camera_process:
            specs[CAMERA] = replace(specs[EXECUTOR], name=CAMERA, parameters={})
        if self.clock is not None:
            for spec in specs.values():
                spec.parameters['use_sim_time'] = True  # type: ignore[index]
        return specs

    # -------------------------------------------------------------------------------- processes

    def start(self, name: str) -> None:
        """Start one of the processes."""
        spec = self.specs[name]
        command = command_line(spec)
        pictures = self.config.cameras.external.topic
        if name == POLICY:
            command = [command[0], str(Path(_sway_policy.__file__).resolve()), *command[3:]]
        elif name == CAMERA:
            script = Path(_camera_relay.__file__).resolve()
            command = [command[0], str(script), f'{pictures}_source', pictures]
        elif name == ROBOT and self._camera_process:
            command += ['-r', f'{pictures}:={pictures}_source']
        self.processes.start_one(spec, command)

    def wait_ready(self) -> None:
        """Block until everybody is heard and hears the switches."""
        begin, operator = time.monotonic(), self.operator
        self.until(lambda: self.joints_s > begin, 'joint states', _START_S)
        operator.wait_for('executor_status', lambda: operator.executor_status is not None, _START_S)
        self._wait_policy('', _START_S)
        for name, switch in self._switches.items():
            self.until(lambda s=switch: s.get_subscription_count() > 0, f'{name} switches', 10)

    def _wait_policy(self, old_session: str, timeout_s: float) -> None:
        def active() -> bool:
            status = self.operator.policy_status
            return (
                status is not None
                and status.lifecycle_state == 'active'
                and status.policy_session not in ('', old_session)
            )

        self.operator.wait_for('an active policy', active, timeout_s)

    def restart(self, name: str) -> None:
        """Start a process that was killed, and wait until it takes part again."""
        switch = self._switches.get({ROBOT: 'sim', POLICY: 'policy'}.get(name, ''))
        before = switch.get_subscription_count() if switch else 0
        session = self.operator.policy_status.policy_session
        self.processes.stop([name])
        begin = time.monotonic()
        self.start(name)
        if name == ROBOT:
            self.until(lambda: self.joints_s > begin, 'joint states', 30)
        elif name == POLICY:
            self._wait_policy(session, 30)
        elif name == EXECUTOR:
            self.wait_for_status(begin)
        if switch is not None:
            # The dead process's subscription is only forgotten when its lease ends.
            with contextlib.suppress(UserError):
                self.until(lambda: switch.get_subscription_count() > before, 'the switches', 3)

    def wait_for_status(self, after_s: float) -> None:
        """Block until the executor has spoken after ``after_s``."""
        seen = self.operator.executor_status

        def newer() -> bool:
            status = self.operator.executor_status
            return status is not seen and time.monotonic() > after_s

        self.operator.wait_for('executor_status', newer, 30)

    def close(self) -> None:
        """End everything."""
        self.processes.stop()
        if self._intruder is not None:
            self._intruder.close()
        if self.clock is not None:
            self.clock.end()
        self.operator.close()
        self.peer.close()
        ordinary(0)
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    def logs(self, lines: int = 12) -> str:
        """Last lines of every process."""
        return '\n'.join(f'--- {n}\n{self.processes.log_tail(n, lines)}' for n in self.specs)

    # ------------------------------------------------------------------------------ from the wire

    def _on_status(self, message: ExecutorStatus, info: Mapping[str, int]) -> None:
        state, reason = STATE_NAMES[message.state], Reason(message.reason)
        self.statuses += 1
        if self.changes and (self.changes[-1].state, self.changes[-1].reason) == (state, reason):
            return
        self.changes.append(
            Change(
                time.monotonic(),
                info['source_timestamp'],
                state,
                reason,
                message.text,
                Reason(message.last_reject_reason),
            )
        )

    def _on_joints(self, message: JointState) -> None:
        self.joints_s = time.monotonic()
        values = dict(zip(message.name, message.position, strict=True))
        if set(self.spec.joint_names) <= set(values):
            self.q = np.array([values[name] for name in self.spec.joint_names])

    # ------------------------------------------------------------------------------------- waiting

    def until(
        self, condition: Callable[[], bool], what: str | Callable[[], str], timeout_s: float = 10.0
    ) -> None:
        """Block until ``condition``; raises UserError that says what was waited for."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                text = what() if callable(what) else what
                raise UserError(
                    f'waited {timeout_s:.0f} s in vain for {text}; {self.operator.describe()}'
                )
            time.sleep(0.005)

    @property
    def state(self) -> str:
        """Newest state."""
        return self.operator.state

    def insist(self, name: str, timeout_s: float = 15.0) -> None:
        """Call a service until it is accepted: a refusal may be true for a moment only."""
        deadline = time.monotonic() + timeout_s
        while True:
            accepted, text = self.operator.trigger(name)
            if accepted:
                return
            if name == 'arm' and 'recover' in text:
                self.operator.require('stop')
                self.recover()
                self.insist('reset')
            if time.monotonic() > deadline:
                raise UserError(f'{name} was refused for {timeout_s:.0f} s: {text}')
            time.sleep(0.05)

    def recover(self, timeout_s: float = 20.0) -> None:
        """Recover until it succeeds (a user stop may have been released a moment ago)."""
        deadline = time.monotonic() + timeout_s
        while True:
            self.operator.trigger('recover')
            status = self.operator.executor_status

            def finished(status: Any = status) -> bool:
                now = self.operator.executor_status
                return now is not status and (
                    'call reset' in now.progress or 'failed' in now.progress
                )

            self.operator.wait_for('the end of recover', finished, timeout_s)
            if 'call reset' in self.operator.executor_status.progress:
                return
            if time.monotonic() > deadline:
                raise UserError(f'recover: {self.operator.executor_status.progress}')
            time.sleep(0.1)

    # --------------------------------------------------------------------------- the robot's state

    def run(self, timeout_s: float = 60.0) -> None:
        """Heal everything and bring the robot to RUNNING, as an operator would."""
        deadline = time.monotonic() + timeout_s
        self.heal()
        while not self._runs():
            if time.monotonic() > deadline:
                raise UserError(f'the robot does not run: {self.operator.describe()}')
            try:
                self.disarm()
                self.arm()
                self.instruct()
                self.operator.wait_for_state('RUNNING', timeout_s=4.0)
            except UserError:
                if time.monotonic() > deadline:
                    raise
        # Two threads listen; what follows counts changes from here on.
        self.until(
            lambda: bool(self.changes) and self.changes[-1].state == 'RUNNING', 'RUNNING', 10
        )

    def _runs(self) -> bool:
        status = self.operator.executor_status
        return self.state == 'RUNNING' and status.chunk_age_s < 0.6

    def disarm(self) -> None:
        """DISARMED from any state; nothing is sent then, which is checked."""
        if self.state == 'FAULT':
            self.insist('reset')
        elif self.state != 'DISARMED':
            self.operator.trigger('disarm')
        self.operator.wait_for_state('DISARMED', timeout_s=10)

    def arm(self) -> None:
        """Arm; the first command may be anywhere, so the judge starts afresh."""
        self.log.judge.restart()
        self.insist('arm', 40.0)
        self.operator.wait_for_state('ARMED', 'RUNNING', 'HOLD', 'FAULT')

    def instruct(self) -> str:
        """Give an instruction; returns its id."""
        answer = self.operator.set_instruction('sway')
        if not answer.success:
            raise UserError(answer.message)
        return answer.instruction_id

    # ---------------------------------------------------------------------------------- the faults

    def inject(self, steps: tuple[str, ...]) -> None:
        """Do what a row of the table says."""
        for step in steps:
            kind, _, argument = step.partition(' ')
            if kind in self._switches:
                self._switches[kind].publish(String(data=argument))
                self._healing.append(f'{kind} clear')
            elif kind in ('stop', 'kill'):
                number = signal.SIGSTOP if kind == 'stop' else signal.SIGKILL
                self.processes.send_signal(argument, number)
                self._healing.append(f'{kind} {argument}')
            elif kind == 'publisher':
                self._intruder = Peer('intruder', self.domain_id)
                self._intruder.node.create_publisher(self.kind, self.topic, 1)
                self._healing.append(kind)
            elif kind == 'call':
                self.operator.require(argument)
            else:
                raise AssertionError(step)

    def heal(self) -> None:
        """Take all causes away; the executor stays as it is."""
        steps, self._healing = dict.fromkeys(self._healing), []
        for step in steps:
            kind, _, argument = step.partition(' ')
            if kind == 'stop':
                self.processes.send_signal(argument, signal.SIGCONT)
            elif kind == 'kill':
                self.restart(argument)
            elif kind == 'publisher' and self._intruder is not None:
                self._intruder.close()
                self._intruder = None
            elif kind in self._switches:
                self._switches[kind].publish(String(data='clear'))

    def outcome(self, fault: Fault, first: int, timeout_s: float | None = None) -> Change:
        """Wait until the executor is where the row says; ``first``: index into ``changes``.

        Raises:
            MaskedError: another fault came first, or the time is over.
        """
        deadline = time.monotonic() + (timeout_s or fault.detect_s)
        while time.monotonic() < deadline:
            for change in self.changes[first:]:
                if change.state == fault.state and change.reason in fault.reasons:
                    return change
                if change.state == 'FAULT':
                    raise MaskedError(f'{change.reason.name} instead: {change.text}')
            time.sleep(0.005)
        raise MaskedError(f'nothing within the time; {self.operator.describe()}')

    def goes_on(self, first: int, chunks: int = 5) -> None:
        """Check that the robot keeps following chunks.

        Raises:
            MaskedError: it did not.
        """
        begin = self.operator.executor_status.chunks_accepted

        def over() -> bool:
            enough = self.operator.executor_status.chunks_accepted >= begin + chunks
            return enough or any(c.state != 'RUNNING' for c in self.changes[first:])

        try:
            self.until(over, f'{chunks} chunks', 15)
        except UserError as error:
            raise MaskedError(str(error)) from None
        other = [c for c in self.changes[first:] if c.state != 'RUNNING']
        if other:
            raise MaskedError(f'{other[0].state} {other[0].reason.name}: {other[0].text}')

    def held(self, fault: Fault, change: Change, watch_s: float = 0.25) -> list[str]:
        """Return what is wrong with the commands after detection: constant, or none at all."""
        if fault.silent:
            time.sleep(watch_s)
            late = self.sent_after(change)
            return [f'{late} commands after {change.reason.name}'] if late else []
        # By the time of publication: this process may hear an old command after a new status.
        try:
            self.until(
                lambda: self.log.still(_STILL_COMMANDS, change.sent_ns), 'a constant target', 3
            )
        except UserError as error:
            self._insist_on_hearing()
            return [] if fault.goes_silent else [str(error)]
        start = self.log.sent_since(change.sent_ns)[-1]
        time.sleep(watch_s)
        after = self.log.sent_since(start.sent_ns)
        moved = max((distance(start, s) for s in after), default=0.0)
        found = [] if moved < 1e-6 else [f'the hold target moved by {moved:.6f}']
        if not after and not fault.goes_silent:
            found.append('the hold target was not sent any more')
        return found

    def _insist_on_hearing(self) -> None:
        """Check that this process is not what is late.

        Raises:
            MaskedError: the executor goes on sending, and we hear what it sent long ago.
        """
        behind_s = time.time() - self.last_command().sent_ns * 1e-9
        before = self.operator.executor_status.commands
        time.sleep(0.3)
        sent = self.operator.executor_status.commands - before
        if behind_s > 0.5 and sent > _STILL_COMMANDS:
            raise MaskedError(f'the bench is {behind_s:.1f} s behind the commands')

    def resumes(self, timeout_s: float = 5.0) -> None:
        """Check that the robot goes on by itself.

        Raises:
            MaskedError: it did not.
        """
        try:
            self.operator.wait_for_state('RUNNING', timeout_s=timeout_s)
        except UserError as error:
            raise MaskedError(str(error)) from None

    def sent_after(self, change: Change) -> int:
        """Commands that were sent although the executor had said ``change`` before."""
        return sum(
            s.sent_ns > change.sent_ns + _UNDER_WAY_NS
            for s in self.log.since(change.received_s - 1)
        )

    def last_command(self) -> Sent:
        """The newest command."""
        return self.log.entries[-1]


@contextlib.contextmanager
def cpu_hog() -> Iterator[None]:
    """Keep every core busy twice."""
    command = [sys.executable, '-c', 'while True: pass']
    hogs = [subprocess.Popen(command) for _ in range(2 * (os.cpu_count() or 1))]
    for hog in hogs:
        ordinary(hog.pid)
    try:
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
