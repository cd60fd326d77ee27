"""What a picture shows, where that is known: names and places of its objects.

Simulated demonstrations carry it beside each sample (``objects`` in its facts), for training
losses that ask where things are; recordings of real robots do not have it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from spear_ros.core.errors import UserError

OBJECTS, TARGET, RECEPTACLE = 'objects', 'target', 'receptacle'
"""Names of the facts: JSON of :func:`pack_objects`; names of the objects of the instruction."""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class SeenObject:
    """One object of a scene."""

    name: str
    """Plain words, such as ``red cube``."""
    p_base: tuple[float, float, float]
    """Centre, m, base frame."""
    external: Point | None
    """Centre in the stored picture, shares of its width and height; None = outside of it. What
    hides it is not asked."""
    wrist: Point | None


def pack_objects(objects: Sequence[SeenObject]) -> str:
    """One line of JSON."""
    rows = [
        [o.name, [round(v, 4) for v in o.p_base], _rounded(o.external), _rounded(o.wrist)]
        for o in objects
    ]
    return json.dumps(rows, separators=(',', ':'))


def read_objects(text: str) -> list[SeenObject]:
    """Read :func:`pack_objects`.

    Raises:
        UserError: not of that form.
    """
    try:
        return [
            SeenObject(str(name), (float(x), float(y), float(z)), _point(external), _point(wrist))
            for name, (x, y, z), external, wrist in json.loads(text)
        ]
    except (ValueError, TypeError) as error:
        raise UserError(
            f'{OBJECTS} = {text[:80]!r} is not a list of [name, [x, y, z], [u, v], [u, v]] '
            f'({error}); make the demonstrations again.'
        ) from None


def _rounded(point: Point | None) -> list[float] | None:
    return None if point is None else [round(v, 4) for v in point]


def _point(value: list[float] | None) -> Point | None:
    return None if value is None else (float(value[0]), float(value[1]))
