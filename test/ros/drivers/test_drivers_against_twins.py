"""Each driver drives its simulated twin over DDS: states, targets, gripper, faults, recovery.

The gripper contract is the same for all adapters: a closed target closes and reads near 0, an open
one opens and reads near 1, jammed fingers are reported, a forgotten target is not carried out.
"""

import math
import threading
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')
pytest.importorskip('mujoco', reason='mujoco is not installed')

from std_msgs.msg import String

from spear_ros.core.reasons import Reason
from spear_ros.robots.kinematics import forward
from spear_ros.robots.registry import get_robot
from spear_ros.ros.config import WiringParameters, robot_config
from spear_ros.ros.drivers.registry import make_driver

pytestmark = pytest.mark.ros

SETUPS = {
    'franka_hand': WiringParameters(robot='franka', simulated=True),
    'robotiq_2f85': WiringParameters(robot='franka', simulated=True, gripper='robotiq_2f85'),
    'trajectory': WiringParameters(robot='franka_trajectory', simulated=True),
    'widowx': WiringParameters(robot='widowx', simulated=True),
}


class Sink:
    def __init__(self):
        self.joints, self.opening, self.efforts = None, None, None

    def on_joints(self, stamp_ns, received_ns, names, q):
        self.joints = dict(zip(names, q, strict=True))

    def on_efforts(self, received_ns, efforts):
        self.efforts = efforts

    def on_gripper(self, stamp_ns, received_ns, opening):
        self.opening = opening


class Rig:
    """One driver in this process, its twin in another."""

    def __init__(self, graph, wiring):
        self.graph, self.config = graph, robot_config(wiring)
        self.spec = get_robot(self.config.model, self.config.gripper)
        parameters = {'robot': wiring.robot, 'cameras': False, 'simulated': True}
        if wiring.gripper:
            parameters['gripper'] = wiring.gripper
        graph.start('sim_robot_node', **parameters)
        self.node, self.sink = graph.node('rig'), Sink()
        self.faults = self.node.create_publisher(String, '/sim/fault', 10)
        self.driver = make_driver(self.node, self.spec, self.config)
        self.driver.start(self.sink)
        self.driver.activate()
        self.report = self.driver.poll()
        self.node.create_timer(0.05, self._poll)
        self.until(lambda: self.report.reason == Reason.NONE, 'a healthy driver', 40.0)
        self.until(lambda: self.faults.get_subscription_count() == 1, 'the simulator')

    def _poll(self):
        self.report = self.driver.poll()

    def until(self, condition, what, timeout_s=10.0):
        def text():
            return f'{what}; last report: {self.report}, opening {self.sink.opening}'

        self.graph.wait_until(condition, text, timeout_s)

    def fault(self, line):
        self.faults.publish(String(data=line))

    def q(self):
        return np.array([self.sink.joints[name] for name in self.spec.joint_names])

    def send(self, q, gripper):
        target = SimpleNamespace(
            stamp_ns=self.node.get_clock().now().nanoseconds,
            T_base_ee=forward(self.spec, q),
            q_rad=q,
            gripper=gripper,
        )
        self.driver.send(target)


@pytest.fixture(scope='module', params=SETUPS)
def rig(request, graph):
    rig = Rig(graph, SETUPS[request.param])
    yield rig
    graph.processes.stop(['sim_robot_node'])
    graph.remove(rig.node)


def test_target_is_reached_and_measured(rig):
    q = rig.q() + 0.05
    rig.send(q, None)
    T = forward(rig.spec, q)
    rig.until(
        lambda: np.linalg.norm(forward(rig.spec, rig.q())[:3, 3] - T[:3, 3]) < 0.01, 'the target'
    )


def test_gripper_contract(rig):
    q = rig.q()
    for _ in range(2):  # the first round of the Franka hand is mostly its homing
        rig.send(q, 0.0)
        rig.until(lambda: rig.sink.opening < 0.1, 'closed fingers', 15.0)
        rig.send(q, 1.0)
        rig.until(lambda: rig.sink.opening > 0.9, 'open fingers', 15.0)
    assert rig.report.reason == Reason.NONE
    rig.driver.release()


def test_jammed_gripper_is_reported_and_forgotten_on_release(rig):
    rig.fault('gripper_jam')
    threading.Event().wait(0.3)  # the fault must be there before the target
    rig.send(rig.q(), 0.0)
    rig.until(lambda: rig.report.reason == Reason.GRIPPER_FAULT, 'GRIPPER_FAULT')
    rig.fault('clear')
    rig.driver.release()
    rig.until(lambda: rig.report.reason == Reason.NONE, 'a healthy driver')


def test_second_publisher_is_counted(rig):
    assert rig.driver.publisher_count() == 1
    publisher = rig.driver._output._publisher if rig.config.franka else rig.driver._group
    kind = publisher.msg_type
    intruder = rig.graph.node('intruder')
    intruder.create_publisher(kind, rig.driver.command_topic, 1)
    rig.until(lambda: rig.driver.publisher_count() == 2, 'two publishers')
    rig.graph.remove(intruder)
    rig.until(lambda: rig.driver.publisher_count() == 1, 'one publisher')


def test_franka_reflex_is_recovered_step_by_step(rig):
    if rig.config.gripper != 'franka_hand':
        pytest.skip(
            'the arm is the same with every gripper' if rig.config.franka else 'Franka only'
        )
    rig.fault('reflex')
    rig.until(lambda: rig.report.reason == Reason.ROBOT_REFLEX, 'ROBOT_REFLEX')
    steps = []
    report = rig.driver.recover(steps.append)
    assert report.reason == Reason.NONE, report
    assert [s for s in steps if s.endswith('done')] == [
        'recover 1/3: error recovery done',
        'recover 2/3: hardware component done',
        'recover 3/3: controller done',
    ]


def test_franka_does_not_go_back_to_a_target_that_the_controller_kept(rig):
    if rig.config.franka is None or rig.config.franka.command == 'joint_trajectory':
        pytest.skip('crisp only')
    rig.fault('reflex')
    rig.until(lambda: rig.report.reason == Reason.ROBOT_REFLEX, 'ROBOT_REFLEX')
    stood, away = rig.q(), rig.q()
    away[0] += 0.3
    rig.send(away, None)  # the last target from before, still on its way when control was lost
    threading.Event().wait(0.3)
    assert rig.driver.recover(lambda text: None).reason == Reason.NONE
    threading.Event().wait(1.0)
    np.testing.assert_allclose(rig.q(), stood, atol=0.05)


def test_franka_controller_is_not_activated_while_nobody_knows_where_the_arm_is(rig):
    if rig.config.gripper != 'franka_hand' or rig.config.franka.command == 'joint_trajectory':
        pytest.skip('once is enough')
    rig.fault('reflex')
    rig.until(lambda: rig.report.reason == Reason.ROBOT_REFLEX, 'ROBOT_REFLEX')
    rig.fault('joints_drop')
    threading.Event().wait(1.0)
    report = rig.driver.recover(lambda text: None)
    assert report.reason == Reason.DRIVER_LOST
    assert 'does not say where the arm stands' in report.text
    rig.fault('clear joints_drop')
    threading.Event().wait(0.3)
    assert rig.driver.recover(lambda text: None).reason == Reason.NONE


def test_franka_user_stop_is_not_recovered_while_pressed(rig):
    if rig.config.gripper != 'franka_hand':
        pytest.skip(
            'the arm is the same with every gripper' if rig.config.franka else 'Franka only'
        )
    rig.fault('user_stop')
    rig.until(lambda: rig.report.reason == Reason.USER_STOP, 'USER_STOP')
    assert rig.driver.recover(lambda text: None).reason == Reason.USER_STOP
    rig.fault('clear')
    rig.until(lambda: rig.report.reason == Reason.DRIVER_LOST, 'DRIVER_LOST (idle)')
    assert rig.driver.recover(lambda text: None).reason == Reason.NONE


def test_franka_target_that_is_not_finite_trips_the_twin(rig):
    if rig.config.gripper != 'franka_hand':
        pytest.skip(
            'the arm is the same with every gripper' if rig.config.franka else 'Franka only'
        )
    q = rig.q()
    q[0] = math.nan
    rig.send(q, None)
    rig.until(lambda: rig.report.reason == Reason.ROBOT_REFLEX, 'ROBOT_REFLEX')
    assert rig.driver.recover(lambda text: None).reason == Reason.NONE


def test_silent_robot_state_is_a_lost_driver(rig):
    rig.fault('robot_state_silent' if rig.config.franka else 'joints_drop')
    rig.until(lambda: rig.report.reason == Reason.DRIVER_LOST, 'DRIVER_LOST')
    rig.fault('clear')
    if rig.config.widowx:  # xs_sdk may have come back with other profile times
        rig.until(lambda: 'recover' in rig.report.text, 'the wish for recover')
        assert rig.driver.recover(lambda text: None).reason == Reason.NONE
    rig.until(lambda: rig.report.reason == Reason.NONE, 'a healthy driver')


def test_widowx_motor_error_and_overload(rig):
    if rig.config.widowx is None:
        pytest.skip('WidowX only')
    rig.fault('motor_error 32')
    rig.until(lambda: rig.report.reason == Reason.MOTOR_ERROR, 'MOTOR_ERROR')
    assert 'overload' in rig.report.text
    refused = rig.driver.recover(lambda text: None)
    assert refused.reason == Reason.MOTOR_ERROR
    assert 'reboot_motors' in refused.text
    rig.fault('clear')
    rig.until(lambda: rig.report.reason == Reason.NONE, 'a healthy driver')
    rig.fault('overload')
    rig.until(lambda: rig.report.reason == Reason.MOTOR_ERROR, 'MOTOR_ERROR of the guard')
    assert 'shoulder' in rig.report.text
    assert rig.sink.efforts.shape == (6,)
    assert rig.sink.efforts[rig.spec.joint_names.index('shoulder')] == 2500.0
    rig.fault('clear overload')
    threading.Event().wait(0.3)
    assert rig.driver.recover(lambda text: None).reason == Reason.NONE
    rig.until(lambda: rig.report.reason == Reason.NONE, 'a healthy driver')
