"""Safety files: complete, in range, and never looser than the robot."""

from dataclasses import replace

import pytest
import yaml

from spear_ros.core.config import to_mapping
from spear_ros.core.errors import UserError
from spear_ros.robots.registry import get_robot, robot_names
from spear_ros.runtime.safety_limits import SafetyLimits, load_limits

ROBOT = get_robot('fr3')


def write(tmp_path, limits):
    data = to_mapping(limits)
    data['step'] = {k: v for k, v in data['step'].items() if v != float('inf')}
    path = tmp_path / 'limits.yaml'
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.mark.parametrize('name', robot_names())
def test_installed_files_fit_every_robot_of_their_family(name):
    robot = get_robot(name)
    limits = load_limits(robot)
    assert limits.max_chunk_age_s == 0.4
    assert limits.nominal == robot.nominal
    assert limits.step.per_s == 0.2


@pytest.mark.parametrize('name', robot_names())
def test_a_robots_own_limits_are_valid_limits(name):
    robot = get_robot(name)
    SafetyLimits.of(robot).require_tighter_than(robot)


def test_tighter_values_are_taken_from_a_file(tmp_path):
    tight = replace(
        SafetyLimits.of(ROBOT),
        table_z_m=0.05,
        nominal=replace(ROBOT.nominal, linear_m_s=0.1),
        home=replace(SafetyLimits.of(ROBOT).home, linear_m_s=0.05),
    )
    assert load_limits(ROBOT, write(tmp_path, tight)) == tight


@pytest.mark.parametrize(
    ('change', 'field'),
    [
        ({'workspace_max_m': (0.9, 0.6, 0.9)}, r'workspace_max_m\[0\] = 0.9 .* at most 0.85'),
        ({'workspace_min_m': (0.2, -0.6, -0.5)}, r'workspace_min_m\[2\] = -0.5 .* at least 0'),
        ({'table_z_m': -0.3}, 'table_z_m = -0.3 .* at least -0.1'),
        ({'hard': replace(ROBOT.hard, linear_m_s=2.0)}, 'hard.linear_m_s = 2.0'),
        ({'nominal': replace(ROBOT.nominal, angular_rad_s=1.5)}, 'nominal.angular_rad_s = 1.5'),
        ({'nominal': replace(ROBOT.nominal, joint_fraction=0.9)}, 'nominal.joint_fraction = 0.9'),
        ({'step': replace(ROBOT.step, norm_m=0.3)}, 'step.norm_m per second = 1.5'),
        ({'step': replace(ROBOT.step, per_s=0.1)}, 'step.norm_m per second = 2.25'),
    ],
    ids=lambda x: x if isinstance(x, str) else None,
)
def test_looser_values_are_refused_with_figure_and_mend(tmp_path, change, field):
    with pytest.raises(UserError, match=field):
        load_limits(ROBOT, write(tmp_path, replace(SafetyLimits.of(ROBOT), **change)))


@pytest.mark.parametrize(
    ('change', 'field'),
    [
        ({'max_chunk_age_s': 0.5}, 'max_chunk_age_s = 0.5 must lie between'),
        ({'anchor_tolerance_m': 0.2}, 'anchor_tolerance_m'),
        ({'joint_margin_rad': -0.1}, 'joint_margin_rad'),
        ({'table_clearance_m': float('nan')}, 'table_clearance_m'),
        ({'workspace_min_m': (0.9, 0, 0)}, r'workspace_min_m\[0\]'),
        # Home is the slow way; and a brake needs its share of the joints' strength.
        ({'home': ROBOT.hard}, 'home.linear_m_s = .* is looser than nominal allows'),
        (
            {
                'nominal': replace(ROBOT.nominal, joint_fraction=0.02),
                'home': replace(SafetyLimits.of(ROBOT).home, joint_fraction=0.02),
            },
            'nominal.joint_fraction = 0.02 must lie between',
        ),
    ],
)
def test_nonsense_is_refused(change, field):
    with pytest.raises(UserError, match=field):
        replace(SafetyLimits.of(ROBOT), **change)


def test_every_value_must_be_in_the_file(tmp_path):
    path = write(tmp_path, SafetyLimits.of(ROBOT))
    path.write_text(path.read_text().replace('table_z_m', 'table_height'))
    with pytest.raises(UserError, match='unknown key "table_height"'):
        load_limits(ROBOT, path)
    path.write_text('\n'.join(x for x in path.read_text().splitlines() if 'table_h' not in x))
    with pytest.raises(UserError, match='"table_z_m" is missing'):
        load_limits(ROBOT, path)
