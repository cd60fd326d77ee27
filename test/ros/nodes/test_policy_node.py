"""policy_node: what it loads, and what it refuses to load on a real robot."""

import importlib.util

import pytest

if importlib.util.find_spec('rclpy') is None:
    pytest.skip('needs rclpy', allow_module_level=True)

from spear_ros.core.errors import UserError
from spear_ros.ros.nodes.policy_node import check_checkpoint, ends_episode


def test_the_bundled_checkpoint_is_for_the_simulation_alone():
    with pytest.raises(UserError, match='seen simulated pictures only'):
        check_checkpoint('spear1', '', simulated=False)
    check_checkpoint('spear1', '', simulated=True)
    check_checkpoint('spear1', '/a/folder', simulated=False)
    check_checkpoint('hold', '', simulated=False)


@pytest.mark.parametrize(
    ('before', 'after', 'over'),
    [
        ('RUNNING', 'DISARMED', True),
        ('FAULT', 'DISARMED', True),
        ('HOLD', 'HOMING', True),
        ('RUNNING', 'HOMING', True),  # the hold between was too short for a status
        ('ARMED', 'HOMING', False),
        ('HOMING', 'ARMED', False),
        ('HOLD', 'RUNNING', False),
        ('RUNNING', 'FAULT', False),
    ],
)
def test_the_instruction_ends_with_disarm_and_with_home_out_of_a_hold(before, after, over):
    status = pytest.importorskip('spear_msgs.msg', reason='the interfaces are built').ExecutorStatus
    assert ends_episode(getattr(status, before), getattr(status, after)) is over
