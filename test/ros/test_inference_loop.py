"""The policy side's loop: when it infers, what it drops, what it says. No ROS, no torch, no sleep.

Pinned here: a chunk of the old instruction is never published after the new one was taken (others
answer with stale actions after a stop); frames between the 5 Hz grid points are not inferred on; an
exception inside the policy leaves the loop alive and says why; a clock may start over.
"""

from dataclasses import replace

import numpy as np
import pytest

from spear_ros.core.errors import UserError
from spear_ros.core.reasons import Reason
from spear_ros.core.types import ActionChunk, CameraFrame, Observation, RobotState
from spear_ros.ros.inference_loop import Inbox, InferenceLoop, LoopSettings, sample_chunk
from spear_ros.runtime.observation_buffer import InputProblem

IMAGE = np.zeros((2, 2, 3), np.uint8)
MS = 1_000_000


class FakeBuffer:
    """Gives back the newest stamp it was fed, or a problem."""

    def __init__(self):
        self.t_obs_ns, self.problem, self.text, self.id = None, None, '', ''

    def set_instruction(self, text, instruction_id):
        self.text, self.id = text, instruction_id

    def stream_status(self, now_ns):
        return []

    def build(self, now_ns):
        if not self.text:
            return InputProblem(reason=Reason.POLICY_NOT_READY, text='no instruction yet')
        if self.problem is not None:
            return self.problem
        frame = CameraFrame(image=IMAGE, stamp_ns=self.t_obs_ns, received_ns=self.t_obs_ns)
        return Observation(
            t_obs_ns=self.t_obs_ns,
            embodiment='franka_droid',
            images={'external': frame},
            state=RobotState(stamp_ns=self.t_obs_ns, T_base_ee=np.eye(4), gripper=1.0),
            instruction=self.text,
            instruction_id=self.id,
        )


class FakePolicy:
    """Moves 1 cm per step along x; remembers what it was given."""

    def __init__(self):
        self.seen, self.prefixes, self.resets, self.error, self.during = [], [], 0, None, None

    def describe(self):
        raise AssertionError('not used by the loop')

    def reset(self):
        self.resets += 1

    def infer(self, observation, prefix=None):
        self.seen.append(observation.t_obs_ns)
        self.prefixes.append(prefix)
        if self.during is not None:
            self.during()
        if self.error is not None:
            raise self.error
        return make_chunk(observation.t_obs_ns)


def make_chunk(t_obs_ns):
    return ActionChunk(
        t_obs_ns=t_obs_ns,
        step_s=0.2,
        embodiment='franka_droid',
        base_frame='base',
        ee_frame='link8',
        p_base_ee=np.arange(1, 6)[:, None] * np.array([[0.01, 0.0, 0.0]]),
        q_base_ee=np.tile([1.0, 0, 0, 0], (5, 1)),
        gripper=np.ones(5),
        anchor_p=np.zeros(3),
        anchor_q=np.array([1.0, 0, 0, 0]),
    )


class Rig:
    def __init__(self, **settings):
        self.now_ns = 1_000 * MS
        self.buffer, self.policy, self.published = FakeBuffer(), FakePolicy(), []
        self.inbox = Inbox({'external': 4})
        self.loop = InferenceLoop(
            self.policy,
            self.buffer,
            {'external': self._decode},
            self.published.append,
            clock_ns=lambda: self.now_ns,
            settings=LoopSettings(**settings),
            inbox=self.inbox,
        )

    def _decode(self, message, received_ns):
        self.buffer.t_obs_ns = message

    def frame(self, t_ms):
        self.now_ns = t_ms * MS + 5 * MS
        self.inbox.put('external', t_ms * MS, self.now_ns)
        return self.loop.step(timeout_s=0.0)


@pytest.fixture
def rig():
    return Rig()


def test_nothing_is_inferred_without_an_instruction(rig):
    assert rig.frame(1000) is None
    assert rig.policy.seen == []
    assert 'no instruction' in rig.loop.report().text


@pytest.mark.parametrize(('camera_hz', 'seconds'), [(15, 8), (30, 8), (60, 8), (5, 8)])
def test_the_rate_is_5_hz_whatever_the_camera_rate(rig, camera_hz, seconds):
    rig.loop.set_instruction('touch it')
    for k in range(camera_hz * seconds):
        rig.frame(1000 + round(1000 * k / camera_hz))
    gaps = np.diff(rig.policy.seen) / MS
    assert len(rig.policy.seen) == pytest.approx(5 * seconds, abs=1)
    assert gaps.max() <= 270


def test_the_same_picture_is_never_inferred_on_twice(rig):
    rig.loop.set_instruction('touch it')
    rig.frame(1000)
    for _ in range(5):
        rig.frame(1000)
    assert len(rig.policy.seen) == 1


def test_chunks_carry_instruction_session_and_rising_sequence(rig):
    first = rig.loop.set_instruction('touch it')
    rig.frame(1000)
    second = rig.loop.set_instruction('push it')
    rig.frame(1200)
    assert [c.instruction_id for c in rig.published] == [first, second]
    assert [c.sequence for c in rig.published] == [1, 2]
    assert {c.policy_session for c in rig.published} == {rig.loop.session}
    assert rig.policy.resets == 2


def test_an_instruction_that_the_policy_cannot_follow_is_refused_at_once(rig):
    def refuse(text):
        raise UserError(f'"{text}" has too many tokens; shorten it.')

    first = rig.loop.set_instruction('touch it')
    rig.policy.check_instruction = refuse
    with pytest.raises(UserError, match='too many tokens'):
        rig.loop.set_instruction('a very long story')
    rig.frame(1000)
    assert [c.instruction_id for c in rig.published] == [first]


def test_a_chunk_whose_instruction_changed_meanwhile_is_not_published(rig):
    rig.loop.set_instruction('touch it')
    rig.policy.during = lambda: rig.loop.set_instruction('stop that, push it')
    assert rig.frame(1000) is None
    assert rig.published == []


def test_observations_from_before_arm_are_not_acted_on(rig):
    rig.loop.set_instruction('touch it')
    rig.loop.on_arm_or_home(1_500 * MS)
    rig.frame(1400)
    assert rig.published == []
    rig.frame(1600)
    assert len(rig.published) == 1


def test_disarm_ends_the_episode_and_drops_the_instruction(rig):
    rig.loop.set_instruction('touch it')
    rig.frame(1000)
    rig.loop.end_episode()
    rig.frame(1200)
    assert len(rig.published) == 1
    assert rig.loop.report().instruction == ''


@pytest.mark.parametrize(
    'error', [UserError('no object poses'), RuntimeError('CUDA out of memory'), MemoryError('full')]
)
def test_a_failing_inference_gives_no_chunk_and_the_reason_and_recovers(rig, error):
    rig.loop.set_instruction('touch it')
    rig.policy.error = error
    assert rig.frame(1000) is None
    report = rig.loop.report()
    assert not report.ready
    assert report.reason == Reason.POLICY_NOT_READY
    assert str(error) in report.text
    rig.policy.error = None
    assert rig.frame(1200) is not None
    assert rig.loop.report().ready


def test_what_runs_slower_than_it_could_is_said_while_chunks_are_produced(rig):
    rig.policy.warnings = ('running without graphs.',)
    rig.loop.set_instruction('touch it')
    rig.frame(1000)
    report = rig.loop.report()
    assert report.ready
    assert report.text == 'running without graphs.'


def test_inference_that_has_become_slower_is_said_too(rig):
    rig.loop._drift._reference_ms = 1e-3  # faster than any inference that follows
    rig.loop._drift._skipped = 5
    rig.policy.during = lambda: rig.loop._drift.add(50.0)
    rig.loop.set_instruction('touch it')
    for i in range(60):
        rig.frame(1000 + 200 * i)
    assert 'inference has become slower' in rig.loop.report().text
    assert rig.loop.report().ready


def test_an_input_problem_is_reported_with_its_reason(rig):
    rig.loop.set_instruction('touch it')
    rig.buffer.problem = InputProblem(reason=Reason.CAMERA_FROZEN, text='external is frozen')
    rig.frame(1000)
    report = rig.loop.report()
    assert (report.reason, report.text) == (Reason.CAMERA_FROZEN, 'external is frozen')
    assert rig.published == []


def test_a_clock_that_starts_over_is_followed(rig):
    rig.loop.set_instruction('touch it')
    rig.frame(60_000)
    rig.frame(1_000)
    assert len(rig.published) == 2


def test_the_prefix_is_the_own_last_chunk_and_only_while_it_is_followed():
    rig = Rig(realtime_chunking=True)
    rig.loop.set_instruction('touch it')
    rig.frame(1000)
    rig.frame(1200)
    assert rig.policy.prefixes == [None, None]  # not RUNNING: nothing is committed
    rig.loop.on_followed(2)
    rig.frame(1400)
    prefix = rig.policy.prefixes[-1]
    assert prefix is not None
    # The new chunk's first knot stands at 1600 ms, where the last one (from 1200 ms) had knot 1.
    assert np.allclose(prefix.T_base_ee[0, :3, 3], [0.02, 0, 0])
    rig.loop.on_followed(1)
    rig.frame(1600)
    assert rig.policy.prefixes[-1] is None


def test_no_prefix_unless_asked_for(rig):
    rig.loop.set_instruction('touch it')
    for k, t in enumerate((1000, 1200, 1400)):
        rig.loop.on_followed(k)
        rig.frame(t)
    assert rig.policy.prefixes == [None, None, None]


def test_a_chunk_is_sampled_in_continuous_time():
    chunk = replace(make_chunk(1000 * MS), gripper=np.array([1.0, 0, 0, 0, 0]))
    for t_ms, x in ((1000, 0.0), (1100, 0.005), (1200, 0.01), (1900, 0.045), (2000, 0.05)):
        T, _ = sample_chunk(chunk, t_ms * MS)
        assert T[0, 3] == pytest.approx(x)
    assert sample_chunk(chunk, 1100 * MS)[1] == 1.0
    assert sample_chunk(chunk, 1300 * MS)[1] == 0.0


def test_a_full_inbox_drops_the_oldest_and_wakes_the_waiter():
    inbox = Inbox({'external': 2})
    assert not inbox.wait(0.0)
    for k in range(3):
        inbox.put('external', k, k)
    assert inbox.wait(0.0)
    assert [m for _, m, _ in inbox.drain()] == [1, 2]
    assert inbox.drain() == []
