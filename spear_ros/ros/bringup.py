"""The one list of processes that a system consists of.

The launch files, ``spear demo`` and the cross-process tests all start exactly what
:func:`processes` returns, so that what CI exercises is what ``ros2 launch`` starts.
"""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from spear_ros.core.errors import UserError
from spear_ros.core.resources import share_file

ParameterValue = bool | int | float | str

ROBOTS = ('franka', 'widowx')


@dataclass(frozen=True, kw_only=True, slots=True)
class BringupOptions:
    """What an operator chooses; each field is a launch argument of the same name."""

    robot: str = field(default='franka', metadata={'help': 'franka or widowx'})
    sim: bool = field(default=False, metadata={'help': 'start the simulated robot and cameras'})
    bag: str = field(default='', metadata={'help': 'replay this bag instead of live drivers'})
    map: str = field(default='', metadata={'help': 'topic map (MAP.yaml) of the bag'})
    policy: str = field(default='spear1', metadata={'help': 'spear1, scripted, recorded, hold'})
    checkpoint: str = field(default='', metadata={'help': 'checkpoint folder of the policy'})
    untrained: str = field(
        default='', metadata={'help': 'size of an untrained SPEAR-1, for tests: spear1_debug'}
    )
    device: str = field(default='auto', metadata={'help': 'auto, cpu, cuda, cuda:1'})
    seed: int = field(default=0, metadata={'help': 'seed of the policy noise and of the scene'})
    gripper: str = field(
        default='', metadata={'help': 'franka_hand or robotiq_2f85; empty = as in config/robots'}
    )
    speed_scale: float = field(default=1.0, metadata={'help': '0.05 to 1, multiplies velocities'})
    realtime_chunking: bool = field(
        default=False, metadata={'help': 'hand committed actions back to the policy'}
    )
    record: str = field(default='', metadata={'help': 'folder for a whole-run bag; empty = none'})
    flight: str = field(
        default='', metadata={'help': 'folder for flight recordings of faults; empty = none'}
    )
    autostart: bool = field(
        default=True, metadata={'help': 'configure and activate the nodes without being asked'}
    )
    robot_config: str = field(
        default='', metadata={'help': 'path of a robot YAML instead of config/robots/<robot>.yaml'}
    )

    def __post_init__(self) -> None:
        if self.robot not in ROBOTS and not self.robot_config:
            raise UserError(f'robot: "{self.robot}" is not one of {", ".join(ROBOTS)}.')
        if not 0.05 <= self.speed_scale <= 1.0:
            raise UserError(f'speed_scale: {self.speed_scale} must lie between 0.05 and 1.')
        if self.sim and self.bag:
            raise UserError('sim and bag exclude each other; choose one source of inputs.')
        if bool(self.bag) != bool(self.map):
            raise UserError('bag and map belong together; give both or none.')


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessSpec:
    """One operating-system process."""

    name: str
    """Node name and log name."""
    executable: str
    """Console script of this package, and the module ``spear_ros.ros.nodes.<executable>``."""
    parameters: Mapping[str, ParameterValue]
    environment: Mapping[str, str]
    """Added to the inherited environment."""


def processes(options: BringupOptions) -> list[ProcessSpec]:
    """Return the processes of a system, in the order in which to start them."""
    environment = transport_environment()
    common: dict[str, ParameterValue] = {
        'robot': options.robot_config or options.robot,
        'gripper': options.gripper,
        'simulated': options.sim,
        'autostart': options.autostart,
    }
    if options.bag:
        common['use_sim_time'] = True

    def spec(name: str, parameters: dict[str, ParameterValue], **extra: str) -> ProcessSpec:
        return ProcessSpec(
            name=name,
            executable=name,
            parameters=parameters,
            environment={**environment, **extra},
        )

    specs = []
    if options.sim:
        parameters = {**_without(common, 'autostart'), 'seed': options.seed}
        specs.append(
            spec('sim_robot_node', parameters, MUJOCO_GL=os.environ.get('MUJOCO_GL', 'egl'))
        )
    specs.append(spec('executor_node', {**common, **_executor_parameters(options)}))
    specs.append(spec('policy_node', {**common, **_policy_parameters(options)}))
    if options.record or options.flight:
        folders: dict[str, ParameterValue] = {'record': options.record, 'flight': options.flight}
        specs.append(spec('recorder_node', {**_without(common, 'autostart'), **folders}))
    if options.bag:
        recording: dict[str, ParameterValue] = {
            'bag': str(Path(options.bag).expanduser().resolve()),
            'map': str(Path(options.map).expanduser().resolve()),
        }
        wiring = _without(common, 'autostart', 'use_sim_time')
        specs.append(spec('replay_node', {**wiring, **recording}))
    return specs


def _executor_parameters(options: BringupOptions) -> dict[str, ParameterValue]:
    return {'speed_scale': options.speed_scale, 'preview_only': bool(options.bag)}


def _policy_parameters(options: BringupOptions) -> dict[str, ParameterValue]:
    return {
        'policy': options.policy,
        'checkpoint': options.checkpoint,
        'untrained': options.untrained,
        'device': options.device,
        'seed': options.seed,
        'realtime_chunking': options.realtime_chunking,
    }


def transport_environment() -> dict[str, str]:
    """Return the environment that carries 640x480 images without loss on one machine.

    Fast DDS's default shared-memory segment is smaller than one such image, which loses a third of
    them; the shipped profile enlarges it. A profile, another RMW or a discovery range that the
    operator chose himself is left alone.
    """
    environment: dict[str, str] = {}
    rmw = os.environ.get('RMW_IMPLEMENTATION', 'rmw_fastrtps_cpp')
    if rmw.startswith('rmw_fastrtps') and 'FASTRTPS_DEFAULT_PROFILES_FILE' not in os.environ:
        profile = share_file('config/dds/shared_memory.xml')
        environment['FASTRTPS_DEFAULT_PROFILES_FILE'] = str(profile)
    return environment


def option_help() -> dict[str, tuple[ParameterValue, str]]:
    """Return (default, help) of every option, for launch arguments and command lines."""
    return {f.name: (f.default, f.metadata['help']) for f in dataclasses.fields(BringupOptions)}


def options_from_strings(values: Mapping[str, str]) -> BringupOptions:
    """Build options from launch arguments, which are all text.

    Raises:
        UserError: a value that does not fit the option's type.
    """
    typed: dict[str, ParameterValue] = {}
    for f in dataclasses.fields(BringupOptions):
        if f.name in values:
            typed[f.name] = _parse(f.name, f.default, values[f.name])
    return BringupOptions(**typed)  # type: ignore[arg-type]


def _parse(name: str, default: ParameterValue, text: str) -> ParameterValue:
    if isinstance(default, bool):
        lowered = text.strip().lower()
        if lowered not in ('true', 'false', '1', '0'):
            raise UserError(f'{name}: "{text}" must be true or false.')
        return lowered in ('true', '1')
    if isinstance(default, str):
        return text
    try:
        return type(default)(text)
    except ValueError:
        raise UserError(f'{name}: "{text}" is not a number.') from None


def _without(values: Mapping[str, ParameterValue], *names: str) -> dict[str, ParameterValue]:
    return {k: v for k, v in values.items() if k not in names}
