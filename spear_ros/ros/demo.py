"""The main job as a demonstration: simulated robot, real ROS 2 nodes, instructions by service.

Starts the process list of ``bringup`` on a ROS domain of its own, drives four episodes per policy
(disarm, reset scene, arm, home, instruction) and writes what happened: a table, a video, a contact
sheet, a bag, metrics. Its result judges the health of the system, not the skill of the policy.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import CameraInfo, Image

from spear_ros.core.errors import UserError
from spear_ros.core.geometry import pose
from spear_ros.core.reasons import Reason
from spear_ros.robots.registry import get_robot
from spear_ros.robots.spec import RobotSpec
from spear_ros.ros.bringup import BringupOptions, ProcessSpec, processes
from spear_ros.ros.config import RobotConfig, load_robot_config
from spear_ros.ros.conversions import pose_from_msg
from spear_ros.ros.demo_media import Camera, FrameRecorder
from spear_ros.ros.operator_client import OperatorClient
from spear_ros.ros.process_group import ProcessGroup
from spear_ros.runtime.decode import decode_image
from spear_ros.runtime.effort_guard import PUSHES
from spear_ros.simulation.tasks import FAMILIES, HELD_OUT_SEEDS

Say = Callable[[str], None]

_FRAME_PERIOD_S = 0.2
_START_TIMEOUT_S = 90.0
_OPERATOR = 'operator'
_TOO_FAR = (['HOLD CHUNK_STEP_LIMIT'], ['HOLD CHUNK_WORKSPACE'])
_UNSEEN_HOMING_S = 2.0
"""Ten or more statuses: whoever has not been seen homing by then is not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoRun:
    """One policy of the demo."""

    policy: str
    label: str
    checkpoint: str = ''
    untrained: str = ''
    episode_s: float = 25.0


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoOptions:
    """What ``spear demo`` runs."""

    robot: str = 'franka'
    runs: tuple[DemoRun, ...]
    out: Path
    episodes: int = 4
    record: bool = True
    started: float = field(default_factory=time.monotonic)


@dataclass(kw_only=True, slots=True)
class Episode:
    """What one instruction led to."""

    policy: str
    seed: int
    instruction: str
    outcome: str = 'not run'
    seconds: float = 0.0
    chunks: int = 0
    inference_p50_ms: float = 0.0
    inference_p99_ms: float = 0.0
    overhead_p50_ms: float = 0.0
    overhead_p99_ms: float = 0.0
    command_age_p50_ms: float = 0.0
    command_age_p99_ms: float = 0.0
    command_interval_p50_ms: float = 0.0
    command_interval_p99_ms: float = 0.0
    holds: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """What was wrong with the system: a fault, a dead process, no chunks."""
    notes: list[str] = field(default_factory=list)
    """What a guard of the robot kept the policy from."""


def run_demo(options: DemoOptions, say: Say) -> int:
    """Run the demo and return the exit code: 0 = the system was healthy throughout."""
    options.out.mkdir(parents=True, exist_ok=True)
    domain = _own_domain()
    environment = {
        'ROS_DOMAIN_ID': str(domain),
        'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST',
    }
    os.environ.update(environment)  # the operator below is a ROS node as well
    specs = _specs(options, options.runs[0])
    os.environ.update(specs[0].environment)
    say(f'ROS domain {domain}; logs in {options.out / "logs"}')
    with ProcessGroup(options.out / 'logs', environment) as group, _operator(domain) as client:
        demo = _Demo(options, group, client, say)
        try:
            episodes = demo.run()
        except UserError as error:
            say(f'FAILED: {error}')
            for name, code in group.dead().items():
                say(f'{name} ended with code {code}:\n{group.log_tail(name)}')
            return 1
        memory = {name: _uss_mb(group.pid(name)) for name in group.alive()}
        demo.write(episodes, memory)
    for note in (n for e in episodes for n in e.notes):
        say(f'NOTE: {note}')
    problems = [p for e in episodes for p in e.problems]
    for problem in problems:
        say(f'PROBLEM: {problem}')
    return 1 if problems else 0


@contextlib.contextmanager
def _operator(domain: int) -> Iterator[OperatorClient]:
    client = OperatorClient(domain, _OPERATOR)
    try:
        yield client
    finally:
        client.close()


def _specs(options: DemoOptions, run: DemoRun) -> list[ProcessSpec]:
    return processes(
        BringupOptions(
            robot=options.robot,
            sim=True,
            policy=run.policy,
            checkpoint=run.checkpoint,
            untrained=run.untrained,
            record=str(options.out / 'bag') if options.record else '',
        )
    )


class _Demo:
    def __init__(
        self, options: DemoOptions, group: ProcessGroup, client: OperatorClient, say: Say
    ) -> None:
        self._options, self._group, self._client, self._say = options, group, client, say
        config = load_robot_config(options.robot).simulated()
        self._robot = get_robot(config.model)
        self._frames = FrameRecorder(_tool_offset(self._robot))
        self._frame_due = 0.0
        self._listen(config)
        self.first_episode_s = math.nan

    def run(self) -> list[Episode]:
        """Play every episode of every policy."""
        episodes = []
        for i, run in enumerate(self._options.runs):
            specs = _specs(self._options, run)
            if i == 0:
                self._group.start(specs)
            else:  # only the policy changes; a new session needs a new arm
                self._group.stop(['policy_node'])
                self._client.policy_status = None
                self._group.start_one(next(s for s in specs if s.name == 'policy_node'))
            self._wait_until_up(run)
            for k in range(self._options.episodes):
                episodes.append(self._episode(run, HELD_OUT_SEEDS[k], FAMILIES[k % len(FAMILIES)]))
                self._say(_row(episodes[-1]))
        return episodes

    def write(self, episodes: list[Episode], memory_mb: dict[str, float]) -> None:
        """Say the table and write pictures, video and metrics."""
        out = self._options.out
        self._frames.write_video(out / 'demo.webm', 1 / _FRAME_PERIOD_S)
        self._frames.write_sheet(out / 'demo.png')
        metrics = {
            'robot': self._options.robot,
            'time_to_first_episode_s': round(self.first_episode_s, 1),
            'memory_uss_mb': memory_mb,
            'episodes': [asdict(e) for e in episodes],
        }
        (out / 'metrics.json').write_text(json.dumps(metrics, indent=1) + '\n')
        self._say('')
        for line in table(episodes):
            self._say(line)
        self._say('')
        self._say('memory (USS): ' + ', '.join(f'{k} {v:.0f} MB' for k, v in memory_mb.items()))
        bag = ('bag',) if self._options.record else ()  # an older one may lie there
        names = ('demo.webm', 'demo.png', 'metrics.json', *bag)
        written = [name for name in names if (out / name).exists()]
        self._say('written: ' + ', '.join(str(out / name) for name in written))

    # ------------------------------------------------------------------------------------ episode

    def _wait_until_up(self, run: DemoRun) -> None:
        client = self._client
        self._say(f'starting: {run.label}')
        self._alive_while(
            lambda: client.wait_for(
                'executor_node', lambda: client.executor_status is not None, 30.0
            )
        )
        self._alive_while(
            lambda: client.wait_for(
                'policy_node to be active',
                lambda: (
                    client.policy_status is not None
                    and client.policy_status.lifecycle_state == 'active'
                ),
                _START_TIMEOUT_S,
            )
        )
        self._alive_while(
            lambda: client.wait_for('the scene', lambda: client.task_state is not None, 30.0)
        )

    def _alive_while(self, wait: Callable[[], None]) -> None:
        try:
            wait()
        except UserError as error:
            dead = self._group.dead()
            if dead:
                name, code = next(iter(dead.items()))
                raise UserError(f'{name} ended with code {code} while {error}') from None
            raise

    def _episode(self, run: DemoRun, seed: int, family: str) -> Episode:
        client = self._client
        self._patiently('reset' if client.state == 'FAULT' else 'disarm')
        client.wait_for_state('DISARMED')
        instruction = client.reset_scene(seed, family)
        episode = Episode(policy=run.label, seed=seed, instruction=instruction)
        self._frames.caption = f'{instruction}\n{run.label}'
        mark = len(client.history)
        try:
            self._patiently('arm')
            client.wait_for_state('ARMED', 'HOLD', timeout_s=5.0)
            self._go_home()
            self._follow(run, episode)
        except UserError as error:
            episode.outcome = 'error'
            episode.problems.append(f'{instruction}: {error}')
        self._frames.recording = False
        if client.state != 'FAULT':
            client.trigger('disarm')
        self._judge(run, episode, mark)
        return episode

    def _go_home(self, attempts: int = 5) -> None:
        """Home; a late picture on the way leads to HOLD, from where home is asked for again."""
        client = self._client
        for _ in range(attempts):
            mark = len(client.history)
            self._patiently('home')
            accepted = time.monotonic()

            def ended(mark: int = mark, accepted: float = accepted) -> bool:
                states = [change.state for change in client.history[mark:]]
                # On a busy machine a hold may follow before any status said HOMING.
                begun = 'HOMING' in states or time.monotonic() > accepted + _UNSEEN_HOMING_S
                return begun and client.state != 'HOMING'

            client.wait_for('the end of homing', ended, 45.0)
            if client.state != 'HOLD':
                break
        client.wait_for_state('ARMED', timeout_s=5.0)

    def _patiently(self, request: str) -> None:
        """Call until accepted: the arm may still be braking, the streams just have come up."""
        deadline = time.monotonic() + 15.0
        if request == 'disarm' and self._client.state == 'DISARMED':
            return
        while True:
            accepted, message = self._client.trigger(request)
            if accepted:
                return
            if time.monotonic() > deadline:
                raise UserError(f'{request} was refused: {message}')
            time.sleep(0.5)

    def _follow(self, run: DemoRun, episode: Episode) -> None:
        client = self._client
        status = client.policy_status
        assert status is not None
        before = status.chunks
        client.chunks.clear()
        self._frames.set_path(np.zeros((0, 4, 4)))
        self._frames.episode += 1
        self._frames.recording = True
        answer = client.set_instruction(episode.instruction)
        if not answer.success:
            raise UserError(f'set_instruction was refused: {answer.message}')
        started = time.monotonic()
        if math.isnan(self.first_episode_s):
            self.first_episode_s = started - self._options.started
        with contextlib.suppress(UserError):  # the time is up; judged by what is known then
            client.wait_for(
                'success',
                lambda: (
                    bool(client.task_state and client.task_state.succeeded)
                    or client.state == 'FAULT'
                ),
                run.episode_s,
            )
        episode.seconds = time.monotonic() - started
        task = client.task_state
        episode.outcome = 'success' if task is not None and task.succeeded else 'not reached'
        status = client.policy_status
        episode.chunks = int(status.chunks - before)
        if episode.chunks == 0:
            episode.problems.append(f'{episode.instruction}: no chunk was computed: {status.text}')
        for name in ('inference_p50_ms', 'inference_p99_ms', 'overhead_p50_ms', 'overhead_p99_ms'):
            setattr(episode, name, round(getattr(status, name), 2))
        executor = client.executor_status
        assert executor is not None
        episode.command_age_p50_ms = round(executor.first_command_age_p50_ms, 2)
        episode.command_age_p99_ms = round(executor.first_command_age_p99_ms, 2)
        episode.command_interval_p50_ms = round(executor.command_interval_p50_ms, 2)
        episode.command_interval_p99_ms = round(executor.command_interval_p99_ms, 2)

    def _judge(self, run: DemoRun, episode: Episode, mark: int) -> None:
        # Random weights ask for impossible steps: that the gate refuses them is the system at work.
        expected = {Reason.THREE_REJECTS} if run.untrained else set()
        for change in self._client.history[mark:]:
            if change.state in ('HOLD', 'FAULT') and change.reason != Reason.OPERATOR:
                episode.holds.append(f'{change.state} {change.reason.name}')
                if change.reason in expected:
                    episode.outcome = 'gate refused'
                elif change.reason == Reason.THREE_REJECTS and episode.holds[-2:-1] in _TOO_FAR:
                    # The policy asks for more than the robot may: the gate at work, see the hold.
                    episode.outcome = 'gate refused'
                    episode.notes.append(f'{episode.instruction}: {change.text}')
                elif change.reason == Reason.MOTOR_ERROR and PUSHES in change.text:
                    # The policy presses, the guard stops it: that is the system at work, too.
                    episode.outcome = 'guard stopped'
                    episode.notes.append(f'{episode.instruction}: {change.text}')
                elif change.state == 'FAULT':
                    episode.problems.append(
                        f'{episode.instruction}: FAULT {change.reason.name}: {change.text}'
                    )
        for name, code in self._group.dead().items():
            episode.problems.append(f'{name} ended with code {code}')

    # ---------------------------------------------------------------------------------- listening

    def _listen(self, config: RobotConfig) -> None:
        topics = config.camera_topics
        external = topics['external']
        self._K: Any = None
        self._client.subscribe(CameraInfo, external.info_topic, self._on_info)
        self._client.subscribe(PoseStamped, '/sim/external_camera_pose', self._on_camera_pose)
        self._client.subscribe(Image, external.topic, self._on_image)
        if 'wrist' in topics:
            self._client.subscribe(Image, topics['wrist'].topic, self._on_wrist)

    def _on_info(self, message: CameraInfo) -> None:
        self._K = np.array(message.k).reshape(3, 3)

    def _on_camera_pose(self, message: PoseStamped) -> None:
        if self._K is not None:
            self._frames.camera = Camera(self._K, pose(*pose_from_msg(message.pose)))

    def _on_image(self, message: Image) -> None:
        now = time.monotonic()
        if now < self._frame_due:
            return
        self._frame_due = now + _FRAME_PERIOD_S * 0.9
        if self._client.chunks:
            knots = [pose_from_msg(p) for p in self._client.chunks[-1].poses]
            if knots and np.isfinite([p for p, _ in knots]).all():
                self._frames.set_path(np.stack([pose(p, q) for p, q in knots]))
        self._frames.add(decode_image(message))

    def _on_wrist(self, message: Image) -> None:
        self._frames.set_wrist(decode_image(message))


def table(episodes: list[Episode]) -> list[str]:
    """Return the result as lines of text."""
    head = (
        f'{"policy":24} {"instruction":38} {"outcome":12} {"chunks":>6} '
        f'{"infer p50/p99 ms":>17} {"cmd age p50/p99 ms":>19}  holds'
    )
    return [head, '-' * len(head), *(_row(e) for e in episodes)]


def _row(e: Episode) -> str:
    counts = {h: e.holds.count(h) for h in dict.fromkeys(e.holds)}
    holds = ', '.join(f'{n}x {h}' for h, n in counts.items()) or 'none'
    inference = f'{e.inference_p50_ms:.1f}/{e.inference_p99_ms:.1f}'
    age = f'{e.command_age_p50_ms:.0f}/{e.command_age_p99_ms:.0f}'
    return (
        f'{e.policy:24} {e.instruction[:38]:38} {e.outcome:12} {e.chunks:6d} '
        f'{inference:>17} {age:>19}  {holds}'
    )


def _tool_offset(robot: RobotSpec) -> Any:
    """Fingertips in the end-effector frame: 0.1034 m beyond link8 (Franka hand), none on WidowX."""
    return np.array([0.0, 0.0, 0.1034]) if robot.family == 'franka' else np.zeros(3)


def _own_domain() -> int:
    """Return a domain id of our own; ids up to 101 stay clear of the ephemeral ports of Linux."""
    return 10 + os.getpid() % 90


def _uss_mb(pid: int) -> float:
    """Memory that only this process holds, in MB."""
    text = Path(f'/proc/{pid}/smaps_rollup').read_text()
    values = dict(line.split(':', 1) for line in text.splitlines()[1:] if ':' in line)
    kb = sum(int(values[k].split()[0]) for k in ('Private_Clean', 'Private_Dirty'))
    return round(kb / 1024, 1)
