"""Lockstep replay: the live buffer on bag time, the same bytes every time, faults that show."""

import subprocess
import sys

import numpy as np
import pytest
import yaml
from rosbags.highlevel import AnyReader

from spear_ros.core import geometry
from spear_ros.core.config import from_mapping
from spear_ros.core.errors import UserError
from spear_ros.core.reasons import Reason
from spear_ros.core.types import EXTERNAL
from spear_ros.data.bags import BagReader
from spear_ros.data.topic_map import TopicMap, load_topic_map
from spear_ros.evaluation.faults import Fault, FaultPlan
from spear_ros.evaluation.replay import Replay, ReplaySettings, check_policy, read_motion
from spear_ros.evaluation.replay_report import build_report, chunk_lines, deviation
from spear_ros.policies.registry import create_policy
from spear_ros.robots.kinematics import forward
from spear_ros.robots.registry import get_robot

ROBOT = get_robot('wx250s')
HALF = 0.5**0.5


class NoisyPolicy:
    """Hold with noise seeded as the models seed theirs, to show that replay repeats itself."""

    def __init__(self, seed):
        self.inner = create_policy('hold', robot=ROBOT)
        self.seed, self.resets, self.seen = seed, 0, []

    def describe(self):
        return self.inner.describe()

    def warm_up(self):
        pass

    def reset(self):
        self.resets += 1

    def close(self):
        pass

    def infer(self, observation, prefix=None):
        self.seen.append(observation)
        chunk = self.inner.infer(observation)
        rng = np.random.default_rng((self.seed, observation.t_obs_ns))
        chunk.p_base_ee[:] += rng.normal(0, 0.01, chunk.p_base_ee.shape)
        return chunk


class BlindPolicy(NoisyPolicy):
    def infer(self, observation, prefix=None):
        raise UserError('object poses are missing; use the simulator.')


def reader_of(bags, folder, **changes):
    mapping = from_mapping(TopicMap, yaml.safe_load(bags.MAP_YAML) | changes, 'MAP')
    return BagReader(folder, mapping, ROBOT, reference_rotation=(HALF, 0.0, HALF, 0.0))


def replay(bags, folder, policy=None, **settings):
    with reader_of(bags, folder) as reader:
        return Replay(reader, policy or NoisyPolicy(3), ReplaySettings(**settings)).run()


def faulty(bags, folder, *faults):
    return replay(bags, folder, faults=FaultPlan(faults=faults))


def reasons(result):
    return {s.problem.reason for s in result.steps if s.problem is not None}


@pytest.fixture(scope='module')
def folder(bags, tmp_path_factory):
    return bags.write_widowx(tmp_path_factory.mktemp('bag') / 'lab', seconds=3.0)


# -- lockstep -----------------------------------------------------------------------------------


def test_the_grid_is_5_hz_from_the_first_image_and_nothing_comes_from_the_future(bags, folder):
    policy = NoisyPolicy(0)
    result = replay(bags, folder, policy)
    times = [s.now_ns for s in result.steps]
    assert times == [bags.START_NS + i * bags.STEP_NS for i in range(15)]
    assert len(result.chunks) == 15
    for step, observation in zip(result.steps, policy.seen, strict=True):
        image = observation.images[EXTERNAL]
        assert image.received_ns <= step.now_ns
        assert step.now_ns - image.received_ns < 1e9 / 15
        assert observation.t_obs_ns == image.stamp_ns
        np.testing.assert_allclose(
            observation.state.q_rad,
            bags.angles((observation.t_obs_ns - bags.START_NS) / 1e9),
            atol=1e-5,
        )


def test_two_runs_with_a_seed_give_the_same_bytes_and_another_seed_does_not(bags, folder):
    lines = [chunk_lines(replay(bags, folder, NoisyPolicy(s)).chunks) for s in (1, 1, 2)]
    assert lines[0] == lines[1]
    assert lines[0] != lines[2]


def test_a_dropped_input_does_not_change_the_chunks_after_it(bags, folder):
    whole = {c.t_obs_ns: c for c in replay(bags, folder).chunks}
    hurt = faulty(bags, folder, Fault(stream='external', kind='drop', from_s=0.5, to_s=1.1))
    assert Reason.CAMERA_STALE in reasons(hurt)
    later = [c for c in hurt.chunks if c.t_obs_ns > bags.START_NS + 1_200_000_000]
    assert len(later) >= 8
    for chunk in later:
        np.testing.assert_array_equal(chunk.p_base_ee, whole[chunk.t_obs_ns].p_base_ee)


def test_a_fixed_latency_skips_the_grid_points_that_it_covers(bags, folder):
    result = replay(bags, folder, latency_s=0.3)
    assert len(result.chunks) == 8
    assert result.skipped_busy == 7
    with reader_of(bags, folder) as reader:
        motion = read_motion(reader)
    report = build_report(result, motion.reached, NoisyPolicy(0).describe(), 0.3, {})
    assert 300 < report['latency']['chunk_age_on_arrival_ms']['p50'] < 400
    assert report['latency']['knots_consumed_by_latency'] == 1


def test_a_limit_ends_the_replay(bags, folder):
    assert len(replay(bags, folder, limit=4).steps) == 4


def test_the_instruction_may_come_from_a_topic_and_resets_the_policy(bags, tmp_path):
    path = tmp_path / 'b'
    with bags.Ros2Writer(path) as bag:
        for i in range(10):
            t = bags.START_NS + i * bags.STEP_NS
            if i in (2, 6):
                bag.write('/task', bags.text(bag.types, f'task {i}'), t)
            image = bags.compressed_image(bag.types, t, bags.picture(i))
            bag.write(bags.EXTERNAL_TOPIC, image, t)
            names = [*bags.JOINT_NAMES, 'left_finger']
            state = bags.joint_state(bag.types, t, names, [*bags.angles(0), 0.02])
            bag.write(bags.JOINTS_TOPIC, state, t)
    policy = NoisyPolicy(0)
    with reader_of(bags, path, instruction='/task') as reader:
        result = Replay(reader, policy, ReplaySettings()).run()
    assert [s.problem.reason for s in result.steps[:2]] == [Reason.POLICY_NOT_READY] * 2
    assert [o.instruction for o in policy.seen] == ['task 2'] * 4 + ['task 6'] * 4
    assert policy.resets == 2


def test_a_policy_that_lacks_something_is_a_problem_and_not_a_crash(bags, folder):
    result = replay(bags, folder, BlindPolicy(0))
    assert not result.chunks
    assert result.first_problem().text == 'object poses are missing; use the simulator.'


def test_a_policy_of_another_robot_is_refused(bags, folder):
    with (
        reader_of(bags, folder) as reader,
        pytest.raises(UserError, match='embodiment is "franka_droid"'),
    ):
        check_policy(create_policy('hold', robot=get_robot('fr3')), reader)


def test_spear1_on_real_images_gives_the_same_bytes_twice(real_recordings):
    pytest.importorskip('torch', reason='policy spear1 needs torch')
    options = {'untrained': 'spear1_debug'}
    lines = []
    for seed in (4, 4, 5):
        policy = create_policy('spear1', robot=ROBOT, seed=seed, options=options)
        rotation = policy.describe().spec.reference_rotation
        path = real_recordings / 'bridge_rosbag2/ep01_put_carrot'
        with BagReader(
            path, load_topic_map('bridge'), ROBOT, reference_rotation=rotation
        ) as reader:
            check_policy(policy, reader)
            result = Replay(reader, policy, ReplaySettings()).run()
        assert len(result.chunks) == 10
        lines.append(chunk_lines(result.chunks))
    assert lines[0] == lines[1]
    assert lines[0] != lines[2]


# -- faults -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('fault', 'reason'),
    [
        ({'stream': 'external', 'kind': 'freeze', 'from_s': 0.5}, Reason.CAMERA_FROZEN),
        ({'stream': 'external', 'kind': 'drop', 'from_s': 0.5}, Reason.CAMERA_STALE),
        (
            {'stream': 'external', 'kind': 'delay', 'from_s': 0.5, 'delay_s': 0.2},
            Reason.CAMERA_STALE,
        ),
        ({'stream': 'external', 'kind': 'delay', 'from_s': 0.5, 'delay_s': 1.2}, Reason.CLOCK_SKEW),
        ({'stream': 'arm', 'kind': 'drop', 'from_s': 0.5}, Reason.JOINTS_STALE),
        ({'stream': 'arm', 'kind': 'delay', 'from_s': 0.5, 'delay_s': 0.1}, Reason.JOINTS_STALE),
        ({'stream': 'arm', 'kind': 'nan', 'from_s': 0.5}, Reason.JOINTS_NOT_FINITE),
        ({'stream': 'gripper', 'kind': 'drop', 'from_s': 0.5}, Reason.GRIPPER_STALE),
        ({'stream': 'gripper', 'kind': 'nan', 'from_s': 0.5}, Reason.GRIPPER_STALE),
    ],
)
def test_a_lasting_fault_ends_the_chunks_with_its_reason(bags, folder, fault, reason):
    result = faulty(bags, folder, Fault(**fault))
    assert result.steps[0].chunk is not None
    assert result.steps[-1].problem is not None
    assert reason in reasons(result)
    assert sum(result.fault_hits.values()) > 0


def test_reordered_messages_are_put_right_and_counted(bags, folder):
    result = faulty(
        bags,
        folder,
        Fault(stream='external', kind='reorder'),
        Fault(stream='arm', kind='reorder'),
    )
    assert len(result.chunks) == len(result.steps)
    assert result.late['external'] > 10
    assert result.late['arm'] > 100


# -- the recorded motion ------------------------------------------------------------------------


def recorded(reader, **options):
    motion = read_motion(reader)
    policy = create_policy('recorded', robot=ROBOT, options={'motion': motion} | options)
    return Replay(reader, policy, ReplaySettings()).run(), motion


def test_recorded_gives_back_the_joint_motion_of_the_bag(bags, folder):
    with reader_of(bags, folder) as reader:
        result, motion = recorded(reader)
    assert len(result.chunks) == 15
    d = deviation(result.chunks, motion.reached)
    assert len(d.times_ns) > 50
    assert np.abs(d.position_m).max() < 1e-9
    assert np.abs(d.rotation_rad).max() < 1e-9
    # Against the formula that wrote the recording; linear interpolation at 100 Hz costs a little.
    chunk = result.chunks[4]
    for i in range(5):
        time_s = (chunk.t_obs_ns - bags.START_NS) / 1e9 + (i + 1) * 0.2
        T = forward(ROBOT, bags.angles(time_s))
        np.testing.assert_allclose(chunk.p_base_ee[i], T[:3, 3], atol=1e-5)


def test_recorded_gives_back_the_reached_motion_of_real_bridge_to_1e_6(real_recordings):
    for episode in ('ep00_flip_pot', 'ep01_put_carrot'):
        path = real_recordings / 'bridge_rosbag2' / episode
        rotation = create_policy('hold', robot=ROBOT).describe().spec.reference_rotation
        with BagReader(
            path, load_topic_map('bridge'), ROBOT, reference_rotation=rotation
        ) as reader:
            result, _ = recorded(reader)
        raw = raw_bridge_poses(path)
        D = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
        assert len(result.chunks) == 10
        compared = 0
        for k, chunk in enumerate(result.chunks):
            for i in range(min(5, 9 - k)):
                p, R_state = raw[k + 1 + i]
                R = geometry.quat_to_matrix(chunk.q_base_ee[i]) @ D.T
                assert np.abs(chunk.p_base_ee[i] - p).max() < 1e-6
                assert np.abs(R - R_state).max() < 1e-6
                compared += 1
        assert compared == 35


def raw_bridge_poses(path):
    """Positions and state rotations as recorded, read without any code of ours."""
    poses = []
    with AnyReader([path]) as bag:
        chosen = [c for c in bag.connections if c.topic == '/ee_pose']
        for connection, _, data in bag.messages(connections=chosen):
            body = bag.deserialize(data, connection.msgtype).pose
            q = body.orientation
            p = np.array([body.position.x, body.position.y, body.position.z])
            poses.append((p, geometry.quat_to_matrix([q.w, q.x, q.y, q.z])))
    return poses


def test_a_deviation_is_seen_where_there_is_one(bags, folder):
    with reader_of(bags, folder) as reader:
        result, motion = recorded(reader)
    for chunk in result.chunks:
        chunk.p_base_ee[:] += [0.003, 0.0, 0.0]
        turn = geometry.quat_exp([0.0, 0.02, 0.0])
        chunk.q_base_ee[:] = geometry.quat_multiply(chunk.q_base_ee, turn)
    d = deviation(result.chunks, motion.reached)
    np.testing.assert_allclose(
        d.position_m, np.tile([0.003, 0, 0], (len(d.times_ns), 1)), atol=1e-9
    )
    np.testing.assert_allclose(d.rotation_rad[:, 1], 0.02, atol=1e-9)


def test_replay_loads_neither_ros_nor_torch(real_recordings, tmp_path):
    path = real_recordings / 'bridge_rosbag2/ep00_flip_pot'
    code = (
        'import sys; from spear_ros.cli.main import main; '
        f'status = main(["replay", {str(path)!r}, "--policy", "recorded", "--map", "bridge", '
        '"--out", sys.argv[1]]); '
        'bad = {"rclpy", "torch", "mujoco"} & set(sys.modules); '
        'sys.exit(str(bad) if bad else status)'
    )
    run = subprocess.run(
        [sys.executable, '-c', code, str(tmp_path)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert '10 chunks at 10 grid points' in run.stdout
