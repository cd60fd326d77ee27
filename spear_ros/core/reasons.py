"""Reason codes: why the robot does not move, or why a chunk was not followed.

One enumeration for the executor, the messages (``spear_msgs/ExecutorStatus`` carries the same
numbers, pinned by a test), diagnostics, tables and documents. Numbers never change meaning; new
ones are appended.
"""

from enum import IntEnum


class Reason(IntEnum):
    """Why the executor holds, faults, rejects a chunk or refuses a request."""

    NONE = 0
    # soft: HOLD, resumes by itself within the resume window
    CHUNK_MISSING = 1  # no chunk has arrived since arm, home or the last instruction
    CHUNK_LATE = 2  # the followed chunk ran out before a newer one arrived
    CHUNK_OLD = 3  # observation older than the age limit at receipt, or before the last arm or home
    CHUNK_NOT_FINITE = 4  # NaN or infinity in poses, anchor or gripper
    CHUNK_MALFORMED = 5  # wrong number of knots, step, quaternion norm, out of order
    CHUNK_STEP_LIMIT = 6  # a step longer or wider than the hard limit
    CHUNK_WORKSPACE = 7  # a knot outside the workspace box or below the table
    CHUNK_UNREACHABLE = 8  # inverse kinematics fails at a knot
    CHUNK_IDENTITY = 9  # other embodiment, frame, checkpoint or policy session than armed with
    CHUNK_ANCHOR = 10  # the anchor is far from where the robot was at that time
    CAMERA_STALE = 11
    CAMERA_FROZEN = 12
    POLICY_SILENT = 13  # no policy_status for 300 ms
    POLICY_NOT_READY = 14  # policy process alive but not active, or without inputs
    GRIPPER_STALE = 15
    COMMAND_LIMIT = 16  # a command would have left the hard limits; not sent
    COMMAND_UNREACHABLE = 17  # inverse kinematics failed for a command; not sent
    CLOCK_SKEW = 18  # stamps more than 1 s away from receipt
    # hard: FAULT, latched until reset
    STOP_SERVICE = 32
    JOINTS_STALE = 33
    JOINTS_NOT_FINITE = 34
    JOINTS_JUMP = 35
    JOINTS_LIMIT = 36  # measured joints outside the joint limits: a corrupt reading
    JOINTS_NAMES = 37  # wrong or missing joint names
    JOINTS_FROZEN = 38  # bit-identical positions while the command moved
    ROBOT_REFLEX = 39
    USER_STOP = 40
    DRIVER_LOST = 41
    SECOND_PUBLISHER = 42
    CONTROL_GAP = 43  # the control loop itself was paused
    THREE_REJECTS = 44  # three chunks in a row rejected
    MOTOR_ERROR = 45  # hardware error status or effort guard
    GRIPPER_FAULT = 46
    CLOCK_JUMP = 47  # the node clock went backwards or leapt ahead
    INTERNAL_ERROR = 48
    FOLLOWING_ERROR = 49  # the arm is far from where it was told to be
    # refusals of a request (state does not change)
    REFUSED_STATE = 64
    REFUSED_PREFLIGHT = 65
    OPERATOR = 66  # disarm, home or arm asked for by the operator


HARD_REASONS = frozenset(r for r in Reason if 32 <= r < 64)
SOFT_REASONS = frozenset(r for r in Reason if 1 <= r < 32)

# Nothing is sent in these: the driver or the person at the robot owns it, and a target kept alive
# would be jumped to when control returns.
SILENT_REASONS = frozenset(
    {Reason.ROBOT_REFLEX, Reason.USER_STOP, Reason.DRIVER_LOST, Reason.SECOND_PUBLISHER}
)
