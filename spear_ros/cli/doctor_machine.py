"""Checks of ``spear doctor`` that need no ROS: Python, torch, rendering, priority, shared memory.

Whatever could hang or crash the process (CUDA, EGL, modules compiled against another numpy) runs in
a child with a time limit, so that one broken part never hides the others.
"""

import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

State = Literal['ok', 'warn', 'missing']

SHM = Path('/dev/shm')
SHM_NEEDED_MB = 256
CHILD_TIMEOUT_S = 60.0
RT_LIMITS = '/etc/security/limits.d/99-realtime.conf'


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One row of the table."""

    name: str
    state: State
    """``missing`` makes the exit status 1; ``warn`` is something one can work without."""
    detail: str
    mend: str = ''

    def as_dict(self) -> dict[str, str]:
        """Return the row for ``--json``."""
        return asdict(self)


def ask_child(code: str, timeout_s: float = CHILD_TIMEOUT_S) -> tuple[dict[str, object], str]:
    """Run ``code`` in a fresh interpreter; it prints one JSON object as its last line.

    Returns:
        (the object, '') or ({}, one line that says why there is none).
    """
    environment = {**os.environ, 'MUJOCO_GL': os.environ.get('MUJOCO_GL', 'egl')}
    try:
        result = subprocess.run(
            [sys.executable, '-c', code],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return {}, f'no answer within {timeout_s:.0f} s'
    if result.returncode < 0:
        return {}, f'crashed with signal {-result.returncode}'
    try:
        return dict(json.loads(result.stdout.strip().splitlines()[-1])), ''
    except (IndexError, ValueError):
        lines = result.stderr.strip().splitlines()
        return {}, lines[-1][:160] if lines else f'ended with status {result.returncode}'


def check_python() -> Check:
    """Interpreter and the three packages that the robot side needs."""
    version = '.'.join(map(str, sys.version_info[:3]))
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Check(
            name='Python',
            state='missing',
            detail=f'{version} in {sys.prefix}',
            mend='use Python 3.11, 3.12 or 3.13 (PYTHON=/usr/bin/python3.12 make venv)',
        )
    versions, absent = [], []
    for module, title in (('numpy', 'numpy'), ('yaml', 'yaml'), ('cv2', 'OpenCV')):
        try:
            found = importlib.import_module(module)
            versions.append(f'{title} {found.__version__}')
        except ImportError:
            absent.append(title)
    if absent:
        return Check(
            name='Python',
            state='missing',
            detail=f'{version} without {", ".join(absent)}',
            mend='make venv (or: pip install numpy pyyaml opencv-python-headless)',
        )
    return Check(name='Python', state='ok', detail=f'{version}, {", ".join(versions)}')


def check_cv_bridge() -> Check:
    """cv_bridge is optional; compiled against numpy 1 it fails or crashes beside numpy 2."""
    code = (
        'import json, numpy, importlib.util as u\n'
        'there = u.find_spec("cv_bridge") is not None\n'
        'if there:\n'
        '    from cv_bridge import CvBridge\n'
        '    CvBridge().cv2_to_imgmsg(numpy.zeros((2, 2, 3), numpy.uint8), "bgr8")\n'
        'print(json.dumps({"there": there, "numpy": numpy.__version__}))\n'
    )
    answer, problem = ask_child(code)
    if problem:
        return Check(
            name='cv_bridge',
            state='warn',
            detail=f'does not work beside this numpy: {problem}',
            mend='leave it: rgb8, bgr8, rgba8, bgra8, yuyv and compressed pictures do without it',
        )
    used = 'works' if answer['there'] else 'absent and not needed for common encodings'
    return Check(name='cv_bridge', state='ok', detail=f'{used} (numpy {answer["numpy"]})')


def check_torch() -> Check:
    """Torch, CUDA and the compute capability: policy SPEAR-1 needs the first, speed the others."""
    code = (
        'import json, torch\n'
        'cuda = torch.cuda.is_available()\n'
        'd = {"torch": torch.__version__, "built": torch.version.cuda, "cuda": cuda}\n'
        'if cuda:\n'
        '    p = torch.cuda.get_device_properties(0)\n'
        '    d.update(name=p.name, gb=round(p.total_memory / 2**30))\n'
        '    d.update(major=p.major, minor=p.minor)\n'
        '    (torch.ones(8, 8, device="cuda") @ torch.ones(8, 8, device="cuda")).sum().item()\n'
        'print(json.dumps(d))\n'
    )
    if importlib.util.find_spec('torch') is None:
        return Check(
            name='torch',
            state='warn',
            detail='not installed: only the policies scripted, recorded and hold run',
            mend='make venv (TORCH=cpu or TORCH=cu130 chooses the build)',
        )
    answer, problem = ask_child(code)
    if problem:
        return Check(
            name='torch',
            state='warn',
            detail=f'installed, but does not work: {problem}',
            mend='install the build for your driver: TORCH=cpu make venv, or TORCH=cu130 make venv',
        )
    if answer['cuda']:
        return Check(
            name='torch',
            state='ok',
            detail=f'{answer["torch"]}, {answer["name"]}, {answer["gb"]} GB, compute capability '
            f'{answer["major"]}.{answer["minor"]}',
        )
    driver = Path('/proc/driver/nvidia/version').exists()
    return Check(
        name='torch',
        state='warn' if driver else 'ok',
        detail=f'{answer["torch"]}, no CUDA: full-size SPEAR-1 is far too slow for a robot here',
        mend='TORCH=cu130 make venv (an NVIDIA driver is loaded)' if driver else '',
    )


def check_simulator() -> Check:
    """MuJoCo, the robots' meshes and a picture rendered without a screen."""
    code = (
        'import json, mujoco, importlib.util as u\n'
        "m = mujoco.MjModel.from_xml_string(\"<mujoco><worldbody><light pos='0 0 2'/>"
        "<geom size='.2'/></worldbody></mujoco>\")\n"
        'd = mujoco.MjData(m); mujoco.mj_forward(m, d)\n'
        'r = mujoco.Renderer(m, 32, 32); r.update_scene(d); image = r.render(); r.close()\n'
        'print(json.dumps({"v": mujoco.__version__, "lit": int(image.max()) > 0,'
        ' "meshes": u.find_spec("rtbdata") is not None}))\n'
    )
    if importlib.util.find_spec('mujoco') is None:
        return Check(
            name='simulator',
            state='warn',
            detail='MuJoCo is not installed: no make demo, real robots only',
            mend='make venv (or: pip install "spear_ros[sim]")',
        )
    answer, problem = ask_child(code)
    if problem or not answer['lit']:
        return Check(
            name='simulator',
            state='warn',
            detail=f'MuJoCo cannot render without a screen: {problem or "the picture is black"}',
            mend='apt-get install -y libegl1 libgl1 libgl1-mesa-dri, and MUJOCO_GL=egl',
        )
    if not answer['meshes']:
        return Check(
            name='simulator',
            state='warn',
            detail=f'MuJoCo {answer["v"]}, without the meshes of the robots',
            mend='make venv (or: pip install rtb-data)',
        )
    gl = os.environ.get('MUJOCO_GL', 'egl')
    return Check(name='simulator', state='ok', detail=f'MuJoCo {answer["v"]}, renders with {gl}')


def check_priority() -> Check:
    """Whether the executor may take real-time priority, as it tries at its start."""
    code = (
        'import json, os\n'
        'try:\n'
        '    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(10)); got = "SCHED_RR"\n'
        'except OSError:\n'
        '    try:\n'
        '        os.setpriority(os.PRIO_PROCESS, 0, -10); got = "nice -10"\n'
        '    except OSError:\n'
        '        got = ""\n'
        'print(json.dumps({"got": got}))\n'
    )
    answer, problem = ask_child(code)
    got = str(answer.get('got', ''))
    mend = (
        f"as root: printf '@realtime - rtprio 98\\n@realtime - nice -20\\n' > {RT_LIMITS}; "
        'groupadd -f realtime; usermod -aG realtime $USER; log in again'
    )
    if got == 'SCHED_RR':
        return Check(name='real-time priority', state='ok', detail='SCHED_RR is allowed')
    detail = f'only {got} is allowed' if got else problem or 'SCHED_RR and nice -10 are refused'
    return Check(
        name='real-time priority',
        state='warn',
        detail=f'{detail}: command intervals widen under load',
        mend=mend,
    )


def _open_segments() -> Iterator[str]:
    """Yield the shared-memory files that some process that we may look at holds."""
    for process in Path('/proc').glob('[0-9]*'):
        try:
            for line in (process / 'maps').read_text().splitlines():
                if '/dev/shm/' in line:
                    yield line.rsplit('/', 1)[-1].removesuffix(' (deleted)')
            for link in (process / 'fd').iterdir():
                target = os.readlink(link)
                if target.startswith('/dev/shm/'):
                    yield target.rsplit('/', 1)[-1]
        except OSError:
            continue  # ended meanwhile, or another user's


def check_shared_memory() -> Check:
    """Room for pictures between processes, and what killed processes left behind."""
    if not SHM.is_dir():
        return Check(
            name='/dev/shm',
            state='warn',
            detail='absent: pictures go through UDP and some are lost',
            mend='mount it: mount -t tmpfs -o size=512m tmpfs /dev/shm',
        )
    usage = shutil.disk_usage(SHM)
    free_mb, total_mb = usage.free // 2**20, usage.total // 2**20
    files = {p.name for p in SHM.iterdir() if p.name.startswith(('fastrtps_', 'sem.fastrtps_'))}
    left = sorted(files - set(_open_segments()))
    detail = f'{free_mb} of {total_mb} MB free'
    if free_mb < SHM_NEEDED_MB:
        return Check(
            name='/dev/shm',
            state='warn',
            detail=f'{detail}; four processes with pictures need {SHM_NEEDED_MB} MB',
            mend='docker run --shm-size=512m, or mount -o remount,size=512m /dev/shm',
        )
    if left:
        return Check(
            name='/dev/shm',
            state='warn',
            detail=f'{detail}; {len(left)} files of processes that are gone',
            mend='when no ROS process runs: rm -f /dev/shm/fastrtps_* /dev/shm/sem.fastrtps_*',
        )
    return Check(name='/dev/shm', state='ok', detail=detail)


def machine_checks() -> Iterator[Check]:
    """Yield all rows of this module."""
    yield check_python()
    yield check_torch()
    yield check_simulator()
    yield check_cv_bridge()
    yield check_priority()
    yield check_shared_memory()
