"""The faults: what is done to a running system, where it must end, and what the operator does.

One table for the cross-process tests (test/faults), the soak, the latencies and doc/faults.md,
which ``python benchmarks/_fault_table.py`` writes from it. No ROS in here.

Steps of ``inject`` (see ``_fault_bench.FaultBench.inject``):

    sim LINE          a line to /sim/fault
    policy LINE       a line to /test/policy_fault
    stop NODE         SIGSTOP, healed by SIGCONT
    kill NODE         SIGKILL, healed by a new start; external_camera is the bench's own process
    publisher         a second publisher on the command topic
    call SERVICE      one of the executor's services
"""

from dataclasses import dataclass
from pathlib import Path

from spear_ros.core.reasons import SILENT_REASONS, Reason

DOCUMENT = Path(__file__).resolve().parents[1] / 'doc/faults.md'
BOTH = ('franka', 'widowx')
FRANKA, WIDOWX = ('franka',), ('widowx',)

RESUMES = 'resumes'
RESET = 'reset'
RECOVER = 'recover'
REARM = 'rearm'
TOLERATED = 'tolerated'


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One row."""

    id: str
    what: str
    """What happens, for the document."""
    state: str
    """Where the executor ends: RUNNING (nothing is noticed), HOLD, FAULT; or '-'."""
    reasons: tuple[Reason, ...] = ()
    """Any of these; the first is the usual one."""
    says: str = ''
    """Part of the sentence that the operator reads."""
    then: str = RESET
    """How it goes on once the cause is gone."""
    mend: str
    """What the operator does, for the document."""
    robots: tuple[str, ...] = BOTH
    inject: tuple[str, ...] = ()
    """Empty: the test has a function of its own for this fault."""
    rejects: Reason = Reason.NONE
    """Why the chunks were rejected, where that is the cause."""
    detect_s: float = 8.0
    """Longest wait for the outcome on a loaded machine."""
    goes_silent: bool = False
    """Commands may end after the hold, because the driver is then declared lost."""

    @property
    def silent(self) -> bool:
        """Nothing may be sent after detection."""
        return self.state == 'FAULT' and self.reasons[0] in SILENT_REASONS


R = Reason
_CAMERA_MEND = {
    'freeze': 'restart the camera driver',
    'drop': 'check the cable and the camera driver',
    'delay': 'find what delays the pictures: network, load, a recorder on the same bus',
    'short': 'check the cable, the bandwidth and the driver',
    'encoding': 'point the camera topic in config/robots at the colour stream',
    'size': 'restart the camera driver',
}
_CAMERA_WHAT = {
    'freeze': 'the same bytes with advancing stamps (it hangs)',
    'drop': 'no messages (unplugged)',
    'delay': 'pictures arrive 0.6 s late',
    'short': 'half of each picture is missing',
    'encoding': 'pictures in encoding 32FC1 (a depth topic)',
    'size': 'header claims 100000 x 100000 pixels',
}
_RAW_ONLY = ('short', 'encoding', 'size')
_CAMERA_SAYS = {
    'freeze': 'byte for byte the same',
    'drop': 'newest sample is',
    'delay': '',
    'short': '',
    'encoding': '32FC1',
    'size': '100000',
}


def _camera_faults() -> list[Fault]:
    rows = [
        Fault(
            id='jpeg_short_wrist',
            what='wrist camera: each JPEG is cut short',
            inject=('sim camera_short wrist',),
            state='HOLD',
            reasons=(R.CAMERA_STALE,),
            says='JPEG',
            then=RESUMES,
            mend=_CAMERA_MEND['short'],
            robots=WIDOWX,
        )
    ]
    for camera in ('external', 'wrist'):
        for kind, what in _CAMERA_WHAT.items():
            line = f'camera_{kind} {camera}' + (' 0.6' if kind == 'delay' else '')
            rows.append(
                Fault(
                    id=f'camera_{kind}_{camera}',
                    what=f'{camera} camera: {what}',
                    inject=(f'sim {line}',),
                    state='HOLD',
                    reasons=(R.CAMERA_FROZEN if kind == 'freeze' else R.CAMERA_STALE,),
                    says=_CAMERA_SAYS[kind],
                    then=RESUMES,
                    mend=_CAMERA_MEND[kind],
                    # The WidowX's wrist camera is compressed: what it is, stands in the data.
                    robots=FRANKA if camera == 'wrist' and kind in _RAW_ONLY else BOTH,
                )
            )
        rows += [
            Fault(
                id=f'camera_{kind}_{camera}',
                what=f'{camera} camera: {what}',
                inject=(f'sim camera_{kind} {camera}',),
                state='RUNNING',
                then=TOLERATED,
                mend='nothing: stamps put the pictures in order',
            )
            for kind, what in (
                ('duplicate', 'pictures come twice'),
                ('reorder', 'pictures come in exchanged order'),
            )
        ]
    return rows


def _joint_faults() -> list[Fault]:
    def row(name: str, what: str, reason: Reason, says: str, mend: str, **more: object) -> Fault:
        fields = {'inject': (f'sim {name}',), 'state': 'FAULT', **more}
        return Fault(id=name, what=what, reasons=(reason,), says=says, mend=mend, **fields)  # type: ignore[arg-type]

    driver = 'check the arm driver and its bus'
    return [
        Fault(
            id='joints_reorder',
            what='joint names and positions in another order (legal)',
            inject=('sim joints_reorder',),
            state='RUNNING',
            then=TOLERATED,
            mend='nothing: joints are taken by name',
        ),
        row('joints_missing', 'a joint is missing', R.JOINTS_NAMES, 'lack', driver),
        row(
            'joints_rename',
            'joint names of another robot',
            R.JOINTS_NAMES,
            'lack',
            'choose the right robot model, or joint_names in config/robots',
        ),
        row('joints_nan', 'a position is NaN', R.JOINTS_NOT_FINITE, 'not finite', driver),
        row('joints_jump', 'a joint jumps by 0.5 rad', R.JOINTS_JUMP, 'jumped', driver),
        row(
            'joints_zero_ticks',
            'all joints read -pi with fresh stamps (serial read error)',
            R.JOINTS_LIMIT,
            'outside its limits',
            'check power and cable of the servo bus',
        ),
        row(
            'joints_freeze',
            'old positions with fresh stamps while the arm is commanded',
            R.JOINTS_FROZEN,
            'have not changed',
            'check the driver, the brakes and the servo bus',
        ),
        row(
            'joints_drop',
            'no joint states',
            R.JOINTS_STALE,
            'ms old',
            'restart the arm driver',
            goes_silent=True,
        ),
        row(
            'joints_delay',
            'stamps of the joint states 0.6 s old',
            R.JOINTS_STALE,
            'ms old',
            'synchronise the clocks (chrony) or find what delays the driver',
            inject=('sim joints_delay 0.6',),
        ),
        Fault(
            id='clock_skew',
            what='clock of the robot computer 5 s off',
            inject=('sim clock_skew 5',),
            state='FAULT',
            reasons=(R.JOINTS_STALE,),
            says='synchronise the clocks',
            mend='synchronise the clocks (chrony)',
        ),
    ]


_CHUNK = 'see the log of policy_node; the policy must be mended before the robot is armed again'


def _chunk_faults() -> list[Fault]:
    def row(name: str, what: str, rejects: Reason, mend: str = _CHUNK, line: str = '') -> Fault:
        return Fault(
            id=f'chunk_{name}',
            what=what,
            inject=(f'policy {line or name}',),
            state='FAULT',
            reasons=(R.THREE_REJECTS,),
            says='chunks in a row rejected',
            rejects=rejects,
            mend=mend,
        )

    checkpoint = 'arm again if the new policy is meant; else start the right checkpoint'
    return [
        Fault(
            id='chunk_nan_once',
            what='one chunk holds NaN',
            inject=('policy once nan',),
            state='HOLD',
            reasons=(R.CHUNK_NOT_FINITE,),
            rejects=R.CHUNK_NOT_FINITE,
            then=RESUMES,
            mend='nothing: the next good chunk is followed',
            detect_s=4.0,
        ),
        row('nan', 'every chunk holds NaN', R.CHUNK_NOT_FINITE),
        row('huge', 'a step of half a metre', R.CHUNK_STEP_LIMIT),
        row('nonunit', 'quaternions are not of unit length', R.CHUNK_MALFORMED),
        row('workspace', 'the path leaves the workspace', R.CHUNK_WORKSPACE),
        row(
            'late',
            'inference takes 0.5 s',
            R.CHUNK_OLD,
            'use a faster device or a smaller model',
            'late 0.5',
        ),
        row('checkpoint', 'chunks of another checkpoint', R.CHUNK_IDENTITY, checkpoint),
        row('embodiment', 'chunks for another robot', R.CHUNK_IDENTITY, checkpoint),
        Fault(
            id='chunk_missing',
            what='the policy lives but sends no chunks',
            inject=('policy mute',),
            state='HOLD',
            reasons=(R.CHUNK_LATE,),
            says='ran out',
            then=RESUMES,
            mend='see the log of policy_node',
        ),
    ]


def _robot_faults() -> list[Fault]:
    recover = 'call recover, then reset, arm'
    return [
        Fault(
            id='reflex',
            what='reflex of the robot',
            inject=('sim reflex',),
            state='FAULT',
            reasons=(R.ROBOT_REFLEX,),
            says='reflex',
            then=RECOVER,
            mend=f'look for the cause, {recover}',
            robots=FRANKA,
        ),
        Fault(
            id='user_stop',
            what='user stop pressed',
            inject=('sim user_stop',),
            state='FAULT',
            reasons=(R.USER_STOP,),
            says='user stop',
            then=RECOVER,
            mend=f'release the user stop, {recover}',
            robots=FRANKA,
        ),
        Fault(
            id='guiding',
            what='somebody guides the robot by hand',
            inject=('sim guiding',),
            state='FAULT',
            reasons=(R.USER_STOP,),
            says='by hand',
            then=RECOVER,
            mend=f'let go, {recover}',
            robots=FRANKA,
        ),
        Fault(
            id='robot_state_silent',
            what='robot_state stops',
            inject=('sim robot_state_silent',),
            state='FAULT',
            reasons=(R.DRIVER_LOST,),
            says='robot_state was last heard',
            mend='restart franka_ros2 and its franka_robot_state_broadcaster',
            robots=FRANKA,
        ),
        Fault(
            id='controller_inactive',
            what='the controller is deactivated',
            inject=('sim controller_inactive',),
            state='FAULT',
            reasons=(R.DRIVER_LOST,),
            says='recover',
            then=RECOVER,
            mend=recover,
            robots=FRANKA,
        ),
        Fault(
            id='motor_error',
            what='a motor reports overload',
            inject=('sim motor_error 32',),
            state='FAULT',
            reasons=(R.MOTOR_ERROR,),
            says='overload',
            mend='support the arm (it goes limp), call /wx250s/reboot_motors, '
            'then recover, reset, arm',
            robots=WIDOWX,
            goes_silent=True,
        ),
        Fault(
            id='overload',
            what='a joint pushes harder than its limit',
            inject=('sim overload',),
            state='FAULT',
            reasons=(R.MOTOR_ERROR,),
            says='free the arm',
            mend='free the arm, then reset, arm',
            robots=WIDOWX,
            goes_silent=True,
        ),
        Fault(
            id='gripper_jam',
            what='the fingers are stuck while they are told to close',
            inject=('sim gripper_jam', 'policy close'),
            state='FAULT',
            reasons=(R.GRIPPER_FAULT,),
            mend='free the gripper, check its power and driver',
            detect_s=20.0,
        ),
        Fault(
            id='gripper_silent',
            what='no gripper states',
            inject=('sim gripper_silent',),
            state='HOLD',
            reasons=(R.GRIPPER_STALE,),
            says='gripper',
            then=RESUMES,
            mend='restart the gripper driver',
        ),
        Fault(
            id='qos_mismatch',
            what='the controller subscribes with a quality of service that does not match',
            inject=('sim qos_mismatch',),
            state='FAULT',
            reasons=(R.DRIVER_LOST,),
            says='quality of service',
            mend='let the controller subscribe reliable and volatile, restart it',
        ),
        Fault(
            id='second_publisher',
            what='a second publisher on the command topic',
            inject=('publisher',),
            state='FAULT',
            reasons=(R.SECOND_PUBLISHER,),
            says='publishers on the command topic',
            mend='end the other program',
        ),
    ]


def _process_faults() -> list[Fault]:
    return [
        Fault(
            id='policy_stopped',
            what='policy process frozen (kill -STOP)',
            inject=('stop policy_node',),
            state='HOLD',
            reasons=(R.POLICY_SILENT,),
            says='is the policy process alive',
            then=RESUMES,
            mend='see why it hangs; after more than 2 s call arm',
        ),
        Fault(
            id='policy_killed',
            what='policy process dies (kill -9)',
            inject=('kill policy_node',),
            state='HOLD',
            reasons=(R.POLICY_SILENT,),
            says='is the policy process alive',
            then=REARM,
            mend='start policy_node, then arm: chunks of a new process are not followed without',
        ),
        Fault(
            id='camera_stopped',
            what='process of the external camera frozen (kill -STOP)',
            inject=('stop external_camera',),
            state='HOLD',
            reasons=(R.CAMERA_STALE,),
            says='newest sample is',
            then=RESUMES,
            mend='restart the camera driver; after more than 2 s call arm',
        ),
        Fault(
            id='camera_killed',
            what='process of the external camera dies (kill -9)',
            inject=('kill external_camera',),
            state='HOLD',
            reasons=(R.CAMERA_STALE,),
            says='newest sample is',
            then=REARM,
            mend='start the camera driver; after more than 2 s call arm',
        ),
        Fault(
            id='driver_stopped',
            what='driver and cameras frozen (kill -STOP)',
            inject=('stop sim_robot_node',),
            state='FAULT',
            reasons=(R.JOINTS_STALE, R.DRIVER_LOST),
            mend='restart the arm driver',
            goes_silent=True,
        ),
        Fault(
            id='driver_killed',
            what='driver and cameras die (kill -9)',
            inject=('kill sim_robot_node',),
            state='FAULT',
            reasons=(R.JOINTS_STALE, R.DRIVER_LOST),
            then=RECOVER,
            mend='start the arm driver; call recover where the sentence says so, then reset, arm',
            goes_silent=True,
        ),
        Fault(
            id='executor_stopped',
            what='executor frozen for half a second and continued (kill -STOP, -CONT)',
            state='FAULT',
            reasons=(R.CONTROL_GAP,),
            says='control loop was paused',
            mend='find what stopped it: swapping, a debugger, a busy computer without '
            'real-time priority',
        ),
        Fault(
            id='executor_killed',
            what='executor dies (kill -9)',
            state='-',
            mend='start executor_node; the robot stands at its last target meanwhile; then arm '
            '(refused for up to 20 s, until discovery has forgotten the dead publisher)',
        ),
    ]


def _system_faults() -> list[Fault]:
    return [
        Fault(
            id='stop_service',
            what='stop is called',
            inject=('call stop',),
            state='FAULT',
            reasons=(R.STOP_SERVICE,),
            says='stopped by the operator',
            mend='reset, arm',
        ),
        Fault(
            id='service_spam',
            what='hundreds of service calls at once',
            state='RUNNING',
            then=TOLERATED,
            mend='nothing: each is answered, none moves the robot',
        ),
        Fault(
            id='instruction_change',
            what='new instruction while a chunk of the old one is followed',
            state='HOLD',
            reasons=(R.CHUNK_MISSING,),
            says='the instruction changed',
            then=RESUMES,
            mend='nothing: the old chunk ends within one step, the new one is followed',
        ),
        Fault(
            id='cpu_hog',
            what='other programs keep all cores busy',
            state='RUNNING',
            then=TOLERATED,
            mend='allow real-time priority (spear doctor); without it a hold or fault of the '
            'timing limits is possible, and safe',
        ),
        Fault(
            id='full_disk',
            what='the disk is full while recording',
            state='RUNNING',
            then=TOLERATED,
            mend='make room: only the recorder stops, /diagnostics says so',
        ),
        Fault(
            id='clock_back',
            what='the clock goes back (looping simulation or bag time)',
            state='FAULT',
            reasons=(R.CLOCK_JUMP,),
            says='went back',
            mend='stop whatever sets the clock, then reset, arm',
        ),
        Fault(
            id='clock_leap',
            what='simulated time leaps ahead by 5 s',
            state='FAULT',
            reasons=(R.CONTROL_GAP,),
            says='control loop was paused',
            mend='stop whatever sets the clock, then reset, arm; on the system clock the reason is '
            'CLOCK_JUMP',
        ),
    ]


SECTIONS: dict[str, list[Fault]] = {
    'Cameras': _camera_faults(),
    'Joint states and clocks of the robot': _joint_faults(),
    'Chunks of the policy': _chunk_faults(),
    'Robot, driver and gripper': _robot_faults(),
    'Processes': _process_faults(),
    'Operator and computer': _system_faults(),
}
FAULTS: dict[str, Fault] = {f.id: f for rows in SECTIONS.values() for f in rows}

_INTRODUCTION = """# Faults: what you see, what you do

Every row is a test that runs against real processes over DDS, with both simulated robots
(test/faults); this page is written from the same table by `python benchmarks/_fault_table.py`.

How to read it. State and reason stand in `/spear/executor_status`, together with a sentence that
names the figures; "says" is a part of that sentence. **HOLD**: the robot brakes and stands, the
target is still sent; it goes on by itself when the cause is gone within 2 s, later it needs `arm`.
**FAULT**: the same, but latched: mend the cause, then `reset`, then `arm`. With ROBOT_REFLEX,
USER_STOP, DRIVER_LOST and SECOND_PUBLISHER nothing is sent at all, and with MOTOR_ERROR, or once
the arm was taken from its target, nothing after the brake. No fault moves the robot, and `reset`
does not either; the gripper begins nothing new. FOLLOWING_ERROR (the arm is more than 8 cm or 29
degrees from where it was told to be) has no row: the twins have no obstacle for it, its tests are
those of test/runtime/test_following_watch.py. In no row does a command leave the hard limits: the
tests judge every message on the command topic with code of their own.
"""


def document() -> str:
    """Return doc/faults.md."""
    lines = [_INTRODUCTION]
    for title, rows in SECTIONS.items():
        lines += [f'## {title}\n', '| fault | robot | state, reason | says | then |']
        lines.append('|---|---|---|---|---|')
        lines += [_line(f) for f in rows]
        lines.append('')
    return '\n'.join(lines).rstrip() + '\n'


def _line(fault: Fault) -> str:
    robot = (
        'both'
        if fault.robots == BOTH
        else {'franka': 'Franka', 'widowx': 'WidowX'}[fault.robots[0]]
    )
    state = ' '.join([fault.state, ' or '.join(r.name for r in fault.reasons)]).strip()
    if fault.rejects and fault.rejects not in fault.reasons:
        state += f' (after HOLD {fault.rejects.name})'
    if fault.state == '-':
        state = 'executor_status is silent'
    elif fault.then == TOLERATED:
        state = 'RUNNING goes on'
    says = f'"... {fault.says} ..."' if fault.says else ''
    ends = {RESET: '; reset, arm', RESUMES: '', RECOVER: '', TOLERATED: '', REARM: ''}[fault.then]
    mend = fault.mend
    if ends and 'reset' not in mend and fault.state == 'FAULT':
        mend += ends
    return f'| {fault.what} | {robot} | {state} | {says} | {mend} |'


def main() -> None:
    DOCUMENT.write_text(document(), encoding='utf-8')


if __name__ == '__main__':
    main()
