"""Demonstrations of the simulated tasks: what the cameras see, and what the expert would do there.

Episodes run in lockstep through observation buffer, executor and controller, so that the pictures
and states are those of a roll-out. The label of a sample is the expert's plan FROM the state of the
sample, not what the robot then did: the executed chunk may be disturbed (an offset that wanders, an
excursion to a random place, a gripper that opens or closes at the wrong time) and the sample still
says how to go on from there. So the policy learns to recover from errors that the expert never
makes (noise injection with relabelling, as in DART, arXiv 1703.09327, and DAgger, 1011.0686).

The expert remembers nothing, so a picture can also be labelled for another instruction: the same
scene, another object. ``relabel`` adds such samples; they are what makes a policy listen. For the
same reason the robot can be shown at another table, with what it holds (``imagined``): a new
layout for the price of two pictures, where an episode shows one. ``close`` and ``moments`` make
sure that enough of both are about an object near the tool, where a policy has to be exact.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

from spear_ros.core.errors import UserError
from spear_ros.core.geometry import pose_parts
from spear_ros.core.types import (
    EXTERNAL,
    WRIST,
    ActionChunk,
    ActionSpec,
    FloatArray,
    ImageArray,
    Observation,
)
from spear_ros.data.samples import Sample
from spear_ros.data.seen_objects import (
    OBJECTS,
    RECEPTACLE,
    TARGET,
    Point,
    SeenObject,
    pack_objects,
)
from spear_ros.data.shards import DatasetCard
from spear_ros.evaluation.disturbance import DemonstrationSettings, Disturbance
from spear_ros.evaluation.imagined_tables import CLOSED, Imagined, ImaginedTables, off_table
from spear_ros.evaluation.lockstep import Lockstep
from spear_ros.policies.base import ChunkPrefix, PolicyInfo
from spear_ros.runtime.safety import SafetyLimits
from spear_ros.runtime.state_machine import State
from spear_ros.simulation.expert import Expert, Plan
from spear_ros.simulation.rendering import CameraModel
from spear_ros.simulation.tasks import (
    DIRECTIONS,
    FAMILIES,
    PUSH,
    PUT,
    TRAINING_SEEDS,
    Task,
    wordings,
)
from spear_ros.simulation.world import Scene, World

Fit = Callable[[ImageArray, tuple[int, int]], ImageArray]
"""Brings a picture to (rows, columns); the network's own function, so that training sees what the
robot will."""

NAME = 'demonstrator'
TRIES = 3
"""Further tables that are drawn until the gripper stands in nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Demonstration:
    """One episode."""

    samples: tuple[Sample, ...]
    outcome: str
    """``success``, ``timeout``, or why the robot stopped."""


def demonstration_card(spec: ActionSpec, settings: DemonstrationSettings, name: str) -> DatasetCard:
    """Card of a folder of demonstrations."""
    s = settings
    imagined = f'imagined {s.imagined:g}, ' if s.imagined else ''
    close = f'close {s.close:g}, ' if s.close else ''
    close += f'moments {s.moments:g}, ' if s.moments else ''
    return DatasetCard(
        name=name,
        spec=spec,
        label='commanded',
        pictures=s.pictures,
        source=(
            f'simulator, expert at speed {s.speed:g}, clean {s.clean:g}, offset {s.offset_m:g} m, '
            f'turn {s.turn_rad:g} rad, excursion {s.excursion:g}, wrong gripper '
            f'{s.wrong_gripper:g}, relabel {s.relabel:g}, {imagined}{close}'
            f'families {" ".join(s.families)}'
        ),
    )


def check_seeds(seeds: range) -> None:
    """Refuse seeds that are kept for validation and for published figures.

    Raises:
        UserError: a seed outside of the training range.
    """
    if not seeds or seeds.start < TRAINING_SEEDS.start or seeds.stop > TRAINING_SEEDS.stop:
        raise UserError(
            f'seeds {seeds.start}:{seeds.stop} must be a range within {TRAINING_SEEDS.start}:'
            f'{TRAINING_SEEDS.stop}; the others are held out.'
        )


class Demonstrator:
    """Runs episodes in one world and returns their samples.

    Args:
        world: with the robot; pictures are rendered in this thread.
        expert: for the same robot.
        limits: safety limits in force.
        spec: frames, rate and horizon of the samples.
        settings: see :class:`DemonstrationSettings`.
        fit: see :data:`Fit`.
    """

    def __init__(
        self,
        world: World,
        expert: Expert,
        limits: SafetyLimits,
        spec: ActionSpec,
        settings: DemonstrationSettings,
        fit: Fit,
    ) -> None:
        self._world, self._settings = world, settings
        self._policy = _DisturbedExpert(world, expert, spec, settings, fit)
        # Disturbed on purpose, it also presses on things; what to do then is worth showing.
        self._system = Lockstep(world, self._policy, limits, guard_effort=False)

    def episode(self, family: str, seed: int) -> Demonstration:
        """Run the task ``family`` on the scene of ``seed``, from home to shortly after success."""
        system, world = self._system, self._world
        system.disarm()
        scene = world.reset_scene(seed, family)
        trouble = system.arm_and_home()
        if trouble:
            return Demonstration(samples=(), outcome=trouble)
        world.set_task(scene.task)
        self._policy.begin(scene)
        system.set_instruction(scene.instruction)
        outcome = self._run()
        system.disarm()
        return Demonstration(samples=tuple(self._policy.samples), outcome=outcome)

    def _run(self) -> str:
        system = self._system
        end = system.now_ns() + round(self._settings.limit_s * 1e9)
        after = 0
        while system.now_ns() < end:
            chunks = system.stats.chunks
            system.step()
            if self._world.task_succeeded():
                after += system.stats.chunks - chunks
                if after >= self._settings.after:
                    return 'success'
            if self._policy.lost:
                return f'lost: {self._policy.lost} left the table'
            snapshot = system.executor.snapshot()
            if snapshot.state in (State.FAULT, State.DISARMED):
                return f'{snapshot.reason.name}: {snapshot.text}'
        return 'timeout'


class _DisturbedExpert:
    """A policy that plans cleanly, keeps what it saw and planned, and hands out something else."""

    def __init__(
        self,
        world: World,
        expert: Expert,
        spec: ActionSpec,
        settings: DemonstrationSettings,
        fit: Fit,
    ) -> None:
        self._world, self._expert, self._spec = world, expert, spec
        self._settings, self._fit = settings, fit
        self.samples: list[Sample] = []
        self.lost = ''
        """An object that is no longer on the table; nothing is kept from then on."""
        self._scene: Scene | None = None

    def begin(self, scene: Scene) -> None:
        """Forget the last episode."""
        self.samples, self.lost = [], ''
        self._scene = scene
        self._rng = np.random.default_rng([scene.seed, FAMILIES.index(scene.family), 0xDE30])
        self._disturbance = Disturbance(self._rng, self._settings, self._world.gripper)
        family = self._world.robot.family
        self._tables = ImaginedTables(family, self._expert, self._settings, self._rng)

    def describe(self) -> PolicyInfo:
        """Looks at both cameras and at the true poses."""
        return PolicyInfo(
            name=NAME,
            checkpoint_id=NAME,
            spec=self._spec,
            cameras=(EXTERNAL, WRIST),
            privileged=True,
        )

    def warm_up(self) -> None:
        """Nothing to warm up."""

    def reset(self) -> None:
        """Nothing is remembered between chunks but the disturbance, which begins with a scene."""

    def close(self) -> None:
        """Nothing to release."""

    def infer(self, observation: Observation, prefix: ChunkPrefix | None = None) -> ActionChunk:
        """Plan, keep the sample, disturb."""
        assert self._scene is not None
        plan = self._plan(self._scene.task, observation)
        self.lost = off_table(self._world.robot.family, observation.privileged)
        if not self.lost:
            self._keep(self._scene, observation, plan)
            for _ in range(self._times(self._settings.imagined)):
                self._imagine(observation)
        executed = self._disturbance.apply(plan, observation.state.T_base_ee, self._spec.step_s)
        p, q = pose_parts(executed.T_base_ee)
        anchor_p, anchor_q = pose_parts(observation.state.T_base_ee)
        return ActionChunk(
            t_obs_ns=observation.t_obs_ns,
            step_s=self._spec.step_s,
            embodiment=self._spec.embodiment,
            base_frame=self._spec.base_frame,
            ee_frame=self._spec.ee_frame,
            p_base_ee=p,
            q_base_ee=q,
            gripper=executed.gripper,
            anchor_p=anchor_p,
            anchor_q=anchor_q,
            instruction_id=observation.instruction_id,
            checkpoint_id=NAME,
        )

    def _plan(self, task: Task, observation: Observation) -> Plan:
        spec = self._spec
        return self._expert.plan(
            task, observation.state, observation.privileged, spec.horizon, spec.step_s
        )

    def _imagine(self, observation: Observation) -> None:
        """Keep samples of the same robot at another table, with the same thing in its fingers."""
        for _ in range(TRIES):
            imagined = self._draw_table(observation)
            if imagined is None:
                return
            with self._world.imagined_scene(imagined.layout, imagined.lifted) as scene:
                if not self._world.touched() - set(imagined.lifted):
                    self._keep_imagined(imagined, scene, observation)
                    return

    def _draw_table(self, observation: Observation) -> Imagined | None:
        assert self._scene is not None
        target, opening = self._scene.task.target, observation.state.gripper
        if self._expert.holds(target, observation.state, observation.privileged[target]):
            slot = next(o.slot for o in self._scene.layout.objects if o.name == target)
            return self._tables.draw_held(target, slot, observation.privileged[target])
        if self._world.touched() and opening >= CLOSED:
            # Fingers that are on their way around an object would look strange without it.
            return None
        return self._tables.draw(self._tool_p(), opening)

    def _keep_imagined(self, imagined: Imagined, scene: Scene, observation: Observation) -> None:
        images = {
            camera: replace(frame, image=self._world.render(camera))
            for camera, frame in observation.images.items()
        }
        poses = self._world.object_poses()
        seen = replace(observation, images=images, privileged=poses)
        task = imagined.task
        if imagined.close:
            closest = self._closest_object(scene)
            task = other_task(scene, self._settings.families, self._rng, closest)
        further = not imagined.lifted
        self._keep(replace(scene, task=task), seen, self._plan(task, seen), further)

    def _closest_object(self, scene: Scene) -> str:
        """Name of the graspable object closest to the tool, seen from above."""
        tool, poses = self._tool_p()[:2], self._world.object_poses()
        names = [o.name for o in scene.layout.objects if o.slot >= 0]
        return min(names, key=lambda name: float(np.linalg.norm(poses[name][:2, 3] - tool)))

    def _tool_p(self) -> FloatArray:
        T = self._world.T_base_ee @ self._world.gripper.T_ee_tcp
        return np.asarray(T[:3, 3])

    def _times(self, mean: float) -> int:
        whole, part = divmod(mean, 1.0)
        return int(whole) + int(part > 0 and self._rng.random() < part)

    def _keep(
        self, scene: Scene, observation: Observation, plan: Plan, further: bool = True
    ) -> None:
        """Store the sample, and with some chance others for other instructions."""
        pictures = {
            camera: self._encode(observation.images[camera].image, size)
            for camera, size in (
                (EXTERNAL, self._settings.external_size),
                (WRIST, self._settings.wrist_size),
            )
            if camera in observation.images
        }
        shown = _Shown(scene.seed, pictures, pack_objects(self._seen_objects()))
        self._add(observation, shown, scene.task, plan)
        for _ in range(self._times(self._settings.relabel) if further else 0):
            close = bool(self._times(self._settings.close))
            target = self._closest_object(scene) if close else ''
            task = other_task(scene, self._settings.families, self._rng, target)
            self._add(observation, shown, task, self._plan(task, observation))

    def _seen_objects(self) -> list[SeenObject]:
        world, settings = self._world, self._settings
        cameras = {
            EXTERNAL: (world.camera_info(EXTERNAL), settings.external_size),
            WRIST: (world.camera_info(WRIST), settings.wrist_size),
        }
        found = []
        for name, T in world.object_poses().items():
            places = {c: picture_place(T[:3, 3], *camera) for c, camera in cameras.items()}
            x, y, z = (float(v) for v in T[:3, 3])
            found.append(
                SeenObject(name.replace('_', ' '), (x, y, z), places[EXTERNAL], places[WRIST])
            )
        return found

    def _add(self, observation: Observation, shown: '_Shown', task: Task, plan: Plan) -> None:
        assert self._scene is not None
        key = f'{self._world.robot.name}-{self._scene.family}-{self._scene.seed:07d}'
        texts = wordings(task)
        # The canonical wording is the one that is asked for most often.
        number = 0 if self._rng.random() < 0.5 else int(self._rng.integers(len(texts)))
        self.samples.append(
            Sample(
                key=f'{key}-{len(self.samples):05d}',
                dataset=f'sim_{self._world.robot.name}',
                embodiment=self._spec.embodiment,
                instruction=texts[number],
                numbers=_numbers(observation, plan),
                external=shown.pictures[EXTERNAL],
                wrist=shown.pictures.get(WRIST),
                info={
                    'family': task.family,
                    'scene': shown.seed,
                    OBJECTS: shown.objects,
                    TARGET: task.target.replace('_', ' '),
                    RECEPTACLE: task.receptacle.replace('_', ' '),
                },
            )
        )

    def _encode(self, image: ImageArray, size: tuple[int, int]) -> bytes:
        fitted = cv2.cvtColor(self._fit(image, size), cv2.COLOR_RGB2BGR)
        options = [
            cv2.IMWRITE_JPEG_QUALITY,
            self._settings.jpeg_quality,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,  # small coloured things are the whole point
        ]
        ok, encoded = cv2.imencode('.jpg', fitted, options)
        assert ok
        return encoded.tobytes()


@dataclass(frozen=True, slots=True)
class _Shown:
    """What the samples of one picture have in common."""

    seed: int
    pictures: Mapping[str, bytes]
    objects: str


def picture_place(p_base: FloatArray, camera: CameraModel, size: tuple[int, int]) -> Point | None:
    """Where a point lies in the picture cut and scaled to ``size`` (rows, columns).

    Returns:
        Shares of its width and height; None outside of it or behind the camera.
    """
    u, v = camera.project(p_base)
    if not (np.isfinite(u) and np.isfinite(v)):
        return None
    rows, columns = size
    scale = max(columns / camera.width, rows / camera.height)
    x = ((u + 0.5 - camera.width / 2) * scale + columns / 2) / columns
    y = ((v + 0.5 - camera.height / 2) * scale + rows / 2) / rows
    return (float(x), float(y)) if 0 <= x < 1 and 0 <= y < 1 else None


def other_task(
    scene: Scene, families: tuple[str, ...], rng: np.random.Generator, target: str = ''
) -> Task:
    """Another instruction about the same scene, of one of ``families``; about ``target`` where one
    is given (a ball is pushed by no one: then it is another object)."""
    graspable = [o.name for o in scene.layout.objects if o.slot >= 0]
    receptacles = [o.name for o in scene.layout.objects if o.slot < 0]
    possible = [f for f in families if f != PUT or receptacles]
    if not possible:
        return scene.task
    family = str(rng.choice(possible))
    if family == PUSH:
        graspable = [n for n in graspable if not n.endswith('_ball')] or graspable
    if target not in graspable:
        target = str(rng.choice(graspable))
    if family == PUSH:
        return Task(family, target, direction=str(rng.choice(list(DIRECTIONS))))
    if family == PUT:
        return Task(family, target, receptacle=str(rng.choice(receptacles)))
    return Task(family, target)


def _numbers(observation: Observation, plan: Plan) -> FloatArray:
    """The (1 + H, 9) array of a sample, see :mod:`spear_ros.data.samples`."""
    p, q = pose_parts(plan.T_base_ee)
    own_p, own_q = pose_parts(observation.state.T_base_ee)
    numbers = np.ones((1 + len(p), 9))
    numbers[0, :3], numbers[0, 3:7] = own_p, own_q
    numbers[0, 7] = float(np.clip(observation.state.gripper, 0.0, 1.0))
    numbers[1:, :3], numbers[1:, 3:7], numbers[1:, 7] = p, q, plan.gripper
    return numbers


def summary(outcomes: Mapping[str, int]) -> dict[str, Any]:
    """Counts by outcome, the reasons of stops cut to their code."""
    found: dict[str, int] = {}
    for outcome, count in outcomes.items():
        key = outcome.partition(':')[0]
        found[key] = found.get(key, 0) + count
    return found
