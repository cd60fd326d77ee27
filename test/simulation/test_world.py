import importlib.util
import threading

import numpy as np
import pytest

from spear_ros.core.errors import UserError
from spear_ros.core.geometry import pose_distance
from spear_ros.robots import kinematics
from spear_ros.robots.registry import get_robot
from spear_ros.simulation.catalogue import COLOURS

if not all(importlib.util.find_spec(name) for name in ('mujoco', 'rtbdata')):
    pytest.skip('needs mujoco and rtb-data', allow_module_level=True)

from spear_ros.simulation.tasks import Task
from spear_ros.simulation.world import World

ARMS = [
    ('fr3', 'franka_hand'),
    ('fr3', 'robotiq_2f85'),
    ('panda', None),
    ('wx250s', None),
    ('vx300s', None),
]


@pytest.fixture(scope='module')
def worlds():
    """One world per robot, built when first asked for; tests start with reset_robot."""
    made = {}

    def get(name, gripper=None):
        key = (name, gripper)
        if key not in made:
            made[key] = World(get_robot(name), gripper)
        made[key].reset_robot()
        return made[key]

    yield get
    for world in made.values():
        world.close()


@pytest.mark.parametrize(('name', 'gripper'), ARMS)
def test_the_model_has_the_kinematics_of_the_spec(worlds, name, gripper):
    world = worlds(name, gripper)
    rng = np.random.default_rng(0)
    lower = np.array([j.lower_rad for j in world.robot.joints])
    upper = np.array([j.upper_rad for j in world.robot.joints])
    for _ in range(50):
        q = rng.uniform(lower, upper)
        world.reset_robot(q)
        np.testing.assert_allclose(world.T_base_ee, kinematics.forward(world.robot, q), atol=1e-9)


@pytest.mark.parametrize(('name', 'gripper'), ARMS)
def test_left_alone_the_robot_stands_still_and_nothing_slides(worlds, name, gripper):
    world = worlds(name, gripper)
    if name != 'vx300s':
        world.reset_scene(5, 'put')
    before, objects = world.T_base_ee, world.object_poses()
    world.step(500)
    assert pose_distance(before, world.T_base_ee)[0] < 1e-4
    for key, T in world.object_poses().items():
        assert np.linalg.norm((T - objects[key])[:3, 3]) < 1e-3
    assert not any(w.number for w in world.data.warning)


def test_a_scene_reset_moves_objects_and_never_the_robot(worlds):
    world = worlds('wx250s')
    world.set_joint_targets(np.array([0.3, 0.1, 0.2, 0.0, 1.2, 0.1]), (400, 100))
    world.step(100)
    q, dq = world.q_rad.copy(), world.dq_rad_s.copy()
    world.reset_scene(11, 'touch')
    np.testing.assert_array_equal(world.q_rad, q)
    np.testing.assert_array_equal(world.dq_rad_s, dq)
    world.step(300)
    assert abs(world.q_rad[0] - 0.3) < 0.02  # and its motion goes on


def test_the_same_calls_give_the_same_states(worlds):
    tracks = []
    for _ in range(2):
        world = World(get_robot('fr3'))
        scene = world.reset_scene(3, 'pick')
        target = world.T_base_ee
        target[:3, 3] = world.object_poses()[scene.task.target][:3, 3] + [0, 0, 0.11]
        world.set_target_pose(target)
        world.step(800)
        world.set_gripper(0.0)
        world.step(200)
        tracks.append(world.data.qpos.copy())
    np.testing.assert_array_equal(*tracks)


@pytest.mark.parametrize(('name', 'gripper'), ARMS[:4])
def test_fingers_hold_a_lifted_object_by_friction(worlds, name, gripper):
    world = worlds(name, gripper)
    world.reset_scene(3, 'pick')
    target = world.scene.task.target
    grasp(world, target)
    world.set_task(Task('pick', target))
    lift(world, 0.1)
    assert world.task_success()
    height = world.object_poses()[target][2, 3]
    world.step(1500)
    assert world.object_poses()[target][2, 3] == pytest.approx(height, abs=3e-3)
    world.set_gripper(1.0)
    world.step(500)
    assert world.object_poses()[target][2, 3] < height - 0.05


def grasp(world, name):
    """Put the tool around an object and close."""
    T = world.object_poses()[name]
    down = kinematics.forward(world.robot, world.robot.q_home_rad)
    goal = down @ world.gripper.T_ee_tcp
    yaw = np.arctan2(T[1, 0], T[0, 0])
    c, s = np.cos(yaw), np.sin(yaw)
    goal[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ goal[:3, :3]
    goal[:3, 3] = T[:3, 3]
    place(world, goal @ np.linalg.inv(world.gripper.T_ee_tcp))
    world.set_gripper(0.0)
    world.step(500)


def place(world, T_base_ee):
    """Teleport the arm to a pose, fingers open."""
    solver = kinematics.InverseKinematics(world.robot)
    q = solver.solve(T_base_ee, np.array(world.robot.q_home_rad))
    assert q.converged
    world.reset_robot(q.q_rad)
    world.step(5)


def lift(world, height):
    """Raise the tool at about 0.1 m/s."""
    goal = world.T_base_ee
    solver, q = kinematics.InverseKinematics(world.robot), world.q_rad.copy()
    for _ in range(50):
        goal[2, 3] += height / 50
        q = solver.solve(goal, q).q_rad
        if world.robot.family == 'franka':
            world.set_target_pose(goal)
        else:
            world.set_joint_targets(q, (50, 20))
        world.step(20)
    world.step(200)


def test_the_franka_follows_its_target_with_the_lag_of_its_damping(worlds):
    world = worlds('fr3')
    target, speed = world.T_base_ee, 0.15
    start = target[1, 3]
    for k in range(100):
        target[1, 3] = start + speed * 0.01 * k
        world.set_target_pose(target)
        world.step(5)
    lag = target[1, 3] - world.T_base_ee[1, 3]
    assert lag == pytest.approx(speed * 60 / 600, rel=0.35)
    world.step(1500)
    assert pose_distance(world.T_base_ee, target)[0] < 2e-3


def test_a_far_target_does_not_throw_the_franka(worlds):
    world = worlds('fr3')
    target = world.T_base_ee
    target[:3, 3] += [0.2, 0.3, -0.1]
    world.set_target_pose(target)
    fastest = 0.0
    for _ in range(60):
        before = world.T_base_ee[:3, 3]
        world.step(25)
        fastest = max(fastest, np.linalg.norm(world.T_base_ee[:3, 3] - before) / 0.05)
    assert fastest < 1.3  # 0.1 m clip x 600 N/m against 60 Ns/m
    assert pose_distance(world.T_base_ee, target)[0] < 5e-3


def test_the_widowx_reaches_its_goal_in_the_time_of_its_profile(worlds):
    world = worlds('wx250s')
    goal = world.q_rad + np.array([0.3, -0.1, 0.1, 0.2, -0.2, 0.3])
    world.set_joint_targets(goal, (400, 100))
    world.step(100)
    assert np.abs(world.q_rad - goal).max() > 0.1
    world.step(125)
    np.testing.assert_allclose(world.q_rad, goal, atol=0.02)


def test_a_failed_bus_read_reports_zero_ticks_and_moves_nothing(worlds):
    world = worlds('wx250s')
    world.serial_fault = True
    before = world.T_base_ee
    np.testing.assert_allclose(world.q_rad, -np.pi)
    world.step(100)
    world.serial_fault = False
    assert pose_distance(before, world.T_base_ee)[0] < 1e-4


def test_pwm_moves_the_widowx_fingers_and_friction_holds_them(worlds):
    world = worlds('wx250s')
    world.set_gripper_pwm(-250)
    world.step(100)
    moving = world.finger_m
    assert moving < 0.034
    world.set_gripper_pwm(0)
    world.step(400)
    held = world.finger_m
    assert held == pytest.approx(moving, abs=2e-3)
    world.step(400)
    assert world.finger_m == pytest.approx(held, abs=2e-4)
    world.set_gripper_pwm(350)
    world.step(500)
    assert world.gripper_opening > 1.0


def test_objects_laid_out_under_a_low_gripper_become_solid_after_it_has_risen(worlds):
    world = worlds('fr3')
    scene = world.reset_scene(3, 'pick')
    place_at = world.object_poses()[scene.task.target][:3, 3]
    low = kinematics.forward(world.robot, world.robot.q_home_rad)
    low[:3, 3] = place_at + np.array([0, 0, 0.11])
    place(world, low)
    world.reset_scene(3, 'pick')
    world.step(200)
    moved = np.linalg.norm(world.object_poses()[scene.task.target][:3, 3] - place_at)
    assert moved < 1e-6
    assert not world.first_touched()
    lift(world, 0.2)
    assert np.linalg.norm(world.object_poses()[scene.task.target][:3, 3] - place_at) < 1e-3
    grasp(world, scene.task.target)
    assert world.first_touched() == scene.task.target


def test_a_packed_state_can_be_returned_to(worlds):
    world = worlds('wx250s')
    world.reset_scene(21, 'push')
    world.set_joint_targets(world.q_rad + 0.1, (500, 100))
    world.step(60)
    state = world.pack_state()
    world.step(200)
    future = world.data.qpos.copy()
    world.reset_scene(22, 'touch')
    world.step(50)
    world.restore(state)
    assert world.scene.instruction.startswith('push')
    world.step(200)
    np.testing.assert_allclose(world.data.qpos, future, atol=1e-9)


def test_bad_scene_requests_change_nothing(worlds):
    world = worlds('wx250s')
    scene = world.reset_scene(5, 'pick')
    with pytest.raises(UserError, match='juggle'):
        world.reset_scene(5, 'juggle')
    assert world.scene is scene


# -- cameras -------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['fr3', 'wx250s'])
def test_objects_are_seen_where_the_camera_model_says(worlds, name):
    world = worlds(name)
    seen = 0
    for seed in range(4):
        scene = world.reset_scene(seed, 'pick')
        image, camera = world.render('external').astype(float), world.camera_info('external')
        assert image.shape == (480, 640, 3)
        for key in scene.objects:
            u, v = camera.project(world.object_poses()[key][:3, 3])
            if not (5 < u < 635 and 5 < v < 475):
                continue
            patch = image[round(v) - 1 : round(v) + 2, round(u) - 1 : round(u) + 2].mean((0, 1))
            colour = np.array(COLOURS[key.split('_')[0]])
            match = patch @ colour / np.linalg.norm(patch) / np.linalg.norm(colour)
            seen += match > 0.97
    assert seen >= 12


def test_pictures_are_never_byte_identical_yet_differ_by_one_level(worlds):
    world = worlds('wx250s')
    world.reset_scene(2, 'put')
    first, second = world.render('wrist'), world.render('wrist')
    difference = np.abs(first.astype(int) - second.astype(int))
    assert difference.any()
    assert difference.max() == 1


def test_the_gripper_is_in_the_picture_of_the_wrist_camera(worlds):
    for name in ('fr3', 'wx250s'):
        world = worlds(name)
        world.reset_scene(2, 'touch')
        opened = world.render('wrist').astype(int)
        world.reset_robot(opening=0.0)
        closed = world.render('wrist').astype(int)
        assert (np.abs(opened - closed).max(-1) > 20).mean() > 0.01


def test_rendering_from_a_second_thread_is_a_mistake_that_is_named(worlds):
    world = worlds('wx250s')
    world.render('wrist')
    caught = []

    def other():
        try:
            world.render('wrist')
        except AssertionError as error:
            caught.append(str(error))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert 'thread' in caught[0]


def test_each_robot_refuses_the_other_ones_commands(worlds):
    with pytest.raises(AssertionError, match='no joint position mode'):
        worlds('fr3').set_joint_targets(np.zeros(7))
    with pytest.raises(AssertionError, match='no Cartesian controller'):
        worlds('wx250s').set_target_pose(np.eye(4))
