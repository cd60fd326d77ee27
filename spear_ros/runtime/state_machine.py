"""The executor's state machine: one table, nothing else decides a transition.

``TABLE[state, event]`` is (next state, action). A pair that is absent changes nothing; for a
request that means it is refused. The executor turns the world into events, carries out actions, and
has no ``if state`` of its own that moves the robot.
"""

from dataclasses import dataclass
from enum import Enum, IntEnum, auto

from spear_ros.core.reasons import SILENT_REASONS, SOFT_REASONS, Reason


class State(IntEnum):
    """States of ``ExecutorStatus.msg``, same numbers, and two that show as HOLD there."""

    DISARMED = 0
    """Nothing is sent; chunks are checked and previewed."""
    ARMED = 1
    """A constant target is sent; a valid chunk starts the motion."""
    RUNNING = 2
    """Chunks are followed."""
    HOLD = 3
    """Braked or braking for a soft reason; a valid chunk resumes."""
    FAULT = 4
    """Braked or silent for a hard reason; only reset leaves it."""
    HOMING = 5
    """Moving to the start pose; chunks are ignored."""
    HOLD_LATCHED = 6
    """HOLD for longer than the resume window: only arm, home or disarm leave it."""
    DISARMING = 7
    """Disarm was asked for; braking, then DISARMED."""

    @property
    def wire(self) -> 'State':
        """The state as ``ExecutorStatus.msg`` shows it."""
        return State.HOLD if self in (State.HOLD_LATCHED, State.DISARMING) else self


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


_S, _E, _A = State, Event, Action

TABLE: dict[tuple[State, Event], tuple[State, Action]] = {
    (_S.DISARMED, _E.ARM): (_S.ARMED, _A.ANCHOR),
    (_S.DISARMED, _E.DISARM): (_S.DISARMED, _A.DROP),
    (_S.DISARMED, _E.STOP): (_S.FAULT, _A.SILENCE),
    (_S.ARMED, _E.ARM): (_S.ARMED, _A.ANCHOR),
    (_S.ARMED, _E.CHUNK): (_S.RUNNING, _A.FOLLOW),
    (_S.ARMED, _E.HOME): (_S.HOMING, _A.GO_HOME),
    (_S.ARMED, _E.DISARM): (_S.DISARMING, _A.BRAKE),
    (_S.ARMED, _E.SOFT): (_S.HOLD, _A.BRAKE),
    (_S.ARMED, _E.STOP): (_S.FAULT, _A.BRAKE),
    (_S.ARMED, _E.HARD): (_S.FAULT, _A.BRAKE),
    (_S.ARMED, _E.HARD_SILENT): (_S.FAULT, _A.SILENCE),
    (_S.RUNNING, _E.CHUNK): (_S.RUNNING, _A.FOLLOW),
    (_S.RUNNING, _E.DISARM): (_S.DISARMING, _A.BRAKE),
    (_S.RUNNING, _E.SOFT): (_S.HOLD, _A.BRAKE),
    (_S.RUNNING, _E.STOP): (_S.FAULT, _A.BRAKE),
    (_S.RUNNING, _E.HARD): (_S.FAULT, _A.BRAKE),
    (_S.RUNNING, _E.HARD_SILENT): (_S.FAULT, _A.SILENCE),
    (_S.HOLD, _E.CHUNK): (_S.RUNNING, _A.FOLLOW),
    (_S.HOLD, _E.WINDOW_OVER): (_S.HOLD_LATCHED, _A.NONE),
    (_S.HOLD, _E.ARM): (_S.ARMED, _A.ANCHOR),
    (_S.HOLD, _E.HOME): (_S.HOMING, _A.GO_HOME),
    (_S.HOLD, _E.DISARM): (_S.DISARMING, _A.BRAKE),
    (_S.HOLD, _E.SOFT): (_S.HOLD, _A.BRAKE),
    (_S.HOLD, _E.STOP): (_S.FAULT, _A.BRAKE),
    (_S.HOLD, _E.HARD): (_S.FAULT, _A.BRAKE),
    (_S.HOLD, _E.HARD_SILENT): (_S.FAULT, _A.SILENCE),
    (_S.HOLD_LATCHED, _E.ARM): (_S.ARMED, _A.ANCHOR),
    (_S.HOLD_LATCHED, _E.HOME): (_S.HOMING, _A.GO_HOME),
    (_S.HOLD_LATCHED, _E.DISARM): (_S.DISARMING, _A.BRAKE),
    (_S.HOLD_LATCHED, _E.SOFT): (_S.HOLD_LATCHED, _A.BRAKE),
    (_S.HOLD_LATCHED, _E.STOP): (_S.FAULT, _A.BRAKE),
    (_S.HOLD_LATCHED, _E.HARD): (_S.FAULT, _A.BRAKE),
    (_S.HOLD_LATCHED, _E.HARD_SILENT): (_S.FAULT, _A.SILENCE),
    (_S.HOMING, _E.HOMED): (_S.ARMED, _A.NONE),
    (_S.HOMING, _E.DISARM): (_S.DISARMING, _A.BRAKE),
    (_S.HOMING, _E.SOFT): (_S.HOLD, _A.BRAKE),
    (_S.HOMING, _E.STOP): (_S.FAULT, _A.BRAKE),
    (_S.HOMING, _E.HARD): (_S.FAULT, _A.BRAKE),
    (_S.HOMING, _E.HARD_SILENT): (_S.FAULT, _A.SILENCE),
    (_S.DISARMING, _E.STANDSTILL): (_S.DISARMED, _A.DROP),
    (_S.DISARMING, _E.DISARM): (_S.DISARMING, _A.NONE),
    (_S.DISARMING, _E.STOP): (_S.FAULT, _A.BRAKE),
    (_S.DISARMING, _E.HARD): (_S.FAULT, _A.BRAKE),
    (_S.DISARMING, _E.HARD_SILENT): (_S.FAULT, _A.SILENCE),
    (_S.FAULT, _E.RESET): (_S.DISARMED, _A.DROP),
    (_S.FAULT, _E.STOP): (_S.FAULT, _A.NONE),
    (_S.FAULT, _E.HARD): (_S.FAULT, _A.NONE),
    (_S.FAULT, _E.HARD_SILENT): (_S.FAULT, _A.SILENCE),
}

REQUESTS = frozenset({Event.ARM, Event.DISARM, Event.STOP, Event.RESET, Event.HOME})


@dataclass(frozen=True, slots=True)
class Transition:
    """What an event did."""

    before: State
    after: State
    action: Action
    known: bool
    """The pair stands in the table; a request whose pair does not is refused."""


class StateMachine:
    """Holds the state, its reason and its sentence; applies the table."""

    def __init__(self) -> None:
        self.state = State.DISARMED
        self.reason = Reason.NONE
        self.text = 'disarmed; call arm to start.'
        self.since_ns = 0
        """When the state was entered; a HOLD that only changes its reason keeps it."""

    def apply(
        self, event: Event, now_ns: int, reason: Reason = Reason.NONE, text: str = ''
    ) -> Transition:
        """Apply one event; the first reason of a FAULT stays, newer ones are not shown."""
        before = self.state
        known = (before, event) in TABLE
        after, action = TABLE.get((before, event), (before, Action.NONE))
        if after != before:
            self.state, self.since_ns = after, now_ns
        if known and event is not Event.WINDOW_OVER:
            latched = before is State.FAULT and after is State.FAULT
            if not latched:
                self.reason, self.text = reason, text
        return Transition(before, after, action, known)


def event_of(reason: Reason) -> Event:
    """Which event a reason for not moving is."""
    if reason in SOFT_REASONS:
        return Event.SOFT
    return Event.HARD_SILENT if reason in SILENT_REASONS else Event.HARD
