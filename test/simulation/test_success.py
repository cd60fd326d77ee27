import numpy as np
import pytest

from spear_ros.simulation.success import HOLD_S, SceneFacts, SuccessMonitor
from spear_ros.simulation.tasks import Task

CUBE, OTHER, PLATE = 'red_cube', 'blue_cube', 'green_plate'


def at(x, y=0.0, z=0.02):
    T = np.eye(4)
    T[:3, 3] = x, y, z
    return T


START = {CUBE: at(0.5), OTHER: at(0.5, 0.2), PLATE: at(0.6, -0.1, 0.006)}
ON_TABLE = frozenset({(CUBE, 'table'), (OTHER, 'table'), (PLATE, 'table')})


def facts(time_s=0.0, touches=(), contacts=ON_TABLE, **moved):
    poses = START | {{'cube': CUBE, 'other': OTHER, 'plate': PLATE}[k]: v for k, v in moved.items()}
    return SceneFacts(time_s, poses, frozenset(touches), frozenset(contacts))


def monitor(task):
    return SuccessMonitor(task, START, scale=1.0, push_m=0.07)


def test_touch_counts_only_when_the_target_is_touched_first():
    right, wrong = monitor(Task('touch', CUBE)), monitor(Task('touch', CUBE))
    right.update(facts(touches=[CUBE]))
    wrong.update(facts(touches=[OTHER]))
    wrong.update(facts(touches=[CUBE]))
    assert right.success
    assert not wrong.succeeded
    assert wrong.first_touched == OTHER


def test_success_is_remembered_after_it_has_passed():
    watch = monitor(Task('touch', CUBE))
    watch.update(facts(touches=[CUBE]))
    watch.update(facts())
    assert watch.succeeded
    assert not watch.success


@pytest.mark.parametrize(
    ('direction', 'end', 'success'),
    [
        ('forward', at(0.58), True),
        ('forward', at(0.56), False),
        ('forward', at(0.58, 0.05), False),
        ('left', at(0.5, 0.08), True),
        ('left', at(0.5, -0.08), False),
        ('right', at(0.52, -0.08), True),
    ],
)
def test_a_push_must_go_far_enough_and_the_right_way(direction, end, success):
    watch = monitor(Task('push', CUBE, direction=direction))
    watch.update(facts(cube=end))
    assert watch.success == success


@pytest.mark.parametrize(
    ('touches', 'contacts', 'z', 'success'),
    [
        ([CUBE], [], 0.08, True),
        ([CUBE], [], 0.06, False),
        ([], [], 0.08, False),
        ([CUBE], [(CUBE, 'table')], 0.08, False),
        ([CUBE], [(OTHER, CUBE)], 0.08, False),
    ],
)
def test_a_lift_counts_when_held_high_and_clear_for_a_while(touches, contacts, z, success):
    watch = monitor(Task('pick', CUBE))
    for time_s in (0.0, HOLD_S / 2, HOLD_S + 0.01):
        watch.update(facts(time_s, touches, contacts, cube=at(0.5, 0, z)))
        assert not watch.success or time_s > HOLD_S
    assert watch.success == success


def test_a_short_lift_does_not_count():
    watch = monitor(Task('pick', CUBE))
    for time_s, z in ((0.0, 0.09), (0.2, 0.02), (0.25, 0.09), (0.5, 0.09)):
        watch.update(facts(time_s, [CUBE], [], cube=at(0.5, 0, z)))
    assert not watch.succeeded


@pytest.mark.parametrize(
    ('where', 'touches', 'contacts', 'success'),
    [
        (at(0.61, -0.1, 0.03), [], [(CUBE, PLATE)], True),
        (at(0.61, -0.1, 0.03), [CUBE], [(CUBE, PLATE)], False),
        (at(0.68, -0.1, 0.03), [], [(CUBE, PLATE)], False),
        (at(0.61, -0.1, 0.03), [], [], False),
        (at(0.61, -0.1, 0.03), [], [(CUBE, PLATE), (CUBE, 'table')], False),
    ],
)
def test_a_placed_object_lies_on_the_receptacle_and_has_been_let_go(
    where, touches, contacts, success
):
    watch = monitor(Task('put', CUBE, receptacle=PLATE))
    for time_s in (0.0, HOLD_S + 0.01):
        watch.update(facts(time_s, touches, contacts, cube=where))
    assert watch.success == success


def test_a_receptacle_that_was_tipped_over_does_not_count():
    watch = monitor(Task('put', CUBE, receptacle=PLATE))
    tipped = at(0.6, -0.1)
    tipped[:3, :3] = [[1, 0, 0], [0, 0, -1], [0, 1, 0]]
    for time_s in (0.0, HOLD_S + 0.01):
        watch.update(facts(time_s, [], [(CUBE, PLATE)], cube=at(0.6, -0.1), plate=tipped))
    assert not watch.success
