"""Lifecycle base, parameters and diagnostics, in one process."""

import time
from dataclasses import dataclass, field

import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter

from spear_ros.core.errors import UserError
from spear_ros.ros.diagnostics import WARN, Diagnosis, Diagnostics
from spear_ros.ros.lifecycle import AutostartNode, run_node
from spear_ros.ros.parameters import declare_parameters

pytestmark = pytest.mark.ros


@dataclass(frozen=True)
class Values:
    speed: float = field(default=1.0, metadata={'min': 0.05, 'max': 1.0, 'read_only': False})
    count: int = field(default=3, metadata={'min': 0, 'max': 10})
    text: str = field(default='x', metadata={'description': 'some text'})
    flag: bool = False
    names: tuple[str, ...] = ('a', 'b')


class Recorded(AutostartNode):
    ready, refuse = True, ''

    def __init__(self, **kwargs):
        self.calls = []
        super().__init__('recorded', **kwargs)

    def _note(self, name):
        self.calls.append(name)
        if name == self.refuse:
            raise UserError(f'{name} refused')

    def configure(self):
        self._note('configure')

    def activate(self):
        self._note('activate')

    def deactivate(self):
        self._note('deactivate')

    def ready_to_activate(self):
        return self.ready


@pytest.fixture
def context():
    context = Context()
    rclpy.init(context=context, domain_id=19)
    yield context
    rclpy.try_shutdown(context=context)


@pytest.fixture
def spin(context):
    executor = SingleThreadedExecutor(context=context)

    def until(node, condition, timeout_s=10.0):
        executor.add_node(node)
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline
            executor.spin_once(timeout_sec=0.02)
        executor.remove_node(node)

    return until


def test_node_configures_and_activates_itself(context, spin):
    node = Recorded(context=context)
    spin(node, lambda: node.lifecycle_state == 'active')
    assert node.calls == ['configure', 'activate']
    node.trigger_deactivate()
    assert node.lifecycle_state == 'inactive'


def test_autostart_false_waits_for_the_services(context, spin):
    override = [Parameter('autostart', value=False)]
    node = Recorded(context=context, parameter_overrides=override)
    start = time.monotonic()
    spin(node, lambda: time.monotonic() > start + 0.2)
    assert node.calls == []
    node.trigger_configure()
    assert node.lifecycle_state == 'inactive'


@pytest.mark.parametrize(
    ('step', 'state'), [('configure', 'unconfigured'), ('activate', 'inactive')]
)
def test_user_error_refuses_the_transition_once(context, spin, step, state):
    node = Recorded(context=context)
    node.refuse = step
    spin(node, lambda: step in node.calls)
    start = time.monotonic()
    spin(node, lambda: time.monotonic() > start + 0.2)
    assert node.lifecycle_state == state
    assert node.calls.count(step) == 1


def test_slow_loading_delays_the_activation(context, spin):
    node = Recorded(context=context)
    node.ready = None
    spin(node, lambda: node.lifecycle_state == 'inactive')
    start = time.monotonic()
    spin(node, lambda: time.monotonic() > start + 0.2)
    assert node.calls == ['configure']
    node.ready = True
    spin(node, lambda: node.lifecycle_state == 'active')


def test_user_error_at_start_is_one_line_and_exit_code_2(capfd):
    def fail():
        raise UserError('the field x is wrong; mend it.')

    assert run_node(fail, []) == 2
    assert capfd.readouterr().err == 'the field x is wrong; mend it.\n'


def make_node(context, **values):
    overrides = [Parameter(name, value=value) for name, value in values.items()]
    return rclpy.create_node('n', context=context, parameter_overrides=overrides)


def test_parameters_have_the_defaults_of_the_dataclass(context):
    assert declare_parameters(make_node(context), Values) == Values()


def test_parameters_are_overridden_and_described(context):
    node = make_node(context, speed=0.5, names=['c'], flag=True)
    values = declare_parameters(node, Values)
    assert (values.speed, values.names, values.flag) == (0.5, ('c',), True)
    assert node.describe_parameter('text').description == 'some text'
    assert node.describe_parameter('text').read_only
    assert not node.set_parameters([Parameter('speed', value=2.0)])[0].successful


@pytest.mark.parametrize(
    ('values', 'words'),
    [
        ({'speed': 1}, r'speed: .* expected float, write it like 1\.0'),
        ({'speed': 7.0}, 'speed: .*allowed: 0.05 to 1.0'),
        ({'count': 11}, 'count: .*allowed: 0 to 10'),
        ({'text': 3}, 'text: .* expected str'),
    ],
)
def test_wrong_parameter_is_named(context, values, words):
    with pytest.raises(UserError, match=words):
        declare_parameters(make_node(context, **values), Values)


def test_diagnostics_carry_name_level_and_values(context, spin):
    node = make_node(context)
    received = []
    node.create_subscription(DiagnosticArray, '/diagnostics', received.append, 10)
    diagnosis = Diagnosis('part', WARN, 'slow', {'delay_s': 0.123456, 'count': 3})
    Diagnostics(node, 'panda', lambda: [diagnosis])
    spin(node, lambda: received)
    (status,) = received[0].status
    assert (status.name, status.level, status.message) == ('n: part', DiagnosticStatus.WARN, 'slow')
    assert {v.key: v.value for v in status.values} == {'delay_s': '0.1235', 'count': '3'}
