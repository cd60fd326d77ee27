"""The wiring files: shipped ones are valid, wrong ones are refused with a sentence."""

from dataclasses import replace

import pytest
import yaml

from spear_ros.core.config import from_mapping, to_mapping
from spear_ros.core.errors import UserError
from spear_ros.core.resources import share_file
from spear_ros.robots.registry import get_robot
from spear_ros.ros.config import (
    GripperStateConfig,
    RobotConfig,
    WiringParameters,
    load_robot_config,
    robot_config,
)


@pytest.fixture(params=['franka', 'franka_trajectory', 'widowx'])
def config(request):
    return load_robot_config(request.param)


def franka_mapping():
    return yaml.safe_load(share_file('config/robots/franka.yaml').read_text())


def refusal(mapping):
    with pytest.raises(UserError) as caught:
        from_mapping(RobotConfig, mapping, where='franka.yaml')
    return str(caught.value)


def test_shipped_files_fit_their_robot_live_and_simulated(config):
    for wiring in (config, config.simulated()):
        spec = get_robot(wiring.model, wiring.gripper)
        assert spec.family == wiring.family
        assert wiring.gripper_state.topic.startswith('/')


def test_configuration_survives_a_round_trip(config):
    assert from_mapping(RobotConfig, to_mapping(config), where='x') == config


def test_franka_is_live_fr3_and_simulated_panda():
    live = load_robot_config('franka')
    assert (live.model, live.gripper) == ('fr3', 'robotiq_2f85')
    assert (live.simulated().model, live.simulated().gripper) == ('panda', 'franka_hand')


def test_trajectory_file_is_the_franka_with_another_way_for_commands():
    crisp, fallback = load_robot_config('franka'), load_robot_config('franka_trajectory')
    assert replace(fallback, franka=crisp.franka) == crisp
    assert crisp.franka.command_topic == '/target_pose'
    assert fallback.franka.command_topic == '/fr3_arm_controller/joint_trajectory'
    assert fallback.franka.controller == 'fr3_arm_controller'


def test_finger_joint_carries_the_name_of_the_model():
    live = replace(load_robot_config('franka'), gripper='franka_hand')
    assert live.gripper_state.joint == 'fr3_finger_joint1'
    assert live.simulated().gripper_state.joint == 'panda_finger_joint1'


def test_camera_info_lies_beside_the_image():
    camera = load_robot_config('widowx').cameras.external
    assert camera.info_topic == '/D435/color/camera_info'
    compressed = replace(camera, topic='/D435/color/image_raw/compressed', compressed=True)
    assert compressed.info_topic == '/D435/color/camera_info'


def test_absent_wrist_camera_has_no_stream():
    mapping = franka_mapping()
    mapping['cameras']['wrist'] = None
    assert set(from_mapping(RobotConfig, mapping, where='x').camera_topics) == {'external'}


@pytest.mark.parametrize(
    ('open_at', 'closed_at'), [(0.04, 0.0), (0.0, 0.8), (0.035, 0.010)], ids=str
)
def test_gripper_opening_is_one_at_open_and_zero_at_closed(open_at, closed_at):
    state = GripperStateConfig(topic='/x', joint='j', open=open_at, closed=closed_at)
    assert state.opening(open_at) == pytest.approx(1.0)
    assert state.opening(closed_at) == pytest.approx(0.0)
    assert state.joint_value(0.25) == pytest.approx(closed_at + 0.25 * (open_at - closed_at))
    assert state.joint_value(1.7) == pytest.approx(open_at)


@pytest.mark.parametrize(
    ('path', 'value', 'words'),
    [
        (('arm', 'topic'), 'joint_states', 'absolute ROS name'),
        (('arm', 'max_rate_hz'), 1000.0, 'max_rate_hz = 1000.0 must lie between 20 and 250'),
        (('gripper',), 'suction', "'suction' is not one of"),
        (('gripper',), 'widowx', 'no section under "grippers"'),
        (('widowx',), {}, 'exactly one driver section'),
        (('cameras', 'external', 'topc'), '/x', 'did you mean "topic"?'),
        (('grippers', 'franka_hand', 'force_n'), 200.0, 'force_n = 200.0'),
        (('franka', 'robot_state_poll_hz'), 1000.0, 'robot_state_poll_hz'),
    ],
)
def test_wrong_value_is_named(path, value, words):
    mapping = franka_mapping()
    section = mapping
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    assert words in refusal(mapping)


def test_motor_profile_needs_half_its_time_for_acceleration():
    mapping = to_mapping(load_robot_config('widowx'))
    mapping['widowx']['profile_acceleration_ms'] = 40
    assert 'more than half' in refusal(mapping)


@pytest.mark.parametrize('limits', [[1000.0] * 5, [0.0] * 6, [9000.0] * 6, [float('nan')] * 6])
def test_currents_of_the_effort_guard_are_six_and_sane(limits):
    mapping = to_mapping(load_robot_config('widowx'))
    mapping['widowx']['effort_limits_ma'] = limits
    assert 'effort_limits_ma' in refusal(mapping)


def test_share_zero_switches_giving_way_off():
    mapping = to_mapping(load_robot_config('widowx'))
    mapping['widowx']['give_way_share'] = 1.5
    assert 'give_way_share = 1.5' in refusal(mapping)
    config = load_robot_config('widowx').widowx
    assert config.give_way.soft_effort == tuple(0.75 * v for v in config.effort_limits_ma)
    assert replace(config, give_way_share=0.0).give_way is None


def test_unknown_robot_names_the_known_ones():
    with pytest.raises(UserError, match='franka, franka_trajectory, viperx, widowx'):
        load_robot_config('fanuc')


def test_parameters_win_over_the_file(tmp_path):
    path = tmp_path / 'mine.yaml'
    path.write_text(share_file('config/robots/franka.yaml').read_text())
    wiring = WiringParameters(robot='widowx', robot_config=str(path), gripper='franka_hand')
    config = robot_config(wiring)
    assert (config.model, config.gripper) == ('fr3', 'franka_hand')
    config = robot_config(replace(wiring, simulated=True, gripper='robotiq_2f85'))
    assert (config.model, config.gripper) == ('panda', 'robotiq_2f85')
    with pytest.raises(UserError, match='suction'):
        robot_config(replace(wiring, gripper='suction'))


def test_the_twin_has_its_own_age_limits_and_the_robot_keeps_its_tight_ones():
    real = load_robot_config('franka')
    twin = real.simulated()
    assert real.arm.max_age_s == 0.05
    assert twin.arm.max_age_s == real.sim.arm_max_age_s
    assert twin.cameras.external.max_age_s == real.sim.camera_max_age_s
    assert twin.gripper_state.max_age_s == real.sim.gripper_max_age_s
    assert real.gripper_state.max_age_s == 0.2
