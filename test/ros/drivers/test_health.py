"""What the drivers conclude from what robots say about themselves."""

from types import SimpleNamespace

import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

from spear_ros.core.errors import UserError
from spear_ros.core.reasons import Reason
from spear_ros.robots.registry import get_robot
from spear_ros.ros.config import load_robot_config
from spear_ros.ros.conversions import joint_state_msg
from spear_ros.ros.drivers.base import HEALTHY, RateMeter, messages
from spear_ros.ros.drivers.franka import FrankaDriver, FrankaHealth
from spear_ros.ros.drivers.widowx import WidowxDriver
from spear_ros.ros.drivers.widowx_services import RegisterWatch, SetUp, error_text

SRVS = 'interbotix_xs_msgs.srv'
HARDWARE, CONTROLLER = 'FrankaHardwareInterface', 'cartesian_impedance_controller'


def healthy(**changes):
    activity = {HARDWARE: 'active', CONTROLLER: 'active'}
    values = {
        'hardware_component': HARDWARE,
        'controller': CONTROLLER,
        'max_age_s': 0.3,
        'robot_mode': 2,
        'mode_seen_s': 10.0,
        'activity': activity,
        'command_topic': '/target_pose',
    }
    return FrankaHealth(**{**values, **changes})


def test_moving_robot_with_active_controller_is_healthy():
    assert healthy().judge(10.1).reason == Reason.NONE


@pytest.mark.parametrize(
    ('changes', 'reason', 'words'),
    [
        ({'mode_seen_s': None}, Reason.DRIVER_LOST, 'never'),
        ({'mode_seen_s': 9.0}, Reason.DRIVER_LOST, '1.1 s ago'),
        ({'robot_mode': 4, 'errors': ['joint_reflex']}, Reason.ROBOT_REFLEX, 'joint_reflex'),
        ({'robot_mode': 6}, Reason.ROBOT_REFLEX, 'recover'),
        ({'robot_mode': 5}, Reason.USER_STOP, 'release'),
        ({'robot_mode': 3}, Reason.USER_STOP, 'by hand'),
        ({'robot_mode': 1}, Reason.DRIVER_LOST, 'IDLE'),
        ({'robot_mode': 0}, Reason.DRIVER_LOST, 'OTHER'),
        ({'activity': None}, Reason.DRIVER_LOST, 'activity'),
        ({'activity': {HARDWARE: 'active'}}, Reason.DRIVER_LOST, 'not loaded'),
        (
            {'activity': {HARDWARE: 'unconfigured', CONTROLLER: 'inactive'}},
            Reason.DRIVER_LOST,
            'hardware component',
        ),
        ({'rate_problem': 'too fast'}, Reason.DRIVER_LOST, 'too fast'),
        ({'listeners': 0}, Reason.DRIVER_LOST, 'nobody listens to /target_pose'),
    ],
)
def test_trouble_has_a_reason_and_a_sentence(changes, reason, words):
    report = healthy(**changes).judge(10.1)
    assert report.reason == reason
    assert words in report.text


def test_reflex_is_told_before_its_consequences():
    activity = {HARDWARE: 'unconfigured', CONTROLLER: 'inactive'}
    assert healthy(robot_mode=4, activity=activity).judge(10.1).reason == Reason.ROBOT_REFLEX


def test_cause_of_an_inactive_controller_is_waited_for_a_moment():
    activity = {HARDWARE: 'unconfigured', CONTROLLER: 'inactive'}
    health = healthy(activity=activity, activity_seen_s=10.05)
    assert health.judge(10.1).reason == Reason.NONE
    assert health.judge(10.21).reason == Reason.DRIVER_LOST
    health.mode_seen_s = 10.09
    assert health.judge(10.1).reason == Reason.DRIVER_LOST
    health.robot_mode = 4
    assert health.judge(10.1).reason == Reason.ROBOT_REFLEX


class Motors:
    """Service client of xs_sdk that answers at once; it has another profile until it is told."""

    srv_name = 'motors'

    def __init__(self, values=(), profile=(2000, 300), gripper='pwm'):
        self.calls, self.values, self.asked = 0, values, []
        self.profile = dict(zip(('Profile_Velocity', 'Profile_Acceleration'), profile, strict=True))
        self.gripper, self.told = gripper, 0

    def service_is_ready(self):
        return True

    def call_async(self, request):
        self.calls += 1
        self.asked.append(request.name)
        if hasattr(request, 'profile_velocity'):
            self.told += 1
            self.profile['Profile_Velocity'] = request.profile_velocity
            self.profile['Profile_Acceleration'] = request.profile_acceleration
        mode = self.gripper if request.name == 'gripper' else 'position'
        known = self.profile.get(getattr(request, 'reg', ''))
        values = self.values if known is None else [known] * 6
        answer = SimpleNamespace(mode=mode, profile_type='time', values=values)
        return SimpleNamespace(
            done=lambda: True,
            result=lambda: answer,
            add_done_callback=lambda callback: callback(None),
        )


def modes_of(client):
    pytest.importorskip('interbotix_xs_msgs', reason='the driver subset is not built')
    modes = SetUp(load_robot_config('widowx').widowx)
    modes.connect(SimpleNamespace(create_client=lambda *_: client), messages(SRVS))
    return modes


def settled(modes):
    """What is in the way once the conversation is over."""
    modes.begin(0.0)
    for _ in range(40):
        said = modes.poll(0.0)
        if 'being checked' not in said:
            return said
    raise AssertionError(said)


def test_modes_of_a_driver_that_was_away_are_only_set_again_when_asked():
    client = Motors()
    modes = modes_of(client)
    modes.doubt()
    assert 'activate' in modes.poll(0.0)  # never set: nothing to doubt
    assert settled(modes) == ''
    assert client.told == 1
    modes.doubt()
    calls = client.calls
    client.profile['Profile_Velocity'] = 2000  # a new process
    assert 'recover' in modes.poll(1.0)
    assert client.calls == calls
    assert modes.run() == ''
    assert (modes.poll(3.0), client.told) == ('', 2)


def test_torque_is_left_alone_where_the_mode_is_right():
    config = load_robot_config('widowx').widowx
    client = Motors(profile=(config.profile_velocity_ms, config.profile_acceleration_ms))
    modes = modes_of(client)
    assert settled(modes) == ''
    assert modes.run() == ''
    assert client.told == 0


def test_a_gripper_that_would_read_pwm_as_an_angle_is_refused():
    modes = modes_of(Motors(gripper='position'))
    assert "mode 'position' instead of pwm" in settled(modes)
    assert 'instead of pwm' in modes.run()


def test_error_registers_are_read_at_once_and_then_in_turn_every_second():
    pytest.importorskip('interbotix_xs_msgs', reason='the driver subset is not built')
    client = Motors(values=[0, 0])
    watch = RegisterWatch(load_robot_config('widowx').widowx)
    watch.connect(SimpleNamespace(create_client=lambda *_: client), messages(SRVS))
    assert 'has not been read yet' in watch.poll(0.0).text  # asks for the arm's
    assert 'gripper' in watch.poll(0.05).text
    watch.poll(0.10)  # asks for the gripper's
    assert watch.poll(0.15).reason == Reason.NONE
    client.values = [0, 32]
    reports = [watch.poll(0.2 + 0.05 * i) for i in range(60)]
    assert client.asked[:4] == ['arm', 'gripper', 'arm', 'gripper']
    assert len(client.asked) == 5  # at 0, 0.1, 1.1, 2.1 and 3.1 s
    assert {r.reason for r in reports} == {Reason.NONE, Reason.MOTOR_ERROR}
    assert 'motor 2: overload' in reports[-1].text


def test_a_pause_of_this_process_is_no_silence_of_xs_sdk():
    pytest.importorskip('interbotix_xs_msgs', reason='the driver subset is not built')
    clock = SimpleNamespace(now=10.0)
    stamp = SimpleNamespace(nanoseconds=0)
    node = SimpleNamespace(
        get_clock=lambda: SimpleNamespace(now=lambda: stamp),
        resolve_topic_name=lambda name: name,
        get_subscriptions_info_by_topic=lambda name: [],
    )
    driver = WidowxDriver(node, get_robot('wx250s'), load_robot_config('widowx'), lambda: clock.now)
    driver._sink = SimpleNamespace(on_joints=lambda *_: None, on_gripper=lambda *_: None)
    driver._on_joints(joint_state_msg(0, ['waist'], [0.0]))
    assert 'nobody listens' in driver.poll().text
    clock.now += 3.0
    assert 'nobody listens' in driver.poll().text
    for _ in range(25):
        clock.now += 0.05
        report = driver.poll()
    assert 'is silent' in report.text


def test_efforts_of_the_widowx_reach_the_executor_base_to_wrist_in_any_order_of_the_message():
    pytest.importorskip('interbotix_xs_msgs', reason='the driver subset is not built')
    stamp, heard = SimpleNamespace(nanoseconds=7), []
    node = SimpleNamespace(get_clock=lambda: SimpleNamespace(now=lambda: stamp))
    spec = get_robot('wx250s')
    driver = WidowxDriver(node, spec, load_robot_config('widowx'), lambda: 1.0)
    driver._sink = SimpleNamespace(
        on_joints=lambda *_: None,
        on_gripper=lambda *_: None,
        on_efforts=lambda now, efforts: heard.append((now, efforts.tolist())),
    )
    names = ['left_finger', *reversed(spec.joint_names)]
    driver._on_joints(joint_state_msg(0, names, [0.02] * 7, (), [9.0, 6, 5, 4, 3, 2, 1]))
    driver._on_joints(joint_state_msg(0, names, [0.02] * 7))  # no efforts: nothing to say
    assert heard == [(7, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])]


@pytest.mark.parametrize('effort', [(), [float('nan')] * 7], ids=['none', 'nan'])
def test_a_guard_without_currents_is_a_motor_error(effort, monkeypatch):
    pytest.importorskip('interbotix_xs_msgs', reason='the driver subset is not built')
    clock, stamp = SimpleNamespace(now=10.0), SimpleNamespace(nanoseconds=7)
    node = SimpleNamespace(
        get_clock=lambda: SimpleNamespace(now=lambda: stamp),
        resolve_topic_name=lambda name: name,
    )
    spec = get_robot('wx250s')
    driver = WidowxDriver(node, spec, load_robot_config('widowx'), lambda: clock.now)
    driver._sink = SimpleNamespace(**dict.fromkeys(('on_joints', 'on_gripper', 'on_efforts'),
                                                   lambda *_: None))  # fmt: skip
    driver._modes = SimpleNamespace(poll=lambda now: '', doubt=lambda: None)
    driver._registers = SimpleNamespace(poll=lambda now: HEALTHY)
    monkeypatch.setattr('spear_ros.ros.drivers.widowx.count_listeners', lambda *_: 1)
    names = ['left_finger', *spec.joint_names]

    def after(seconds, currents):
        for _ in range(round(seconds / 0.05)):
            clock.now += 0.05
            driver._on_joints(joint_state_msg(0, names, [0.02] * 7, (), currents))
            report = driver.poll()
        return report

    assert after(0.2, [100.0] * 7).reason == Reason.NONE
    report = after(1.0, effort)
    assert report.reason == Reason.MOTOR_ERROR
    assert 'no motor currents of waist' in report.text
    assert after(0.2, [100.0] * 7).reason == Reason.NONE


def test_error_register_is_spelled_out():
    assert error_text(0) == ''
    assert error_text(0b100100) == 'overheating, overload'
    assert error_text(2) == 'code 2'


def test_rate_meter_measures_full_seconds():
    meter = RateMeter()
    rates = [meter.tick(i * 0.002) for i in range(1200)]
    assert rates[100] == 0.0
    assert rates[-1] == pytest.approx(500, rel=0.01)


def test_missing_message_package_is_one_sentence():
    with pytest.raises(UserError, match='no_such_msgs is missing'):
        messages('no_such_msgs.msg')


def test_stream_of_a_kilohertz_is_refused_with_a_sentence():
    clock = SimpleNamespace(now=0.0)
    destroyed, taken = [], []
    node = SimpleNamespace(
        get_clock=lambda: SimpleNamespace(now=lambda: SimpleNamespace(nanoseconds=0)),
        destroy_subscription=destroyed.append,
    )
    driver = FrankaDriver(
        node, get_robot('fr3'), load_robot_config('franka'), None, lambda: clock.now
    )
    driver._sink = SimpleNamespace(on_joints=lambda *sample: taken.append(sample))
    driver._joints = 'the subscription'
    message = joint_state_msg(0, ['fr3_joint1'], [0.0])
    while not destroyed:
        driver._on_joints(message)
        clock.now += 0.001
        assert clock.now < 3.0
    assert destroyed == ['the subscription']
    assert 'convenience_publish_rate' in driver.health.rate_problem
    assert '1000 Hz' in driver.health.rate_problem
