"""SafetyGate: the order and the words of its rejections, and the command check of every tick."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spear_ros.core.geometry import pose_parts, quat_exp, quat_multiply
from spear_ros.core.reasons import Reason
from spear_ros.core.types import ActionChunk
from spear_ros.robots.kinematics import IkResult, chain_of, forward
from spear_ros.robots.registry import get_robot
from spear_ros.runtime.safety import (
    ChunkContext,
    SafetyGate,
    SafetyLimits,
    SentCommand,
    load_limits,
)

NOW = 1_000_000_000_000
S = 1_000_000_000
STEP_S = 0.2


def setup(name='fr3'):
    robot = get_robot(name)
    limits = load_limits(robot)
    return robot, limits, SafetyGate(robot, limits)


def good_chunk(robot, velocity=(0, 0.1, 0), turn=(0, 0, 0), **changes):
    p, q = pose_parts(forward(robot, robot.q_home_rad))
    t = STEP_S * np.arange(1, 6)[:, None]
    fields = {
        't_obs_ns': NOW - S // 10,
        'step_s': STEP_S,
        'embodiment': robot.embodiment,
        'base_frame': robot.base_frame,
        'ee_frame': robot.ee_frame,
        'p_base_ee': p + t * np.asarray(velocity, float),
        'q_base_ee': quat_multiply(quat_exp(t * np.asarray(turn, float)), q),
        'gripper': np.ones(5),
        'anchor_p': p,
        'anchor_q': q,
        'checkpoint_id': 'c' * 12,
        'policy_session': 's' * 8,
        'sequence': 11,
    }
    return ActionChunk(**{**fields, **changes})


def context(robot, **changes):
    fields = {
        'received_ns': NOW,
        'q_measured': np.array(robot.q_home_rad),
        'policy_session': 's' * 8,
        'checkpoint_id': 'c' * 12,
        'last_sequence': 10,
        'horizon': 5,
        'step_s': STEP_S,
    }
    return ChunkContext(**{**fields, **changes})


def poked(array, index, value):
    out = np.array(array, float)
    out[index] = value
    return out


class TestChunks:
    @pytest.mark.parametrize('name', ['fr3', 'panda', 'wx250s', 'vx300s'])
    def test_a_good_chunk_passes_on_every_robot(self, name):
        robot, _, gate = setup(name)
        verdict = gate.examine(good_chunk(robot, (0, 0.1, 0.05), (0, 0, 0.3)), context(robot))
        assert verdict.rejection is None
        assert len(verdict.segment_rates) == 5
        assert all(0 < r <= 1 for r in verdict.segment_rates)

    @pytest.mark.parametrize(
        ('change', 'reason', 'words'),
        [
            (lambda c: {'p_base_ee': poked(c.p_base_ee, (2, 1), np.nan)},
             'CHUNK_NOT_FINITE', 'poses'),
            (lambda c: {'gripper': poked(c.gripper, 0, np.inf)}, 'CHUNK_NOT_FINITE', 'gripper'),
            (lambda c: {'anchor_q': poked(c.anchor_q, 0, np.nan)}, 'CHUNK_NOT_FINITE', 'anchor'),
            (lambda c: {'step_s': float('nan')}, 'CHUNK_NOT_FINITE', 'step_s'),
            (lambda c: {'q_base_ee': 1.01 * c.q_base_ee}, 'CHUNK_MALFORMED', 'norm off by 0.01'),
            (lambda c: {'anchor_q': 0 * c.anchor_q}, 'CHUNK_MALFORMED', 'unit quaternion'),
            (lambda c: {'p_base_ee': c.p_base_ee[:4]}, 'CHUNK_MALFORMED', 'shape'),
            (lambda c: {'gripper': np.ones(7)}, 'CHUNK_MALFORMED', r'\(7,\), expected \(5,\)'),
            (lambda c: {'gripper': 3 * c.gripper}, 'CHUNK_MALFORMED', '0 .closed. and 1 .open.'),
            (lambda c: {'step_s': 0.1}, 'CHUNK_MALFORMED', 'step_s = 0.1, expected 0.2'),
            (lambda c: {'embodiment': 'widowx_bridge'}, 'CHUNK_IDENTITY', 'embodiment "widowx'),
            (lambda c: {'base_frame': 'world'}, 'CHUNK_IDENTITY', 'base frame'),
            (lambda c: {'ee_frame': 'hand_tcp'}, 'CHUNK_IDENTITY', 'end-effector frame'),
            (lambda c: {'checkpoint_id': 'x'}, 'CHUNK_IDENTITY', 'checkpoint "x"'),
            (lambda c: {'policy_session': 'x'}, 'CHUNK_IDENTITY', 'policy session'),
            (lambda c: {'t_obs_ns': NOW - S // 2}, 'CHUNK_OLD', '0.500 s old, limit 0.4 s'),
            (lambda c: {'t_obs_ns': NOW + S // 10}, 'CLOCK_SKEW', '0.100 s in the future'),
            (lambda c: {'sequence': 10}, 'CHUNK_MALFORMED', 'chunk 10 came after chunk 10'),
            (lambda c: {'anchor_p': c.anchor_p + 0.02}, 'CHUNK_ANCHOR', '34.6 mm .*limits 20 mm'),
            (lambda c: {'p_base_ee': poked(c.p_base_ee, (3, 0), 0.75)},
             'CHUNK_STEP_LIMIT', 'step 3 moves 0.39'),
        ],
    )  # fmt: skip
    def test_each_fault_has_its_reason_and_figures(self, change, reason, words):
        robot, _, gate = setup()
        chunk = good_chunk(robot)
        rejection = gate.check_chunk(replace(chunk, **change(chunk)), context(robot))
        assert rejection is not None
        assert rejection.reason is Reason[reason]
        assert re.search(words, rejection.text), rejection.text

    def test_first_failure_in_the_fixed_order_is_the_answer(self):
        """A chunk with every fault at once: mended one by one, the reasons come in order."""
        robot, _, gate = setup()
        good = good_chunk(robot)
        high = good.p_base_ee + np.array([0, 0, 3.0])
        bad = {
            'p_base_ee': poked(high, (0, 0), np.nan),
            'q_base_ee': 2 * good.q_base_ee,
            'step_s': 0.3,
            'embodiment': 'x',
            't_obs_ns': NOW - S,
            'anchor_p': good.anchor_p + 1,
        }
        mended = [
            ('p_base_ee', high),
            ('q_base_ee', good.q_base_ee),
            ('step_s', good.step_s),
            ('embodiment', good.embodiment),
            ('t_obs_ns', good.t_obs_ns),
            ('anchor_p', good.anchor_p),
            ('p_base_ee', good.p_base_ee),
        ]
        expected = [
            'CHUNK_NOT_FINITE', 'CHUNK_MALFORMED', 'CHUNK_MALFORMED', 'CHUNK_IDENTITY',
            'CHUNK_OLD', 'CHUNK_ANCHOR', 'CHUNK_STEP_LIMIT', None,
        ]  # fmt: skip
        seen = []
        for field, value in [(None, None), *mended]:
            if field:
                bad[field] = value
            rejection = gate.check_chunk(replace(good, **bad), context(robot))
            seen.append(rejection.reason.name if rejection else None)
        assert seen == expected

    def test_outside_the_box_is_named_with_axis_and_bounds(self):
        robot, _, gate = setup()
        rejection = gate.check_chunk(good_chunk(robot, (0, 0.6, 0)), context(robot))
        assert rejection.reason is Reason.CHUNK_WORKSPACE
        assert 'y = 0.600 m, allowed -0.500 to 0.500 m' in rejection.text

    def test_out_of_reach_inside_the_box(self):
        robot, _, _ = setup()
        limits = replace(load_limits(robot), joint_margin_rad=0.05)
        gate = SafetyGate(robot, limits)
        p, _ = pose_parts(forward(robot, robot.q_home_rad))
        corner = np.array([0.79, 0.49, 0.80])
        far = p + np.linspace(0.2, 1.0, 5)[:, None] * (corner - p)
        chunk = good_chunk(robot, p_base_ee=far, step_s=0.2)
        rejection = gate.check_chunk(chunk, context(robot))
        assert rejection.reason is Reason.CHUNK_UNREACHABLE
        assert 'knot' in rejection.text

    def test_a_link_below_the_table_is_rejected_although_the_end_effector_is_not(self):
        robot, _, _ = setup()
        limits = replace(load_limits(robot), table_z_m=0.25)
        rejection = SafetyGate(robot, limits).check_chunk(
            good_chunk(robot, (0, 0, -0.24)), context(robot)
        )
        assert rejection.reason is Reason.CHUNK_WORKSPACE
        assert 'above the table' in rejection.text

    def test_per_axis_steps_of_bridge(self):
        robot, _, gate = setup('wx250s')
        assert gate.check_chunk(good_chunk(robot, (0, 0.2, 0.1)), context(robot)) is None
        rejection = gate.check_chunk(good_chunk(robot, (0, 0.26, 0)), context(robot))
        assert rejection.reason is Reason.CHUNK_STEP_LIMIT
        assert '0.0520 m along one axis' in rejection.text
        rejection = gate.check_chunk(good_chunk(robot, turn=(0, 0, 1.3)), context(robot))
        assert rejection.reason is Reason.CHUNK_STEP_LIMIT
        assert 'rad along one axis' in rejection.text

    def test_step_limits_scale_with_the_chunks_own_step(self):
        robot, _, gate = setup('wx250s')
        shorter = context(robot, step_s=0.1)
        assert gate.check_chunk(good_chunk(robot, (0, 0.2, 0), step_s=0.1), shorter) is not None
        slow = good_chunk(robot, (0, 0.1, 0), step_s=0.1)
        assert gate.check_chunk(slow, shorter) is None

    def test_unmeasured_time_is_no_anchor(self):
        robot, _, gate = setup()
        rejection = gate.check_chunk(good_chunk(robot), context(robot, q_measured=None))
        assert rejection.reason is Reason.CHUNK_ANCHOR

    def test_fast_joints_are_slowed_and_not_rejected(self):
        robot, _, gate = setup('wx250s')
        verdict = gate.examine(good_chunk(robot, turn=(0, 0, 1.2)), context(robot))
        assert verdict.rejection is None
        slow = gate.examine(good_chunk(robot, turn=(0, 0, 0.1)), context(robot))
        assert min(slow.segment_rates) == 1.0
        assert min(verdict.segment_rates) <= 1.0

    @given(st.integers(0, 100_000))
    @settings(max_examples=60, deadline=None)
    def test_an_accepted_chunk_keeps_every_limit_at_every_knot(self, seed):
        robot, limits, gate = setup()
        rng = np.random.default_rng(seed)
        chunk = good_chunk(robot, rng.normal(0, 0.5, 3), rng.normal(0, 1.0, 3))
        verdict = gate.examine(chunk, context(robot))
        p = np.vstack([chunk.anchor_p, chunk.p_base_ee])
        steps = np.linalg.norm(np.diff(p, axis=0), axis=1)
        inside = ((p > limits.workspace_min_m) & (p < limits.workspace_max_m)).all()
        if verdict.rejection is None:
            assert inside
            assert steps.max() <= limits.step.norm_m * (1 + 1e-6)
        elif verdict.rejection.reason is Reason.CHUNK_WORKSPACE:
            assert not inside or 'above the table' in verdict.rejection.text


class TestCommands:
    def command(self, robot, q):
        return IkResult(
            np.asarray(q, float), True, 0.0, 0.0, 1, chain_of(robot).links(np.asarray(q))
        )

    def sent(self, robot, q, dq=None, stamp=NOW, dt=0.01):
        q = np.asarray(q, float)
        return SentCommand(stamp, forward(robot, q), q, np.zeros(len(q)) if dq is None else dq, dt)

    def test_standing_is_allowed(self):
        robot, _, gate = setup()
        q = np.array(robot.q_home_rad)
        assert (
            gate.check_command(NOW + S // 100, self.command(robot, q), self.sent(robot, q)) is None
        )
        assert gate.check_command(NOW, self.command(robot, q), None) is None

    def test_speeds_and_accelerations_beyond_hard_are_refused_by_name(self):
        robot, _, gate = setup()
        q = np.array(robot.q_home_rad)
        step = np.zeros(7)
        step[4] = 5.5 * 0.01
        why = gate.check_command(NOW + S // 100, self.command(robot, q + step), self.sent(robot, q))
        assert why.reason is Reason.COMMAND_LIMIT
        step = np.zeros(7)
        step[0] = 0.5 * 0.01
        why = gate.check_command(NOW + S // 100, self.command(robot, q + step), self.sent(robot, q))
        assert 'fr3_joint1 acceleration would be 50' in why.text
        going = self.sent(robot, q, dq=step / 0.01)
        assert gate.check_command(NOW + S // 100, self.command(robot, q + step), going) is None

    def test_end_effector_speed(self):
        robot, _, gate = setup()
        q = np.array(robot.q_home_rad)
        step = np.zeros(7)
        step[0] = 2.6 * 0.01  # below the joint's limit, but the flange is 0.36 m away
        step[3] = 2.6 * 0.01
        going = self.sent(robot, q, dq=step / 0.01)
        why = gate.check_command(NOW + S // 100, self.command(robot, q + step), going)
        assert why is not None
        assert 'end-effector' in why.text

    def test_after_a_gap_a_step_counts_as_one(self):
        """A target that has stood for half a second may not jump by half a second's worth."""
        robot, _, gate = setup()
        q = np.array(robot.q_home_rad)
        step = np.zeros(7)
        step[0] = 0.2
        why = gate.check_command(NOW + S // 2, self.command(robot, q + step), self.sent(robot, q))
        assert why.reason is Reason.COMMAND_LIMIT

    def test_not_reached_is_not_sent(self):
        robot, _, gate = setup()
        q = np.array(robot.q_home_rad)
        missed = IkResult(q, False, 0.012, 0.02, 8, chain_of(robot).links(q))
        why = gate.check_command(NOW, missed, None)
        assert why.reason is Reason.COMMAND_UNREACHABLE
        assert '12.00 mm' in why.text

    def test_outside_joint_limits_box_and_not_finite(self):
        robot, _, gate = setup('wx250s')
        q = np.array(robot.q_home_rad)
        q[1] = robot.joints[1].upper_rad + 0.01
        assert gate.check_pose(self.command(robot, q)).reason is Reason.COMMAND_LIMIT
        raised = np.zeros(6)
        assert 'outside the workspace' in gate.check_pose(self.command(robot, raised)).text
        assert 'not finite' in gate.check_pose(self.command(robot, np.full(6, np.nan))).text


def test_own_limits_can_be_used_without_a_file():
    robot = get_robot('fr3')
    gate = SafetyGate(robot, SafetyLimits.of(robot))
    assert gate.check_chunk(good_chunk(robot), context(robot)) is None
    assert gate.inside_joint_limits(np.array(robot.q_home_rad), 0.1)
    assert not gate.inside_joint_limits(np.zeros(7))
