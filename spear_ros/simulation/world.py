"""The simulated table with one robot: physics, the robot's own controllers, cameras, tasks.

Deterministic: the same seeds and calls give the same states and pictures. One thread steps and
commands; another may render (the first thread that renders owns the pictures). The base frame of
the robot is the world frame.
"""

import copy
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from spear_ros.core.types import FloatArray, ImageArray
from spear_ros.robots.spec import RobotSpec
from spear_ros.simulation.arms import ImpedanceArm, JointIndex, ServoArm, site_pose
from spear_ros.simulation.backend import mujoco
from spear_ros.simulation.finger_drive import FingerDrive
from spear_ros.simulation.grippers import get_gripper, with_home
from spear_ros.simulation.layout import ARENAS, STANDARD, Layout, draw_layout
from spear_ros.simulation.rendering import CameraModel, CameraRig
from spear_ros.simulation.robots.joint_tree import EE_SITE
from spear_ros.simulation.scene import TIMESTEP_S, build_model
from spear_ros.simulation.success import SceneFacts, SuccessMonitor
from spear_ros.simulation.table import Table
from spear_ros.simulation.tasks import Task
from spear_ros.simulation.trajectory_arm import TrajectoryArm

JUDGE_EVERY = 10
"""Physics steps between two looks of the task's judge (20 ms)."""

CLEAR_HEIGHT_M = 0.075
"""Above every object of the catalogue, at scale 1."""

FRANKA_OPEN_SPEED_M_S = 0.1
FRANKA_GRASP_FORCE_N = 30.0
WIDOWX_PWM = 350.0
WIDOWX_PWM_GAIN_1_M = 300.0
"""Bridge's loop: clip(300 err, +-1) * 350 (bridge_data_robot ``custom_gripper_controller.py``)."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What a reset laid out."""

    seed: int
    family: str
    variant: str
    instruction: str
    task: Task
    objects: tuple[str, ...]
    layout: Layout


@dataclass(frozen=True, slots=True)
class WorldState:
    """A copy of everything that moves or remembers; opaque, for ``World.restore``."""

    physics: FloatArray
    memory: dict[str, Any]
    layout: Layout | None
    steps: int


class World:
    """One robot at one table.

    Args:
        robot: Joint tree and home pose (the one that belongs to the gripper) come from it.
        gripper: ``franka_hand``, ``robotiq_2f85`` or ``widowx``; None = the one that the robot's
            start pose belongs to.
        seed: Of the camera noise.
        shadows: Prettier and three to six times slower pictures.

    Raises:
        UserError: meshes not installed, or a gripper that does not fit.
    """

    def __init__(
        self, robot: RobotSpec, gripper: str | None = None, *, seed: int = 0, shadows: bool = False
    ) -> None:
        self.gripper = get_gripper(robot, gripper)
        self.robot = robot = with_home(robot, self.gripper)
        self.model = build_model(robot, self.gripper)
        self.data = mujoco.MjData(self.model)
        self.lock = threading.RLock()
        self.scene: Scene | None = None
        self.serial_fault = False
        """WidowX: a failed read on the motor bus, which its driver reports as zero ticks."""
        self._steps = 0
        self._index = JointIndex(self.model, robot)
        self._site = self.model.site(EE_SITE).id
        self._finger_qpos = self.model.joint('finger_left').qposadr[0]
        self._finger_dof = self.model.joint('finger_left').dofadr[0]
        self._finger_actuators = [
            self.model.actuator(n).id for n in ('finger_left', 'finger_right')
        ]
        self._table = Table(self.model, self.data, self.gripper.object_scale)
        self._cameras = CameraRig(self.model, seed, shadows)
        self._monitor: SuccessMonitor | None = None
        self._gripper_goal: float | None = None
        self.reset_robot()

    # -- the robot -------------------------------------------------------------------------------

    def reset_robot(self, q_rad: FloatArray | None = None, opening: float = 1.0) -> None:
        """Put the robot at rest at ``q_rad`` (its home), fingers open; objects stay.

        For the start of a program. A scene reset never calls it: there the robot drives home.
        """
        with self.lock:
            q = np.array(self.robot.q_home_rad if q_rad is None else q_rad, float)
            finger = self.gripper.finger(opening)
            self.data.qpos[self._index.qpos] = q
            self.data.qvel[:] = 0
            for name in ('finger_left', 'finger_right'):
                self.data.qpos[self.model.joint(name).qposadr[0]] = finger
            mujoco.mj_forward(self.model, self.data)
            arm = ImpedanceArm if self.robot.family == 'franka' else ServoArm
            self.arm: ImpedanceArm | ServoArm | TrajectoryArm = arm(
                self.model, self.data, self.robot
            )
            self.arm.settle()
            self.fingers = FingerDrive(finger, self.gripper.finger_open_m)
            self._gripper_goal = None
            if self.robot.family == 'widowx':
                self.set_gripper(opening)

    @property
    def time_ns(self) -> int:
        """Simulated time since construction."""
        return self._steps * round(TIMESTEP_S * 1e9)

    @property
    def q_rad(self) -> FloatArray:
        """(n,) measured joint angles; all -pi under ``serial_fault``."""
        q = self.data.qpos[self._index.qpos]
        return np.full_like(q, -np.pi) if self.serial_fault else q

    @property
    def dq_rad_s(self) -> FloatArray:
        """(n,) joint velocities."""
        return self.data.qvel[self._index.dof]

    @property
    def effort(self) -> FloatArray:
        """(n,) torques in Nm (Franka) or currents in mA (WidowX), as the drivers report them."""
        return self.arm.effort()

    @property
    def T_base_ee(self) -> FloatArray:
        """(4, 4) true pose of the end-effector frame."""
        return site_pose(self.data, self._site)

    @property
    def finger_m(self) -> float:
        """Joint value of the left finger; the right one mirrors it."""
        return float(self.data.qpos[self._finger_qpos])

    @property
    def gripper_opening(self) -> float:
        """1 = open, 0 = closed, not clipped."""
        return self.gripper.opening(self.finger_m)

    def set_target_pose(self, T_base_ee: FloatArray) -> None:
        """Franka: the controller's new target (4, 4), followed until the next one comes."""
        assert isinstance(self.arm, ImpedanceArm), f'{self.robot.name} has no Cartesian controller'
        with self.lock:
            self.arm.controller.set_target(T_base_ee)

    def set_joint_targets(
        self, q_rad: FloatArray, profile_ms: tuple[float, float] | None = None
    ) -> None:
        """WidowX: goal positions (n,); ``profile_ms`` = (time, acceleration) sets the profile."""
        assert isinstance(self.arm, ServoArm), f'{self.robot.name} has no joint position mode'
        with self.lock:
            if profile_ms is not None:
                self.arm.profile.time_ms, self.arm.profile.acceleration_ms = profile_ms
            self.arm.profile.set_goal(np.asarray(q_rad, float))

    def control_by_trajectories(self) -> None:
        """Franka: a joint trajectory controller instead of the Cartesian one, holding still."""
        assert self.robot.family == 'franka', f'{self.robot.name} has no trajectory controller'
        with self.lock:
            self.arm = TrajectoryArm(self.model, self.data, self.robot)

    def set_joint_trajectory(
        self, q_rad: FloatArray, velocity_rad_s: FloatArray, time_s: float
    ) -> None:
        """Franka under trajectories: be at (n,) with (n,) rad/s ``time_s`` from now."""
        assert isinstance(self.arm, TrajectoryArm), 'call control_by_trajectories first'
        with self.lock:
            self.arm.profile.set_goal(q_rad, velocity_rad_s, time_s)

    def set_gripper(self, opening: float) -> None:
        """Open (>= 0.5) or close, as the robot's gripper adapter would; repeats cost nothing.

        Drivers that speak the gripper's own language use ``fingers`` instead.
        """
        goal = 1.0 if opening >= 0.5 else 0.0
        if goal == self._gripper_goal:
            return
        self._gripper_goal = goal
        if self.gripper.name == 'franka_hand' and goal == 0.0:
            tolerance = self.gripper.max_width_m
            self.fingers.grasp(
                0.0, FRANKA_OPEN_SPEED_M_S / 2, FRANKA_GRASP_FORCE_N, tolerance, tolerance
            )
        elif self.robot.family == 'franka':
            self.fingers.move(
                self.gripper.finger(goal), FRANKA_OPEN_SPEED_M_S / 2, FRANKA_GRASP_FORCE_N
            )

    def set_gripper_pwm(self, pwm: float) -> None:
        """WidowX: push the fingers with a PWM value as xs_sdk does; positive opens, 0 lets go."""
        assert self.robot.family == 'widowx', f'{self.robot.name} has no PWM gripper'
        with self.lock:
            self._gripper_goal = None
            self.fingers.drive_pwm(pwm)

    # -- time ------------------------------------------------------------------------------------

    def step(self, n_substeps: int = 1) -> None:
        """Advance by ``n_substeps`` physics steps of 2 ms."""
        model, data = self.model, self.data
        with self.lock:
            for _ in range(n_substeps):
                mujoco.mj_step1(model, data)
                self.arm.actuate(TIMESTEP_S)
                data.ctrl[self._finger_actuators] = self._finger_force()
                mujoco.mj_step2(model, data)
                self._steps += 1
                if self._steps % JUDGE_EVERY == 0:
                    self._judge()
            mujoco.mj_kinematics(model, data)
            mujoco.mj_camlight(model, data)

    def _finger_force(self) -> float:
        if self.robot.family == 'widowx' and self._gripper_goal is not None:
            error = self.gripper.finger(self._gripper_goal) - self.finger_m
            self.fingers.drive_pwm(WIDOWX_PWM * min(max(WIDOWX_PWM_GAIN_1_M * error, -1.0), 1.0))
        velocity = float(self.data.qvel[self._finger_dof])
        return self.fingers.force(self.finger_m, velocity, TIMESTEP_S)

    # -- the table -------------------------------------------------------------------------------

    def reset_scene(self, seed: int, family: str = '', variant: str = STANDARD) -> Scene:
        """Lay out the objects of ``seed`` and start its task; the robot does not move.

        Under a gripper that is down among them, the new objects are shown at once but stay
        intangible until the finger tips have risen above all of them: an episode starts by driving
        home, and nothing may be knocked over on the way.

        Raises:
            UserError: unknown family or variant, negative seed.
        """
        layout = draw_layout(self.robot.family, seed, family, variant)
        with self.lock:
            self._table.lay_out(layout, ghosts=not self._above_objects())
            return self._start(layout)

    def _start(self, layout: Layout) -> Scene:
        arena = ARENAS[self.robot.family]
        self._monitor = SuccessMonitor(layout.task, self._table.poses(), arena.scale, arena.push)
        names = tuple(o.name for o in layout.objects)
        self.scene = Scene(
            layout.seed,
            layout.family,
            layout.variant,
            layout.instruction,
            layout.task,
            names,
            layout,
        )
        return self.scene

    def touched(self) -> frozenset[str]:
        """Names of the objects that the gripper touches now; what it holds, it touches."""
        with self.lock:
            return self._table.contacts()[0]

    @contextmanager
    def imagined_scene(
        self, layout: Layout, lifted: Mapping[str, FloatArray] = MappingProxyType({})
    ) -> Iterator[Scene]:
        """Show ``layout`` under the robot as it stands, then all as it was.

        For pictures and poses only: time must not pass inside of the block. Whether the gripper
        stands in an object is for the caller to ask (:meth:`touched`).

        Args:
            layout: the scene.
            lifted: names of objects that are not on the table, and their (4, 4) poses, base frame.
        """
        with self.lock:
            before, scene = self.pack_state(), self.scene
            try:
                self._table.lay_out(layout)
                for name, T in lifted.items():
                    self._table.lift(name, T)
                yield self._start(layout)
            finally:
                self.restore(before)
                self.scene = scene

    def object_poses(self) -> dict[str, FloatArray]:
        """Name -> (4, 4) pose of every object of the scene, base frame."""
        return self._table.poses()

    def task_success(self) -> bool:
        """Tell whether the task's criterion holds now."""
        return self._monitor is not None and self._monitor.success

    def task_succeeded(self) -> bool:
        """Tell whether the criterion has held since the scene was laid out."""
        return self._monitor is not None and self._monitor.succeeded

    def first_touched(self) -> str:
        """Name of the first object that the gripper touched in this scene, '' if none."""
        return self._monitor.first_touched if self._monitor else ''

    def set_task(self, task: Task) -> None:
        """Judge the present scene by another task (an instruction about another object)."""
        arena = ARENAS[self.robot.family]
        with self.lock:
            self._monitor = SuccessMonitor(task, self._table.poses(), arena.scale, arena.push)

    def _above_objects(self) -> bool:
        """Tell whether the finger tips are higher than any object."""
        T = self.T_base_ee @ self.gripper.T_ee_tcp
        return bool(
            T[2, 3] + self.gripper.tip_m * T[2, 2] > CLEAR_HEIGHT_M * self.gripper.object_scale
        )

    def _judge(self) -> None:
        if self._table.ghosts:
            if self._above_objects():
                self._table.set_ghosts(())
        elif self._monitor is not None:
            touches, contacts = self._table.contacts()
            facts = SceneFacts(self.time_ns * 1e-9, self._table.poses(), touches, contacts)
            self._monitor.update(facts)

    # -- the cameras -----------------------------------------------------------------------------

    def render(self, camera: str) -> ImageArray:
        """Return (480, 640, 3) uint8 RGB of ``external`` or ``wrist``; see CameraRig on threads.

        Raises:
            UserError: off-screen rendering is not possible here; names the packages.
        """
        return self._cameras.render(self.data, camera, self.lock)

    def camera_info(self, camera: str) -> CameraModel:
        """Intrinsics and present pose of ``external`` or ``wrist``."""
        return self._cameras.camera_model(self.data, camera)

    def close(self) -> None:
        """Release the renderer, in the thread that rendered."""
        self._cameras.close()

    # -- memory ----------------------------------------------------------------------------------

    def pack_state(self) -> WorldState:
        """Copy the whole state; a millisecond."""
        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        with self.lock:
            physics = np.zeros(mujoco.mj_stateSize(self.model, kind))
            mujoco.mj_getState(self.model, self.data, physics, kind)
            memory = copy.deepcopy(self._memory())
            layout = self.scene.layout if self.scene else None
            return WorldState(physics, memory, layout, self._steps)

    def restore(self, state: WorldState) -> None:
        """Return to a state of this world or of one built alike."""
        with self.lock:
            if state.layout is not None:
                self._table.lay_out(state.layout)
                self._start(state.layout)
            mujoco.mj_setState(
                self.model, self.data, state.physics, mujoco.mjtState.mjSTATE_INTEGRATION
            )
            self._recall(copy.deepcopy(state.memory))
            self._steps = state.steps
            mujoco.mj_forward(self.model, self.data)

    def _memory(self) -> dict[str, Any]:
        arm = self.arm
        return {
            'arm': arm.controller if isinstance(arm, ImpedanceArm) else arm.profile,
            'fingers': self.fingers,
            'gripper_goal': self._gripper_goal,
            'monitor': self._monitor,
            'ghosts': self._table.ghosts,
        }

    def _recall(self, memory: dict[str, Any]) -> None:
        if isinstance(self.arm, ImpedanceArm):
            self.arm.controller = memory['arm']
        else:
            self.arm.profile = memory['arm']
        self.fingers = memory['fingers']
        self._gripper_goal = memory['gripper_goal']
        self._monitor = memory['monitor']
        self._table.set_ghosts(memory['ghosts'])
