"""A second policy process beside the system under test: SPEAR-1 at debug size, untrained."""

import os

from _fault_bench import FaultBench
from rclpy.node import Node
from spear_msgs.msg import PolicyStatus
from spear_msgs.srv import SetInstruction

from spear_ros.core.errors import UserError
from spear_ros.ros import qos
from spear_ros.ros.bringup import BringupOptions, processes
from spear_ros.ros.process_group import command_line

_REMAPS = ('action_chunk', 'policy_status', 'policy_node/set_instruction')
NAME = 'load_policy'


class Load:
    """Keeps the newest status of the loading policy."""

    def __init__(self, node: Node) -> None:
        self.status: PolicyStatus | None = None
        node.create_subscription(PolicyStatus, '/load/policy_status', self._on_status, qos.STATUS)

    def _on_status(self, message: PolicyStatus) -> None:
        self.status = message


def load_process(bench: FaultBench, untrained: str = 'spear1_debug') -> Load:
    """Start it, and have it infer all the time; its chunks go where nobody listens."""
    options = BringupOptions(
        robot=bench.robot, sim=True, policy='spear1', untrained=untrained, device='cpu'
    )
    spec = next(s for s in processes(options) if s.name == 'policy_node')
    command = command_line(spec)
    command[command.index('__node:=policy_node')] = f'__node:={NAME}'
    for name in _REMAPS:
        command += ['-r', f'/spear/{name}:=/load/{name}']
    # The executor's status would end its instruction with every disarm.
    command += ['-r', '/spear/executor_status:=/load/executor_status']
    load = Load(bench.peer.node)
    renamed = type(spec)(
        name=NAME,
        executable=spec.executable,
        parameters=spec.parameters,
        environment={**spec.environment, 'OMP_NUM_THREADS': os.environ.get('OMP_NUM_THREADS', '1')},
    )
    bench.processes.start_one(renamed, command)
    bench.until(
        lambda: load.status is not None and load.status.lifecycle_state == 'active',
        lambda: f'the load; {bench.processes.log_tail(NAME)}',
        120,
    )
    client = bench.peer.node.create_client(SetInstruction, '/load/policy_node/set_instruction')
    if not client.wait_for_service(10.0):
        raise UserError('the load takes no instruction.')
    client.call_async(SetInstruction.Request(instruction='push the red cube to the left'))
    bench.until(lambda: load.status.chunks > 3, 'chunks of the load', 60)
    return load
