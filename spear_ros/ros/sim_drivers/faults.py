"""Switches for the documented faults of drivers and cameras, thrown over ``/sim/fault``.

A command is a line of text: ``<fault> [argument ...]`` switches one on, ``clear [<fault>]`` one or
all off. The names, their arguments and where each fault was seen stand in :data:`FAULTS`;
``doc/topics.md`` has the same table, pinned by a test. No ROS in here.
"""

import difflib
import threading
from dataclasses import dataclass

from spear_ros.core.errors import UserError
from spear_ros.core.types import EXTERNAL, WRIST

CAMERAS = (EXTERNAL, WRIST)


@dataclass(frozen=True, slots=True)
class FaultInfo:
    """One switch."""

    text: str
    """What the twin does, and who does it in reality."""
    camera: bool = False
    """The first argument is a camera."""
    default: float = 0.0
    """Value where none is given; the unit stands in the text."""


FAULTS: dict[str, FaultInfo] = {
    'camera_freeze': FaultInfo('same bytes, advancing stamps (hung capture thread)', True),
    'camera_drop': FaultInfo('no messages (unplugged)', True),
    'camera_delay': FaultInfo('sent the value [s] late, stamp of the exposure', True, 0.4),
    'camera_duplicate': FaultInfo('every message twice, same stamp', True),
    'camera_reorder': FaultInfo('every two messages in exchanged order', True),
    'camera_short': FaultInfo('data cut in half (broken transfer, truncated JPEG)', True),
    'camera_encoding': FaultInfo('encoding 32FC1 (a depth topic by mistake)', True),
    'camera_size': FaultInfo('header claims 100000 x 100000', True),
    'joints_drop': FaultInfo('no joint states (driver dead)'),
    'joints_freeze': FaultInfo('old positions with fresh stamps (interbotix serial error)'),
    'joints_delay': FaultInfo('stamps the value [s] old (clock of another computer)', default=0.3),
    'joints_nan': FaultInfo('joint 3 is NaN'),
    'joints_jump': FaultInfo('joint 1 is off by the value [rad]', default=0.5),
    'joints_zero_ticks': FaultInfo('all joints at -pi, fresh stamps (xs_driver read error)'),
    'joints_reorder': FaultInfo('names and positions in reversed order (legal)'),
    'joints_missing': FaultInfo('the last arm joint is missing'),
    'joints_rename': FaultInfo('arm joints of another robot'),
    'clock_skew': FaultInfo('all stamps of the twin off by the value [s]', default=5.0),
    'reflex': FaultInfo('Franka reflex: mode REFLEX, hardware unconfigured'),
    'user_stop': FaultInfo('Franka user stop pressed: mode USER_STOPPED'),
    'guiding': FaultInfo('Franka guided by hand: mode GUIDING'),
    'robot_state_silent': FaultInfo('no robot_state (broadcaster dead)'),
    'controller_inactive': FaultInfo('crisp controller deactivated'),
    'motor_error': FaultInfo(
        'WidowX Hardware_Error_Status has the value, 32 = overload', default=32
    ),
    'overload': FaultInfo('WidowX shoulder effort of the value [mA]', default=2500.0),
    'gripper_jam': FaultInfo('fingers do not move whatever is commanded'),
    'gripper_silent': FaultInfo('no gripper states'),
    'qos_mismatch': FaultInfo('commands subscribed transient local, which matches nobody'),
}


class FaultBoard:
    """The faults that are on; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._on: dict[tuple[str, str], float] = {}

    def command(self, line: str) -> str:
        """Carry out one command and return what was done.

        Raises:
            UserError: unknown fault, camera or number.
        """
        words = line.split()
        if not words:
            raise UserError('empty fault command; send "<fault> [argument]" or "clear".')
        if words[0] == 'clear':
            return self._clear(words[1:])
        info = _lookup(words[0])
        rest = words[1:]
        camera = ''
        if info.camera:
            camera = rest.pop(0) if rest else EXTERNAL
            if camera not in CAMERAS:
                raise UserError(
                    f'fault {words[0]}: {camera!r} is no camera; choose {" or ".join(CAMERAS)}.'
                )
        value = info.default
        if rest:
            try:
                value = float(rest[0])
            except ValueError:
                raise UserError(f'fault {words[0]}: {rest[0]!r} is not a number.') from None
        with self._lock:
            self._on[words[0], camera] = value
        return f'{words[0]} {camera} on'.replace('  ', ' ')

    def value(self, name: str, camera: str = '') -> float | None:
        """Return the value of a fault that is on, None for one that is off."""
        assert name in FAULTS, name
        with self._lock:
            return self._on.get((name, camera))

    def active(self, name: str, camera: str = '') -> bool:
        """Tell whether a fault is on."""
        return self.value(name, camera) is not None

    def _clear(self, names: list[str]) -> str:
        for name in names:
            _lookup(name)
        with self._lock:
            for key in list(self._on):
                if not names or key[0] in names:
                    del self._on[key]
        return f'cleared {", ".join(names) if names else "all"}'


def _lookup(name: str) -> FaultInfo:
    info = FAULTS.get(name)
    if info is None:
        near = difflib.get_close_matches(name, FAULTS, n=1, cutoff=0.4)
        hint = f'did you mean "{near[0]}"?' if near else f'known: {", ".join(FAULTS)}.'
        raise UserError(f'unknown fault {name!r}; {hint}')
    return info
