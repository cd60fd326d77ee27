"""Speed of the simulator: physics, cameras, and what a twin costs in real time.

    python benchmarks/simulator.py [--robot fr3] [--seconds 10]

Last line: one JSON object. ``twin_core_share`` is the CPU time (all threads) of one simulated
second with physics and both 640x480 cameras at 15 Hz, in cores. ``step_2ms_error_mm`` compares the
robot's motion at the 2 ms step with the same motion at 0.5 ms.
"""

import argparse
import json
import os
import resource
import time

os.environ.setdefault('OMP_NUM_THREADS', '1')

import numpy as np

from spear_ros.robots.kinematics import InverseKinematics
from spear_ros.robots.registry import get_robot
from spear_ros.simulation import world as world_module
from spear_ros.simulation.world import World

CAMERA_HZ = 15


def cpu_s():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def timed(function, repeats):
    wall, cpu = time.perf_counter(), cpu_s()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - wall) / repeats, (cpu_s() - cpu) / repeats


def measure(name, seconds):
    world = World(get_robot(name))
    world.reset_scene(3, 'put')
    world.step(100)
    step_s, _ = timed(lambda: world.step(500), int(seconds))
    result = {'robot': name, 'gripper': world.gripper.name}
    result['physics_steps_per_s'] = round(500 / step_s)
    result['physics_real_time_factor'] = round(1 / step_s, 1)
    for camera in ('external', 'wrist'):
        world.render(camera)
        wall, cpu = timed(lambda c=camera: world.render(c), int(seconds) * CAMERA_HZ)
        result[f'{camera}_fps'] = round(1 / wall)
        result[f'{camera}_cpu_ms'] = round(1e3 * cpu, 2)

    def one_second():
        for _ in range(CAMERA_HZ):
            world.step(33)
            world.render('external')
            world.render('wrist')

    result['twin_core_share'] = round(timed(one_second, int(seconds))[1], 3)
    result['scene_reset_ms'] = round(1e3 * timed(lambda: world.reset_scene(7, 'pick'), 50)[0], 2)
    world.close()
    result['step_2ms_error_mm'] = round(step_error_mm(name), 3)
    return result


def step_error_mm(name):
    """Largest distance between one motion at two physics steps."""
    tracks = [motion(name, 0.002), motion(name, 0.0005)]
    return 1e3 * float(np.abs(tracks[0] - tracks[1]).max())


def motion(name, timestep):
    """Positions every 40 ms of a swift circle of 8 cm, physics at ``timestep``."""
    world_module.TIMESTEP_S = timestep
    try:
        world = World(get_robot(name))
        world.model.opt.timestep = timestep
        T, q, track = world.T_base_ee, world.q_rad.copy(), []
        start = T[:3, 3].copy()
        solver = InverseKinematics(world.robot)
        for k in range(75):
            angle = 2 * np.pi * k / 50
            T[:3, 3] = start + 0.04 * np.array([np.cos(angle) - 1, np.sin(angle), 0])
            q = solver.solve(T, q).q_rad
            if world.robot.family == 'franka':
                world.set_target_pose(T)
            else:
                world.set_joint_targets(q, (50, 20))
            world.step(round(0.04 / timestep))
            track.append(world.T_base_ee[:3, 3])
        return np.array(track)
    finally:
        world_module.TIMESTEP_S = 0.002


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--robot', help='default: fr3 and wx250s')
    parser.add_argument('--seconds', type=float, default=10)
    arguments = parser.parse_args()
    robots = [arguments.robot] if arguments.robot else ['fr3', 'wx250s']
    print(json.dumps([measure(name, arguments.seconds) for name in robots]))
