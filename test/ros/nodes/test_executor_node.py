"""executor_node in this process, with a driver that only notes: transitions, faults of threads."""

import threading
import time

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')
pytest.importorskip('spear_msgs', reason='the interfaces are not built')

import rclpy
from rclpy.lifecycle import TransitionCallbackReturn

from spear_ros.core.reasons import Reason
from spear_ros.ros.drivers.base import HEALTHY
from spear_ros.ros.nodes import executor_node
from spear_ros.runtime.state_machine import State

pytestmark = pytest.mark.ros


class NotingDriver:
    """An arm that is at once where it is told to be; feeds the executor by itself."""

    command_topic, frame_id = '/noted', 'base'

    def __init__(self, node, spec, config):
        self._node, self._spec = node, spec
        self.q = np.array(spec.q_home_rad)
        self.sent, self.held = [], 0
        self.fails = self.recovery_fails = False
        self._stop = threading.Event()
        self._feeder = threading.Thread(target=self._feed, daemon=True)

    def start(self, sink):
        self._sink = sink
        self._feeder.start()

    def _feed(self):
        while not self._stop.is_set():
            now = self._node.get_clock().now().nanoseconds
            self._sink.on_joints(now, now, self._spec.joint_names, self.q)
            self._sink.on_gripper(now, now, 1.0)
            time.sleep(0.01)

    def activate(self):
        pass

    def send(self, target):
        if self.fails:
            raise RuntimeError('the publisher is gone')
        self.sent.append(target)
        self.q = target.q_rad

    def poll(self):
        return HEALTHY

    def publisher_count(self):
        return 1

    def hold_gripper(self):
        self.held += 1

    def release(self):
        pass

    def recover(self, progress):
        if self.recovery_fails:
            raise RuntimeError('no answer')
        return HEALTHY

    def close(self):
        self._stop.set()


@pytest.fixture
def node(monkeypatch):
    monkeypatch.setattr(executor_node, 'make_driver', NotingDriver)
    arguments = ['robot:=widowx', 'simulated:=true', 'autostart:=false', 'require_policy:=false']
    rclpy.init(args=['--ros-args', *(x for a in arguments for x in ('-p', a))])
    node = executor_node.ExecutorNode()
    spinner = rclpy.executors.SingleThreadedExecutor()
    spinner.add_node(node)
    ended = threading.Event()

    def spin():
        while not ended.is_set():
            spinner.spin_once(timeout_sec=0.05)

    thread = threading.Thread(target=spin, daemon=True)
    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    assert node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    thread.start()
    yield node
    ended.set()
    thread.join(2.0)
    node.close()
    spinner.remove_node(node)
    node.destroy_node()
    spinner.shutdown()
    rclpy.shutdown()


def wait_for(condition, what, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def state(node):
    return node._executor.snapshot().state


def armed(node):
    wait_for(lambda: node._request('arm').accepted, 'arm')
    wait_for(lambda: node._driver.sent, 'a command')
    return node


def sent_within(node, seconds):
    node._driver.sent.clear()
    time.sleep(seconds)
    return node._driver.sent


def test_lifecycle_shutdown_comes_to_rest_and_ends_the_control_thread(node):
    armed(node)
    assert node.trigger_shutdown() == TransitionCallbackReturn.SUCCESS
    assert node.lifecycle_state == 'finalized'
    assert state(node) is State.DISARMED
    assert sent_within(node, 0.3) == []
    assert not node._request('arm').accepted


def test_an_error_in_a_transition_ends_finalized_and_sends_nothing(node, monkeypatch):
    armed(node)
    assert node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS

    def activate_and_break():
        executor_node.ExecutorNode.activate(node)
        raise RuntimeError('broken')

    monkeypatch.setattr(node, 'activate', activate_and_break)
    assert node.trigger_activate() != TransitionCallbackReturn.SUCCESS
    assert node.lifecycle_state == 'finalized'
    assert node._loop is None
    assert sent_within(node, 0.3) == []


def test_after_stop_deactivate_and_activate_nothing_is_sent(node):
    armed(node)
    assert node._request('stop').accepted
    assert node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
    node._driver.q = node._driver.q + 0.2  # moved by hand meanwhile
    assert node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    assert sent_within(node, 0.3) == []
    assert state(node) is State.FAULT


def test_the_gripper_is_told_to_begin_nothing_in_a_fault(node):
    armed(node)
    assert node._driver.held == 0
    node._request('stop')
    wait_for(lambda: node._driver.held, 'hold_gripper')


def test_a_control_thread_that_has_died_is_told_by_every_answer(node):
    armed(node)
    node._driver.fails = True
    wait_for(lambda: state(node) is State.FAULT, 'FAULT')
    assert node._executor.snapshot().reason == Reason.INTERNAL_ERROR
    for name in ('stop', 'reset', 'arm', 'home'):
        answer = node._request(name)
        assert not answer.accepted
        assert 'restart executor_node' in answer.text


def test_a_recovery_that_breaks_does_not_lock_reset_out(node):
    armed(node)
    node._driver.recovery_fails = True
    node._request('stop')
    time.sleep(0.2)
    assert node._request('recover').accepted
    wait_for(lambda: 'failed' in node._executor.snapshot().progress, 'the end of recover')
    assert node._request('reset').accepted
