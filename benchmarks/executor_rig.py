"""A bench for the execution core: executor, a simple arm, and a clock that we move.

Used by the fuzzers and by the tests. The arm is a first-order lag on joint angles, which is what an
impedance or a position servo looks like from outside; the clock is an integer that only
:meth:`Rig.run` moves, so every run is reproducible.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from spear_ros.core.geometry import (
    matrix_to_quat,
    pose_parts,
    quat_exp,
    quat_multiply,
)
from spear_ros.core.types import ActionChunk
from spear_ros.robots.kinematics import forward
from spear_ros.robots.registry import get_robot
from spear_ros.robots.spec import RobotSpec
from spear_ros.runtime.executor import (
    Command,
    DriverState,
    Executor,
    ExecutorSettings,
    PolicyHealth,
)
from spear_ros.runtime.safety import load_limits

START_NS = 1_700_000_000_000_000_000
CHECKPOINT = 'c0ffee123456'
SESSION = 'deadbeef'
STEP_S = 0.2
HORIZON = 5


class Rig:
    """One executor with a fake arm, gripper, driver and policy process around it."""

    def __init__(
        self,
        robot: str | RobotSpec = 'fr3',
        settings: ExecutorSettings | None = None,
        *,
        lag_s: float = 0.05,
        steady: bool = True,
    ) -> None:
        self.robot = get_robot(robot) if isinstance(robot, str) else robot
        self.limits = load_limits(self.robot)
        self.now_ns = START_NS
        self.steady_ns = 5_000_000_000
        self.settings = settings or ExecutorSettings()
        self.executor = Executor(
            self.robot,
            self.limits,
            lambda: self.now_ns,
            self.settings,
            (lambda: self.steady_ns) if steady else None,
        )
        self.period_ns = round(self.executor.period_s * 1e9)
        self.q = np.array(self.robot.q_home_rad)
        self.lag_s = lag_s
        self.opening = 1.0
        self.commands: list[Command | None] = []
        self.send_joints = self.send_gripper = self.send_driver = self.send_policy = True
        self.joints_hook: Callable[[np.ndarray], np.ndarray] = lambda q: q
        self.driver = DriverState(received_ns=0)
        self.health = PolicyHealth(
            stamp_ns=0,
            received_ns=0,
            active=True,
            policy_session=SESSION,
            checkpoint_id=CHECKPOINT,
            embodiment=self.robot.embodiment,
            ee_frame=self.robot.ee_frame,
            step_s=STEP_S,
            horizon=HORIZON,
            instruction_id='aaaaaaaa',
        )
        self.sequence = 0
        self.executor.on_publisher_count(1)

    def ready(self) -> 'Rig':
        """Let the streams run until arm has statistics to judge, and arm."""
        self.run(0.5)
        answer = self.executor.arm()
        assert answer.accepted, answer.text
        self.run(0.1)
        return self

    def tick(self, period_ns: int | None = None) -> Command | None:
        """Advance the clock by a period, feed the inputs, run the control period."""
        step = self.period_ns if period_ns is None else period_ns
        self.now_ns += step
        self.steady_ns += step
        self.feed()
        command = self.executor.tick()
        self.commands.append(command)
        if command is not None:
            k = 1.0 - np.exp(-step * 1e-9 / self.lag_s)
            self.q = self.q + k * (command.q_rad - self.q)
        return command

    def feed(self) -> None:
        """Deliver what the streams have at the present time."""
        now, ex = self.now_ns, self.executor
        if self.send_joints:
            ex.on_joints(now, now, self.robot.joint_names, self.joints_hook(self.q))
        if self.send_gripper:
            ex.on_gripper(now, now, self.opening)
        if self.send_driver:
            ex.on_driver(replace(self.driver, received_ns=now))
        if self.send_policy:
            ex.on_policy_status(replace(self.health, stamp_ns=now, received_ns=now))

    def run(self, seconds: float) -> list[Command | None]:
        """Tick for a while; returns the commands of that while."""
        n = round(seconds * 1e9 / self.period_ns)
        return [self.tick() for _ in range(n)]

    def chunk(
        self, velocity: object = (0.0, 0.1, 0.0), turn: object = (0.0, 0.0, 0.0), **changes: object
    ) -> ActionChunk:
        """Build a chunk at constant speed [m/s, rad/s] from the measured pose of now."""
        p, q = pose_parts(forward(self.robot, self.q))
        t = STEP_S * np.arange(1, HORIZON + 1)[:, None]
        self.sequence += 1
        fields: dict[str, object] = {
            't_obs_ns': self.now_ns,
            'step_s': STEP_S,
            'embodiment': self.robot.embodiment,
            'base_frame': self.robot.base_frame,
            'ee_frame': self.robot.ee_frame,
            'p_base_ee': p + t * np.asarray(velocity, float),
            'q_base_ee': quat_multiply(quat_exp(t * np.asarray(turn, float)), q),
            'gripper': np.ones(HORIZON),
            'anchor_p': p,
            'anchor_q': q,
            'instruction_id': self.health.instruction_id,
            'checkpoint_id': self.health.checkpoint_id,
            'policy_session': self.health.policy_session,
            'sequence': self.sequence,
        }
        fields.update(changes)
        return ActionChunk(**fields)  # type: ignore[arg-type]

    def drive(self, seconds: float, delay_s: float = 0.1, **kind: object) -> list[Command | None]:
        """Play the policy: a chunk every 0.2 s, delivered ``delay_s`` after its observation."""
        commands, waiting = [], []
        for k in range(round(seconds * 1e9 / self.period_ns)):
            if k % max(1, round(STEP_S * 1e9 / self.period_ns)) == 0:
                waiting.append((self.now_ns + round(delay_s * 1e9), self.chunk(**kind)))  # type: ignore[arg-type]
            while waiting and waiting[0][0] <= self.now_ns:
                self.executor.on_chunk(waiting.pop(0)[1], self.now_ns)
            commands.append(self.tick())
        return commands


def motion_of(commands: list[Command | None]) -> dict[str, float]:
    """Largest speeds and accelerations in a list of commands, by differences."""
    sent = [c for c in commands if c is not None]
    t = np.array([c.stamp_ns for c in sent]) * 1e-9
    T = np.array([c.T_base_ee for c in sent])
    q = np.array([c.q_rad for c in sent])
    R = matrix_to_quat(T[:, :3, :3])
    dt = np.diff(t - t[0])[:, None]
    v = np.diff(T[:, :3, 3], axis=0) / dt
    turn = quat_multiply(R[1:], R[:-1] * np.array([1.0, -1, -1, -1]))
    w = 2.0 * np.sign(turn[:, :1]) * turn[:, 1:] / dt
    dq = np.diff(q, axis=0) / dt
    mid = 0.5 * (dt[1:] + dt[:-1])
    return {
        'linear_m_s': _largest(v),
        'angular_rad_s': _largest(w),
        'linear_m_s2': _largest(np.diff(v, axis=0) / mid),
        'angular_rad_s2': _largest(np.diff(w, axis=0) / mid),
        'joint_rad_s': float(abs(dq).max(initial=0.0)),
        'joint_rad_s2': float(abs(np.diff(dq, axis=0) / mid).max(initial=0.0)),
    }


def _largest(x: np.ndarray) -> float:
    return float(np.linalg.norm(x, axis=1).max(initial=0.0))
