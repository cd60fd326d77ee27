"""Lockstep roll-outs: episodes of the simulated tasks with any policy, and their success rates."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from spear_ros.core.errors import UserError
from spear_ros.core.types import EXTERNAL, ImageArray
from spear_ros.evaluation.lockstep import Lockstep
from spear_ros.evaluation.results import (
    STOPPED,
    SUCCESS,
    TIMEOUT,
    WRONG_OBJECT,
    EpisodeResult,
)
from spear_ros.policies.base import Policy
from spear_ros.runtime.safety import SafetyLimits
from spear_ros.runtime.state_machine import State
from spear_ros.simulation.layout import STANDARD
from spear_ros.simulation.tasks import FAMILIES, HELD_OUT_SEEDS, PUSH, Task, words
from spear_ros.simulation.world import Scene, World

FRAME_SIZE = (160, 120)
FRAME_PERIOD_S = 0.5
GIVE_UP_HOLD_S = 3.0
"""Longer than the executor's resume window: a hold that lasts is for good."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutConfig:
    """What to roll out."""

    families: tuple[str, ...] = FAMILIES
    episodes: int = 20
    """Per family."""
    first_seed: int = HELD_OUT_SEEDS.start
    variant: str = STANDARD
    latency_s: float = 0.1
    limit_s: float = 25.0
    """Simulated seconds after which an episode has failed."""
    swap: bool = False
    """Ask for another object of the same scene than the scene was made for."""
    frames: bool = False
    """Keep small pictures for a contact sheet (renders, slower)."""

    def __post_init__(self) -> None:
        if not 1 <= self.episodes <= 100_000:
            raise UserError(f'episodes = {self.episodes} must lie between 1 and 100000.')
        if not 1.0 <= self.limit_s <= 600.0:
            raise UserError(f'limit_s = {self.limit_s} must lie between 1 and 600 s.')
        if self.first_seed < 0:
            raise UserError(f'first_seed = {self.first_seed} must not be negative.')
        for family in self.families:
            if family not in FAMILIES:
                raise UserError(f'family "{family}" is not one of {", ".join(FAMILIES)}.')


def roll_out(
    world: World,
    policy: Policy,
    limits: SafetyLimits,
    config: RolloutConfig,
    progress: Callable[[EpisodeResult], None] = lambda result: None,
) -> list[EpisodeResult]:
    """Run every episode of ``config`` and return the results in order.

    Raises:
        UserError: rendering is impossible, or the policy refuses its input.
    """
    system = Lockstep(world, policy, limits, latency_s=config.latency_s)
    policy.warm_up()
    results = []
    for family, seed in _episodes(config):
        result = run_episode(system, family, seed, config)
        results.append(result)
        progress(result)
    return results


def _episodes(config: RolloutConfig) -> Iterator[tuple[str, int]]:
    for family in config.families:
        for seed in range(config.first_seed, config.first_seed + config.episodes):
            yield family, seed


def run_episode(system: Lockstep, family: str, seed: int, config: RolloutConfig) -> EpisodeResult:
    """Disarm, reset the scene, arm, home, set the instruction, watch until it ends, disarm."""
    world = system.world
    system.disarm()
    scene = world.reset_scene(seed, family, config.variant)
    task, instruction = scene.task, scene.instruction
    trouble = system.arm_and_home()
    if trouble:
        system.put_right()
        trouble = system.arm_and_home()
    if config.swap:
        task = swapped(scene, seed)
        instruction = words(task)
    world.set_task(task)  # judged from here: where things lie when the instruction is given
    watch = _Watch(system, config, task)
    system.set_instruction(instruction)
    outcome, reason = (STOPPED, trouble) if trouble else watch.run()
    if outcome == TIMEOUT and world.first_touched() not in ('', task.target):
        outcome = WRONG_OBJECT
    result = EpisodeResult(
        family=family,
        seed=seed,
        variant=config.variant,
        instruction=instruction,
        outcome=outcome,
        reason=reason,
        duration_s=watch.elapsed_s,
        target=task.target,
        first_touched=world.first_touched(),
        chunks=system.stats.chunks,
        rejected=watch.rejected(),
        holds=dict(watch.holds),
        worst_stretch=watch.worst_stretch,
        inference_ms=tuple(system.stats.inference_ms or ()),
        frames=tuple(watch.frames),
    )
    system.disarm()
    return result


class _Watch:
    """Observes the executor from the instruction to the end of an episode."""

    def __init__(self, system: Lockstep, config: RolloutConfig, task: Task) -> None:
        self._system, self._config, self._task = system, config, task
        self._before = dict(system.executor.snapshot().reject_counts)
        self._start_ns = system.now_ns()
        self._held_since: int | None = None
        self._next_frame_ns = self._start_ns
        self.holds: Counter[str] = Counter()
        self.worst_stretch = 1.0
        self.frames: list[ImageArray] = []

    @property
    def elapsed_s(self) -> float:
        """Simulated time since the instruction."""
        return (self._system.now_ns() - self._start_ns) * 1e-9

    def run(self) -> tuple[str, str]:
        """Step until the episode ends; return outcome and reason."""
        while self.elapsed_s < self._config.limit_s:
            self._system.step()
            if self._config.frames:
                self._take_frame()
            if self._system.world.task_succeeded():
                return SUCCESS, ''
            reason = self._stopped()
            if reason:
                return STOPPED, reason
        return TIMEOUT, self._system.stats.problem

    def rejected(self) -> dict[str, int]:
        """Chunks rejected in this episode, by reason."""
        now = self._system.executor.snapshot().reject_counts
        counts = {r.name: n - self._before.get(r, 0) for r, n in now.items()}
        return {name: n for name, n in counts.items() if n}

    def _stopped(self) -> str:
        """Return why the robot will not move any more, '' while it will."""
        snapshot = self._system.executor.snapshot()
        self.worst_stretch = max(self.worst_stretch, snapshot.stretch)
        if snapshot.state in (State.FAULT, State.DISARMED):
            return f'{snapshot.reason.name}: {snapshot.text}'
        if snapshot.state != State.HOLD:
            self._held_since = None
            return ''
        now = self._system.now_ns()
        if self._held_since is None:
            self._held_since = now
            self.holds[snapshot.reason.name] += 1
        held_s = (now - self._held_since) * 1e-9
        return f'{snapshot.reason.name}: {snapshot.text}' if held_s > GIVE_UP_HOLD_S else ''

    def _take_frame(self) -> None:
        now = self._system.now_ns()
        if now >= self._next_frame_ns:
            self._next_frame_ns = now + round(FRAME_PERIOD_S * 1e9)
            image = self._system.world.render(EXTERNAL)
            small = cv2.resize(image, FRAME_SIZE, interpolation=cv2.INTER_AREA)
            self.frames.append(np.asarray(small, np.uint8))


def swapped(scene: Scene, seed: int) -> Task:
    """Return the scene's task about another object: does the policy listen?

    Pushing in the scene's direction needs the room that the scene keeps only for its own target,
    so a swapped push is a touch.
    """
    others = [
        name
        for name in scene.objects
        if name not in (scene.task.target, scene.task.receptacle) and name in _graspable(scene)
    ]
    assert others, f'scene {scene.seed} has a single object'
    rng = np.random.default_rng([seed, 0x5A])
    target = str(rng.choice(others))
    if scene.task.family == PUSH:
        return Task('touch', target)
    return replace(scene.task, target=target)


def _graspable(scene: Scene) -> Sequence[str]:
    return [o.name for o in scene.layout.objects if o.slot >= 0]
