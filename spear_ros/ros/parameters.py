"""ROS parameters from a dataclass: name, type, default, description and range in one place.

Field metadata: ``description`` (text), ``min`` and ``max`` (numbers), ``read_only`` (default
true: what a running node cannot honour must not look changeable).
"""

import dataclasses
from typing import Any, TypeVar, get_type_hints

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node

from spear_ros.core.errors import UserError

T = TypeVar('T')

_EXAMPLES = {float: '1.0', int: '1', bool: 'true', str: '"text"'}


def declare_parameters(node: Node, cls: type[T]) -> T:
    """Declare every field of the dataclass ``cls`` and return an instance with the values set.

    Supported types: bool, int, float, str, ``tuple[str, ...]`` and ``tuple[float, ...]``.

    Raises:
        UserError: a value has the wrong type or lies outside its range.
    """
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for f in dataclasses.fields(cls):  # type: ignore[arg-type]
        default: Any = f.default
        is_tuple = isinstance(default, tuple)
        if not node.has_parameter(f.name):
            try:
                node.declare_parameter(
                    f.name, list(default) if is_tuple else default, _descriptor(f)
                )
            except InvalidParameterTypeException:
                example = _EXAMPLES.get(hints[f.name], 'a list')
                raise UserError(
                    f'parameter {f.name}: the value has the wrong type; expected '
                    f'{getattr(hints[f.name], "__name__", hints[f.name])}, write it like {example}.'
                ) from None
            except InvalidParameterValueException as error:
                raise UserError(
                    f'parameter {f.name}: {error} (allowed: {f.metadata.get("min")} to '
                    f'{f.metadata.get("max")}).'
                ) from None
        value = node.get_parameter(f.name).value
        values[f.name] = tuple(value or ()) if is_tuple else value
    return cls(**values)


def _descriptor(f: 'dataclasses.Field[Any]') -> ParameterDescriptor:
    descriptor = ParameterDescriptor(
        description=f.metadata.get('description', ''),
        read_only=f.metadata.get('read_only', True),
    )
    low, high = f.metadata.get('min'), f.metadata.get('max')
    if low is not None and high is not None:
        if isinstance(f.default, float):
            descriptor.floating_point_range = [
                FloatingPointRange(from_value=float(low), to_value=float(high))
            ]
        else:
            descriptor.integer_range = [
                IntegerRange(from_value=int(low), to_value=int(high), step=1)
            ]
    return descriptor
