"""Checks of ``spear doctor`` that need ROS 2: packages, middleware, discovery, a robot's topics.

``ros/probe.py`` and ``ros/config.py`` are imported only where rclpy is there, so that the doctor
speaks on a machine without ROS too.
"""

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from spear_ros.cli.doctor_machine import Check, ask_child
from spear_ros.core.errors import UserError
from spear_ros.core.resources import share_file

if TYPE_CHECKING:
    from spear_ros.ros.config import RobotConfig
    from spear_ros.ros.probe import TopicReport

DISTRO = 'jazzy'
PROFILE = 'config/dds/shared_memory.xml'
PROFILE_VARIABLE = 'FASTRTPS_DEFAULT_PROFILES_FILE'
DISCOVERY_TIMEOUT_S = 15.0
OUR_TYPES = (
    'msg/ActionChunk', 'msg/ExecutorStatus', 'msg/ObjectPoses', 'msg/PolicyStatus',
    'msg/StreamStatus', 'msg/TaskState', 'srv/ResetScene', 'srv/SetInstruction',
)  # fmt: skip
DRIVER_TYPES = {
    'franka_msgs': ('msg/FrankaRobotState', 'action/Grasp', 'action/Move', 'action/ErrorRecovery'),
    'interbotix_xs_msgs': ('msg/JointGroupCommand', 'srv/OperatingModes', 'srv/TorqueEnable'),
    'control_msgs': ('action/ParallelGripperCommand', 'action/FollowJointTrajectory'),
    'controller_manager_msgs': ('msg/ControllerManagerActivity', 'srv/SwitchController'),
}
FAMILY_PACKAGES = {
    'franka': ('franka_msgs', 'control_msgs', 'controller_manager_msgs'),
    'widowx': ('interbotix_xs_msgs',),
}
ENTER_ROS = 'make venv, or source /opt/ros/jazzy/setup.bash and your workspace'


def check_ros() -> Check:
    """Rclpy, the distro and the middleware."""
    if importlib.util.find_spec('rclpy') is None:
        return Check(
            name='ROS 2', state='missing', detail='rclpy is not importable', mend=ENTER_ROS
        )
    distro = os.environ.get('ROS_DISTRO', '')
    if distro not in ('', DISTRO):
        return Check(
            name='ROS 2',
            state='missing',
            detail=f'{distro} is sourced; this package is for Jazzy',
            mend='open a terminal without it, or source /opt/ros/jazzy/setup.bash',
        )
    try:
        from spear_ros.ros.probe import rmw_implementation

        rmw = rmw_implementation()
    except (ImportError, OSError, RuntimeError) as error:
        return Check(
            name='ROS 2',
            state='missing',
            detail=f'rclpy does not load: {str(error).splitlines()[0][:120]}',
            mend='a library path of another environment may be inherited: env -u '
            '_ROS_WHEELS_BOOTSTRAP_COMPLETE -u LD_LIBRARY_PATH spear doctor',
        )
    source = f'{distro} is sourced' if distro else f'Jazzy from wheels in {sys.prefix}'
    return Check(name='ROS 2', state='ok', detail=f'{source}, {rmw}')


def _is_subset(folder: Path, package: str) -> bool:
    """Return whether the package under this Python folder was built from our driver subset."""
    for parent in folder.parents:
        manifest = parent / 'share' / package / 'package.xml'
        if manifest.is_file():
            text = ElementTree.parse(manifest).getroot().findtext('description') or ''
            return 'that spear_ros uses' in text
    return False


def check_our_messages() -> Check:
    """spear_msgs: importable, and built from the definitions of this version."""
    from spear_ros.ros.probe import load_message_package

    try:
        folder = load_message_package('spear_msgs', OUR_TYPES)
    except (ImportError, OSError, AttributeError) as error:
        return Check(
            name='spear_msgs',
            state='missing',
            detail=f'not usable: {error}',
            mend='make venv; in a colcon workspace: colcon build --base-paths src '
            'src/spear_ros/interfaces/spear_msgs',
        )
    try:
        sources = share_file('interfaces/spear_msgs')
    except UserError:
        return Check(name='spear_msgs', state='ok', detail=str(folder))  # no clone to compare with
    old = [p.name for p in sorted(sources.glob('*/*')) if _differs(p, folder)]
    if old:
        return Check(
            name='spear_msgs',
            state='missing',
            detail=f'built before {", ".join(old)} changed',
            mend='make venv (or colcon build again)',
        )
    return Check(name='spear_msgs', state='ok', detail=str(folder))


def _differs(source: Path, folder: Path) -> bool:
    for parent in folder.parents:
        installed = parent / 'share/spear_msgs' / source.parent.name / source.name
        if installed.is_file():
            return installed.read_text() != source.read_text()
    return False


def check_driver_messages(family: str) -> Check:
    """Message packages of the drivers; those of the chosen robot's family are essential."""
    from spear_ros.ros.probe import load_message_package

    words, absent = [], []
    for package, types in DRIVER_TYPES.items():
        try:
            folder = load_message_package(package, types)
        except (ImportError, OSError, AttributeError):
            absent.append(package)
            continue
        words.append(f'{package} ({"subset" if _is_subset(folder, package) else "real"})')
    detail = ', '.join([*words, *(f'{p} absent' for p in absent)])
    if not absent:
        return Check(name='driver messages', state='ok', detail=detail)
    essential = set(absent) & set(FAMILY_PACKAGES.get(family, ()))
    return Check(
        name='driver messages',
        state='missing' if essential else 'warn',
        detail=detail,
        mend='make venv builds what we use of them; on a robot workstation build the real ones',
    )


def check_profile() -> Check:
    """The shared-memory profile, without which Fast DDS loses pictures."""
    rmw = os.environ.get('RMW_IMPLEMENTATION', 'rmw_fastrtps_cpp')
    if not rmw.startswith('rmw_fastrtps'):
        return Check(
            name='picture transport',
            state='warn',
            detail=f'{rmw}: measured with Fast DDS only',
            mend='unset RMW_IMPLEMENTATION, or measure the loss of pictures yourself',
        )
    value = os.environ.get(PROFILE_VARIABLE, '')
    if value and not Path(value).is_file():
        return Check(
            name='picture transport',
            state='missing',
            detail=f'{PROFILE_VARIABLE} names {value}, which is not there',
            mend=f'unset {PROFILE_VARIABLE}',
        )
    if value:
        return Check(name='picture transport', state='ok', detail=f'profile {value}')
    return Check(
        name='picture transport',
        state='warn',
        detail='no Fast DDS profile in this shell; ours is set by the launch files and spear demo',
        mend=f'for camera drivers too: export {PROFILE_VARIABLE}={share_file(PROFILE)}',
    )


def check_domain() -> Check:
    """ROS_DOMAIN_ID and how far discovery reaches."""
    from spear_ros.ros.probe import domain

    number, reach = domain()
    detail = f'ROS_DOMAIN_ID {number}, discovery range {reach}'
    if number == 0 and reach == 'SUBNET':
        return Check(
            name='domain',
            state='warn',
            detail=f'{detail}: every robot on this network hears every other',
            mend='export ROS_DOMAIN_ID=<1-101, one per robot>, or '
            'ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST',
        )
    return Check(name='domain', state='ok', detail=detail)


def check_discovery() -> Check:
    """Two processes of this machine find each other."""
    from spear_ros.ros.probe import seconds_until_heard

    heard_s = seconds_until_heard(DISCOVERY_TIMEOUT_S)
    if heard_s is None:
        return Check(
            name='discovery',
            state='missing',
            detail=f'two processes did not hear each other within {DISCOVERY_TIMEOUT_S:.0f} s',
            mend='check ROS_AUTOMATIC_DISCOVERY_RANGE (OFF hears nothing), the firewall and '
            f'{PROFILE_VARIABLE}',
        )
    return Check(name='discovery', state='ok', detail=f'two processes talk after {heard_s:.1f} s')


def _topic_check(label: str, report: 'TopicReport', max_age_s: float) -> Check:
    name = f'topic {label}'
    if not report.type_name:
        return Check(
            name=name,
            state='missing',
            detail=f'{report.topic}: nobody publishes it',
            mend="start the driver, or correct the topic in the robot's YAML",
        )
    if report.problem:
        return Check(name=name, state='missing', detail=report.problem, mend=ENTER_ROS)
    if not report.count:
        return Check(
            name=name,
            state='missing',
            detail=f'{report.topic}: {report.publishers} publisher, but no message arrives',
            mend=f'check the driver, the network and {PROFILE_VARIABLE}',
        )
    age = report.age_s
    words = '' if age is None else f', age {1e3 * age:.0f} ms'
    detail = f'{report.topic} {report.type_name} {report.rate_hz:.1f} Hz{words}'
    if report.publishers > 1:
        return Check(
            name=name,
            state='warn',
            detail=f'{detail}, {report.publishers} publishers',
            mend='stop all but one of them',
        )
    if age is not None and abs(age) > 1.0:
        return Check(
            name=name,
            state='missing',
            detail=f'{detail}: the stamps are not of this clock',
            mend='synchronise the clocks (chrony), or let the driver stamp with system time',
        )
    if age is not None and age > max_age_s:
        return Check(
            name=name,
            state='missing',
            detail=f'{detail}: older than max_age_s = {max_age_s:g} allows',
            mend="find the delay, or raise max_age_s in the robot's YAML",
        )
    return Check(name=name, state='ok', detail=detail)


def load_robot(robot: str, gripper: str) -> 'RobotConfig':
    """Return the wiring of a robot; raises UserError for an unknown name or a faulty file."""
    from spear_ros.ros.config import WiringParameters, robot_config

    path = robot if robot.endswith(('.yaml', '.yml')) else ''
    name = 'franka' if path else robot
    return robot_config(WiringParameters(robot=name, robot_config=path, gripper=gripper))


def check_topics(config: 'RobotConfig', seconds: float) -> Iterator[Check]:
    """Yield one row per camera and joint topic: type, rate and age."""
    from spear_ros.ros.probe import observe

    wanted = {name: (c.topic, c.max_age_s) for name, c in config.camera_topics.items()}
    wanted['arm'] = (config.arm.topic, config.arm.max_age_s)
    wanted['gripper'] = (config.gripper_state.topic, config.gripper_state.max_age_s)
    reports = observe({label: topic for label, (topic, _) in wanted.items()}, 6.0, seconds)
    for report, (label, (_, max_age_s)) in zip(reports, wanted.items(), strict=True):
        yield _topic_check(label, report, max_age_s)


def check_checkpoint(path: Path) -> Check:
    """The files of a checkpoint folder: complete, of the right kind, sizes as the headers say."""
    code = (
        'import json, sys\n'
        'from spear_ros.core.errors import UserError\n'
        'from spear_ros.checkpoints.spear1 import describe_checkpoint\n'
        'try:\n'
        f'    answer = {{"text": describe_checkpoint({str(path)!r})}}\n'
        'except UserError as error:\n'
        '    answer = {"error": str(error)}\n'
        'print(json.dumps(answer))\n'
    )
    if importlib.util.find_spec('torch') is None:
        return Check(
            name='checkpoint',
            state='warn',
            detail='cannot be examined without torch',
            mend='make venv',
        )
    answer, problem = ask_child(code)
    if problem or 'error' in answer:
        return Check(
            name='checkpoint',
            state='missing',
            detail=str(answer.get('error', problem)),
            mend='models/README.md says where checkpoints come from and how they are checked',
        )
    return Check(name='checkpoint', state='ok', detail=str(answer['text']))


def ros_checks(config: 'RobotConfig | None', seconds: float) -> Iterator[Check]:
    """Yield all rows of this module; only the first one where ROS is absent."""
    ros = check_ros()
    yield ros
    if ros.state == 'missing':
        return
    from spear_ros.ros.bringup import transport_environment

    yield check_our_messages()
    yield check_driver_messages(config.family if config else '')
    yield check_profile()
    # From here on this process listens as the nodes do; without it, it would lose pictures itself.
    os.environ.update(transport_environment())
    yield check_domain()
    yield check_discovery()
    if config is not None:
        yield from check_topics(config, seconds)
