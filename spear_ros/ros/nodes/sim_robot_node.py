"""sim_robot_node: a simulated robot at a table that speaks its real driver's topics.

Threads: this node's executor (commands, services, goals), physics with joint states at a fixed
rate, pictures. The three share the world under its lock.
"""

import sys
import threading
from dataclasses import dataclass, field

from rclpy.node import Node

from spear_ros.core.errors import UserError
from spear_ros.robots.registry import get_robot
from spear_ros.ros.config import RobotConfig, WiringParameters, robot_config
from spear_ros.ros.control_loop import (
    ordinary_priority,
    prepare_process,
    raise_priority,
    realtime_wanted,
)
from spear_ros.ros.diagnostics import ERROR, OK, WARN, Diagnosis, Diagnostics
from spear_ros.ros.lifecycle import run_node
from spear_ros.ros.parameters import declare_parameters
from spear_ros.ros.sim_drivers.base import Twin, TwinClock
from spear_ros.ros.sim_drivers.cameras import CameraStreams
from spear_ros.ros.sim_drivers.faults import FaultBoard
from spear_ros.ros.sim_drivers.pacing import Pacer
from spear_ros.ros.sim_drivers.task_topics import TaskTopics
from spear_ros.simulation.scene import TIMESTEP_S
from spear_ros.simulation.world import World

_POLL_HZ = 50.0
_SLOW_S = 0.02
_CAMERA_PRIORITY = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class SimParameters:
    """ROS parameters of this node beside the wiring."""

    seed: int = field(default=0, metadata={'description': 'first scene, and noise of the cameras'})
    family: str = field(
        default='', metadata={'description': 'kind of task: touch, push, pick, put; empty = any'}
    )
    cameras: bool = field(
        default=True, metadata={'description': 'render; false for tests of the robot side'}
    )
    compressed: bool = field(
        default=False, metadata={'description': 'publish <topic>/compressed as well'}
    )
    faults: tuple[str, ...] = field(
        default=('',), metadata={'description': 'commands as for /sim/fault, thrown at start'}
    )
    shadows: bool = field(
        default=False, metadata={'description': 'prettier pictures, three to six times slower'}
    )


class SimRobotNode(Node):
    """Runs the world in real time and one twin over it."""

    def __init__(self) -> None:
        super().__init__('sim_robot_node')
        wiring = declare_parameters(self, WiringParameters)
        parameters = declare_parameters(self, SimParameters)
        config = robot_config(wiring)
        if not wiring.simulated:
            config = config.simulated()
        if config.sim is None:
            raise UserError('the robot file has no "sim" section.')
        spec = get_robot(config.model, config.gripper)
        self.world = World(spec, config.gripper, seed=parameters.seed, shadows=parameters.shadows)
        self.world.reset_scene(parameters.seed, parameters.family)
        self.faults = FaultBoard()
        for line in filter(None, parameters.faults):
            self.faults.command(line)
        self._now = lambda: self.get_clock().now().nanoseconds
        clock = TwinClock(self._now, self.faults)
        self._twin = make_twin(self, self.world, config, self.faults, clock)
        self._topics = TaskTopics(
            self, self.world, spec.base_frame, faults=self.faults, clock=clock
        )
        self._cameras: CameraStreams | None = None
        if parameters.cameras:
            self._cameras = CameraStreams(
                self,
                self.world,
                dict(config.camera_topics),
                faults=self.faults,
                clock=clock,
                rate_hz=config.sim.camera_rate_hz,
                encoding=config.sim.encoding,
                also_compressed=parameters.compressed,
            )
        self._pacer = Pacer(1.0 / config.sim.joint_rate_hz)
        self._substeps = max(1, round(self._pacer.period_s / TIMESTEP_S))
        self.create_timer(1.0 / _POLL_HZ, self._twin.poll)
        self._diagnostics = Diagnostics(self, f'simulated {spec.name}', self._diagnose)
        self._failure = ''
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run_physics, name='physics')]
        if self._cameras is not None:
            self._threads.append(threading.Thread(target=self._run_cameras, name='cameras'))
        for thread in self._threads:
            thread.start()
        self.get_logger().info(f'simulated {spec.name} with {config.gripper} is up')

    def close(self) -> None:
        """End the threads."""
        self._stop.set()
        for thread in self._threads:
            thread.join(5.0)
        self._twin.close()

    def _run_physics(self) -> None:
        while not self._stop.is_set():
            self.world.step(self._substeps)
            self._twin.publish(self._now())
            self._pacer.wait()

    def _run_cameras(self) -> None:
        assert self._cameras is not None
        try:
            ordinary_priority()  # for the renderer's own threads: a picture may be late
            self._cameras.open()
            if realtime_wanted():
                # Python's lock, held by a thread that waits for a core, would delay the physics.
                raise_priority(_CAMERA_PRIORITY)
            self._cameras.run(self._stop)
        except UserError as error:
            # Without OpenGL the robot side still works; say once what is missing.
            self._failure = str(error)
            self.get_logger().error(self._failure)

    def _diagnose(self) -> list[Diagnosis]:
        worst = self._pacer.take_worst()
        level = WARN if worst > _SLOW_S else OK
        text = 'slower than real time' if worst > _SLOW_S else 'real time'
        physics = Diagnosis(
            'physics', level, text, {'worst_delay_s': worst, 'lag_s': self._pacer.lag_s}
        )
        if self._cameras is None:
            return [physics]
        cameras = Diagnosis(
            'cameras',
            ERROR if self._failure else OK,
            self._failure,
            {'frames': self._cameras.frames, 'worst_delay_s': self._cameras.take_worst_delay()},
        )
        return [physics, cameras]


def make_twin(
    node: Node, world: World, config: RobotConfig, faults: FaultBoard, clock: TwinClock
) -> Twin:
    """Build the twin of the configured driver family.

    Raises:
        UserError: the driver's messages are not installed.
    """
    if config.family == 'franka':
        from spear_ros.ros.sim_drivers.franka import FrankaTwin

        return FrankaTwin(node, world, world.robot, config, faults=faults, clock=clock)
    from spear_ros.ros.sim_drivers.widowx import WidowxTwin

    return WidowxTwin(node, world, world.robot, config, faults=faults, clock=clock)


def main(args: list[str] | None = None) -> int:
    """Entry point."""
    prepare_process()  # a real driver has a computer, or real-time priority, of its own
    return run_node(SimRobotNode, args)


if __name__ == '__main__':
    sys.exit(main())
