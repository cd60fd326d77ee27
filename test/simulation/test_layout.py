import numpy as np
import pytest

from spear_ros.core.errors import UserError
from spear_ros.simulation.catalogue import HELD_OUT_COMBINATIONS, split_name
from spear_ros.simulation.layout import ARENAS, HELD_OUT, SHIFTED, draw_layout
from spear_ros.simulation.tasks import DIRECTIONS, FAMILIES

SEEDS = range(60)


@pytest.fixture(scope='module')
def layouts():
    return [
        (arena, draw_layout(arena, seed, family))
        for arena in ARENAS
        for family in FAMILIES
        for seed in SEEDS
    ]


def pairs(layout):
    return [tuple(o.name.split('_')) for o in layout.objects]


def test_a_seed_is_a_scene():
    first, again = (draw_layout('franka', 7, 'put') for _ in range(2))
    assert first.objects == again.objects
    assert first.instruction == again.instruction
    assert first.look.tint == again.look.tint
    assert draw_layout('franka', 8, 'put').objects != first.objects


@pytest.mark.parametrize('family', FAMILIES)
def test_a_target_can_be_put_anywhere_and_the_others_make_room(family):
    plain = draw_layout('franka', 7, family)
    moved = draw_layout('franka', 7, family, target_xy=(0.52, 0.01))
    assert moved.task == plain.task
    assert [o.name for o in moved.objects] == [o.name for o in plain.objects]
    target, *others = moved.objects
    assert (target.x_m, target.y_m) == (0.52, 0.01)
    for other in others:
        radii = sum(split_name(o.name)[1].radius_m for o in (target, other))
        assert np.hypot(target.x_m - other.x_m, target.y_m - other.y_m) > radii


def test_scenes_hold_four_to_six_different_objects_with_room_between_them(layouts):
    for family, layout in layouts:
        arena = ARENAS[family]
        assert 4 <= len(layout.objects) <= 6
        assert len({o.name for o in layout.objects}) == len(layout.objects)
        slots = [o.slot for o in layout.objects if o.slot >= 0]
        assert len(set(slots)) == len(slots)
        for i, a in enumerate(layout.objects):
            assert arena.holds((a.x_m, a.y_m))
            for b in layout.objects[:i]:
                radii = sum(split_name(o.name)[1].radius_m * arena.scale for o in (a, b))
                assert np.hypot(a.x_m - b.x_m, a.y_m - b.y_m) > radii + 0.9 * arena.gap


def test_the_task_is_about_objects_of_the_scene(layouts):
    for _, layout in layouts:
        names = {o.name for o in layout.objects}
        assert layout.task.target in names
        assert layout.task.family == layout.family
        if layout.family == 'put':
            assert layout.task.receptacle in names
            assert split_name(layout.task.receptacle)[1].receptacle
            # A ball would roll off a flat plate.
            assert not (
                layout.task.target.endswith('ball') and layout.task.receptacle.endswith('plate')
            )
        if layout.family == 'push':
            assert split_name(layout.task.target)[1].pushable


def test_nothing_stands_in_the_way_of_a_push(layouts):
    for family, layout in layouts:
        if layout.family != 'push':
            continue
        arena = ARENAS[family]
        target = next(o for o in layout.objects if o.name == layout.task.target)
        start = np.array([target.x_m, target.y_m])
        end = start + (arena.push + 0.01) * np.array(DIRECTIONS[layout.task.direction])
        for other in layout.objects:
            if other is not target:
                reach = split_name(other.name)[1].radius_m * arena.scale
                xy = np.array([other.x_m, other.y_m])
                for s in np.linspace(0, 1, 8):
                    assert np.linalg.norm(start + s * (end - start) - xy) > reach


def test_held_out_pairs_appear_only_in_their_variant(layouts):
    for _, layout in layouts:
        assert not set(pairs(layout)) & HELD_OUT_COMBINATIONS
    for family in FAMILIES:
        for seed in SEEDS:
            layout = draw_layout('widowx', seed, family, HELD_OUT)
            assert tuple(layout.task.target.split('_')) in HELD_OUT_COMBINATIONS


def test_the_shifted_camera_sees_the_same_scene_from_outside_the_training_range():
    for seed in SEEDS:
        plain, shifted = draw_layout('franka', seed), draw_layout('franka', seed, '', SHIFTED)
        assert shifted.objects == plain.objects
        assert np.linalg.norm(plain.look.camera_shift_m['external']) <= 0.015 * np.sqrt(3)
        moved = shifted.look.camera_shift_m['external'] - plain.look.camera_shift_m['external']
        assert np.linalg.norm(moved) == pytest.approx(0.06)


def test_every_direction_colour_and_shape_occurs(layouts):
    tasks = [layout.task for _, layout in layouts]
    assert {t.direction for t in tasks if t.family == 'push'} == set(DIRECTIONS)
    assert len({t.target.split('_')[0] for t in tasks}) == 6
    assert {t.target.split('_')[1] for t in tasks} == {'cube', 'block', 'cylinder', 'ball'}


@pytest.mark.parametrize(
    ('arguments', 'named'),
    [
        (('franka', 1, '', 'upside_down'), 'upside_down'),
        (('franka', -1), 'seed = -1'),
        (('ur5', 1), 'ur5'),
    ],
)
def test_bad_requests_are_named(arguments, named):
    with pytest.raises(UserError, match=named):
        draw_layout(*arguments)
