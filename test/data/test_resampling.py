import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rosbags.highlevel import AnyReader

from spear_ros.core.errors import UserError
from spear_ros.core.geometry import quat_angle, quat_exp
from spear_ros.data.episodes import EncodedFrames, Episode, PoseTrack, ValueTrack, check_episode
from spear_ros.data.resampling import (
    ResampleSettings,
    instants,
    interpolate_poses,
    last_value,
    latest_index,
    resample,
)

STEP = 200_000_000


@st.composite
def recordings_at_any_rate(draw):
    """Pose, gripper and picture stamps of different, jittering rates and offsets."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def stamps(low_hz, high_hz, duration_s):
        rate = rng.uniform(low_hz, high_hz)
        gaps = rng.uniform(0.5, 1.5, int(duration_s * rate) + 2) / rate
        return np.cumsum(np.maximum(gaps * 1e9, 1)).astype(np.int64)

    duration = draw(st.floats(1.0, 6.0))
    pose, grip, image = stamps(3, 100, duration), stamps(3, 50, duration), stamps(3, 30, duration)
    n = len(pose)
    return Episode(
        key='k',
        dataset='d',
        embodiment='widowx_bridge',
        rate_hz=10.0,
        instruction='x',
        reached=PoseTrack(
            stamps_ns=pose,
            p=np.cumsum(rng.normal(scale=0.01, size=(n, 3)), axis=0),
            q=quat_exp(np.cumsum(rng.normal(scale=0.02, size=(n, 3)), axis=0)),
        ),
        gripper=ValueTrack(stamps_ns=grip, values=rng.uniform(0, 1, len(grip))),
        gripper_command=ValueTrack(
            stamps_ns=grip, values=rng.integers(0, 2, len(grip)).astype(float)
        ),
        cameras={'external': EncodedFrames(image, [b''] * len(image))},
    )


@given(recordings_at_any_rate(), st.sampled_from(['image', 'grid']))
@settings(max_examples=60, deadline=None)
def test_no_picture_is_from_the_future_and_ages_are_true(episode, anchor):
    steps = resample(episode, ResampleSettings(anchor=anchor))
    stamps = episode.cameras['external'].stamps_ns
    chosen = stamps[steps.image_index['external']]
    assert (chosen <= steps.t_ns).all()
    np.testing.assert_array_equal(steps.t_ns - chosen, steps.image_age_ns['external'])
    later = np.searchsorted(stamps, steps.t_ns, side='right')
    assert (steps.image_index['external'] == later - 1).all()


@given(recordings_at_any_rate())
@settings(max_examples=60, deadline=None)
def test_anchored_on_pictures_no_picture_is_used_twice_and_none_is_old(episode):
    steps = resample(episode, ResampleSettings(anchor='image'))
    assert (steps.image_age_ns['external'] == 0).all()
    assert (np.diff(steps.image_index['external']) > 0).all()


@given(recordings_at_any_rate(), st.data())
@settings(max_examples=40, deadline=None)
def test_what_comes_after_the_last_knot_changes_nothing(episode, data):
    """Cut the recording at a sample's horizon: that sample stays bit by bit the same."""
    full = resample(episode, ResampleSettings())
    if not len(full):
        return
    i = data.draw(st.integers(0, len(full) - 1))
    pose = episode.reached.stamps_ns
    # One pose beyond the last knot is needed to interpolate up to it.
    end = pose[min(np.searchsorted(pose, full.t_ns[i] + 5 * STEP), len(pose) - 1)]
    cut = Episode(
        **{
            **{name: getattr(episode, name) for name in Episode.__dataclass_fields__},
            'reached': PoseTrack(
                stamps_ns=pose[pose <= end],
                p=episode.reached.p[pose <= end],
                q=episode.reached.q[pose <= end],
            ),
            'cameras': {
                'external': EncodedFrames(
                    kept := episode.cameras['external'].stamps_ns[
                        episode.cameras['external'].stamps_ns <= end
                    ],
                    [b''] * len(kept),
                )
            },
        }
    )
    again = resample(cut, ResampleSettings())
    j = int(np.flatnonzero(again.t_ns == full.t_ns[i])[0])
    for name in ('p', 'q', 'gripper', 'target_p', 'target_q', 'target_gripper', 'mask'):
        np.testing.assert_array_equal(getattr(again, name)[j], getattr(full, name)[i])


@given(recordings_at_any_rate())
@settings(max_examples=40, deadline=None)
def test_samples_are_returned_exactly_at_their_own_stamps(episode):
    track = episode.reached
    p, q, valid = interpolate_poses(track, track.stamps_ns, 1)
    assert valid.all()
    np.testing.assert_array_equal(p, track.p)
    np.testing.assert_array_equal(q, track.q)


@given(recordings_at_any_rate())
@settings(max_examples=40, deadline=None)
def test_interpolation_stays_between_its_neighbours(episode):
    track = episode.reached
    t = np.linspace(track.stamps_ns[0], track.stamps_ns[-1], 97).astype(np.int64)
    p, q, valid = interpolate_poses(track, t, 10**12)
    assert valid.all()
    left = np.clip(np.searchsorted(track.stamps_ns, t, 'right') - 1, 0, len(track.p) - 2)
    low = np.minimum(track.p[left], track.p[left + 1]) - 1e-12
    high = np.maximum(track.p[left], track.p[left + 1]) + 1e-12
    assert ((p >= low) & (p <= high)).all()
    span = quat_angle(track.q[left], track.q[left + 1])
    reached = quat_angle(track.q[left], q) + quat_angle(q, track.q[left + 1])
    np.testing.assert_allclose(reached, span, atol=1e-6)


def straight(n=11, rate_hz=5.0, **changes):
    stamps = np.round(np.arange(n) / rate_hz * 1e9).astype(np.int64)
    p = np.zeros((n, 3))
    p[:, 0] = stamps / 1e9
    fields = {
        'key': 'k',
        'dataset': 'd',
        'embodiment': 'widowx_bridge',
        'rate_hz': rate_hz,
        'instruction': 'x',
        'reached': PoseTrack(stamps_ns=stamps, p=p, q=np.tile([1.0, 0, 0, 0], (n, 1))),
        'gripper': ValueTrack(stamps_ns=stamps, values=np.ones(n)),
        'gripper_command': None,
        'cameras': {'external': EncodedFrames(stamps, [b''] * n)},
    }
    return Episode(**{**fields, **changes})


def test_at_five_hertz_the_knots_are_the_recorded_poses():
    episode = straight()
    steps = resample(episode, ResampleSettings())
    assert len(steps) == 10  # the last instant has no next pose
    for i in range(10):
        for k in range(5):
            if i + k + 1 < 11:
                assert steps.mask[i, k]
                assert steps.target_p[i, k, 0] == episode.reached.p[i + k + 1, 0]
            else:
                assert not steps.mask[i, k]
                assert steps.target_p[i, k, 0] == episode.reached.p[10, 0]


@pytest.mark.parametrize('rate_hz', [10, 15, 20, 30, 100])
def test_multiples_of_five_hertz_are_thinned_without_interpolation(rate_hz):
    episode = straight(n=4 * rate_hz + 1, rate_hz=rate_hz)
    steps = resample(episode, ResampleSettings())
    np.testing.assert_allclose(steps.t_ns, STEP * np.arange(20), atol=2)
    np.testing.assert_allclose(steps.p[:, 0], 0.2 * np.arange(20), atol=1e-9)
    np.testing.assert_allclose(steps.target_p[0, :, 0], 0.2 * np.arange(1, 6), atol=1e-9)


def test_a_slow_camera_gives_fewer_samples_with_knots_still_at_five_hertz():
    episode = straight(n=13, rate_hz=3.0)
    steps = resample(episode, ResampleSettings())
    assert len(steps) == 12
    np.testing.assert_allclose(np.diff(steps.t_ns) / 1e9, 1 / 3, atol=1e-8)
    np.testing.assert_allclose(steps.target_p[0, :, 0], 0.2 * np.arange(1, 6), atol=1e-9)


def test_the_gripper_of_a_knot_is_the_last_command_issued_before_it():
    """Action t leads to state t + 1: at the native rate knot k carries command i + k."""
    stamps = STEP * np.arange(11)
    command = ValueTrack(stamps_ns=stamps, values=np.arange(11) / 10)
    steps = resample(straight(gripper_command=command), ResampleSettings())
    np.testing.assert_allclose(steps.target_gripper[2], [0.2, 0.3, 0.4, 0.5, 0.6])


def test_without_commands_the_measured_opening_at_the_knot_is_the_target():
    stamps = STEP * np.arange(11)
    state = ValueTrack(stamps_ns=stamps, values=np.arange(11) / 10)
    steps = resample(straight(gripper=state), ResampleSettings())
    np.testing.assert_allclose(steps.target_gripper[2], [0.3, 0.4, 0.5, 0.6, 0.7])
    np.testing.assert_allclose(steps.gripper[2], 0.2)


def test_nothing_is_interpolated_across_a_hole():
    episode = straight(n=30)
    keep = np.ones(30, bool)
    keep[10:16] = False  # 1.4 s without poses
    track = PoseTrack(
        stamps_ns=episode.reached.stamps_ns[keep],
        p=episode.reached.p[keep],
        q=episode.reached.q[keep],
    )
    steps = resample(straight(n=30, reached=track), ResampleSettings())
    hole = (steps.t_ns > 9 * STEP) & (steps.t_ns < 16 * STEP)
    assert not hole.any()
    before = np.flatnonzero(steps.t_ns == 7 * STEP)[0]
    np.testing.assert_array_equal(steps.mask[before], [True, True, False, False, False])
    np.testing.assert_allclose(steps.target_p[before, 1:, 0], 1.8)
    # A chunk never goes on after a hole, even if later poses exist.
    assert (np.diff(steps.mask.astype(int), axis=1) <= 0).all()


def test_commanded_labels_come_from_the_commanded_track():
    episode = straight()
    stamps = episode.reached.stamps_ns
    commanded = PoseTrack(stamps_ns=stamps + STEP, p=episode.reached.p + 7.0, q=episode.reached.q)
    steps = resample(straight(commanded=commanded), ResampleSettings(label='commanded'))
    np.testing.assert_allclose(steps.target_p[0, :, 0], 7.0 + 0.2 * np.arange(5))
    assert len(steps) == 11  # the last instant has a command
    with pytest.raises(UserError, match='records no'):
        resample(episode, ResampleSettings(label='commanded'))


def test_an_old_wrist_picture_is_left_out_an_old_external_one_ends_the_sample():
    stamps = STEP * np.arange(11)
    wrist = EncodedFrames(stamps[::2] - 50_000_000, [b''] * 6)
    external = EncodedFrames(stamps[:4], [b''] * 4)
    episode = straight(cameras={'external': external, 'wrist': wrist})
    steps = resample(episode, ResampleSettings(anchor='grid'))
    np.testing.assert_array_equal(steps.image_index['wrist'] >= 0, [1, 0, 1, 0, 1, 0, 1])
    assert steps.t_ns[-1] == 3 * STEP + 3 * STEP  # 0.6 s after the last picture, not 0.8


def test_idle_chunks_are_marked():
    episode = straight(
        reached=PoseTrack(
            stamps_ns=STEP * np.arange(11), p=np.zeros((11, 3)), q=np.tile([1.0, 0, 0, 0], (11, 1))
        )
    )
    assert resample(episode, ResampleSettings()).idle.all()
    assert not resample(straight(), ResampleSettings()).idle.any()


def test_an_episode_without_common_time_has_no_samples():
    late = EncodedFrames(10**12 + STEP * np.arange(3), [b''] * 3)
    assert len(resample(straight(cameras={'external': late}), ResampleSettings())) == 0
    assert len(instants(straight(cameras={'external': late}), ResampleSettings())) == 0


def test_settings_outside_of_reason_are_refused():
    with pytest.raises(UserError, match='rate_hz = 0'):
        ResampleSettings(rate_hz=0.0)
    with pytest.raises(UserError, match='horizon = 0'):
        ResampleSettings(horizon=0)


def test_last_value_and_latest_index_at_the_edges():
    track = ValueTrack(stamps_ns=np.array([10, 20]), values=np.array([1.0, 2.0]))
    np.testing.assert_array_equal(last_value(track, np.array([5, 10, 15, 20, 25])), [1, 1, 1, 2, 2])
    strict = last_value(track, np.array([5, 10, 15, 20, 25]), strictly_before=True)
    np.testing.assert_array_equal(strict, [1, 1, 1, 1, 2])
    index, age = latest_index(np.array([10, 20]), np.array([5, 10, 19, 40]), 15)
    np.testing.assert_array_equal(index, [-1, 0, 0, -1])
    np.testing.assert_array_equal(age[1:3], [0, 9])


def test_check_episode_names_what_is_wrong():
    episode = straight()
    check_episode(episode)
    bad = episode.reached.p.copy()
    bad[3, 1] = np.nan
    with pytest.raises(UserError, match='reached poses: sample 3 is not finite'):
        check_episode(
            straight(
                reached=PoseTrack(stamps_ns=episode.reached.stamps_ns, p=bad, q=episode.reached.q)
            )
        )
    stamps = episode.reached.stamps_ns.copy()
    stamps[5] = stamps[4]
    with pytest.raises(UserError, match='time does not advance at sample 5'):
        check_episode(
            straight(reached=PoseTrack(stamps_ns=stamps, p=episode.reached.p, q=episode.reached.q))
        )
    with pytest.raises(UserError, match='not of unit norm'):
        check_episode(
            straight(
                reached=PoseTrack(
                    stamps_ns=episode.reached.stamps_ns,
                    p=episode.reached.p,
                    q=1.1 * episode.reached.q,
                )
            )
        )
    with pytest.raises(UserError, match='no external camera'):
        check_episode(straight(cameras={}))


def test_interpolation_of_real_joint_streams_at_the_real_gaps(recordings):
    """WidowX-200 at 100 Hz with gaps to 64 ms: rebuild the samples that 5 Hz leaves out.

    A 5-joint arm has no kinematics here, so three joint angles stand for a position: what is tested
    is the time handling and the size of the error on real motion.
    """
    stamps, rows = [], []
    with AnyReader([recordings / 'widowx200_rosbag2' / 'wx200_mcap']) as reader:
        connections = [c for c in reader.connections if c.topic == '/wx200/joint_states']
        for connection, _, data in reader.messages(connections):
            message = reader.deserialize(data, connection.msgtype)
            stamp = message.header.stamp
            stamps.append(stamp.sec * 10**9 + stamp.nanosec)
            rows.append(message.position[:3])
    stamps, index = np.unique(np.array(stamps), return_index=True)
    p = np.array(rows)[index]
    track = PoseTrack(stamps_ns=stamps, p=p, q=np.tile([1.0, 0, 0, 0], (len(p), 1)))
    gaps = np.diff(stamps) / 1e9
    assert 0.050 < gaps.max() < 0.070

    grid = np.arange(stamps[0], stamps[-1], STEP)
    on_grid, _, valid = interpolate_poses(track, grid, 700_000_000)
    assert valid.all()
    left = np.minimum(np.searchsorted(stamps, grid, 'right') - 1, len(p) - 2)
    low, high = np.minimum(p[left], p[left + 1]), np.maximum(p[left], p[left + 1])
    assert ((on_grid >= low - 1e-12) & (on_grid <= high + 1e-12)).all()

    held_out = np.arange(len(p)) % 2 == 1
    thin = PoseTrack(stamps_ns=stamps[::2], p=p[::2], q=track.q[::2])
    rebuilt, _, inside = interpolate_poses(thin, stamps[held_out], 700_000_000)
    error = np.abs(rebuilt - p[held_out]).max(axis=1)[inside]
    assert inside.mean() > 0.999
    tick = 2 * np.pi / 4096  # resolution of the arm's encoders
    assert np.median(error) < tick
    assert np.quantile(error, 0.99) < 2 * tick
    assert error.max() < 0.015
