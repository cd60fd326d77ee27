"""Fixtures for tests with real processes over DDS: a graph of their own, waits that do not lie."""

import contextlib
import os
import secrets
import sys
import threading
import time

import pytest


def wait_until(condition, what, timeout_s=10.0):
    """Block until ``condition()`` is true; fail with a sentence otherwise."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            shown = what() if callable(what) else what
            pytest.fail(f'waited {timeout_s:.0f} s in vain for {shown}')
        time.sleep(0.01)


class Graph:
    """Processes and in-process nodes in one ROS domain."""

    def __init__(self, folder, domain_id, processes):
        self.folder, self.domain_id, self.processes = folder, domain_id, processes
        self._stack = contextlib.ExitStack()
        self._nodes = {}

    wait_until = staticmethod(wait_until)

    def start(self, executable, name=None, **parameters):
        """Start one of our nodes as a process."""
        from spear_ros.ros.bringup import ProcessSpec, transport_environment

        self.processes.start_one(
            ProcessSpec(
                name=name or executable,
                executable=executable,
                parameters=parameters,
                environment={**transport_environment(), 'MUJOCO_GL': 'egl'},
            )
        )

    def node(self, name):
        """Make a node here, spun by a thread until :meth:`remove` or the end of the module."""
        import rclpy
        from rclpy.context import Context
        from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
        from rclpy.node import Node

        context = Context()
        rclpy.init(context=context, domain_id=self.domain_id)
        node = Node(name, context=context)
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)

        def spin():
            with contextlib.suppress(ExternalShutdownException):
                executor.spin()

        thread = threading.Thread(target=spin, daemon=True)
        thread.start()

        def close():
            executor.shutdown(timeout_sec=2.0)
            thread.join(2.0)
            node.destroy_node()
            rclpy.try_shutdown(context=context)

        self._nodes[node] = close
        return node

    def remove(self, node):
        """Take a node of :meth:`node` out of the graph."""
        self._nodes.pop(node)()

    def operator(self):
        """Make an OperatorClient."""
        from spear_ros.ros.operator_client import OperatorClient

        client = OperatorClient(self.domain_id)
        self._stack.callback(client.close)
        return client

    def close(self):
        """End everything."""
        for node in list(self._nodes):
            self.remove(node)
        self._stack.close()
        self.processes.stop()

    def logs(self):
        """Last lines of every process."""
        names = sorted(p.stem for p in self.folder.glob('*.log'))
        return '\n'.join(f'--- {n}\n{self.processes.log_tail(n, 25)}' for n in names)


@pytest.fixture(scope='module')
def graph(tmp_path_factory):
    """Return a ROS graph that nobody else is in, for the tests of one module."""
    pytest.importorskip('rclpy', reason='rclpy is not installed')
    pytest.importorskip('spear_msgs', reason='the interfaces are not built')
    from spear_ros.ros.bringup import transport_environment
    from spear_ros.ros.process_group import ProcessGroup

    domain_id = 20 + secrets.randbelow(80)
    changed = {
        'ROS_DOMAIN_ID': str(domain_id),
        'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST',
        'OMP_NUM_THREADS': '1',
        **transport_environment(),
    }
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    folder = tmp_path_factory.mktemp('graph')
    graph = Graph(folder, domain_id, ProcessGroup(folder))
    yield graph
    sys.stdout.write(graph.logs())
    graph.close()
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
