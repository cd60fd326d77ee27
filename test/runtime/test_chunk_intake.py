"""ChunkIntake: what counts as a reject, what is dropped, what is pinned."""

from dataclasses import dataclass

import pytest

from spear_ros.core.reasons import Reason
from spear_ros.runtime.chunk_intake import ChunkIntake
from spear_ros.runtime.executor_types import PolicyHealth
from spear_ros.runtime.safety import Rejection, Verdict

GOOD = Verdict(None, (1.0,) * 5)
BAD = Verdict(Rejection(Reason.CHUNK_STEP_LIMIT, 'too far'))
HEALTH = PolicyHealth(
    stamp_ns=0,
    received_ns=0,
    active=True,
    policy_session='session1',
    checkpoint_id='checkpoint1',
    embodiment='franka_droid',
    ee_frame='link8',
    step_s=0.2,
    horizon=5,
)


@dataclass
class Chunk:
    """The fields of an ActionChunk that the intake looks at."""

    t_obs_ns: int = 100
    sequence: int = 1
    policy_session: str = 'session1'
    instruction_id: str = 'a'


@pytest.fixture
def intake():
    intake = ChunkIntake()
    intake.start(50, HEALTH)
    return intake


def test_good_chunks_reset_the_count_of_bad_ones(intake):
    for verdict in (BAD, BAD, GOOD, BAD):
        intake.record(Chunk(), verdict)
    assert (intake.accepted, intake.rejected, intake.in_a_row) == (1, 3, 1)
    assert intake.counts == {Reason.CHUNK_STEP_LIMIT: 3}
    assert intake.last_reject.text == 'too far'


def test_chunks_from_before_arming_are_dropped(intake):
    assert intake.drop(Chunk(t_obs_ns=49)).reason is Reason.CHUNK_OLD
    assert intake.drop(Chunk(t_obs_ns=50)) is None


def test_armed_ids_are_pinned_and_disarmed_ones_are_not(intake):
    assert intake.context(Chunk(), 0, None).checkpoint_id == 'checkpoint1'
    assert intake.context(Chunk(), 0, None).policy_session == 'session1'
    assert intake.context(Chunk(), 0, None).horizon == 5
    intake.stop()
    assert intake.context(Chunk(), 0, None).checkpoint_id == ''
    free = ChunkIntake()
    free.pin_ids = False
    free.start(0, HEALTH)
    assert free.context(Chunk(), 0, None).policy_session == ''


def test_the_order_is_judged_within_a_session(intake):
    intake.record(Chunk(sequence=7), GOOD)
    assert intake.context(Chunk(sequence=8), 0, None).last_sequence == 7
    assert intake.context(Chunk(policy_session='session2'), 0, None).last_sequence is None


def test_a_rejected_sequence_does_not_lock_out_what_follows(intake):
    intake.record(Chunk(sequence=2**63), BAD)
    assert intake.context(Chunk(sequence=8), 0, None).last_sequence is None


def test_replaced_instructions_are_dropped_until_they_are_given_again(intake):
    assert intake.instruct('a') == ''
    assert intake.instruct('b') == 'a'
    assert intake.drop(Chunk(instruction_id='a')).reason is Reason.CHUNK_OLD
    assert intake.drop(Chunk(instruction_id='b')) is None
    assert intake.drop(Chunk(instruction_id='c')) is None
    assert intake.instruct('a') == 'b'
    assert intake.drop(Chunk(instruction_id='a')) is None


def test_a_pending_chunk_of_the_replaced_instruction_is_forgotten(intake):
    intake.instruct('a')
    intake.record(Chunk(instruction_id='a'), GOOD)
    assert intake.pending is not None
    intake.instruct('')
    assert intake.pending is None


def test_arming_and_homing_forget_and_start_a_new_epoch(intake):
    epoch = intake.epoch
    intake.record(Chunk(), GOOD)
    intake.start(200, HEALTH)
    assert intake.newest is intake.pending is None
    assert intake.epoch == epoch + 1
    intake.clock_jumped()
    assert intake.not_before_ns == 0
