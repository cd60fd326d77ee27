"""Strict YAML (or JSON) to frozen dataclass: the only configuration reader of the house.

A field's type says what is accepted; an unknown key, a missing one, a wrong type is a
:class:`~spear_ros.core.errors.UserError` that names the file, the dotted key, the value and, for a
misspelling, the closest field. Ranges are checked by each dataclass in ``__post_init__``.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from spear_ros.core.errors import UserError

T = TypeVar('T')

MAX_CONFIG_BYTES = 1 << 20


def load_yaml(path: Path | str, cls: type[T]) -> T:
    """Read ``path`` into an instance of the dataclass ``cls``.

    Raises:
        UserError: the file is missing, too large, not YAML, or does not fit ``cls``.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise UserError(
                f'{path}: {path.stat().st_size} bytes is too large for a configuration file '
                f'(limit {MAX_CONFIG_BYTES}); is this the right file?'
            )
        data = yaml.safe_load(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise UserError(
            f'{path}: cannot read the configuration file ({error.strerror}); check the path.'
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        text = ' '.join(str(error).split())
        raise UserError(f'{path}: not valid YAML ({text}); mend the file.') from None
    return from_mapping(cls, {} if data is None else data, where=str(path))


def from_mapping(cls: type[T], data: object, where: str) -> T:
    """Build the dataclass ``cls`` from a mapping; ``where`` is the prefix of error texts."""
    if not isinstance(data, Mapping):
        raise UserError(
            f'{where}: expected a mapping with the keys of {cls.__name__}, got {_name(data)}.'
        )
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.5)
            hint = f'did you mean "{near[0]}"?' if near else f'known keys: {", ".join(fields)}.'
            raise UserError(f'{where}: unknown key "{key}"; {hint}')
    values: dict[str, Any] = {}
    for name, f in fields.items():
        if name in data:
            values[name] = _convert(hints[name], data[name], f'{where}: {name}')
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise UserError(f'{where}: the key "{name}" is missing; add it.')
    try:
        return cls(**values)
    except UserError as error:
        raise UserError(f'{where}: {error}') from None


def to_mapping(value: object) -> Any:
    """Turn a dataclass into plain dicts, lists and scalars that :func:`from_mapping` accepts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_mapping(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_mapping(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_mapping(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return value


def parse_value(text: str, where: str) -> Any:
    """Read one value as YAML does, for ``key=value`` on a command line.

    Raises:
        UserError: it is not YAML.
    """
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = ' '.join(str(error).split())[:100]
        raise UserError(f'{where}: the value {text!r} cannot be read ({reason}).') from None


def to_yaml(value: object) -> str:
    """A dataclass (or plain value) as the YAML that :func:`load_yaml` reads."""
    return str(yaml.safe_dump(to_mapping(value), sort_keys=False))


def _convert(hint: Any, value: object, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(args, value, where)
    if origin is typing.Literal:
        if value not in args:
            options = ', '.join(repr(a) for a in args)
            raise UserError(f'{where}: {value!r} is not one of {options}.')
        return value
    if origin in (tuple, list):
        return _convert_sequence(origin, args, value, where)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise UserError(f'{where}: expected a mapping, got {_name(value)}.')
        return {
            _convert(args[0], k, where): _convert(args[1], v, f'{where}.{k}')
            for k, v in value.items()
        }
    if dataclasses.is_dataclass(hint):
        return from_mapping(hint, value, where)  # type: ignore[arg-type]
    return _convert_scalar(hint, value, where)


def _convert_union(args: tuple[Any, ...], value: object, where: str) -> Any:
    if value is None and type(None) in args:
        return None
    errors = []
    for option in args:
        if option is not type(None):
            try:
                return _convert(option, value, where)
            except UserError as error:
                errors.append(error)
    raise errors[0]


def _convert_sequence(origin: Any, args: tuple[Any, ...], value: object, where: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise UserError(f'{where}: expected a list, got {_name(value)}.')
    if origin is tuple and not (len(args) == 2 and args[1] is Ellipsis):
        if len(value) != len(args):
            raise UserError(f'{where}: expected {len(args)} values, got {len(value)}.')
        return tuple(
            _convert(a, v, f'{where}[{i}]')
            for i, (a, v) in enumerate(zip(args, value, strict=True))
        )
    return origin(_convert(args[0], v, f'{where}[{i}]') for i, v in enumerate(value))


def _convert_scalar(hint: Any, value: object, where: str) -> Any:
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if value != value or value in (float('inf'), float('-inf')):
            raise UserError(f'{where}: {value!r} is not a finite number.')
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint is Path and isinstance(value, str):
        return Path(value).expanduser()
    if hint in (bool, str) and isinstance(value, hint):
        return value
    raise UserError(f'{where}: expected {hint.__name__}, got {_name(value)}.')


def _name(value: object) -> str:
    return f'{type(value).__name__} {value!r}'[:80]
