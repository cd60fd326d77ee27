"""The executor's state machine: one table, nothing else decides a transition.

``TABLE[phase, event]`` is (next phase, action). A pair that is absent changes nothing; for a
request that means it is refused. The executor turns the world into events, carries out actions, and
has no ``if phase`` of its own that moves the robot.
"""

from dataclasses import dataclass
from enum import Enum, IntEnum, auto

from spear_ros.core.reasons import SILENT_REASONS, SOFT_REASONS, Reason


class State(IntEnum):
    """States of ``ExecutorStatus.msg``, same numbers."""

    DISARMED = 0
    """Nothing is sent; chunks are checked and previewed."""
    ARMED = 1
    """A constant target is sent; a valid chunk starts the motion."""
    RUNNING = 2
    """Chunks are followed."""
    HOLD = 3
    """Braked or braking; see :class:`Phase` for what may follow."""
    FAULT = 4
    """Braked or silent for a hard reason; only reset leaves it."""
    HOMING = 5
    """Moving to the start pose; chunks are ignored."""


class Phase(Enum):
    """What the table distinguishes: the states, and the three kinds of HOLD."""

    DISARMED = auto()
    ARMED = auto()
    RUNNING = auto()
    HOLD = auto()
    """For a soft reason; a valid chunk resumes."""
    LATCHED = auto()
    """HOLD for longer than the resume window, or of a way home: only arm, home or disarm leave
    it."""
    DISARMING = auto()
    """Disarm was asked for; braking, then DISARMED."""
    HOMING = auto()
    FAULT = auto()

    @property
    def state(self) -> State:
        """The state as ``ExecutorStatus.msg`` shows it."""
        return _STATES.get(self.name) or State[self.name]


_STATES = {'LATCHED': State.HOLD, 'DISARMING': State.HOLD}


class Event(Enum):
    """Everything that can happen to the state."""

    ARM = auto()
    """Request, after the preflight has passed."""
    DISARM = auto()
    STOP = auto()
    RESET = auto()
    HOME = auto()
    """Request, after the way to the start pose was found free."""
    HOMED = auto()
    """The start pose is reached."""
    CHUNK = auto()
    """A valid chunk is there and no soft reason stands against it."""
    SOFT = auto()
    HARD = auto()
    HARD_SILENT = auto()
    """A hard reason with which nothing may be sent."""
    WINDOW_OVER = auto()
    """HOLD has lasted longer than the resume window."""
    STANDSTILL = auto()
    """The target does not move."""


class Action(Enum):
    """What the executor does on a transition."""

    NONE = auto()
    ANCHOR = auto()
    """Take the measured pose as target and send it."""
    FOLLOW = auto()
    """Hand the newest chunk to the player."""
    BRAKE = auto()
    """Brake along the current motion, then keep sending the target."""
    GO_HOME = auto()
    DROP = auto()
    """Forget the target; send nothing."""
    SILENCE = auto()
    """Send nothing from now on."""


_P, _E, _A = Phase, Event, Action

TABLE: dict[tuple[Phase, Event], tuple[Phase, Action]] = {
    (_P.DISARMED, _E.ARM): (_P.ARMED, _A.ANCHOR),
    (_P.DISARMED, _E.DISARM): (_P.DISARMED, _A.DROP),
    (_P.DISARMED, _E.STOP): (_P.FAULT, _A.SILENCE),
    (_P.ARMED, _E.ARM): (_P.ARMED, _A.ANCHOR),
    (_P.ARMED, _E.CHUNK): (_P.RUNNING, _A.FOLLOW),
    (_P.ARMED, _E.HOME): (_P.HOMING, _A.GO_HOME),
    (_P.ARMED, _E.DISARM): (_P.DISARMING, _A.BRAKE),
    (_P.ARMED, _E.SOFT): (_P.HOLD, _A.BRAKE),
    (_P.ARMED, _E.STOP): (_P.FAULT, _A.BRAKE),
    (_P.ARMED, _E.HARD): (_P.FAULT, _A.BRAKE),
    (_P.ARMED, _E.HARD_SILENT): (_P.FAULT, _A.SILENCE),
    (_P.RUNNING, _E.CHUNK): (_P.RUNNING, _A.FOLLOW),
    (_P.RUNNING, _E.DISARM): (_P.DISARMING, _A.BRAKE),
    (_P.RUNNING, _E.SOFT): (_P.HOLD, _A.BRAKE),
    (_P.RUNNING, _E.STOP): (_P.FAULT, _A.BRAKE),
    (_P.RUNNING, _E.HARD): (_P.FAULT, _A.BRAKE),
    (_P.RUNNING, _E.HARD_SILENT): (_P.FAULT, _A.SILENCE),
    (_P.HOLD, _E.CHUNK): (_P.RUNNING, _A.FOLLOW),
    (_P.HOLD, _E.WINDOW_OVER): (_P.LATCHED, _A.NONE),
    (_P.HOLD, _E.ARM): (_P.ARMED, _A.ANCHOR),
    (_P.HOLD, _E.HOME): (_P.HOMING, _A.GO_HOME),
    (_P.HOLD, _E.DISARM): (_P.DISARMING, _A.BRAKE),
    (_P.HOLD, _E.SOFT): (_P.HOLD, _A.BRAKE),
    (_P.HOLD, _E.STOP): (_P.FAULT, _A.BRAKE),
    (_P.HOLD, _E.HARD): (_P.FAULT, _A.BRAKE),
    (_P.HOLD, _E.HARD_SILENT): (_P.FAULT, _A.SILENCE),
    (_P.LATCHED, _E.ARM): (_P.ARMED, _A.ANCHOR),
    (_P.LATCHED, _E.HOME): (_P.HOMING, _A.GO_HOME),
    (_P.LATCHED, _E.DISARM): (_P.DISARMING, _A.BRAKE),
    (_P.LATCHED, _E.SOFT): (_P.LATCHED, _A.BRAKE),
    (_P.LATCHED, _E.STOP): (_P.FAULT, _A.BRAKE),
    (_P.LATCHED, _E.HARD): (_P.FAULT, _A.BRAKE),
    (_P.LATCHED, _E.HARD_SILENT): (_P.FAULT, _A.SILENCE),
    (_P.HOMING, _E.HOMED): (_P.ARMED, _A.NONE),
    (_P.HOMING, _E.DISARM): (_P.DISARMING, _A.BRAKE),
    (_P.HOMING, _E.SOFT): (_P.LATCHED, _A.BRAKE),  # not back to the task: nobody armed
    (_P.HOMING, _E.STOP): (_P.FAULT, _A.BRAKE),
    (_P.HOMING, _E.HARD): (_P.FAULT, _A.BRAKE),
    (_P.HOMING, _E.HARD_SILENT): (_P.FAULT, _A.SILENCE),
    (_P.DISARMING, _E.STANDSTILL): (_P.DISARMED, _A.DROP),
    (_P.DISARMING, _E.DISARM): (_P.DISARMING, _A.NONE),
    (_P.DISARMING, _E.STOP): (_P.FAULT, _A.BRAKE),
    (_P.DISARMING, _E.HARD): (_P.FAULT, _A.BRAKE),
    (_P.DISARMING, _E.HARD_SILENT): (_P.FAULT, _A.SILENCE),
    (_P.FAULT, _E.RESET): (_P.DISARMED, _A.DROP),
    (_P.FAULT, _E.STOP): (_P.FAULT, _A.NONE),
    (_P.FAULT, _E.HARD): (_P.FAULT, _A.NONE),
    (_P.FAULT, _E.HARD_SILENT): (_P.FAULT, _A.SILENCE),
}

REQUESTS = frozenset({Event.ARM, Event.DISARM, Event.STOP, Event.RESET, Event.HOME})


@dataclass(frozen=True, slots=True)
class Transition:
    """What an event did."""

    before: Phase
    after: Phase
    action: Action
    known: bool
    """The pair stands in the table; a request whose pair does not is refused."""


class StateMachine:
    """Holds the phase, its reason and its sentence; applies the table."""

    def __init__(self) -> None:
        self.phase = Phase.DISARMED
        self.reason = Reason.NONE
        self.text = 'disarmed; call arm to start.'
        self.since_ns = 0
        """When the phase was entered; a HOLD that only changes its reason keeps it."""

    @property
    def state(self) -> State:
        """The state as ``ExecutorStatus.msg`` shows it."""
        return self.phase.state

    def apply(
        self, event: Event, now_ns: int, reason: Reason = Reason.NONE, text: str = ''
    ) -> Transition:
        """Apply one event; the first reason of a FAULT stays, newer ones are not shown."""
        before = self.phase
        known = (before, event) in TABLE
        after, action = TABLE.get((before, event), (before, Action.NONE))
        if after != before:
            self.phase, self.since_ns = after, now_ns
        if known and event is not Event.WINDOW_OVER:
            # The first reason of a fault stays; a sentence with a running figure is said once.
            latched = before is Phase.FAULT and after is Phase.FAULT
            same = after is before and reason is self.reason and reason is not Reason.NONE
            if not latched and not same:
                self.reason, self.text = reason, text
        return Transition(before, after, action, known)


def event_of(reason: Reason) -> Event:
    """Which event a reason for not moving is."""
    if reason in SOFT_REASONS:
        return Event.SOFT
    return Event.HARD_SILENT if reason in SILENT_REASONS else Event.HARD
