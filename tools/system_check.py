"""Names every missing system package in one sentence, before anything is downloaded.

Standard library only: it runs before the environment exists.
"""

import ctypes
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

CMAKE_OLDEST = (3, 20)  # asked for by ROS 2's own generators
NEEDED_DISK_GB = 4.0


def _cmake_version() -> tuple[int, int]:
    if not shutil.which('cmake'):
        return (0, 0)
    text = subprocess.run(['cmake', '--version'], capture_output=True, text=True).stdout
    found = re.search(r'(\d+)\.(\d+)', text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _has_software_renderer() -> bool:
    """Return whether EGL has a driver: Mesa's software one, or a vendor's such as NVIDIA's."""
    folders = [Path('/usr/lib'), Path('/usr/lib64')]
    mesa = any(
        next(folder.glob(pattern), None)
        for folder in folders
        for pattern in ('*/dri/swrast_dri.so', 'dri/swrast_dri.so', '*/libgallium-*.so')
    )
    vendors = Path('/usr/share/glvnd/egl_vendor.d')
    return mesa or any('nvidia' in p.name for p in vendors.glob('*.json'))


def missing_packages(simulator: bool) -> Iterator[tuple[str, str]]:
    """Yield (what is missing, the apt packages that bring it).

    Args:
        simulator: also check what head-less rendering needs.
    """
    if not (shutil.which('cc') or shutil.which('gcc')):
        yield 'a C compiler', 'build-essential'
    if not (shutil.which('c++') or shutil.which('g++')):
        yield 'a C++ compiler', 'build-essential'
    if not shutil.which('make'):
        yield 'make', 'build-essential'
    if _cmake_version() < CMAKE_OLDEST:
        yield 'CMake 3.20 or newer', 'cmake'
    dev = f'python{sys.version_info[0]}.{sys.version_info[1]}'
    if not (Path(sysconfig.get_paths()['include']) / 'Python.h').is_file():
        yield f"Python's headers (for {sys.executable})", f'{dev}-dev'
    if not (importlib.util.find_spec('venv') and importlib.util.find_spec('ensurepip')):
        yield f"Python's venv module (for {sys.executable})", f'{dev}-venv'
    if simulator and os.environ.get('MUJOCO_GL', 'egl') == 'egl':
        if not _loads('libEGL.so.1'):
            yield 'EGL', 'libegl1'
        if not (_loads('libGL.so.1') or _loads('libOpenGL.so.0')):
            yield 'OpenGL', 'libgl1'
        if not _has_software_renderer():
            yield 'a renderer for EGL', 'libgl1-mesa-dri'


def unsuitable_machine(folder: Path) -> str:
    """Return one sentence when this machine cannot work at all, else an empty text."""
    if platform.system() != 'Linux' or platform.machine() != 'x86_64':
        return (
            f'This machine is {platform.system()} on {platform.machine()}; the ROS 2 wheels exist '
            'for Linux on x86-64 only.'
        )
    free_gb = shutil.disk_usage(folder).free / 1e9
    if free_gb < NEEDED_DISK_GB:
        return (
            f'Only {free_gb:.1f} GB are free under {folder}; the environment needs about '
            f'{NEEDED_DISK_GB:.0f} GB, so make room first.'
        )
    return ''


def sentence(missing: list[tuple[str, str]]) -> str:
    """Return the one sentence that names all that is missing, with the command that mends it."""
    names = ', '.join(dict.fromkeys(name for name, _ in missing))
    packages = ' '.join(dict.fromkeys(package for _, package in missing))
    sudo = '' if os.geteuid() == 0 else 'sudo '
    return f'Missing on this machine: {names}. Install with: {sudo}apt-get install -y {packages}'
