"""The scripted expert: object poses and an instruction in, targets for the next second out.

It keeps no memory: what to do next is read from where the tool, the fingers and the objects are now
(a funnel of required heights around each goal instead of a list of phases). So it recovers from
wherever it finds itself, and what it does is a function of what a camera could see, which is what a
policy without memory can learn from it. Pure numpy.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from spear_ros.core.errors import UserError
from spear_ros.core.geometry import matrix_to_quat, quat_exp, quat_log, quat_to_matrix
from spear_ros.core.types import FloatArray, RobotState
from spear_ros.robots.spec import RobotSpec
from spear_ros.simulation.catalogue import TABLE_Z_M, TALLEST_M, Shape, split_name
from spear_ros.simulation.grippers import GripperGeometry
from spear_ros.simulation.layout import ARENAS
from spear_ros.simulation.tasks import DIRECTIONS, PICK, PUSH, TOUCH, Task

SUBSTEPS = 4
"""Steps of the look-ahead between two knots."""
GAIN_1_S = 5.0
"""Speed per distance close to a goal."""
TURN_GAIN_1_S = 4.0
FINGER_RATE_1_S = 1.0
"""Openings per second that the look-ahead assumes: slower than the real ones, so that a lift is
never planned before the fingers have met the object."""
FUNNEL_SLOPE = 2.0
"""Rise per distance. A policy that copies this is unsure of the place by a centimetre or two, and
the mean of what it may have to do is to hover that much times this above its goal: with 4 the
Franka never came down (doc/log.md). Margins are as wide as the fingers forgive, for that reason."""
TOUCH_DEPTH_M = 0.012
"""How far below its top an object is touched, at scale 1."""
PUSH_LANE_M = 0.026
"""Half the width of the lane behind an object from which it is pushed, at scale 1; on the way to
the object the tool moves to the middle of the lane. A narrow one has the same fault as a steep
funnel: who is unsure whether he is in it rises again and again."""
GRASP_MARGIN = 0.06
"""Openings within this of the object's width count as holding it."""


@dataclass(frozen=True, slots=True)
class Tool:
    """The tool frame and the fingers at one instant, real or looked ahead."""

    p: FloatArray
    """(3,) m, base frame."""
    R: FloatArray
    """(3, 3)."""
    opening: float


@dataclass(frozen=True, slots=True)
class Aim:
    """Where the tool should head now."""

    p: FloatArray
    yaw_rad: float
    opening: float
    slow: float = 1.0
    """Share of the full speed."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Targets on the knots of a chunk."""

    T_base_ee: FloatArray
    """(H, 4, 4)."""
    gripper: FloatArray
    """(H,) 1 = open."""


class Expert:
    """Plans for one robot with one gripper.

    Args:
        robot: Nominal speeds come from it.
        gripper: Tool frame and finger sizes.
        T_base_ee_home: (4, 4) end-effector pose at home; its finger direction is the one that
            turns are counted from.
        speed: Share of the nominal speeds that is used.
    """

    def __init__(
        self,
        robot: RobotSpec,
        gripper: GripperGeometry,
        T_base_ee_home: FloatArray,
        speed: float = 0.5,
    ) -> None:
        self.robot, self.gripper = robot, gripper
        self._scale = gripper.object_scale
        self._arena = ARENAS[robot.family]
        self._linear = speed * robot.nominal.linear_m_s
        self._angular = speed * robot.nominal.angular_rad_s
        self._T_ee_tcp = gripper.T_ee_tcp
        self._T_tcp_ee = np.linalg.inv(self._T_ee_tcp)
        self._R_down = _upright(T_base_ee_home[:3, :3] @ self._T_ee_tcp[:3, :3])
        self._table = TABLE_Z_M
        self._clear = self._table + 0.15 * self._scale
        # Lower than this the palm would sit on a tall neighbour, or on what is being pushed; 8 mm,
        # because the arm overshoots by 5 when it comes down.
        palm_free = self._table + TALLEST_M * self._scale - gripper.palm_m + 0.008
        self._lowest = max(self._table + gripper.tip_m + 0.004, palm_free)

    def plan(
        self,
        task: Task,
        state: RobotState,
        objects: Mapping[str, FloatArray],
        horizon: int = 5,
        step_s: float = 0.2,
    ) -> Plan:
        """Targets of the next ``horizon`` knots, looking ahead from the measured state.

        Raises:
            UserError: an object of the task is not on the table.
        """
        for name in filter(None, (task.target, task.receptacle)):
            if name not in objects:
                raise UserError(
                    f'the instruction names "{name.replace("_", " ")}", which is not on the table; '
                    f'there are: {", ".join(sorted(objects)) or "no objects"}.'
                )
        T = state.T_base_ee @ self._T_ee_tcp
        tool = Tool(T[:3, 3].copy(), T[:3, :3].copy(), float(np.clip(state.gripper, 0, 1)))
        poses = dict(objects)
        targets = np.zeros((horizon, 4, 4))
        gripper = np.zeros(horizon)
        for knot in range(horizon):
            for _ in range(SUBSTEPS):
                aim = self.aim(task, tool, poses)
                tool = self._advance(task, tool, aim, poses, step_s / SUBSTEPS)
            targets[knot] = self._ee_pose(tool)
            gripper[knot] = aim.opening
        return Plan(targets, gripper)

    def push_reach(self, task: Task, T: FloatArray) -> float:
        """Distance (m) of tool and object, at pose ``T`` (4, 4), at which a push meets it."""
        d = np.array(DIRECTIONS[task.direction])
        half_tool = 0.5 * (self.gripper.width_m if abs(d[0]) > 0.5 else self.gripper.breadth_m)
        return _extent(split_name(task.target)[1], T, d) * self._scale + half_tool

    def holds(self, target: str, state: RobotState, T_base_target: FloatArray) -> bool:
        """Tell whether the object ``target``, at a (4, 4) pose, is between closed fingers."""
        T = state.T_base_ee @ self._T_ee_tcp
        tool = Tool(T[:3, 3], T[:3, :3], float(np.clip(state.gripper, 0, 1)))
        return self._holds(Task(PICK, target), tool, {target: T_base_target})

    def aim(self, task: Task, tool: Tool, objects: Mapping[str, FloatArray]) -> Aim:
        """Decide where the tool should head from ``tool``; never far outside the arena."""
        aim = self._aim(task, tool, objects)
        (x0, x1), (y0, y1), margin = self._arena.x, self._arena.y, 0.09 * self._scale
        p = np.clip(aim.p, [x0 - margin, y0 - margin, 0.0], [x1 + margin, y1 + margin, 1.0])
        return replace(aim, p=p)

    def _aim(self, task: Task, tool: Tool, objects: Mapping[str, FloatArray]) -> Aim:
        if task.family == TOUCH:
            return self._aim_touch(task, tool, objects)
        if task.family == PUSH:
            return self._aim_push(task, tool, objects)
        if self._holds(task, tool, objects):
            if task.family == PICK:
                return self._aim_lift(tool)
            return self._aim_place(task, tool, objects)
        if task.receptacle and self._is_placed(task, objects):
            return Aim(np.array([*tool.p[:2], self._clear]), self._yaw(tool), 1.0, 0.6)
        return self._aim_grasp(task, tool, objects)

    # -- families --------------------------------------------------------------------------------

    def _aim_touch(self, task: Task, tool: Tool, objects: Mapping[str, FloatArray]) -> Aim:
        T = objects[task.target]
        top = T[2, 3] + _half_height(split_name(task.target)[1], T) * self._scale
        # Below the top: who copies this stays some millimetres higher, and must still touch.
        low = max(top - TOUCH_DEPTH_M * self._scale, self._table + 0.004) + self.gripper.tip_m
        # Never come down with the fingers apart: they would straddle the object.
        ready = low if tool.opening < 0.3 else low + 0.04 * self._scale
        return self._come_down(tool, T[:2, 3], 0.0, ready, opening=0.0, margin=0.014)

    def _aim_push(self, task: Task, tool: Tool, objects: Mapping[str, FloatArray]) -> Aim:
        T = objects[task.target]
        d = np.array(DIRECTIONS[task.direction])
        side = np.array([-d[1], d[0]])
        reach = self.push_reach(task, T)
        along = float((tool.p[:2] - T[:2, 3]) @ d)
        across = float((tool.p[:2] - T[:2, 3]) @ side)
        low = max(self._table + self.gripper.tip_m + 0.010 * self._scale, self._lowest)
        lane = PUSH_LANE_M * self._scale
        # Not from farther off: others may stand in between.
        near = -(reach + 0.09 * self._scale) < along < -0.6 * reach
        if near and abs(across) < lane and tool.opening < 0.3:
            # The lower, the faster: no height at which coming down ends and pushing begins.
            share = 1.0 - (tool.p[2] - low - 0.015 * self._scale) / (0.025 * self._scale)
            if share > 0.0:
                way = min(share, 1.0) * (0.06 * self._scale * d - 2.0 * across * side)
                return self._aim_shove(tool, T, d, way, low)
        # Anywhere in a stretch behind the object will do; who is in it need not move aside.
        behind = np.clip(-along, reach + 0.022 * self._scale, reach + 0.052 * self._scale)
        start = T[:2, 3] - d * behind
        ready = low if tool.opening < 0.3 else low + 0.04 * self._scale
        return self._come_down(tool, start, 0.0, ready, opening=0.0, margin=0.012)

    def _aim_shove(
        self, tool: Tool, T: FloatArray, d: FloatArray, way: FloatArray, low: float
    ) -> Aim:
        """Push on along the lane by ``way`` (2,), until the object leaves the arena."""
        if not self._arena.holds(T[:2, 3] + 0.02 * self._scale * d, 0.10 * self._scale):
            return Aim(np.array([*tool.p[:2], low]), 0.0, 0.0)
        return Aim(np.array([*(tool.p[:2] + way), low]), 0.0, 0.0, 0.6)

    def _aim_grasp(self, task: Task, tool: Tool, objects: Mapping[str, FloatArray]) -> Aim:
        T = objects[task.target]
        shape = split_name(task.target)[1]
        yaw = self._grasp_yaw(shape, T, self._yaw(tool))
        low = max(T[2, 3], self._lowest)
        offset = np.linalg.norm(tool.p[:2] - T[:2, 3])
        turn = abs(_wrap(yaw - self._yaw(tool)))
        closing = tool.opening < 0.93
        # Once the fingers move, small slips must not open them again.
        slack = 2.5 if closing else 1.0
        width = self.gripper.opening_for(2 * _grip_half(shape) * self._scale)
        missed = tool.opening < width - GRASP_MARGIN
        near = (
            offset < 0.010 * slack * self._scale
            and abs(tool.p[2] - low) < 0.008 * slack
            and turn < 0.12 * slack
        )
        if near and not missed:
            return Aim(np.array([*T[:2, 3], low]), yaw, 0.0)
        room = low if tool.opening > 0.85 else low + 0.06 * self._scale
        return self._come_down(tool, T[:2, 3], yaw, room, opening=1.0, margin=0.008)

    def _aim_lift(self, tool: Tool) -> Aim:
        goal = np.array([*tool.p[:2], self._clear + 0.02 * self._scale])
        return Aim(goal, self._yaw(tool), 0.0, 0.7)

    def _aim_place(self, task: Task, tool: Tool, objects: Mapping[str, FloatArray]) -> Aim:
        T, Y = objects[task.target], objects[task.receptacle]
        shape, on = split_name(task.target)[1], split_name(task.receptacle)[1]
        hang = tool.p[2] - T[2, 3] + _half_height(shape, T) * self._scale
        rim = Y[2, 3] + on.half_extents[2] * self._scale
        low = rim + hang + 0.004
        goal = tool.p[:2] + Y[:2, 3] - T[:2, 3]
        offset = np.linalg.norm(Y[:2, 3] - T[:2, 3])
        release = offset < 0.025 * self._scale and tool.p[2] < low + 0.010
        aim = self._come_down(tool, goal, self._yaw(tool), low, opening=0.0, margin=0.018)
        return replace(aim, opening=1.0 if release else 0.0)

    # -- building blocks -------------------------------------------------------------------------

    def _come_down(
        self, tool: Tool, xy: FloatArray, yaw: float, low: float, opening: float,
        margin: float = 0.004,
    ) -> Aim:  # fmt: skip
        """Head for (xy, low) inside a funnel: the farther off, the higher the tool must be."""
        offset = float(np.linalg.norm(tool.p[:2] - xy))
        error = offset + 0.03 * abs(_wrap(yaw - self._yaw(tool)))
        clear = max(self._clear, low)
        height = min(low + FUNNEL_SLOPE * max(error - margin * self._scale, 0.0), clear)
        # Below the funnel: rise first, move aside in proportion to what is already gained.
        lack = max(height - tool.p[2], 0.0)
        share = float(np.clip(1.0 - lack / (0.025 * self._scale), 0.0, 1.0))
        goal = np.array([*(tool.p[:2] + share * (np.asarray(xy) - tool.p[:2])), height])
        return Aim(goal, yaw, opening)

    def _holds(self, task: Task, tool: Tool, objects: Mapping[str, FloatArray]) -> bool:
        """Tell whether the target sits between closed fingers."""
        T = objects[task.target]
        shape = split_name(task.target)[1]
        offset = tool.R.T @ (T[:3, 3] - tool.p)
        width = self.gripper.opening_for(2 * _grip_half(shape) * self._scale)
        return bool(
            np.all(np.abs(offset) < np.array([0.022, 0.018, 0.022]) * self._scale)
            and width - GRASP_MARGIN - 0.05 < tool.opening < width + GRASP_MARGIN
        )

    def _is_placed(self, task: Task, objects: Mapping[str, FloatArray]) -> bool:
        T, Y = objects[task.target], objects[task.receptacle]
        shape, on = split_name(task.target)[1], split_name(task.receptacle)[1]
        floor = Y[2, 3] + (on.floor_m - on.half_extents[2]) * self._scale
        bottom = T[2, 3] - _half_height(shape, T) * self._scale
        inside = np.linalg.norm(T[:2, 3] - Y[:2, 3]) < on.inner_radius_m * self._scale
        # Up to a little above the rim: an object that has just been let go is still falling.
        depth = (2 * on.half_extents[2] - on.floor_m + 0.02) * self._scale
        return bool(inside and -0.01 < bottom - floor < depth)

    def _yaw(self, tool: Tool) -> float:
        """Turn of the fingers about the vertical since home, in (-pi, pi]."""
        y, y0 = tool.R[:2, 1], self._R_down[:2, 1]
        return _wrap(float(np.arctan2(y[1], y[0]) - np.arctan2(y0[1], y0[0])))

    def _grasp_yaw(self, shape: Shape, T: FloatArray, now: float) -> float:
        """Least turn that closes the fingers across the object."""
        candidates = [
            _fold(np.arctan2(c[1], c[0]) - np.arctan2(*self._R_down[1::-1, 1]), np.pi)
            for c in _closing_directions(shape, T[:3, :3])
        ]
        if not candidates:
            return 0.0
        # Near a tie, prefer the side that the tool has already turned to.
        return float(min(candidates, key=lambda y: abs(y) + 0.3 * abs(_wrap(y - now))))

    def _advance(
        self, task: Task, tool: Tool, aim: Aim, poses: dict[str, FloatArray], dt: float
    ) -> Tool:
        """Move the looked-ahead tool for ``dt``; a held object comes along."""
        held = task.family not in (TOUCH, PUSH) and self._holds(task, tool, poses)
        step = _limit(GAIN_1_S * (aim.p - tool.p), self._linear * aim.slow) * dt
        R_goal = quat_to_matrix(quat_exp([0.0, 0.0, aim.yaw_rad])) @ self._R_down
        turn = _rotvec(R_goal, tool.R)
        turn = _limit(TURN_GAIN_1_S * turn, self._angular) * dt
        if task.family == PUSH and aim.slow < 1.0:
            T = poses[task.target].copy()
            T[:2, 3] += self._pushed(task, tool, T, step)
            poses[task.target] = T
        opening = tool.opening + float(
            np.clip(aim.opening - tool.opening, -FINGER_RATE_1_S * dt, FINGER_RATE_1_S * dt)
        )
        if task.family not in (TOUCH, PUSH) and aim.opening < 0.5:
            shape = split_name(task.target)[1]
            width = self.gripper.opening_for(2 * _grip_half(shape) * self._scale)
            between = np.linalg.norm(poses[task.target][:3, 3] - tool.p) < 0.02 * self._scale
            opening = max(opening, width) if between else opening
        moved = Tool(tool.p + step, quat_to_matrix(quat_exp(turn)) @ tool.R, opening)
        if held:
            T = poses[task.target].copy()
            T[:3, 3] += step
            poses[task.target] = T
        return moved

    def _pushed(self, task: Task, tool: Tool, T: FloatArray, step: FloatArray) -> FloatArray:
        """How far (2,) an object that is pushed gives way to a step of the tool."""
        d = np.array(DIRECTIONS[task.direction])
        gap = float((T[:2, 3] - tool.p[:2] - step[:2]) @ d) - self.push_reach(task, T)
        return max(-gap, 0.0) * d

    def _ee_pose(self, tool: Tool) -> FloatArray:
        T = np.eye(4)
        T[:3, :3], T[:3, 3] = tool.R, tool.p
        return T @ self._T_tcp_ee


def _upright(R: FloatArray) -> FloatArray:
    """Nearest rotation whose z axis points straight down, fingers along the base's y axis.

    Of the two ways to hold the fingers along y the one nearer to ``R`` is taken.
    """
    y = np.array([0.0, 1.0 if R[1, 1] >= 0 else -1.0, 0.0])
    z = np.array([0.0, 0.0, -1.0])
    return np.stack([np.cross(y, z), y, z], axis=1)


def _closing_directions(shape: Shape, R: FloatArray) -> list[FloatArray]:
    """Horizontal directions (3,) along which fingers can close on an object turned by ``R``."""
    vertical = int(np.argmax(np.abs(R[2])))
    if shape.fold == 0:
        # Round: any direction when it stands (or is a ball), across the axis when it lies.
        if shape.rolls or vertical == 2:
            return []
        axis = R[:, 2]
        return [np.array([-axis[1], axis[0], 0.0])]
    sides = [k for k in range(3) if k != vertical]
    if shape.fold == 2 and 0 in sides:
        sides.remove(0)  # the long side does not fit between the fingers
    return [R[:, k] * np.array([1.0, 1.0, 0.0]) for k in sides]


def _grip_half(shape: Shape) -> float:
    """Half of the width that fingers close on, at scale 1."""
    return shape.half_extents[1]


def _half_height(shape: Shape, T: FloatArray) -> float:
    """Half of the vertical extent of the object as it lies, at scale 1."""
    return _extent(shape, T, np.array([0.0, 0.0, 1.0]))


def _extent(shape: Shape, T: FloatArray, direction: FloatArray) -> float:
    """Half extent along a unit vector (2,) or (3,) of the base frame, at scale 1."""
    d = np.zeros(3)
    d[: len(direction)] = direction
    local = np.abs(T[:3, :3].T @ d)
    if shape.rolls:
        return shape.half_extents[0]
    if shape.fold == 0:
        radial = float(np.hypot(local[0], local[1]))
        return shape.half_extents[0] * radial + shape.half_extents[2] * float(local[2])
    return float(local @ np.array(shape.half_extents))


def _rotvec(R_goal: FloatArray, R: FloatArray) -> FloatArray:
    """Rotation vector in base axes that turns R into R_goal."""
    return quat_log(matrix_to_quat(R_goal @ R.T))


def _limit(v: FloatArray, norm: float) -> FloatArray:
    size = float(np.linalg.norm(v))
    return v if size <= norm else v * (norm / size)


def _wrap(angle: float) -> float:
    return float((angle + np.pi) % (2 * np.pi) - np.pi)


def _fold(angle: float, period: float) -> float:
    """Fold into (-period/2, period/2]."""
    return float(-((-angle + period / 2) % period - period / 2))
