#!/usr/bin/env python3
"""Makes ``.venv`` in the clone, or finds in a fraction of a second that it is already there.

Called by the Makefile through ``tools/setup.sh``; standard library only. Steps: check the system
packages, make the virtual environment, install ROS 2 Jazzy wheels (or use a sourced Jazzy), build
the message packages, install this package with the extras that the caller needs. Each finished step
leaves a stamp keyed by a hash of its inputs, so that an interrupted run goes on where it stopped
and a finished one touches neither the network nor the disk.

The package is installed editable: an edit is live, and share files (config, launch, models) are
found in the source tree by ``spear_ros.core.resources``. Workstations install with colcon instead.

Variables: PYTHON (interpreter), TORCH (auto, cpu, cu126, cu128, cu130, an index address, none).
"""

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import system_check

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / '.venv'
STATE = VENV / '.spear'
REQUIREMENTS = ROOT / 'requirements'
TORCH_EXTRAS = {'policy', 'convert', 'train', 'annotate'}
TORCH_INDEX = 'https://download.pytorch.org/whl/'
NEEDS = {
    'robot': (),
    'scripted': ('sim', 'bag', 'viz'),
    'demo': ('sim', 'bag', 'viz', 'policy'),
    'test': ('sim', 'bag', 'viz', 'policy', 'convert', 'train', 'annotate', 'test'),
}
TORCHLESS_POLICIES = {'scripted', 'hold', 'recorded'}


class SetupError(RuntimeError):
    """The set-up cannot go on; the text is one sentence with the mend."""


def torch_free(needs: str, policy: str) -> str:
    """Return the name in NEEDS for a purpose and a policy's name."""
    return 'scripted' if needs == 'demo' and policy in TORCHLESS_POLICIES else needs


def extras_for(needs: str, torch: str) -> set[str]:
    """Return the extras of setup.py to install.

    Raises:
        SetupError: an unknown build of torch, or none where the purpose needs one.
    """
    if not re.fullmatch(r'auto|none|cpu|cu\d{3}|https?://\S+', torch):
        raise SetupError(
            f'TORCH={torch} is unknown: use auto, cpu, cu126, cu128, cu130, the address of an '
            'index, or none.'
        )
    extras = set(NEEDS[needs])
    if torch == 'none':
        if needs == 'demo':
            raise SetupError(
                'TORCH=none leaves torch out, and SPEAR-1 needs it: add POLICY=scripted, or drop '
                'TORCH.'
            )
        extras -= TORCH_EXTRAS
    return extras


def sourced_ros(environment: dict[str, str]) -> bool:
    """Return whether a sourced ROS 2 Jazzy serves instead of the wheels.

    Raises:
        SetupError: another distro is sourced, or Jazzy does not work with this interpreter.
    """
    distro = environment.get('ROS_DISTRO', '')
    if not distro:
        return False
    if distro != 'jazzy':
        raise SetupError(
            f'ROS 2 {distro} is sourced here, and this package is for Jazzy: open a terminal '
            'without it, or source /opt/ros/jazzy/setup.bash, and run the same command again.'
        )
    probe = subprocess.run(
        [sys.executable, '-c', 'import rclpy, rosidl_generator_py'],
        env=environment,
        capture_output=True,
        text=True,
    )
    if probe.returncode:
        reason = (probe.stderr.strip().splitlines() or ['no message'])[-1]
        raise SetupError(
            f'ROS 2 Jazzy is sourced, but {sys.executable} cannot import it ({reason}): choose '
            "Jazzy's own interpreter with PYTHON=/usr/bin/python3, or open a terminal without ROS."
        )
    return True


def clean_environment() -> dict[str, str]:
    """Return the environment of every child: without what another ROS virtual environment left.

    The wheels mark a process whose library path they set; a child of another environment that
    inherits the mark finds no libraries and fails with a misleading message.
    """
    environment = dict(os.environ)
    if environment.pop('_ROS_WHEELS_BOOTSTRAP_COMPLETE', None):
        kept = [
            entry
            for entry in environment.get('LD_LIBRARY_PATH', '').split(os.pathsep)
            if entry
            and not entry.endswith('.libs')
            and not (Path(entry).parent / 'pyvenv.cfg').is_file()
        ]
        environment['LD_LIBRARY_PATH'] = os.pathsep.join(kept)
        if not kept:
            del environment['LD_LIBRARY_PATH']
    for name in ('PYTHONHOME', 'VIRTUAL_ENV', '__PYVENV_LAUNCHER__'):
        environment.pop(name, None)
    environment['PIP_DISABLE_PIP_VERSION_CHECK'] = '1'
    return environment


class Progress:
    """Short numbered lines with times, printed only when there is something to do."""

    def __init__(self) -> None:
        self.number = 0
        self.started = time.monotonic()

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Print a step before it begins, and its time after."""
        self.number += 1
        begun = time.monotonic()
        print(f'[{self.number}] {text} ...', flush=True)
        yield
        print(f'[{self.number}] {text}: {time.monotonic() - begun:.0f} s', flush=True)

    def note(self, text: str) -> None:
        """Print one indented line."""
        print(f'    {text}', flush=True)


class State:
    """What is already installed: a small JSON file inside the environment."""

    def __init__(self) -> None:
        self.path = STATE / 'state.json'
        self.values: dict[str, object] = {}
        if self.path.is_file():
            try:
                self.values = json.loads(self.path.read_text())
            except json.JSONDecodeError:
                self.values = {}  # torn by an interrupted run: install again

    def set(self, key: str, value: object) -> None:
        """Remember, atomically."""
        self.values[key] = value
        STATE.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix('.tmp')
        temporary.write_text(json.dumps(self.values, indent=1))
        temporary.replace(self.path)


def file_hash(*paths: Path) -> str:
    """Return a SHA-256 over names and contents."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b'\0' + path.read_bytes() + b'\0')
    return digest.hexdigest()


def make_venv(sourced: bool, state: State, progress: Progress) -> None:
    """Create the virtual environment, or keep the one that fits this interpreter and ROS."""
    identity = [sys.version, 'sourced' if sourced else 'wheels']
    python = VENV / 'bin/python'
    if state.values.get('identity') == identity and python.exists():
        return
    if not sourced and not state.values and made_by_hand(python):
        state.set('identity', identity)
        return
    with progress.step(f'virtual environment .venv with Python {sys.version.split()[0]}'):
        if VENV.exists():
            progress.note('an unfinished or different .venv is replaced')
            shutil.rmtree(VENV)
        command = [sys.executable, '-m', 'venv', str(VENV)]
        if sourced:
            command.append('--system-site-packages')
        result = subprocess.run(command, capture_output=True, text=True, env=clean_environment())
        if result.returncode:
            reason = (result.stderr or result.stdout).strip().splitlines()[-1:]
            raise SetupError(f'.venv could not be made ({"".join(reason)}).')
        state.values = {}
        state.set('identity', identity)
        (STATE / 'python').write_text(sys.executable)
        if sourced:
            write_sourced_hook()


def made_by_hand(python: Path) -> bool:
    """Return whether a complete environment of this very Python version is there already."""
    probe = 'import pip, sys; sys.exit(sys.argv[1] != sys.version)'
    if not python.exists():
        return False
    command = [str(python), '-c', probe, sys.version]
    return not subprocess.run(command, capture_output=True, env=clean_environment()).returncode


def write_sourced_hook() -> None:
    """Let programs of .venv find the message libraries beside a sourced ROS.

    ROS opens type support libraries by name through LD_LIBRARY_PATH, which the dynamic linker reads
    only when a process starts; so a process without our folder in it starts itself once more. The
    wheels bring the same mechanism of their own.
    """
    version = f'python{sys.version_info[0]}.{sys.version_info[1]}'
    site = VENV / 'lib' / version / 'site-packages'
    (site / 'spear_ros_environment.py').write_text(
        '"""Puts .venv/lib on the library path; written by tools/bootstrap.py."""\n'
        'import os, sys\n'
        "library = os.path.join(sys.prefix, 'lib')\n"
        "paths = os.environ.get('LD_LIBRARY_PATH', '').split(os.pathsep)\n"
        'if library not in paths:\n'
        "    os.environ['LD_LIBRARY_PATH'] = os.pathsep.join([library, *filter(None, paths)])\n"
        "    ament = os.environ.get('AMENT_PREFIX_PATH', '')\n"
        "    os.environ['AMENT_PREFIX_PATH'] = os.pathsep.join(filter(None, [sys.prefix, ament]))\n"
        '    os.execve(sys.executable, sys.orig_argv, os.environ)\n'
    )
    (site / 'spear_ros_environment.pth').write_text('import spear_ros_environment\n')


def pip(arguments: list[str], progress: Progress) -> None:
    """Run pip with the pinned versions, show the large downloads, keep the whole log.

    Raises:
        SetupError: with pip's own reason and the log's place.
    """
    log = STATE / 'pip.log'
    command = [
        str(VENV / 'bin/python'), '-m', 'pip', 'install', '--no-compile', '--no-input',
        '--constraint', str(REQUIREMENTS / 'constraints.txt'), *arguments,
    ]  # fmt: skip
    errors: list[str] = []
    with log.open('a') as sink:
        sink.write(f'\n$ {" ".join(command)}\n')
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=clean_environment(),
            cwd=ROOT,
        )
        assert process.stdout is not None
        for line in process.stdout:
            sink.write(line)
            download = re.search(r'Downloading (\S+?)(?:-\S*)? \((\d+(?:\.\d+)?) ([MG])B\)', line)
            if download and (download[3] == 'G' or float(download[2]) > 20):
                progress.note(
                    f'downloading {Path(download[1]).name} ({download[2]} {download[3]}B)'
                )
            if line.startswith('Installing collected packages'):
                progress.note(f'unpacking {line.count(",") + 1} packages')
            if line.startswith('ERROR'):
                errors.append(line.removeprefix('ERROR:').strip())
    if process.wait():
        reason = errors[0] if errors else f'pip ended with status {process.returncode}'
        raise SetupError(
            f'Installing failed: {reason[:300]} Check the network and run the same command again; '
            f'it goes on where it stopped (whole log: {log}).'
        )


def has_nvidia() -> bool:
    """Return whether an NVIDIA driver is loaded."""
    return Path('/proc/driver/nvidia/version').exists()


def reachable(index: str) -> bool:
    """Return whether a package index answers within a few seconds."""
    try:
        with urllib.request.urlopen(f'{index.rstrip("/")}/torch/', timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError, ValueError):
        return False


def torch_arguments(torch: str, progress: Progress) -> list[str]:
    """Return pip's arguments that choose the build of torch.

    ``auto`` takes the small CPU build where no NVIDIA driver is loaded and PyTorch's own index
    answers, else whatever the configured index has (PyPI: the CUDA build).
    """
    if torch == 'auto':
        if has_nvidia() or not reachable(f'{TORCH_INDEX}cpu'):
            return []
        return ['--extra-index-url', f'{TORCH_INDEX}cpu']
    if torch.startswith(('http://', 'https://')):
        return ['--extra-index-url', torch]
    version = re.search(r'^torch==(\S+)$', (REQUIREMENTS / 'constraints.txt').read_text(), re.M)
    assert version, 'torch is pinned in constraints.txt'
    index = f'{TORCH_INDEX}{torch}'
    if not reachable(index):
        progress.note(f'{index} does not answer; only the configured package indexes are asked')
        return [f'torch=={version[1]}+{torch}']
    return ['--extra-index-url', index, f'torch=={version[1]}+{torch}']


def install_ros(state: State, sourced: bool, progress: Progress) -> None:
    """Install what message packages need: the ROS wheels, unless a ROS is sourced."""
    files = [REQUIREMENTS / 'build.txt']
    if not sourced:
        files.append(REQUIREMENTS / 'ros.txt')
    digest = file_hash(*files)
    if state.values.get('ros') == digest:
        return
    what = 'build tools (ROS 2 Jazzy is sourced)' if sourced else 'ROS 2 Jazzy'
    with progress.step(what):
        # numpy too: message packages are compiled against the one that stays.
        pip(['numpy', *(a for file in files for a in ('-r', str(file)))], progress)
    state.set('ros', digest)


def start_interfaces(environment: dict[str, str]) -> subprocess.Popen[str]:
    """Start building the message packages; it runs beside the large download of the next step."""
    command = [str(VENV / 'bin/python'), '-u', str(ROOT / 'tools/build_interfaces.py')]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def finish_interfaces(process: subprocess.Popen[str], progress: Progress) -> None:
    """Wait for the message packages and show each; silent when there is nothing to build.

    Raises:
        SetupError: with the reason of the package that failed.
    """
    assert process.stdout is not None
    first = process.stdout.readline().strip()
    last = first
    if first.startswith('building'):
        with progress.step(first):
            for line in process.stdout:
                last = line.strip()
                if last.endswith(('built', 'used')):
                    progress.note(last)
            process.wait()
    else:
        last = (process.communicate()[0].strip().splitlines() or [first])[-1]
    if process.returncode:
        raise SetupError(last or 'The message packages did not build.')


def install_package(extras: set[str], torch: str, state: State, progress: Progress) -> None:
    """Install this package, editable, with the extras asked for and those already there."""
    digest = file_hash(
        REQUIREMENTS / 'constraints.txt',
        ROOT / 'setup.py',
        ROOT / 'setup.cfg',
        ROOT / 'package.xml',
    )
    before = state.values.get('package')
    had = set(state.values.get('extras', ()))  # type: ignore[call-overload]
    had_torch = state.values.get('torch', 'auto')
    wants_torch = bool(extras & TORCH_EXTRAS)
    same_torch = not wants_torch or torch in (had_torch, 'auto')
    if before == digest and extras <= had and same_torch:
        return
    wanted = extras | had
    arguments = ['--no-build-isolation']
    if wanted & TORCH_EXTRAS:
        arguments += torch_arguments(torch, progress)
    target = f'{ROOT}[{",".join(sorted(wanted))}]' if wanted else str(ROOT)
    with progress.step(f'spear_ros with {", ".join(sorted(wanted)) or "the robot side only"}'):
        pip([*arguments, '-e', target], progress)
    state.set('package', digest)
    state.set('extras', sorted(wanted))
    if wants_torch:
        state.set('torch', torch)


def prepare(needs: str, torch: str) -> None:
    """Bring the environment to what ``needs`` names; nothing happens when it is there."""
    progress, state = Progress(), State()
    environment = clean_environment()
    sourced = sourced_ros(environment)
    extras = extras_for(needs, torch)
    if not state.values.get('extras') or not extras <= set(state.values['extras']):  # type: ignore[call-overload]
        missing = list(system_check.missing_packages(simulator='sim' in extras))
        if missing:
            raise SetupError(system_check.sentence(missing))
        machine = system_check.unsuitable_machine(ROOT)
        if machine:
            raise SetupError(machine)
    make_venv(sourced, state, progress)
    install_ros(state, sourced, progress)
    interfaces = start_interfaces(environment)
    try:
        install_package(extras, torch, state, progress)
        finish_interfaces(interfaces, progress)
    finally:
        if interfaces.poll() is None:
            interfaces.terminate()
            interfaces.wait()
    if progress.number:
        progress.note(f'ready after {time.monotonic() - progress.started:.0f} s')


@contextmanager
def alone() -> Iterator[None]:
    """Let one set-up run at a time; a second one waits."""
    with Path(__file__).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print('Another set-up of this clone is running; waiting for it ...', flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def leave_venv() -> None:
    """Start again with the base interpreter when called from a virtual environment.

    An activated .venv would otherwise replace itself while it runs.
    """
    if sys.prefix != sys.base_prefix:
        base = getattr(sys, '_base_executable', '') or sys.executable
        if Path(base).resolve() != Path(sys.executable).absolute():
            os.execve(base, [base, '-B', *sys.argv], clean_environment())


def main(run: Callable[[str, str], None] = prepare) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--needs', choices=sorted(NEEDS), default='demo')
    parser.add_argument('--policy', default='', help='leaves torch out where the policy needs none')
    arguments = parser.parse_args()
    leave_venv()
    torch = os.environ.get('TORCH') or 'auto'
    try:
        with alone():
            run(torch_free(arguments.needs, arguments.policy), torch)
    except SetupError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('\nInterrupted; the same command goes on where it stopped.', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
