"""What goes wrong on purpose in a demonstration, and how demonstrations are made in general."""

from dataclasses import dataclass

import numpy as np

from spear_ros.core.errors import UserError
from spear_ros.core.geometry import pose_parts, quat_exp, quat_multiply, quat_to_matrix
from spear_ros.core.types import FloatArray
from spear_ros.data.samples import PictureSettings
from spear_ros.simulation.expert import Plan
from spear_ros.simulation.grippers import GripperGeometry
from spear_ros.simulation.layout import ARENAS
from spear_ros.simulation.tasks import FAMILIES


@dataclass(frozen=True, kw_only=True, slots=True)
class DemonstrationSettings:
    """How demonstrations are made; written into the card of the shards."""

    families: tuple[str, ...] = FAMILIES
    clean: float = 0.3
    """Share of episodes without disturbance."""
    offset_m: float = 0.012
    """Standard deviation of the wandering offset, at scale 1."""
    turn_rad: float = 0.08
    excursion: float = 0.06
    """Chance per chunk that an excursion begins; every disturbed episode may start with one."""
    wrong_gripper: float = 0.03
    """Chance per chunk that the gripper does the opposite for one chunk."""
    relabel: float = 0.5
    """Further samples per sample, for other instructions about the same scene."""
    imagined: float = 0.0
    """Further pictures per picture in which the same robot stands at another table: other objects,
    places, light and camera. Each carries 1 + ``relabel`` instructions. They teach where things
    are at a fraction of the price of an episode."""
    close: float = 0.0
    """Share of the further instructions that ask for the object closest to the tool, and of the
    further tables that are chosen for one with an object close to it. Elsewhere the tool is hardly
    ever near what a further instruction asks for, and there millimetres decide."""
    moments: float = 0.0
    """Share of the further tables that show a moment of a task: what the instruction names stands
    where the tool is about to grasp, touch or push it. See ``imagined_tables``."""
    speed: float = 0.5
    """Share of the nominal speeds that the expert uses."""
    limit_s: float = 30.0
    after: int = 2
    """Samples kept after success."""
    external_size: tuple[int, int] = (168, 224)
    wrist_size: tuple[int, int] = (112, 112)
    jpeg_quality: int = 95

    def __post_init__(self) -> None:
        for family in self.families:
            if family not in FAMILIES:
                raise UserError(f'families: "{family}" is not one of {", ".join(FAMILIES)}.')
        for name in ('clean', 'excursion', 'wrong_gripper', 'close', 'moments'):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f'{name} = {getattr(self, name)} must lie between 0 and 1.')
        if not 0 <= self.relabel <= 10:
            raise UserError(f'relabel = {self.relabel} must lie between 0 and 10.')
        if not 0 <= self.imagined <= 10:
            raise UserError(f'imagined = {self.imagined} must lie between 0 and 10.')
        if self.moments and not self.imagined:
            raise UserError(
                f'moments = {self.moments} is a share of the imagined tables, and imagined = 0; '
                'set imagined to 4, or leave moments out.'
            )

    @property
    def pictures(self) -> PictureSettings:
        """As the card of the shards says it."""
        return PictureSettings(
            external_size=self.external_size,
            wrist_size=self.wrist_size,
            jpeg_quality=self.jpeg_quality,
        )


class Disturbance:
    """What goes wrong in one episode."""

    def __init__(
        self,
        rng: np.random.Generator,
        settings: DemonstrationSettings,
        gripper: GripperGeometry,
    ) -> None:
        self._rng, self._settings, self._gripper = rng, settings, gripper
        self._scale = gripper.object_scale
        self._arena = ARENAS[gripper.family]
        self._active = rng.random() >= settings.clean
        self._offset = np.zeros(4)
        self._away: FloatArray | None = None
        self._chunks_away = 0
        if self._active and rng.random() < 0.5:
            self._leave()

    def apply(self, plan: Plan, T_now: FloatArray, step_s: float) -> Plan:
        """Return the chunk to execute in place of ``plan``."""
        if not self._active:
            return plan
        settings, rng = self._settings, self._rng
        if self._chunks_away == 0 and rng.random() < settings.excursion:
            self._leave()
        gripper = plan.gripper
        if rng.random() < settings.wrong_gripper:
            gripper = 1.0 - gripper
        if self._chunks_away > 0:
            assert self._away is not None
            self._chunks_away -= 1
            return Plan(self._towards(self._away, plan, T_now, step_s), gripper)
        spread = np.array([settings.offset_m * self._scale] * 3 + [settings.turn_rad])
        # An Ornstein-Uhlenbeck walk with a memory of about three chunks.
        self._offset = 0.7 * self._offset + 0.71 * spread * rng.standard_normal(4)
        return Plan(self._shifted(plan.T_base_ee), gripper)

    def _leave(self) -> None:
        arena, rng = self._arena, self._rng
        self._chunks_away = int(rng.integers(2, 9))
        self._away = np.array(
            [
                rng.uniform(arena.x[0] - 0.02, arena.x[1] + 0.02),
                rng.uniform(arena.y[0] - 0.02, arena.y[1] + 0.02),
                rng.uniform(0.04, 0.20) * self._scale,
                rng.uniform(-0.5, 0.5),
            ]
        )

    def _shifted(self, T: FloatArray) -> FloatArray:
        """Move the targets aside, the first knot least: the chunk starts where the robot is."""
        share = np.minimum(np.arange(1, len(T) + 1) / 2.0, 1.0)
        moved = T.copy()
        moved[:, :3, 3] += share[:, None] * self._offset[:3]
        for i, s in enumerate(share):
            turn = quat_to_matrix(quat_exp([0.0, 0.0, s * self._offset[3]]))
            moved[i, :3, :3] = turn @ moved[i, :3, :3]
        return moved

    def _towards(
        self, goal: FloatArray, plan: Plan, T_now: FloatArray, step_s: float
    ) -> FloatArray:
        """Targets that head for a place (tool height above the table) at the expert's pace."""
        p, q = pose_parts(T_now)
        # The finger tips hang below the end-effector frame.
        tool = T_now @ self._gripper.T_ee_tcp
        hang = float(p[2] - tool[2, 3] - self._gripper.tip_m * tool[2, 2])
        aim = np.array([goal[0], goal[1], goal[2] + hang])
        step = self._settings.speed * 0.35 * self._scale * step_s
        moved = np.repeat(np.eye(4)[None], len(plan.T_base_ee), axis=0)
        for i in range(len(moved)):
            delta = aim - p
            size = float(np.linalg.norm(delta))
            p = p + delta * min(1.0, step / max(size, 1e-9))
            q = quat_multiply(quat_exp([0.0, 0.0, goal[3] * 0.1]), q)
            moved[i, :3, 3], moved[i, :3, :3] = p, quat_to_matrix(q)
        return moved
