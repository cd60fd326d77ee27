"""GoalSlot: one goal at a time, newest wins, a silent server blocks nothing."""

from types import SimpleNamespace

import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

from action_msgs.msg import GoalStatus

from spear_ros.ros.drivers.actions import GoalSlot


class FakeFuture:
    def __init__(self):
        self.callbacks, self.value = [], None

    def add_done_callback(self, callback):
        self.callbacks.append(callback)

    def result(self):
        return self.value

    def set(self, value):
        self.value = value
        for callback in self.callbacks:
            callback(self)


class FakeHandle:
    def __init__(self, accepted):
        self.accepted, self.cancelled, self.result_future = accepted, 0, FakeFuture()

    def get_result_async(self):
        return self.result_future

    def cancel_goal_async(self):
        self.cancelled += 1

    def end(self, status, success=True, error=''):
        result = SimpleNamespace(success=success, error=error)
        self.result_future.set(SimpleNamespace(status=status, result=result))


class FakeClient:
    def __init__(self):
        self.ready, self.sent = True, []

    def server_is_ready(self):
        return self.ready

    def send_goal_async(self, goal):
        future = FakeFuture()
        self.sent.append((goal, future))
        return future

    def answer(self, accepted=True):
        handle = FakeHandle(accepted)
        self.sent[-1][1].set(handle)
        return handle


@pytest.fixture
def setup():
    clock = SimpleNamespace(now=0.0)
    slot = GoalSlot(lambda: clock.now)
    ended = []
    return slot, FakeClient(), clock, ended


def begin(slot, client, ended, goal):
    slot.start(client, goal, lambda ok, error: ended.append((goal, ok, error)))


def test_goal_runs_to_its_end(setup):
    slot, client, _, ended = setup
    begin(slot, client, ended, 'move')
    client.answer().end(GoalStatus.STATUS_SUCCEEDED)
    assert ended == [('move', True, '')]
    assert not slot.busy


def test_new_goal_cancels_the_old_one_and_waits_for_its_end(setup):
    slot, client, _, ended = setup
    begin(slot, client, ended, 'grasp')
    handle = client.answer()
    begin(slot, client, ended, 'move')
    assert handle.cancelled == 1
    assert [goal for goal, _ in client.sent] == ['grasp']
    handle.end(GoalStatus.STATUS_CANCELED, success=False, error='cancelled')
    assert [goal for goal, _ in client.sent] == ['grasp', 'move']
    client.answer().end(GoalStatus.STATUS_SUCCEEDED)
    assert ended == [('grasp', False, 'cancelled'), ('move', True, '')]


def test_goal_that_was_replaced_before_acceptance_is_cancelled_on_acceptance(setup):
    slot, client, _, ended = setup
    begin(slot, client, ended, 'grasp')
    begin(slot, client, ended, 'move')
    assert client.answer().cancelled == 1


def test_only_the_newest_waiting_goal_is_sent(setup):
    slot, client, _, ended = setup
    begin(slot, client, ended, 'a')
    handle = client.answer()
    begin(slot, client, ended, 'b')
    begin(slot, client, ended, 'c')
    handle.end(GoalStatus.STATUS_CANCELED)
    assert [goal for goal, _ in client.sent] == ['a', 'c']


def test_server_that_ignores_the_cancellation_is_given_up(setup):
    slot, client, clock, ended = setup
    begin(slot, client, ended, 'a')
    handle = client.answer()
    begin(slot, client, ended, 'b')
    clock.now = 1.9
    slot.poll()
    assert len(client.sent) == 1
    clock.now = 2.1
    slot.poll()
    assert [goal for goal, _ in client.sent] == ['a', 'b']
    handle.end(GoalStatus.STATUS_SUCCEEDED)  # late: belongs to nobody
    assert ended == [('a', False, 'the action server does not answer')]


def test_dead_or_refusing_server_is_reported(setup):
    slot, client, _, ended = setup
    client.ready = False
    begin(slot, client, ended, 'a')
    assert ended == [('a', False, 'the action server is not there')]
    client.ready = True
    begin(slot, client, ended, 'b')
    client.answer(accepted=False)
    assert ended[-1] == ('b', False, 'the goal was refused')
    begin(slot, client, ended, 'c')
    client.answer()
    client.ready = False
    slot.poll()
    assert ended[-1] == ('c', False, 'the action server does not answer')


def test_dropped_goal_is_never_sent(setup):
    slot, client, _, ended = setup
    begin(slot, client, ended, 'a')
    handle = client.answer()
    begin(slot, client, ended, 'b')
    slot.drop_pending()
    handle.end(GoalStatus.STATUS_CANCELED)
    assert [goal for goal, _ in client.sent] == ['a']
