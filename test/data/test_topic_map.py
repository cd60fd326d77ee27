"""MAP.yaml: what fits is read, what does not is named."""

import pytest

from spear_ros.core.config import from_mapping
from spear_ros.core.errors import UserError
from spear_ros.data.topic_map import TopicMap, load_topic_map

GOOD = {
    'embodiment': 'widowx_bridge',
    'cameras': {'external': '/cam', 'wrist': None},
    'arm': {'topic': '/pose', 'kind': 'pose', 'pose_frame': 'bridge_state'},
    'gripper': {'topic': '/grip', 'kind': 'float', 'open': 1, 'closed': 0},
    'instruction': '/task',
}


def read(**changes):
    return from_mapping(TopicMap, GOOD | changes, 'MAP.yaml')


def test_the_examples_that_are_shipped_fit_the_schema():
    for name, robot in (('bridge', 'wx250s'), ('widowx', 'wx250s'), ('franka', 'fr3')):
        topic_map = load_topic_map(name)
        assert topic_map.robot_name == robot
        assert 'external' in topic_map.topics()


def test_an_instruction_is_a_topic_or_a_text():
    assert read().instruction_topic == '/task'
    assert read().topics()['instruction'] == '/task'
    assert read(instruction='pick up the cup').instruction_topic is None
    assert 'instruction' not in read(instruction='pick up the cup').topics()


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'embodiment': 'ur5'}, "'ur5' is not one of"),
        ({'gripper': GOOD['gripper'] | {'closed': 1}}, 'they must differ'),
        ({'gripper': GOOD['gripper'] | {'kind': 'joints'}}, 'name of the joint'),
        ({'arm': GOOD['arm'] | {'pose_frame': 'link8'}}, 'pose_frame is link8'),
        ({'arm': {'topic': '/pose', 'kind': 'pose'}}, 'pose_frame is missing'),
        ({'arm': GOOD['arm'] | {'tpoic': 1}}, 'did you mean "topic"'),
        ({'cameras': {'external': 'cam'}}, 'must start with'),
        ({'cameras': {'wrist': '/w'}}, 'external'),
        ({'instruction': ' '}, 'instruction is empty'),
        ({'camera': {}}, 'did you mean "cameras"'),
    ],
)
def test_what_does_not_fit_is_named(changes, words):
    with pytest.raises(UserError, match=words):
        read(**changes)


def test_a_map_that_is_not_there_is_a_sentence():
    with pytest.raises(UserError, match='cannot read the configuration file'):
        load_topic_map('no_such_map')
