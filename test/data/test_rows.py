"""Every published data set on synthetic records of its published schema.

Each ``publish_*`` writes one known motion the way that set's publishers wrote theirs (by scipy and
by hand, not by the code under test); the row must bring back the motion.
"""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from spear_ros.core.errors import UserError
from spear_ros.core.geometry import quat_angle, quat_to_matrix
from spear_ros.data.resampling import ResampleSettings, resample
from spear_ros.data.rlds import read_episodes, read_schema
from spear_ros.data.rows import action_spec, find_row, load_rows, split_column
from spear_ros.processing.embodiments import BRIDGE_REFERENCE
from spear_ros.robots.kinematics import forward
from spear_ros.robots.registry import get_robot

N = 16
ROWS = load_rows()


class Motion:
    """What truly happened: poses, openings (1 = open), the text."""

    def __init__(self):
        t = np.linspace(0, 1, N + 1)
        self.p = np.column_stack([0.3 + 0.1 * t, -0.1 + 0.2 * t**2, 0.2 - 0.1 * np.sin(3 * t)])
        start = Rotation.from_euler('xyz', [3.0, 0.2, -0.4])
        self.R = Rotation.from_rotvec(np.column_stack([0.3 * t, -0.2 * t, 0.5 * t**2])) * start
        self.joints = np.column_stack([0.3 * np.sin(t + i) for i in range(7)])
        self.joints[:, 3] -= 1.5
        self.command = np.ones(N)
        self.command[5:11] = 0
        # The fingers follow one step behind and stop half-way on the object.
        self.state = np.ones(N)
        self.state[6:12] = 0.5
        self.text = 'put carrot on plate'

    @property
    def next_p(self):
        return np.diff(self.p, axis=0)

    @property
    def next_R(self):
        return self.R[1:] * self.R[:-1].inv()

    def columns(self, *parts):
        return np.concatenate([np.reshape(part, (N, -1)) for part in parts], axis=1)

    @property
    def pulses(self):
        """+1 where it begins to close, -1 where it begins to open."""
        return -np.diff(np.concatenate([[1.0], self.command]))


@pytest.fixture
def motion():
    return Motion()


def euler(R):
    return R.as_euler('xyz')


def matrix_columns(m):
    T = np.tile(np.eye(4), (N, 1, 1))
    T[:, :3, :3], T[:, :3, 3] = m.R[:N].as_matrix(), m.p[:N]
    return T.transpose(0, 2, 1).reshape(N, 16)


def junk(width):
    return np.full((N, width), 7.7)


def publish_droid(m, c):
    pose = m.columns(m.p[:N], euler(m.R[:N]))
    return {
        'observation/cartesian_position': c(pose, dtype='float64'),
        'observation/gripper_position': c(1 - m.state[:, None]),
        'action_dict/cartesian_position': c(m.columns(m.p[1:], euler(m.R[1:]))),
        'action_dict/cartesian_velocity': c(junk(6)),
        'action_dict/gripper_position': c(1 - m.command[:, None]),
        'language_instruction': c([''] * N),
        'language_instruction_2': c([m.text] * N),
        'language_instruction_3': c(['something else'] * N),
    }


def publish_bridge_orig(m, c):
    D = np.array([[0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    relative = Rotation.from_matrix(m.R.as_matrix() @ D.T)
    turn = relative[1:] * relative[:-1].inv()
    action = m.columns(m.next_p, euler(turn), m.command)
    action[0] = 0.0
    action[5, 6] = 0.56
    return {
        'observation/state': c(m.columns(m.p[:N], euler(relative[:N]), m.state)),
        'action': c(action),
        'language_instruction': c([m.text] * N),
        '/episode_metadata/has_image_0': c(np.array([0])),
    }


def publish_fractal20220817_data(m, c):
    return {
        'observation/base_pose_tool_reached': c(m.columns(m.p[:N], m.R[:N].as_quat())),
        'observation/gripper_closed': c(1 - m.state[:, None]),
        'action/gripper_closedness_action': c(m.pulses[:, None]),
        'observation/natural_language_instruction': c([m.text] * N),
    }


def publish_kuka(m, c):
    return {
        'observation/clip_function_input/base_pose_tool_reached': c(
            m.columns(m.p[:N], m.R[:N].as_quat()), packed=True
        ),
        'observation/gripper_closed': c(1 - m.state[:, None], packed=True),
        'action/gripper_closedness_action': c(m.pulses[:, None]),
        'observation/natural_language_instruction': c([m.text] * N),
    }


def publish_bc_z(m, c):
    added = np.diff(m.R.as_rotvec(), axis=0)
    return {
        'observation/present/xyz': c(m.p[:N]),
        'observation/present/axis_angle': c(m.R[:N].as_rotvec()),
        'observation/present/sensed_close': c(0.2 + 0.8 * (1 - m.state[:, None])),
        'action/future/xyz_residual': c(m.columns(m.next_p, junk(27))),
        'action/future/axis_angle_residual': c(m.columns(added, junk(27))),
        'action/future/target_close': c(
            m.columns(1 - m.command, np.zeros((N, 9))).astype(np.int64), dtype='int64'
        ),
        'observation/natural_language_instruction': c([m.text] * N),
    }


def publish_fmb_dataset(m, c):
    return {
        'observation/eef_pose': c(m.columns(m.p[:N], m.R[:N].as_quat())),
        'observation/state_gripper_pose': c(1 - m.state),
        'action': c(m.columns(junk(6), m.command)),
        'language_instruction': c([m.text] * N),
    }


def publish_taco_play(m, c):
    width = 0.0807 * m.state
    return {
        'observation/robot_obs': c(
            m.columns(m.p[:N], euler(m.R[:N]), width, junk(7), 2 * m.command - 1)
        ),
        'action/rel_actions_world': c(m.columns(junk(6), 2 * m.command - 1)),
        'observation/natural_language_instruction': c([m.text] * N),
    }


def publish_stanford_hydra(m, c):
    pose = m.columns(m.p[:N], m.R[:N].as_quat(), euler(m.R[:N]))
    return {
        'observation/state': c(m.columns(pose, junk(14), 0.081 * m.state, junk(2))),
        'action': c(m.columns(m.next_p, euler(m.next_R), 1 - m.command)),
        'language_instruction': c([m.text] * N),
    }


def publish_furniture_bench(m, c):
    pose = m.columns(m.p[:N], m.R[:N].as_quat())
    return {
        'observation/state': c(m.columns(pose, junk(27), 0.08 * m.state)),
        'action': c(m.columns(m.next_p, m.next_R.as_quat(), 1 - 2 * m.command)),
        'language_instruction': c([m.text] * N),
    }


def joints_width_matrix(m, c, width):
    return {
        'observation/state': c(m.columns(junk(7), width * m.state, matrix_columns(m))),
        'action': c(m.columns(junk(6), 1 - 2 * m.command)),
        'language_instruction': c([m.text] * N),
    }


def publish_utaustin_mutex(m, c):
    return joints_width_matrix(m, c, 0.0757)


def publish_austin_buds(m, c):
    return joints_width_matrix(m, c, 0.08)


def publish_nyu_franka_play(m, c):
    return {
        'observation/state': c(m.columns(junk(7), m.p[:N], euler(m.R[:N]))),
        'action': c(m.columns(junk(13), 2 * m.command - 1, np.zeros(N))),
        'language_instruction': c([m.text] * N),
    }


def publish_berkeley_autolab_ur5(m, c):
    state = m.columns(junk(6), m.p[:N], m.R[:N].as_quat(), 1 - m.state, np.zeros(N))
    return {
        'observation/robot_state': c(state),
        'action/gripper_closedness_action': c(m.pulses),
        'observation/natural_language_instruction': c([m.text] * N),
    }


def publish_viola(m, c):
    return {
        'observation/ee_states': c(matrix_columns(m)),
        'observation/joint_states': c(junk(7)),
        'observation/gripper_states': c(0.0775 * m.state[:, None]),
        'action/gripper_closedness_action': c(1 - 2 * m.command),
        'observation/natural_language_instruction': c([m.text] * N),
    }


def publish_austin_sailor(m, c):
    return {
        'observation/state': c(m.columns(m.p[:N], m.R[:N].as_quat(), junk(1))),
        'observation/state_gripper': c(0.077 * m.state[:, None]),
        'action': c(m.columns(junk(6), 1 - 2 * m.command)),
        'language_instruction': c([m.text] * N),
    }


def publish_austin_sirius(m, c):
    return {
        'observation/state': c(junk(8)),
        'observation/state_ee': c(matrix_columns(m)),
        'observation/state_gripper': c(0.077 * m.state[:, None]),
        'action': c(m.columns(junk(6), 1 - 2 * m.command)),
        'language_instruction': c([m.text] * N),
    }


def publish_toto(m, c):
    return {
        'observation/state': c(m.joints[:N]),
        'action/open_gripper': c(m.command.astype(np.int64), dtype='bool'),
        'observation/natural_language_instruction': c([m.text] * N),
    }


def publish_iamlab_cmu_pickup_insert(m, c):
    return {
        'observation/state': c(m.columns(m.joints[:N], junk(13))),
        'action': c(m.columns(junk(7), m.command)),
        'language_instruction': c([m.text] * N),
    }


def publish_berkeley_fanuc(m, c):
    return {
        'observation/end_effector_state': c(m.columns(m.p[:N], m.R[:N].as_quat())),
        'observation/state': c(m.columns(junk(6), 1 - m.state, junk(6))),
        'action': c(m.columns(m.next_p, euler(m.next_R))),
        'language_instruction': c([m.text] * N),
    }


def publish_jaco_play(m, c):
    return {
        'observation/end_effector_cartesian_pos': c(m.columns(m.p[:N], m.R[:N].as_quat())),
        'action/world_vector': c(m.next_p),
        'action/gripper_closedness_action': c(m.pulses[:, None]),
        'observation/natural_language_instruction': c([m.text] * N),
    }


def publish_berkeley_cable_routing(m, c):
    return {
        'observation/robot_state': c(m.columns(m.p[:N], m.R[:N].as_quat())),
        'observation/natural_language_instruction': c(['Cable routing'] * N),
    }


def publish_dlr_edan_shared_control(m, c):
    return {
        'observation/state': c(m.columns(m.p[:N], m.R[:N].as_euler('zxy'), 1 - m.state)),
        'action': c(m.columns(junk(6), 1 - m.command)),
        'language_instruction': c([m.text] * N),
    }


def publish_ucsd_kitchen(m, c):
    return {
        'observation/state': c(junk(21)),
        'action': c(m.columns(m.next_p, euler(m.next_R), 1 - m.command, np.zeros(N))),
        'language_instruction': c([m.text] * N),
    }


def publish_cmu_stretch(m, c):
    return {
        'observation/state': c(m.columns(m.p[:N], m.state)),
        'action': c(m.columns(junk(6), m.command, np.zeros(N))),
        'language_instruction': c([m.text] * N),
    }


@pytest.fixture
def read(tmp_path, rlds, column, jpeg, motion):
    """Publish the motion as a data set and read it back through its row."""

    def read(name):
        features = globals()[f'publish_{name}'](motion, column)
        row = ROWS[name]
        for camera in (*row.external, *([row.wrist] if row.wrist else [])):
            features[camera] = column([jpeg(hash(camera) % 1000 + i) for i in range(N)])
        folder = rlds.write_dataset(tmp_path / name, [features])
        schema = read_schema(folder)
        (episode,) = read_episodes(next(folder.glob('*.tfrecord*')), row, schema)
        return row, episode

    return read


def expected_rotation(name, motion):
    if ROWS[name].pose.encoding == 'joints':
        panda = get_robot('panda')
        return np.stack([forward(panda, q)[:3, :3] for q in motion.joints[:N].astype(np.float32)])
    if ROWS[name].pose.encoding == 'xyz':
        return np.tile(np.eye(3), (N, 1, 1))
    return motion.R[:N].as_matrix()


@pytest.mark.parametrize('name', sorted(ROWS))
def test_the_recorded_motion_comes_back(name, read, motion):
    row, episode = read(name)
    first = row.drop_first
    assert len(episode.reached.stamps_ns) == N - first
    R = quat_to_matrix(episode.reached.q)
    if row.pose.encoding.startswith('integrated'):
        assert not episode.has_proprio
        steps = np.diff(episode.reached.p, axis=0)
        np.testing.assert_allclose(steps, motion.next_p[: N - 1], atol=1e-6)
        turns = R[1:] @ R[:-1].transpose(0, 2, 1)
        np.testing.assert_allclose(turns, motion.next_R[: N - 1].as_matrix(), atol=1e-6)
        return
    assert episode.has_proprio
    if row.pose.encoding != 'joints':
        np.testing.assert_allclose(episode.reached.p, motion.p[first:N], atol=1e-6)
    np.testing.assert_allclose(R, expected_rotation(name, motion)[first:], atol=2e-6)


@pytest.mark.parametrize('name', sorted(ROWS))
def test_the_gripper_is_one_when_open(name, read, motion):
    row, episode = read(name)
    first = row.drop_first
    if row.gripper_constant is not None:
        assert set(episode.gripper.values) == {row.gripper_constant}
        assert episode.gripper_command is None
        return
    assert set(episode.gripper_command.values) <= {0.0, 1.0}
    if row.gripper_command is not None:
        np.testing.assert_array_equal(episode.gripper_command.values, motion.command[first:])
    else:  # told from the fingers, which follow one step behind
        np.testing.assert_array_equal(episode.gripper_command.values, motion.command[first:])
    if row.gripper is not None:
        np.testing.assert_allclose(episode.gripper.values, motion.state[first:], atol=1e-6)


@pytest.mark.parametrize('name', sorted(n for n, r in ROWS.items() if r.command is not None))
def test_commanded_targets_are_stamped_with_the_time_they_are_for(name, read, motion):
    row, episode = read(name)
    first = row.drop_first
    target = episode.commanded
    np.testing.assert_array_equal(target.stamps_ns[:-1], episode.reached.stamps_ns[1:])
    # Truth here is a robot that reaches what it is told, so command i is the pose at i + 1.
    np.testing.assert_allclose(target.p, motion.p[first + 1 :], atol=2e-6)
    if row.command.encoding != 'delta_xyz':
        R = quat_to_matrix(target.q)
        np.testing.assert_allclose(R, motion.R[first + 1 :].as_matrix(), atol=1e-5)


@pytest.mark.parametrize('name', sorted(ROWS))
def test_text_and_cameras_are_found(name, read, motion):
    row, episode = read(name)
    assert episode.instruction == (row.fixed_instruction or motion.text)
    assert ('wrist' in episode.cameras) == bool(row.wrist)
    assert len(episode.externals) == len(row.external)
    for frames in episode.cameras.values():
        assert frames.rgb(N - 1).shape == (48, 64, 3)


def test_sets_without_commands_say_so_when_commanded_labels_are_asked_for(read):
    _, episode = read('fractal20220817_data')
    with pytest.raises(UserError, match='use label = "reached"'):
        resample(episode, ResampleSettings(label='commanded'))


def test_bridge_orientations_are_those_of_the_gripper_link(read, motion):
    row, episode = read('bridge_orig')
    assert action_spec(row).reference_rotation == BRIDGE_REFERENCE
    found = Rotation.from_quat(episode.reached.q[:, [1, 2, 3, 0]])
    assert (found * motion.R[1:N].inv()).magnitude().max() < 1e-5


def test_droid_is_the_robots_embodiment_and_others_get_their_own_spec():
    assert action_spec(ROWS['droid']).ee_frame == 'link8'
    spec = action_spec(ROWS['viola'])
    assert spec.embodiment == 'franka_viola'
    assert spec.reference_rotation == (1.0, 0.0, 0.0, 0.0)
    assert spec.proprio_pole == (0.0, 1.0, 0.0, 0.0)


def test_rows_are_the_parts_of_the_mixture_and_name_what_was_tried():
    assert len(ROWS) == 24
    tried = {name for name, row in ROWS.items() if row.tried_on_real_data != 'no'}
    assert tried == {'bridge_orig'}
    assert all(row.traps for row in ROWS.values())


def test_an_unknown_row_suggests_the_closest():
    with pytest.raises(UserError, match='did you mean "droid"'):
        find_row(ROWS, 'droit')


@pytest.mark.parametrize(
    ('column', 'path', 'picked'),
    [
        ('a/b[1:3]', 'a/b', [1, 2]),
        ('a[2]', 'a', [2]),
        ('a', 'a', [0, 1, 2, 3]),
        ('a[-1]', 'a', [3]),
    ],
)
def test_columns_pick_numbers(column, path, picked):
    name, pick = split_column(column)
    assert name == path
    np.testing.assert_array_equal(pick(np.arange(4.0)[None]), [np.array(picked, float)])


def test_a_row_with_a_missing_column_names_row_episode_and_column(tmp_path, rlds, column, motion):
    features = publish_viola(motion, column)
    del features['observation/ee_states']
    folder = rlds.write_dataset(tmp_path / 'v', [features])
    with pytest.raises(
        UserError, match=r'viola, episode viola-000000.*"steps/observation/ee_states"'
    ):
        list(read_episodes(next(folder.glob('*.tfrecord*')), ROWS['viola'], read_schema(folder)))


def test_rotations_of_the_motion_are_not_trivial(motion):
    q = motion.R.as_quat()[:, [3, 0, 1, 2]]
    assert quat_angle(q[0], q[-1]) > 0.4
