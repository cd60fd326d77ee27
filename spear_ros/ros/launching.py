"""Turns the process list of ``bringup`` into a launch description.

The launch files contain nothing but their fixed choices; arguments, defaults and help texts come
from :class:`~spear_ros.ros.bringup.BringupOptions`.
"""

from collections.abc import Mapping

from launch import LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from spear_ros.core.errors import UserError
from spear_ros.ros.bringup import (
    BringupOptions,
    ParameterValue,
    ProcessSpec,
    option_help,
    options_from_strings,
    processes,
)


def launch_description(
    fixed: Mapping[str, ParameterValue], defaults: Mapping[str, ParameterValue] | None = None
) -> LaunchDescription:
    """Build the description of one launch file.

    Args:
        fixed: options that this launch file decides; they are no arguments.
        defaults: other default values than those of BringupOptions.
    """
    arguments = []
    for name, (default, text) in option_help().items():
        if name not in fixed:
            value = (defaults or {}).get(name, default)
            arguments.append(
                DeclareLaunchArgument(name, default_value=_text(value), description=text)
            )

    def start(context: LaunchContext) -> list[object]:
        values = {a.name: LaunchConfiguration(a.name).perform(context) for a in arguments}
        values.update({name: _text(value) for name, value in fixed.items()})
        try:
            return _actions(options_from_strings(values))
        except UserError as error:
            return [LogInfo(msg=f'spear_ros: {error}'), EmitEvent(event=Shutdown(reason='error'))]

    return LaunchDescription([*arguments, OpaqueFunction(function=start)])


def _actions(options: BringupOptions) -> list[object]:
    actions: list[object] = []
    for spec in processes(options):
        node = _node(spec)
        actions.append(node)
        if spec.executable == 'replay_node':
            # The end of the bag is the end of the system; every other death is left visible, with
            # the executor holding the robot and saying why.
            actions.append(
                RegisterEventHandler(
                    OnProcessExit(
                        target_action=node,
                        on_exit=[EmitEvent(event=Shutdown(reason='the bag has been replayed'))],
                    )
                )
            )
    return actions


def _node(spec: ProcessSpec) -> Node:
    return Node(
        package='spear_ros',
        executable=spec.executable,
        name=spec.name,
        parameters=[dict(spec.parameters)],
        additional_env=dict(spec.environment),
        output='screen',
    )


def _text(value: ParameterValue) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
