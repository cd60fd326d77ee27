"""The main job across processes over DDS: simulated robot, cameras, policy, executor, instruction.

The same process list as ``ros2 launch`` and ``spear demo``. First the scripted expert, whose motion
can be judged; then SPEAR-1 itself at debug size with random weights, whose chunks must arrive, be
judged by the gate, and never move the robot outside its limits.
"""

import importlib.util
import sys

import numpy as np
import pytest

from spear_ros.core.errors import UserError

pytestmark = pytest.mark.ros

pytest.importorskip('rclpy', reason='rclpy is not installed')
pytest.importorskip('mujoco', reason='mujoco is not installed')


@pytest.fixture(scope='module')
def system(graph):
    """Everything up, with the scripted policy."""
    from spear_ros.ros.bringup import BringupOptions, processes

    graph.processes.start(processes(BringupOptions(robot='franka', sim=True, policy='scripted')))
    operator = graph.operator()
    operator.wait_for('executor', lambda: operator.executor_status is not None, 30)
    operator.wait_for(
        'an active policy',
        lambda: operator.policy_status and operator.policy_status.lifecycle_state == 'active',
        60,
    )
    operator.wait_for('the scene', lambda: operator.task_state is not None, 30)
    return graph, operator


def begin(graph, operator, seed, family):
    """Disarm, reset the scene, arm, home; return the instruction."""
    if operator.state == 'FAULT':
        graph.wait_until(lambda: operator.trigger('reset')[0], operator.describe, 10)
    elif operator.state != 'DISARMED':
        operator.require('disarm')
    operator.wait_for_state('DISARMED')
    instruction = operator.reset_scene(seed, family)
    graph.wait_until(lambda: operator.trigger('arm')[0], operator.describe, 20)
    operator.wait_for_state('ARMED')
    operator.require('home')
    operator.wait_for_state('HOMING', 'ARMED')
    operator.wait_for_state('ARMED', timeout_s=30)
    return instruction


def follow(graph, operator, chunks, attempts=3):
    """Have the robot follow an instruction for some chunks; return the instruction's id.

    A machine that is busy with other things makes inputs late, and then the robot rightly stops:
    that is not what this test is about, so it may try again.
    """
    for attempt in range(attempts):
        instruction = begin(graph, operator, 2_000_000 + 4 * attempt, 'touch')
        answer = operator.set_instruction(instruction)
        assert answer.success, answer.message
        start = operator.policy_status.chunks
        try:
            operator.wait_for_state('RUNNING', timeout_s=10)
            operator.wait_for(
                'chunks to be followed',
                lambda start=start: (
                    operator.state == 'RUNNING'
                    and operator.executor_status.sequence >= start + chunks
                ),
                15,
            )
        except UserError as error:
            sys.stdout.write(f'attempt {attempt}: {error}\n')
        else:
            return answer.instruction_id
    return pytest.fail(f'never followed {chunks} chunks; {operator.describe()}')


def test_a_robot_follows_an_instruction_and_stops_when_told(system):
    graph, operator = system
    before = operator.executor_status.commands
    instruction_id = follow(graph, operator, chunks=10)
    assert operator.chunks[-1].instruction_id == instruction_id
    assert operator.executor_status.commands > before + 100
    assert operator.trigger('stop')[0]
    operator.wait_for_state('FAULT')
    assert operator.reason.name == 'STOP_SERVICE'
    graph.wait_until(lambda: operator.trigger('reset')[0], operator.describe, 10)
    operator.wait_for_state('DISARMED')


def test_disarming_ends_the_instruction(system):
    _, operator = system
    operator.wait_for('no instruction', lambda: operator.policy_status.instruction == '', 5)


def test_an_object_is_put_on_another_through_the_drivers_and_the_hand_opens(system):
    graph, operator = system
    for attempt in range(3):  # a busy machine makes inputs late, and the robot rightly stops
        instruction = begin(graph, operator, 2_000_003 + 4 * attempt, 'put')
        assert instruction.startswith('put ')
        answer = operator.set_instruction(instruction)
        assert answer.success, answer.message
        try:
            operator.wait_for('success', lambda: operator.task_state.succeeded, 25)
        except UserError as error:
            assert operator.reason.name != 'GRIPPER_FAULT', operator.describe()
            sys.stdout.write(f'attempt {attempt}: {error}\n')
        else:
            break
    else:
        pytest.fail(f'never put anything; {operator.describe()}')
    operator.require('disarm')
    operator.wait_for_state('DISARMED')


@pytest.mark.parametrize('text', ['', '   ', 'x' * 2000])
def test_a_bad_instruction_is_refused_in_one_sentence(system, text):
    _, operator = system
    answer = operator.set_instruction(text)
    assert not answer.success
    assert answer.message
    assert '\n' not in answer.message


@pytest.mark.skipif(importlib.util.find_spec('torch') is None, reason='torch is not installed')
def test_spear1_computes_chunks_that_the_gate_judges(system):
    from spear_ros.ros.bringup import BringupOptions, processes

    graph, operator = system
    session = operator.policy_status.policy_session
    graph.processes.stop(['policy_node'])
    options = BringupOptions(robot='franka', sim=True, policy='spear1', untrained='spear1_debug')
    graph.processes.start_one(next(p for p in processes(options) if p.name == 'policy_node'))
    operator.wait_for(
        'SPEAR-1 to be active',
        lambda: (
            operator.policy_status.policy_session not in ('', session)
            and operator.policy_status.lifecycle_state == 'active'
        ),
        90,
    )
    assert not operator.policy_status.trained
    instruction = begin(graph, operator, 2_000_001, 'push')
    accepted = operator.executor_status.chunks_accepted
    rejected = operator.executor_status.chunks_rejected
    answer = operator.set_instruction(instruction)
    operator.wait_for(
        'a verdict on a chunk',
        lambda: (
            operator.executor_status.chunks_accepted + operator.executor_status.chunks_rejected
            > accepted + rejected
        ),
        20,
    )
    chunk = next(c for c in operator.chunks if c.instruction_id == answer.instruction_id)
    positions = np.array([[p.position.x, p.position.y, p.position.z] for p in chunk.poses])
    assert positions.shape == (5, 3)
    assert np.isfinite(positions).all()
    assert (chunk.embodiment, chunk.ee_frame) == ('franka_droid', 'link8')
    graph.wait_until(
        lambda: (
            operator.state == 'DISARMED'
            or operator.trigger('reset' if operator.state == 'FAULT' else 'disarm')[0]
        ),
        operator.describe,
        10,
    )
