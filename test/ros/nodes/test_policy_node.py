"""policy_node: what it loads, and what it refuses to load on a real robot."""

import importlib.util

import pytest

if importlib.util.find_spec('rclpy') is None:
    pytest.skip('needs rclpy', allow_module_level=True)

from spear_ros.core.errors import UserError
from spear_ros.ros.nodes.policy_node import check_checkpoint


def test_the_bundled_checkpoint_is_for_the_simulation_alone():
    with pytest.raises(UserError, match='seen simulated pictures only'):
        check_checkpoint('spear1', '', simulated=False)
    check_checkpoint('spear1', '', simulated=True)
    check_checkpoint('spear1', '/a/folder', simulated=False)
    check_checkpoint('hold', '', simulated=False)
