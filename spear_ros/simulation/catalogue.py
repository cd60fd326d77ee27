"""The things on the simulated table: colours, shapes and sizes, by name. Pure data, no mujoco.

An object is called ``<colour>_<shape>``, such as ``red_cube``; the name is all that an observer
gets besides its pose, so sizes are a function of the shape (and of the robot's scale) with a small
variation that nobody is told, as on a real table.
"""

from dataclasses import dataclass

from spear_ros.core.errors import UserError

TABLE_Z_M = 0.0
"""Both simulated arms stand on the table: its top is z = 0 of the base frame. (A RobotSpec's table
height is the lowest that any set-up may have.)"""

COLOURS: dict[str, tuple[float, float, float]] = {
    'red': (0.80, 0.10, 0.09),
    'green': (0.12, 0.55, 0.18),
    'blue': (0.10, 0.22, 0.72),
    'yellow': (0.92, 0.78, 0.10),
    'orange': (0.93, 0.45, 0.07),
    'purple': (0.45, 0.16, 0.60),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes in metres at scale 1."""

    name: str
    half_extents: tuple[float, float, float]
    """Half sizes of the upright shape; radius twice and half height for round ones."""
    receptacle: bool = False
    floor_m: float = 0.0
    """Receptacles: height of the surface that things come to rest on, above the table."""
    inner_radius_m: float = 0.0
    """Receptacles: how far from the centre an object's centre may lie and still be on it."""
    pushable: bool = True
    rolls: bool = False
    fold: int = 1
    """Rotations about the vertical by 2 pi / fold look the same; 0 = every rotation."""

    @property
    def radius_m(self) -> float:
        """Radius of the circle around its footprint."""
        x, y, _ = self.half_extents
        return x if self.fold == 0 else (x * x + y * y) ** 0.5


SHAPES: dict[str, Shape] = {
    s.name: s
    for s in (
        Shape('cube', (0.0205, 0.0205, 0.0205), fold=4),
        Shape('block', (0.034, 0.018, 0.018), fold=2),
        Shape('cylinder', (0.0205, 0.0205, 0.028), fold=0),
        Shape('ball', (0.022, 0.022, 0.022), fold=0, rolls=True, pushable=False),
        Shape('plate', (0.075, 0.075, 0.006), True, 0.012, 0.055, pushable=False, fold=0),
        Shape('bowl', (0.070, 0.070, 0.0175), True, 0.006, 0.050, pushable=False, fold=0),
        Shape('tray', (0.072, 0.072, 0.011), True, 0.006, 0.055, pushable=False, fold=4),
    )
}
GRASPABLE = tuple(s.name for s in SHAPES.values() if not s.receptacle)
RECEPTACLES = tuple(s.name for s in SHAPES.values() if s.receptacle)

SIZE_VARIATION = (0.94, 0.965, 0.99, 1.01, 1.035, 1.06)
"""Sizes of the graspable slots of the model, relative to the catalogue."""
N_GRASPABLE_SLOTS = len(SIZE_VARIATION)
TALLEST_M = 2 * max(s.half_extents[2] for s in SHAPES.values()) * max(SIZE_VARIATION)
"""Height of the tallest thing on a table, at scale 1."""

HELD_OUT_COMBINATIONS = frozenset(
    {
        ('red', 'cylinder'),
        ('green', 'ball'),
        ('blue', 'cube'),
        ('yellow', 'block'),
        ('purple', 'plate'),
        ('orange', 'bowl'),
    }
)
"""Colour and shape pairs that no training scene contains: asked for in the held-out variant."""


def object_name(colour: str, shape: str) -> str:
    """Name of an object in poses, messages and instructions (with a space there)."""
    return f'{colour}_{shape}'


def split_name(name: str) -> tuple[str, Shape]:
    """Colour and shape of an object called ``name``.

    Raises:
        UserError: not a name of this catalogue.
    """
    colour, _, shape = name.partition('_')
    if colour not in COLOURS or shape not in SHAPES:
        raise UserError(
            f'object "{name}" is not a known colour and shape; colours: {", ".join(COLOURS)}; '
            f'shapes: {", ".join(SHAPES)}.'
        )
    return colour, SHAPES[shape]
