"""The process list: one for launch files, demo and tests; bad choices are one sentence."""

import pytest

from spear_ros.core.errors import UserError
from spear_ros.ros.bringup import BringupOptions, options_from_strings, processes


def names(**options):
    return [p.name for p in processes(BringupOptions(**options))]


def test_live_robots_get_executor_and_policy_only():
    assert names(robot='franka') == ['executor_node', 'policy_node']


def test_simulation_recorder_and_replay_are_added_when_asked_for(tmp_path):
    assert names(sim=True, record='r')[0] == 'sim_robot_node'
    assert 'recorder_node' in names(sim=True, flight='f')
    replay = processes(BringupOptions(bag='b', map='m.yaml'))
    assert [p.name for p in replay][-1] == 'replay_node'
    assert all(p.parameters.get('use_sim_time') for p in replay if p.name != 'replay_node'), (
        'bag time is the time of the graph'
    )


def test_the_executor_of_a_replay_can_never_be_armed():
    executor = processes(BringupOptions(bag='b', map='m.yaml'))[0]
    assert executor.name == 'executor_node'
    assert executor.parameters['preview_only'] is True
    assert processes(BringupOptions())[0].parameters['preview_only'] is False


def test_every_node_gets_the_same_wiring():
    specs = processes(BringupOptions(robot='widowx', sim=True, gripper='widowx', record='r'))
    wirings = {(p.parameters['robot'], p.parameters['gripper']) for p in specs}
    assert wirings == {('widowx', 'widowx')}
    assert all(p.parameters['simulated'] for p in specs)


def test_the_shared_memory_profile_is_set_unless_the_operator_chose_his_own(monkeypatch):
    monkeypatch.delenv('FASTRTPS_DEFAULT_PROFILES_FILE', raising=False)
    monkeypatch.delenv('RMW_IMPLEMENTATION', raising=False)
    name = 'FASTRTPS_DEFAULT_PROFILES_FILE'
    assert name in processes(BringupOptions())[0].environment
    monkeypatch.setenv(name, '/mine.xml')
    assert name not in processes(BringupOptions())[0].environment
    monkeypatch.delenv(name)
    monkeypatch.setenv('RMW_IMPLEMENTATION', 'rmw_cyclonedds_cpp')
    assert name not in processes(BringupOptions())[0].environment


@pytest.mark.parametrize(
    ('values', 'word'),
    [
        ({'robot': 'ur5'}, 'ur5'),
        ({'speed_scale': '2'}, 'between 0.05 and 1'),
        ({'speed_scale': 'fast'}, '"fast" is not a number'),
        ({'sim': 'maybe'}, 'true or false'),
        ({'bag': 'x'}, 'belong together'),
        ({'bag': 'x', 'map': 'y', 'sim': 'true'}, 'exclude each other'),
    ],
)
def test_bad_launch_arguments_are_one_sentence(values, word):
    with pytest.raises(UserError, match=word):
        options_from_strings(values)


def test_launch_arguments_become_typed_options():
    options = options_from_strings({'robot': 'widowx', 'sim': 'true', 'seed': '7'})
    assert (options.robot, options.sim, options.seed) == ('widowx', True, 7)
