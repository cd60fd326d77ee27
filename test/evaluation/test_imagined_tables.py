import numpy as np
import pytest

from spear_ros.evaluation.disturbance import DemonstrationSettings
from spear_ros.evaluation.imagined_tables import CLOSED, LOW_M, ImaginedTables
from spear_ros.robots import kinematics
from spear_ros.robots.registry import get_robot
from spear_ros.simulation.catalogue import HELD_OUT_COMBINATIONS, split_name
from spear_ros.simulation.expert import Expert
from spear_ros.simulation.grippers import get_gripper, with_home
from spear_ros.simulation.tasks import DIRECTIONS

TOOL = np.array([0.28, 0.03, 0.03])
ABOVE = np.array([0.28, 0.03, 0.23])


def tables(seed=0, families=('touch', 'push', 'pick', 'put'), **settings):
    gripper = get_gripper(get_robot('wx250s'), None)
    robot = with_home(get_robot('wx250s'), gripper)
    expert = Expert(robot, gripper, kinematics.forward(robot, robot.q_home_rad))
    settings = DemonstrationSettings(families=families, imagined=1.0, **settings)
    return ImaginedTables('widowx', expert, settings, np.random.default_rng(seed)), expert


def place(imagined):
    thing = next(o for o in imagined.layout.objects if o.name == imagined.task.target)
    return np.array([thing.x_m, thing.y_m])


def test_a_moment_has_its_target_where_the_tool_is_and_the_rest_around_it():
    moments, _ = tables(moments=1.0, families=('touch', 'pick', 'put'))
    drawn = [moments.draw(TOOL, 1.0) for _ in range(60)]
    away = [np.linalg.norm(place(d) - TOOL[:2]) for d in drawn]
    assert np.median(away) < 0.03
    assert {d.task.family for d in drawn} == {'touch', 'pick', 'put'}
    for d in drawn:
        things = [(np.array([o.x_m, o.y_m]), split_name(o.name)[1]) for o in d.layout.objects]
        for i, (a, shape) in enumerate(things):
            for b, other in things[:i]:
                assert np.linalg.norm(a - b) > 0.72 * (shape.radius_m + other.radius_m)
        assert not any(tuple(o.name.split('_')) in HELD_OUT_COMBINATIONS for o in d.layout.objects)


def test_closed_fingers_among_the_objects_mostly_stand_behind_what_they_push():
    moments, expert = tables(moments=1.0)
    drawn = [moments.draw(TOOL, 0.0) for _ in range(200)]
    pushes = [d for d in drawn if d.task.family == 'push']
    assert 0.6 < len(pushes) / len(drawn) < 0.95
    behind = 0
    for d in pushes:
        along = (place(d) - TOOL[:2]) @ np.array(DIRECTIONS[d.task.direction])
        behind += along > 0.5 * expert.push_reach(d.task, np.eye(4))
    assert behind > 0.6 * len(pushes)


@pytest.mark.parametrize(('tool', 'opening'), [(TOOL, 1.0), (ABOVE, 0.0)])
def test_open_or_high_fingers_favour_no_family(tool, opening):
    assert opening > CLOSED or tool[2] > LOW_M
    moments, _ = tables(moments=1.0)
    families = [moments.draw(tool, opening).task.family for _ in range(200)]
    assert 20 < families.count('push') < 85


def test_without_moments_a_table_is_that_of_its_seed():
    plain, _ = tables(close=0.0)
    for _ in range(5):
        drawn = plain.draw(TOOL, 1.0)
        assert drawn.task == drawn.layout.task
        assert not drawn.close


def test_what_is_held_is_held_over_other_tables_too():
    some, _ = tables()
    T = np.eye(4)
    T[:3, 3] = 0.3, -0.05, 0.12
    found = 0
    for _ in range(30):
        drawn = some.draw_held('red_cube', 4, T)
        if drawn is None:
            continue
        found += 1
        target = next(o for o in drawn.layout.objects if o.name == drawn.task.target)
        assert target.name.endswith('_cube')
        assert target.slot == 4
        assert drawn.task.family in ('put', 'pick')
        assert np.array_equal(drawn.lifted[target.name], T)
        slots = [o.slot for o in drawn.layout.objects if o.slot >= 0]
        assert len(set(slots)) == len(slots)
    assert found > 25


def test_a_robot_that_puts_nothing_is_shown_nothing_held():
    some, _ = tables(families=('touch', 'pick'))
    assert some.draw_held('red_cube', 4, np.eye(4)) is None
