"""Fault switches: grammar of the commands, and that each does what its line says."""

import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from spear_ros.core.errors import UserError
from spear_ros.ros.sim_drivers.faults import FAULTS, FaultBoard
from spear_ros.ros.sim_drivers.lines import CameraLine, JointLine, JointSample
from spear_ros.ros.sim_drivers.pacing import Pacer

NAMES = ('j1', 'j2', 'j3', 'finger')
ARM = NAMES[:3]


@pytest.fixture
def board():
    return FaultBoard()


def image(i):
    return SimpleNamespace(
        header=SimpleNamespace(stamp=i), data=bytes([i] * 8), encoding='rgb8', width=2, height=1,
        step=6,
    )  # fmt: skip


def stamps(messages):
    return [m.header.stamp for m in messages]


def run(line, count=6, period_ns=100_000_000):
    return [m for i in range(count) for m in line.pass_on(image(i), i * period_ns)]


def joints(stamp=1_000_000_000, q=(0.1, 0.2, 0.3, 0.04)):
    return JointSample(stamp, NAMES, tuple(q), (0.0,) * 4, (1.0,) * 4)


def test_every_fault_can_be_thrown_and_cleared(board):
    for name, info in FAULTS.items():
        board.command(name)
        assert board.active(name, 'external' if info.camera else '')
    board.command('clear reflex')
    assert not board.active('reflex')
    assert board.active('user_stop')
    board.command('clear')
    assert not any(board.active(n, 'external' if i.camera else '') for n, i in FAULTS.items())


def test_arguments_choose_camera_and_value(board):
    board.command('camera_delay wrist 0.25')
    assert board.value('camera_delay', 'wrist') == 0.25
    assert board.value('camera_delay', 'external') is None
    board.command('joints_jump 0.7')
    assert board.value('joints_jump') == 0.7


@pytest.mark.parametrize(
    ('line', 'words'),
    [
        ('', 'empty'),
        ('reflx', 'did you mean "reflex"?'),
        ('camera_drop left', "'left' is no camera"),
        ('joints_jump much', "'much' is not a number"),
        ('clear reflx', 'did you mean'),
    ],
)
def test_bad_command_is_refused_with_a_sentence(board, line, words):
    with pytest.raises(UserError, match='.*' + words.replace('?', r'\?')):
        board.command(line)


def test_document_lists_every_fault():
    text = (Path(__file__).parents[3] / 'doc' / 'topics.md').read_text()
    missing = [name for name, info in FAULTS.items() if f'| {name} | {info.text}' not in text]
    assert missing == []


def test_healthy_camera_passes_everything(board):
    assert stamps(run(CameraLine('external', board))) == [0, 1, 2, 3, 4, 5]


def test_frozen_camera_repeats_its_bytes_under_new_stamps(board):
    board.command('camera_freeze external')
    out = run(CameraLine('external', board))
    assert stamps(out) == [0, 1, 2, 3, 4, 5]
    assert {m.data for m in out} == {image(0).data}


def test_dropped_camera_is_silent_and_comes_back(board):
    line = CameraLine('external', board)
    board.command('camera_drop external')
    assert run(line) == []
    board.command('clear')
    assert len(run(line)) == 6


def test_delayed_camera_keeps_its_stamps_and_order(board):
    board.command('camera_delay external 0.25')
    line = CameraLine('external', board)
    out = [(i, m.header.stamp) for i in range(8) for m in line.pass_on(image(i), i * 10**8)]
    assert out == [(3, 0), (4, 1), (5, 2), (6, 3), (7, 4)]
    board.command('clear')
    assert stamps(line.pass_on(image(8), 8 * 10**8)) == [5, 6, 7, 8]


def test_duplicated_and_reordered_pictures(board):
    board.command('camera_duplicate external')
    assert Counter(stamps(run(CameraLine('external', board)))) == Counter([0, 1, 2, 3, 4, 5] * 2)
    board.command('clear')
    board.command('camera_reorder external')
    assert stamps(run(CameraLine('external', board))) == [1, 0, 3, 2, 5, 4]


def test_corrupt_pictures_leave_the_original_alone(board):
    board.command('camera_short external')
    board.command('camera_encoding external')
    board.command('camera_size external')
    original = image(1)
    (out,) = CameraLine('external', board).pass_on(original, 0)
    assert (len(out.data), out.encoding, out.width) == (4, '32FC1', 100_000)
    assert (len(original.data), original.encoding, original.width) == (8, 'rgb8', 2)


def test_faults_of_one_camera_leave_the_other(board):
    board.command('camera_drop wrist')
    assert len(run(CameraLine('external', board))) == 6


@pytest.mark.parametrize(
    ('fault', 'check'),
    [
        ('joints_nan', lambda s: math.isnan(s.position[2])),
        ('joints_jump 0.5', lambda s: s.position == pytest.approx((0.6, 0.2, 0.3, 0.04))),
        ('joints_zero_ticks', lambda s: set(s.position) == {-math.pi}),
        ('joints_delay 0.3', lambda s: s.stamp_ns == 700_000_000),
        ('joints_missing', lambda s: s.names == ('j1', 'j2', 'finger')),
        ('joints_reorder', lambda s: s.names == NAMES[::-1] and s.position[0] == 0.04),
        ('joints_rename', lambda s: s.names[0] == 'other_joint0' and s.names[3] == 'finger'),
        ('overload 2000', lambda s: s.effort[1] == 2000.0),
    ],
)
def test_joint_fault(board, fault, check):
    board.command(fault)
    assert check(JointLine(ARM, board).pass_on(joints()))


def test_frozen_joints_keep_positions_under_fresh_stamps(board):
    line = JointLine(ARM, board)
    line.pass_on(joints(1, (0.0, 0.0, 0.0, 0.0)))
    board.command('joints_freeze')
    out = line.pass_on(joints(2, (1.0, 1.0, 1.0, 1.0)))
    assert (out.stamp_ns, out.position) == (2, (0.0, 0.0, 0.0, 0.0))


def test_dropped_joints_are_not_sent(board):
    board.command('joints_drop')
    assert JointLine(ARM, board).pass_on(joints()) is None


class FakeTime:
    def __init__(self):
        self.now = 10.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def test_pacer_keeps_absolute_deadlines():
    time = FakeTime()
    pacer = Pacer(0.1, time.monotonic, time.sleep)
    for _ in range(5):
        time.now += 0.03  # work
        pacer.wait()
    assert time.now == pytest.approx(10.53)
    assert pacer.lag_s == 0.0


def test_pacer_skips_what_it_missed_instead_of_hurrying():
    time = FakeTime()
    pacer = Pacer(0.1, time.monotonic, time.sleep)
    pacer.wait()
    time.now += 1.0  # a stall
    pacer.wait()
    assert pacer.lag_s == pytest.approx(0.9)
    assert pacer.take_worst() == pytest.approx(0.9)
    before = time.now
    pacer.wait()
    assert time.now == pytest.approx(before + 0.1)
