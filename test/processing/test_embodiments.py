"""Default specs, and the sentence that says why a checkpoint and a robot do not fit."""

from dataclasses import replace

import pytest

from spear_ros.core.errors import UserError
from spear_ros.processing.embodiments import (
    check_action_spec,
    default_action_specs,
    default_norm_stats,
    spec_mismatch,
)
from spear_ros.processing.normalization import check_norm_stats
from spear_ros.robots.spec import Joint, MotionLimits, RobotSpec, StepLimits


def robot(**changes):
    limits = MotionLimits(linear_m_s=1, linear_m_s2=1, angular_rad_s=1, angular_rad_s2=1)
    joint = Joint(
        name='a', xyz=(0, 0, 0), rpy=(0, 0, 0), axis=(0, 0, 1), lower_rad=-1, upper_rad=1,
        velocity_rad_s=1, acceleration_rad_s2=1,
    )  # fmt: skip
    spec = RobotSpec(
        name='fr3', family='franka', embodiment='franka_droid', joints=(joint,), ee_xyz=(0, 0, 0),
        ee_frame='link8', hard=limits, nominal=limits, step=StepLimits(),
    )  # fmt: skip
    return replace(spec, **changes)


def test_defaults_are_sound():
    for key, spec in default_action_specs().items():
        assert key == spec.embodiment
        check_action_spec(spec)
        assert (spec.horizon, spec.rate_hz) == (5, 5.0)
    check_norm_stats(default_norm_stats())


def test_a_fitting_robot_gives_an_empty_sentence():
    assert spec_mismatch(default_action_specs()['franka_droid'], robot()) == ''


def test_every_differing_field_is_named_with_both_values():
    text = spec_mismatch(default_action_specs()['widowx_bridge'], robot(base_frame='world'))
    for word in (
        'embodiment',
        'franka_droid',
        'ee_frame',
        'link8',
        'ee_gripper_link',
        'world',
        'fr3',
    ):
        assert word in text


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('rate_hz', 0.0),
        ('horizon', 0),
        ('gripper_threshold', 1.0),
        ('reference_rotation', (1.0, 1.0, 0.0, 0.0)),
        ('proprio_pole', (0.0, 0.0, 0.0, 0.0)),
        ('rate_hz', float('nan')),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused_by_field(field, value):
    spec = replace(default_action_specs()['franka_droid'], **{field: value})
    with pytest.raises(UserError, match=field):
        check_action_spec(spec)
