"""Demonstrations: clean labels under disturbance, other instructions, resumed where they were."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from spear_ros.cli.demonstrations import network_fit, parse_part, seed_range
from spear_ros.cli.main import main
from spear_ros.core.errors import UserError
from spear_ros.core.geometry import quat_angle
from spear_ros.core.types import EXTERNAL, RobotState
from spear_ros.data.episodes import decode_image_bytes
from spear_ros.data.samples import TARGETS, P, Q
from spear_ros.data.seen_objects import read_objects
from spear_ros.data.shards import ShardDataset
from spear_ros.evaluation.demonstrations import (
    Demonstrator,
    check_seeds,
    other_task,
    picture_place,
)
from spear_ros.evaluation.disturbance import DemonstrationSettings
from spear_ros.evaluation.imagined_tables import off_table
from spear_ros.processing.embodiments import default_action_specs
from spear_ros.robots import kinematics
from spear_ros.robots.registry import get_robot
from spear_ros.runtime.safety import load_limits
from spear_ros.simulation.catalogue import COLOURS
from spear_ros.simulation.expert import Expert
from spear_ros.simulation.grippers import get_gripper
from spear_ros.simulation.layout import draw_layout
from spear_ros.simulation.rendering import CameraModel
from spear_ros.simulation.tasks import parse_instruction
from spear_ros.simulation.world import World

SETTINGS = DemonstrationSettings(families=('touch', 'pick'), clean=0.0, relabel=1.0, limit_s=12.0)


@pytest.fixture(scope='module')
def parts():
    gripper = get_gripper(get_robot('wx250s'), None)
    robot = get_robot('wx250s', gripper.name)
    world = World(robot, gripper.name)
    world.reset_scene(0)
    try:
        world.render(EXTERNAL)
    except UserError as error:
        pytest.skip(str(error))
    expert = Expert(robot, gripper, kinematics.forward(robot, robot.q_home_rad), SETTINGS.speed)
    spec = default_action_specs()['widowx_bridge']
    yield (
        Demonstrator(world, expert, load_limits(robot), spec, SETTINGS, network_fit),
        world,
        expert,
    )
    world.close()


@pytest.fixture(scope='module')
def episode(parts):
    return parts[0].episode('touch', 5)


def test_a_disturbed_episode_still_reaches_its_goal(episode):
    assert episode.outcome == 'success'
    assert len(episode.samples) > 6
    assert len({s.key for s in episode.samples}) == len(episode.samples)


def test_every_label_starts_at_its_own_state_and_moves_at_the_experts_pace(episode, parts):
    _, world, _ = parts
    fastest = SETTINGS.speed * world.robot.nominal.linear_m_s * 0.2
    for sample in episode.samples:
        assert np.isfinite(sample.numbers).all()
        path = sample.numbers[:, P]
        steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
        # The lever between tool and end-effector frame adds to the first steps of a turn.
        assert steps.max() < fastest + 0.03
        assert quat_angle(sample.numbers[0, Q], sample.numbers[1, Q]) < 0.4


def test_pictures_have_the_networks_size_and_both_instructions_share_them(episode):
    first, second = episode.samples[:2]
    assert first.external is second.external
    assert first.instruction != second.instruction or first.info != second.info
    picture = decode_image_bytes(first.external, 'external')
    wrist = decode_image_bytes(first.wrist, 'wrist')
    assert picture.shape == (168, 224, 3)
    assert wrist.shape == (112, 112, 3)


def test_instructions_name_objects_of_the_scene(episode, parts):
    _, world, _ = parts
    for sample in episode.samples:
        assert parse_instruction(sample.instruction).target in world.scene.objects


def test_the_same_seed_gives_the_same_labels(episode, parts):
    again = parts[0].episode('touch', 5)
    # The arm drives home from elsewhere and starts within millimetres of the same place; from
    # there on small differences may grow, as in every simulation with contacts.
    for first, second in zip(again.samples[:2], episode.samples[:2], strict=True):
        assert first.instruction == second.instruction
    own = [e.samples[0].numbers[0, :7] for e in (again, episode)]
    np.testing.assert_allclose(own[0], own[1], atol=2e-2)


def test_a_label_is_the_experts_plan_from_the_state(parts):
    demonstrator, world, expert = parts
    world.reset_scene(9, 'touch')
    state = RobotState(stamp_ns=0, T_base_ee=world.T_base_ee, gripper=1.0)
    plan = expert.plan(world.scene.task, state, world.object_poses())
    sample = demonstrator.episode('touch', 9).samples[0]
    # Home is driven to anew, so the states differ by millimetres; the plans lead to one place.
    np.testing.assert_allclose(sample.numbers[TARGETS, P][-1], plan.T_base_ee[-1, :3, 3], atol=0.03)


def test_other_tasks_cover_all_objects_and_respect_the_families(parts):
    _, world, _ = parts
    scene = world.reset_scene(4, 'put')
    rng = np.random.default_rng(0)
    tasks = [other_task(scene, ('touch', 'push', 'put'), rng) for _ in range(200)]
    counts = Counter(t.family for t in tasks)
    assert set(counts) == {'touch', 'push', 'put'}
    assert all(t.receptacle for t in tasks if t.family == 'put')
    assert not any(t.target.endswith('_ball') for t in tasks if t.family == 'push')
    assert {t.target for t in tasks if t.family == 'touch'} == {
        o.name for o in scene.layout.objects if o.slot >= 0
    }


def test_held_out_seeds_cannot_be_demonstrated():
    check_seeds(range(0, 10))
    for seeds in (range(1_000_000, 1_000_010), range(2_000_000, 2_000_001), range(0)):
        with pytest.raises(UserError, match='held out'):
            check_seeds(seeds)


def test_seed_ranges_and_parts_are_read_or_refused():
    assert seed_range('3:7') == range(3, 7)
    assert parse_part('1/4') == (1, 4)
    for text in ('7', '7:3', 'a:b'):
        with pytest.raises(UserError, match='--seeds'):
            seed_range(text)
    with pytest.raises(UserError, match='--part'):
        parse_part('4/4')


def test_the_command_writes_shards_and_goes_on_where_it_was(parts, tmp_path, capsys):
    command = ['demonstrations', '--robot', 'widowx', '--families', 'touch', '--out',
               str(tmp_path), '--relabel', '0', '--seeds', '0:1']  # fmt: skip
    assert main(command) == 0
    dataset = ShardDataset(tmp_path)
    assert dataset.card.spec.embodiment == 'widowx_bridge'
    assert len(dataset) > 3
    assert dataset.sample(0, 0).instruction
    capsys.readouterr()
    assert main(command) == 0
    assert '0 samples of 0 episodes' in capsys.readouterr().out
    assert len(ShardDataset(tmp_path)) == len(dataset)


def test_imagined_tables_show_other_objects_under_the_same_robot_and_leave_the_scene_alone(parts):
    _, world, expert = parts
    spec = default_action_specs()['widowx_bridge']
    settings = replace(SETTINGS, imagined=2.0, clean=1.0)
    episode = Demonstrator(
        world, expert, load_limits(world.robot), spec, settings, network_fit
    ).episode('touch', 6)
    assert episode.outcome == 'success'
    own = [s for s in episode.samples if s.info['scene'] == 6]
    imagined = [s for s in episode.samples if s.info['scene'] != 6]
    assert len(imagined) > len(own) / 2
    assert len({s.info['scene'] for s in imagined}) > 5
    states = {s.numbers[0].tobytes() for s in own}
    assert all(s.numbers[0].tobytes() in states for s in imagined)
    pictures = {s.external for s in own}
    assert all(s.external not in pictures for s in imagined)
    for sample in imagined[::7]:
        family = parse_instruction(sample.instruction).family
        assert family in SETTINGS.families


def test_close_makes_further_instructions_about_what_is_under_the_tool(parts):
    _, world, expert = parts
    spec = default_action_specs()['widowx_bridge']

    def further(close):
        settings = replace(SETTINGS, imagined=2.0, relabel=2.0, clean=1.0, close=close)
        episode = Demonstrator(
            world, expert, load_limits(world.robot), spec, settings, network_fit
        ).episode('touch', 6)
        distances = []
        for sample in episode.samples:
            objects = {o.name: o.p_base for o in read_objects(sample.info['objects'])}
            tool = sample.numbers[0, P]
            away = {n: np.hypot(*(np.array(p[:2]) - tool[:2])) for n, p in objects.items()}
            if sample.info['scene'] != 6:
                distances.append(away[sample.info['target']])
        return float(np.median(distances))

    assert further(1.0) < 0.6 * further(0.0)


def test_what_the_fingers_hold_is_imagined_in_them(parts):
    _, world, expert = parts
    spec = default_action_specs()['widowx_bridge']
    settings = replace(SETTINGS, families=('put',), imagined=1.0, clean=1.0, limit_s=20.0)
    episode = Demonstrator(
        world, expert, load_limits(world.robot), spec, settings, network_fit
    ).episode('put', 6)
    held = []
    for sample in episode.samples:
        places = {o.name: o.p_base for o in read_objects(sample.info['objects'])}
        if sample.info['scene'] != 6 and places[sample.info['target']][2] > 0.05:
            held.append(sample)
    assert len(held) > 3
    assert len({s.info['scene'] for s in held}) > 2
    # It goes on from there: closed fingers on their way to this table's receptacle.
    ways = {tuple(np.round(s.numbers[-1, :2] - s.numbers[0, :2], 2)) for s in held}
    assert len(ways) > 2


@pytest.mark.parametrize(
    ('p', 'lost'),
    [((0.3, 0.0, 0.02), ''), ((0.3, 0.0, 0.3), ''), ((4.99, 2.47, 2.65), 'red_ball'),
     ((0.3, 0.0, 0.9), 'red_ball'), ((0.9, 0.0, -0.4), 'red_ball'), ((-0.5, 0.0, 0.0), 'red_ball')],
)  # fmt: skip
def test_an_object_that_was_shot_off_the_table_is_noticed(p, lost):
    T = np.eye(4)
    T[:3, 3] = p
    assert off_table('widowx', {'blue_cube': np.eye(4), 'red_ball': T}) == lost


def test_nothing_is_kept_of_a_table_with_a_lost_object(parts):
    demonstrator, world, _ = parts
    far = world.object_poses

    def poses():
        found = far()
        if len(demonstrator._policy.samples) > 8:
            next(iter(found.values()))[:3, 3] = 5.0, 2.0, 2.0
        return found

    world.object_poses = poses
    try:
        episode = demonstrator.episode('touch', 6)
    finally:
        del world.object_poses
    assert episode.outcome.startswith('lost: ')
    assert 8 < len(episode.samples) < 12
    for sample in episode.samples:
        assert all(
            abs(np.array(o.p_base)).max() < 1.0 for o in read_objects(sample.info['objects'])
        )


def test_moments_without_imagined_tables_are_refused():
    with pytest.raises(UserError, match=r'moments = 0\.6 .*imagined = 0; set imagined'):
        DemonstrationSettings(moments=0.6)


def test_an_imagined_scene_gives_everything_back(parts):
    _, world, _ = parts
    world.reset_scene(3, 'pick')
    before, poses = world.pack_state(), world.object_poses()
    with world.imagined_scene(draw_layout('widowx', 77, 'touch')) as scene:
        assert world.scene is scene
        assert set(world.object_poses()) == set(scene.objects)
    layout = draw_layout('widowx', 78, 'put')
    high = poses[world.scene.task.target].copy()
    high[2, 3] += 0.2
    with world.imagined_scene(layout, {layout.task.target: high}):
        np.testing.assert_allclose(world.object_poses()[layout.task.target], high, atol=1e-9)
    after = world.pack_state()
    assert np.array_equal(before.physics, after.physics)
    assert (world.scene.seed, world.scene.family) == (3, 'pick')
    assert set(world.object_poses()) == set(poses)
    for name, T in world.object_poses().items():
        assert np.array_equal(T, poses[name])


def test_samples_say_where_their_objects_are_in_space_and_in_both_pictures(episode, parts):
    sample = episode.samples[0]
    objects = {o.name: o for o in read_objects(sample.info['objects'])}
    task = parse_instruction(sample.instruction)
    assert sample.info['target'] == task.target.replace('_', ' ')
    assert sample.info['target'] in objects
    assert sum(o.external is not None for o in objects.values()) >= 4
    picture = decode_image_bytes(sample.external, 'external').astype(float)
    rows, columns = picture.shape[:2]
    seen = 0
    for thing in objects.values():
        if thing.external is None:
            continue
        x, y = int(thing.external[0] * columns), int(thing.external[1] * rows)
        around = picture[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].mean((0, 1))
        hue = np.array(COLOURS[thing.name.split()[0]])
        # Shading and the gripper in front of it aside: the colour that is there is the object's.
        seen += float(np.corrcoef(around, hue)[0, 1]) > 0.8
    assert seen >= len(objects) - 2


def test_a_place_in_the_picture_counts_in_the_cut_picture():
    K = np.array([[600.0, 0, 319.5], [0, 600.0, 239.5], [0, 0, 1]])
    camera = CameraModel(640, 480, K, np.eye(4))
    assert picture_place(np.array([0.0, 0, 1]), camera, (84, 112)) == (0.5, 0.5)
    right = np.array([0.39, 0, 1])  # pixel 553.5: outside of the middle square
    assert picture_place(right, camera, (84, 112))[0] == pytest.approx(554 / 640)
    assert picture_place(right, camera, (56, 56))[0] == pytest.approx(0.5 + 234 / 480)
    assert picture_place(np.array([0.45, 0, 1]), camera, (56, 56)) is None
    assert picture_place(np.array([0.0, 0, -1]), camera, (84, 112)) is None
