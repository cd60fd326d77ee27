"""executor_node and the simulated robot as processes, the policy played by the test.

Each fault is followed by what brings the robot back, so one graph per robot serves them all. Pins:
the stop service holds and stays latched, stale joints and a second publisher fault, a frozen
executor faults when it wakes up and its first command is where the robot stands.
"""

import secrets
import signal
import threading
import time

import numpy as np
import pytest
import yaml

pytest.importorskip('rclpy', reason='rclpy is not installed')
pytest.importorskip('mujoco', reason='mujoco is not installed')

from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import JointState
from spear_msgs.msg import ActionChunk as ActionChunkMsg
from spear_msgs.msg import PolicyStatus
from std_msgs.msg import String

from spear_ros.core.geometry import pose_parts
from spear_ros.core.reasons import Reason
from spear_ros.core.resources import share_file
from spear_ros.core.types import ActionChunk
from spear_ros.robots.kinematics import forward
from spear_ros.robots.registry import get_robot
from spear_ros.ros import qos
from spear_ros.ros.config import load_robot_config
from spear_ros.ros.conversions import chunk_to_msg, header, ns_from_time
from spear_ros.ros.drivers.base import messages

pytestmark = pytest.mark.ros

STEP_S, HORIZON = 0.2, 5


def patient_wiring(folder, robot):
    """Write the robot's file with age limits that a loaded test machine keeps too."""
    values = yaml.safe_load(share_file(f'config/robots/{robot}.yaml').read_text())
    values['arm']['max_age_s'] = 0.2
    for gripper in values['grippers'].values():
        gripper['state']['max_age_s'] = 1.0
    path = folder / f'{robot}.yaml'
    path.write_text(yaml.safe_dump(values))
    return path


class FakePolicy:
    """Says that it is healthy, and sends chunks that move by ``velocity`` (m/s, base frame)."""

    def __init__(self, graph, config, spec):
        self.node, self.spec = graph.node('fake_policy'), spec
        self.session, self.sequence = secrets.token_hex(4), 0
        self.velocity, self.alive = None, True
        self.T, self.stamp_ns = None, 0
        self._chunks = self.node.create_publisher(ActionChunkMsg, '/spear/action_chunk', qos.CHUNK)
        self._status = self.node.create_publisher(PolicyStatus, '/spear/policy_status', qos.STATUS)
        self.node.create_subscription(
            JointState, config.arm.topic, self._on_joints, qos.JOINTS_INPUT
        )
        self.node.create_timer(0.1, self._send_status)
        self.node.create_timer(STEP_S, self._send_chunk)

    def _on_joints(self, message):
        q = dict(zip(message.name, message.position, strict=True))
        if set(self.spec.joint_names) <= set(q):
            self.T = forward(self.spec, np.array([q[n] for n in self.spec.joint_names]))
            self.stamp_ns = ns_from_time(message.header.stamp)

    def _send_status(self):
        if self.alive:
            self._status.publish(
                PolicyStatus(
                    header=header(self.node.get_clock().now().nanoseconds),
                    lifecycle_state='active',
                    policy='fake',
                    policy_session=self.session,
                    checkpoint_id='fake',
                    embodiment=self.spec.embodiment,
                    ee_frame=self.spec.ee_frame,
                    step_s=STEP_S,
                    horizon=HORIZON,
                    instruction='move',
                    instruction_id='00000001',
                    ready=True,
                )
            )

    def _send_chunk(self):
        if self.alive and self.velocity is not None and self.T is not None:
            self._chunks.publish(chunk_to_msg(self.chunk(np.asarray(self.velocity))))

    def chunk(self, velocity):
        p, q = pose_parts(self.T)
        self.sequence += 1
        steps = STEP_S * np.arange(1, HORIZON + 1)[:, None]
        return ActionChunk(
            t_obs_ns=self.stamp_ns,
            step_s=STEP_S,
            embodiment=self.spec.embodiment,
            base_frame=self.spec.base_frame,
            ee_frame=self.spec.ee_frame,
            p_base_ee=p + steps * velocity,
            q_base_ee=np.tile(q, (HORIZON, 1)),
            gripper=np.ones(HORIZON),
            anchor_p=p,
            anchor_q=q,
            instruction_id='00000001',
            checkpoint_id='fake',
            policy_session=self.session,
            sequence=self.sequence,
        )


class Rig:
    """The whole robot side of one robot."""

    def __init__(self, graph, robot):
        wiring = patient_wiring(graph.folder, robot)
        self.graph, self.config = graph, load_robot_config(wiring).simulated()
        self.spec = get_robot(self.config.model, self.config.gripper)
        graph.start('sim_robot_node', robot_config=str(wiring), cameras=False)
        self._wiring = str(wiring)
        self.start_executor()
        self.operator = graph.operator()
        self.policy = FakePolicy(graph, self.config, self.spec)
        self.commands = []
        if self.config.franka:
            self.kind, self.topic = PoseStamped, self.config.franka.target_pose_topic
        else:
            self.kind = messages('interbotix_xs_msgs.msg').JointGroupCommand
            self.topic = f'{self.config.widowx.namespace}/commands/joint_group'
        self.operator.subscribe(self.kind, self.topic, self._on_command)
        self.faults = self.policy.node.create_publisher(String, '/sim/fault', 10)
        graph.wait_until(lambda: self.operator.executor_status is not None, 'executor_status')
        graph.wait_until(lambda: self.faults.get_subscription_count() == 1, 'the simulator')

    def start_executor(self):
        """Start executor_node."""
        self.graph.start('executor_node', robot_config=self._wiring, simulated=True)

    def _on_command(self, message):
        self.commands.append((time.monotonic(), self.target(message)))

    def target(self, message):
        """(3,) position that a command asks for."""
        if self.config.franka:
            p = message.pose.position
            return np.array([p.x, p.y, p.z])
        return forward(self.spec, np.array(message.cmd, float))[:3, 3]

    def fault(self, line):
        self.faults.publish(String(data=line))

    def arm(self):
        """Arm as soon as the preflight agrees."""
        self.insist('arm')
        assert self.operator.wait_for_state('ARMED', 'RUNNING') in ('ARMED', 'RUNNING')

    def insist(self, name):
        """Call a service until it is accepted: a refusal may be true for a moment only."""
        answer = [False, '']

        def accepted():
            time.sleep(0.1)
            answer[:] = self.operator.trigger(name)
            return answer[0]

        self.graph.wait_until(accepted, lambda: f'{name}: {answer[1]}')

    def run(self):
        """Let the robot follow chunks upwards and back, until it runs."""
        self.policy.velocity = (0.0, 0.0, 0.02)
        self.operator.wait_for_state('RUNNING')

    def fails_with(self, reason):
        self.operator.wait_for(
            f'FAULT {reason.name}',
            lambda: (self.operator.state, self.operator.reason) == ('FAULT', reason),
            10.0,
        )

    def provoke(self, reason, act, undo=lambda: None):
        """Act until the executor faults for ``reason``; twice an overloaded machine that paused
        the control loop or the driver first is forgiven."""
        for _ in range(3):
            act()
            self.operator.wait_for(
                f'FAULT after {reason.name}', lambda: self.operator.state == 'FAULT', 10.0
            )
            if self.operator.reason not in {Reason.CONTROL_GAP, Reason.JOINTS_STALE} - {reason}:
                break
            undo()
            self.reset()
            self.arm()
            self.run()
        assert self.operator.reason == reason

    def reset(self):
        self.policy.velocity = None
        self.fault('clear')
        self.insist('reset')
        self.operator.wait_for_state('DISARMED')

    def commands_since(self, start):
        return [p for t, p in self.commands if t >= start]


@pytest.fixture(scope='module', params=['franka', 'widowx'])
def rig(request, graph):
    rig = Rig(graph, request.param)
    yield rig
    rig.operator.close()
    graph.remove(rig.policy.node)
    graph.processes.stop(['executor_node', 'sim_robot_node'])


@pytest.fixture
def running(rig):
    rig.arm()
    rig.run()
    yield rig
    if rig.operator.state != 'DISARMED':
        if rig.operator.state != 'FAULT':
            rig.operator.trigger('stop')
            rig.operator.wait_for_state('FAULT')
        rig.reset()


def test_nothing_is_sent_while_disarmed(rig):
    before = len(rig.commands)
    rig.policy.velocity = (0.0, 0.0, 0.02)
    status = rig.operator.executor_status
    rig.operator.wait_for(
        'chunks while disarmed',
        lambda: rig.operator.executor_status.header != status.header,
        5.0,
    )
    threading.Event().wait(0.5)
    assert rig.operator.state == 'DISARMED'
    assert len(rig.commands) == before
    rig.policy.velocity = None


def test_arm_commands_the_measured_pose_and_home_ends_armed(rig):
    rig.arm()
    rig.graph.wait_until(lambda: rig.commands, 'a command')
    assert np.linalg.norm(rig.commands[0][1] - rig.policy.T[:3, 3]) < 0.01
    assert rig.operator.trigger('home')[0]
    rig.operator.wait_for(
        'HOMING in the history',
        lambda: any(c.state == 'HOMING' for c in rig.operator.history),
        10.0,
    )
    rig.operator.wait_for_state('ARMED', timeout_s=20.0)
    assert rig.operator.trigger('disarm')[0]
    rig.operator.wait_for_state('DISARMED')


def test_chunks_are_followed(running):
    z = running.policy.T[2, 3]
    running.graph.wait_until(lambda: running.policy.T[2, 3] > z + 0.02, 'a rise of 2 cm')
    assert running.operator.state == 'RUNNING'


def test_stop_service_brakes_and_holds(running):
    running.graph.wait_until(lambda: running.commands, 'commands')
    assert running.operator.trigger('stop')[0]
    running.fails_with(Reason.STOP_SERVICE)
    threading.Event().wait(0.6)
    start = time.monotonic()
    threading.Event().wait(0.3)
    held = running.commands_since(start)
    assert len(held) >= 3  # the hold target is still published
    assert np.ptp(held, axis=0).max() < 1e-6
    assert not running.operator.trigger('arm')[0]  # latched


def test_stale_joints_fault(running):
    running.provoke(Reason.JOINTS_STALE, lambda: running.fault('joints_drop'))


def test_second_publisher_faults_and_silences(running):
    intruders = []

    def intrude():
        intruders.append(running.graph.node('intruder'))
        intruders[-1].create_publisher(running.kind, running.topic, 1)

    def leave():
        if intruders:
            running.graph.remove(intruders.pop())

    try:
        running.provoke(Reason.SECOND_PUBLISHER, intrude, leave)
        start = time.monotonic() + 0.1
        threading.Event().wait(0.4)
        assert running.commands_since(start) == []
    finally:
        leave()


def test_silent_policy_holds_and_comes_back(running):
    running.policy.alive = False
    running.operator.wait_for_state('HOLD')
    assert running.operator.reason in (Reason.POLICY_SILENT, Reason.CHUNK_LATE)
    running.policy.alive = True
    running.operator.wait_for_state('RUNNING')


def test_executor_that_was_frozen_faults_when_it_wakes(running):
    running.graph.processes.send_signal('executor_node', signal.SIGSTOP)
    threading.Event().wait(0.6)
    start = time.monotonic()
    running.graph.processes.send_signal('executor_node', signal.SIGCONT)
    running.fails_with(Reason.CONTROL_GAP)
    running.graph.wait_until(lambda: running.commands_since(start), 'a command after CONT')
    first = running.commands_since(start)[0]
    assert np.linalg.norm(first - running.policy.T[:3, 3]) < 0.02


def test_reflex_is_recovered_by_the_operator(running):
    if running.config.franka is None:
        pytest.skip('Franka only')
    running.provoke(Reason.ROBOT_REFLEX, lambda: running.fault('reflex'))
    assert running.operator.trigger('recover')[0]
    running.operator.wait_for(
        'the end of recover',
        lambda: (
            'recovered' in running.operator.executor_status.progress
            or 'recovered' in running.operator.executor_status.text
        ),
        15.0,
    )


def test_interrupted_executor_brakes_and_its_successor_arms(rig):
    rig.arm()
    rig.run()
    rig.policy.velocity = (0.0, 0.0, 0.1)
    threading.Event().wait(0.6)
    rig.graph.processes.send_signal('executor_node', signal.SIGINT)
    rig.graph.wait_until(
        lambda: 'executor_node' not in rig.graph.processes.alive(), 'the end of executor_node'
    )
    assert rig.graph.processes.dead()['executor_node'] == 0
    threading.Event().wait(0.2)
    (_, before), (_, last) = rig.commands[-2:]
    assert np.linalg.norm(last - before) < 5e-4  # came to rest, was not cut off
    rig.policy.velocity = None
    rig.start_executor()
    rig.arm()
    assert rig.operator.trigger('disarm')[0]
