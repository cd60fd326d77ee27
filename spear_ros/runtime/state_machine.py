"""State machine of the executor (signatures; the table follows)."""

from enum import IntEnum


class State(IntEnum):
    """States of ``ExecutorStatus.msg``, same numbers."""

    DISARMED = 0
    ARMED = 1
    RUNNING = 2
    HOLD = 3
    FAULT = 4
    HOMING = 5
