#!/usr/bin/env python3
"""Builds the message packages of ``interfaces/`` into the environment that runs this script.

``spear_msgs`` is always ours. The driver packages are subsets, built only where the real package is
absent, so that a robot workstation never sees two versions of one type. Every package is built once
per content: a hash of its sources, of the way to build and of the ROS and Python versions is kept
beside the installed files, and an equal hash skips the build in a few milliseconds.

The ROS wheels from PyPI were built in a container whose Python include folder is written into their
exported CMake files; that folder is replaced by the one of this interpreter first.

Run by ``tools/bootstrap.py``; by hand: ``.venv/bin/python tools/build_interfaces.py``.
"""

import argparse
import hashlib
import inspect
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INTERFACES = ROOT / 'interfaces'
FAST_GENERATORS = ROOT / 'tools/cmake'
DRIVER_PACKAGES = (
    'franka_msgs',
    'interbotix_xs_msgs',
    'control_msgs',
    'controller_manager_msgs',
)
CONTAINER_INCLUDE = re.compile(rb'/opt/python/cp3\d+-cp3\d+/include/python3\.\d+')
CONTAINER_NUMPY = re.compile(
    rb'/opt/python/cp3\d+-cp3\d+/lib/python3\.\d+/site-packages/numpy/_core/include'
)


class BuildError(RuntimeError):
    """A build failed; the text names the package, the reason and the log file."""


def source_folder(package: str) -> Path:
    """Return where the sources of an interface package lie in the clone."""
    return (
        INTERFACES / package if package == 'spear_msgs' else INTERFACES / 'driver_subset' / package
    )


def existing_prefix(package: str, prefix: Path) -> Path | None:
    """Return the first sourced ROS prefix, other than ``prefix``, that has the real ``package``."""
    for entry in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep):
        index = Path(entry) / 'share/ament_index/resource_index/packages' / package
        if entry and Path(entry).resolve() != prefix.resolve() and index.is_file():
            return Path(entry)
    return None


def built_from_wheels(prefix: Path) -> bool:
    """Return whether ROS itself lies in ``prefix``: no other one is sourced."""
    return existing_prefix('rosidl_generator_py', prefix) is None


def ros_version(prefix: Path) -> str:
    """Return a text that changes when the ROS installation that we build against changes."""
    sourced = existing_prefix('rosidl_generator_py', prefix)
    base = sourced or prefix
    manifest = base / 'share/rosidl_generator_py/package.xml'
    return f'{base}:{manifest.read_text() if manifest.is_file() else "absent"}'


def content_hash(package: str, prefix: Path) -> str:
    """Return the SHA-256 over everything that decides what the build of ``package`` gives."""
    digest = hashlib.sha256()
    folder = source_folder(package)
    for path in sorted(p for p in folder.rglob('*') if p.is_file()):
        digest.update(f'{path.relative_to(folder)}\0'.encode() + path.read_bytes() + b'\0')
    for path in sorted(FAST_GENERATORS.iterdir()):
        digest.update(path.read_bytes())
    for function in (build, build_environment, patch_wheel_cmake_files):
        digest.update(inspect.getsource(function).encode())
    digest.update(f'{sys.version}\0{ros_version(prefix)}'.encode())
    return digest.hexdigest()


def patch_wheel_cmake_files(prefix: Path) -> int:
    """Point the wheels' exported CMake files at this interpreter; return how many changed.

    They name the headers of Python and of numpy in the container that built the wheels.
    """
    import numpy as np  # absent where a ROS is sourced and nothing else was installed yet

    include = sysconfig.get_paths()['include'].encode()
    changed = 0
    for path in prefix.glob('share/*/cmake/*.cmake'):
        text = path.read_bytes()
        if b'/opt/python/cp3' not in text:
            continue
        text = CONTAINER_INCLUDE.sub(include, text)
        text = CONTAINER_NUMPY.sub(np.get_include().encode(), text)
        temporary = path.with_suffix('.spear_tmp')
        temporary.write_bytes(text)
        temporary.replace(path)
        changed += 1
    return changed


def build_environment(prefix: Path) -> dict[str, str]:
    """Return the environment of cmake, with our prefix first."""
    environment = dict(os.environ)
    sourced = environment.get('AMENT_PREFIX_PATH', '')
    environment['AMENT_PREFIX_PATH'] = os.pathsep.join(p for p in (str(prefix), sourced) if p)
    environment['PATH'] = f'{prefix / "bin"}{os.pathsep}{environment.get("PATH", "")}'
    environment['PYTHONDONTWRITEBYTECODE'] = '1'
    return environment


def first_error(log: str) -> str:
    """Return the first error of a build log in one line: of CMake, the compiler or a generator.

    CMake puts its text on the line after; make's own lines only say that something failed.
    """
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for line, following in zip(lines, [*lines[1:], ''], strict=False):
        if line.startswith('CMake Error'):
            return f'{line} {following}'[:300]
        if re.search(r'\berror: |^[\w.]*(Error|Exception): ', line):
            return line[:300]
    return lines[-1][:300] if lines else 'no output'


def run_logged(command: list[str], log: Path, environment: dict[str, str], package: str) -> None:
    """Run ``command``; on failure raise a BuildError that shows the log's first error line."""
    with log.open('ab') as sink:
        sink.write(f'\n$ {" ".join(command)}\n'.encode())
        sink.flush()
        result = subprocess.run(command, stdout=sink, stderr=subprocess.STDOUT, env=environment)
    if result.returncode:
        raise BuildError(
            f'{package} did not build: {first_error(log.read_text(errors="replace"))} (whole log: '
            f'{log}); mend that and run the same command again.'
        )


def build(package: str, prefix: Path, jobs: int) -> None:
    """Configure, compile and install one package into ``prefix``."""
    folder = prefix / '.build' / package
    shutil.rmtree(folder, ignore_errors=True)  # a half-written CMake cache is not worth mending
    folder.mkdir(parents=True)
    log = folder / 'build.log'
    environment = build_environment(prefix)
    version = f'python{sys.version_info.major}.{sys.version_info.minor}'
    prefixes = [str(prefix), *environment['AMENT_PREFIX_PATH'].split(os.pathsep)]
    configure = [
        'cmake', '-S', str(source_folder(package)), '-B', str(folder),
        f'-DCMAKE_PREFIX_PATH={";".join(dict.fromkeys(prefixes))}',
        f'-DCMAKE_INSTALL_PREFIX={prefix}',
        f'-DPYTHON_INSTALL_DIR=lib/{version}/site-packages',
        f'-DPython3_EXECUTABLE={prefix / "bin/python"}',
        '-DPython3_FIND_VIRTUALENV=ONLY',
        # Libraries find each other without LD_LIBRARY_PATH, whatever starts the process.
        f'-DCMAKE_INSTALL_RPATH={prefix / "lib"}',
        '-DBUILD_TESTING=OFF',
        '-Wno-dev',
    ]  # fmt: skip
    if built_from_wheels(prefix):
        configure.append(f'-Drosidl_default_generators_DIR={FAST_GENERATORS}')
    run_logged(configure, log, environment, package)
    run_logged(['make', '-C', str(folder), f'-j{jobs}', 'install'], log, environment, package)


def outdated(prefix: Path) -> dict[str, str]:
    """Return the packages to build, with the hash of their content."""
    wanted = {}
    for package in ('spear_msgs', *DRIVER_PACKAGES):
        if package in DRIVER_PACKAGES and existing_prefix(package, prefix) is not None:
            continue  # the real package is there
        stamp, digest = stamp_of(package, prefix), content_hash(package, prefix)
        if not stamp.is_file() or stamp.read_text() != digest:
            wanted[package] = digest
    return wanted


def stamp_of(package: str, prefix: Path) -> Path:
    """Return the file that holds the hash of what is installed."""
    return prefix / '.build' / 'stamps' / package


def build_all(prefix: Path, jobs: int, say: Callable[[str], None] = print) -> list[str]:
    """Build what is missing or changed; return the names of the packages that were built.

    Raises:
        BuildError: of the first package that failed; the others are finished and kept.
    """
    wanted = outdated(prefix)
    if not wanted:
        return []
    say(f'building the message packages {", ".join(wanted)}')
    if built_from_wheels(prefix):
        patch_wheel_cmake_files(prefix)

    def build_one(package: str) -> None:
        stamp = stamp_of(package, prefix)
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.unlink(missing_ok=True)
        build(package, prefix, max(1, jobs // 2))
        stamp.write_text(wanted[package])
        say(f'{package}: built')

    # The packages do not depend on each other; two at a time fill the cores while one configures.
    with ThreadPoolExecutor(max_workers=2) as pool:
        for done in [pool.submit(build_one, package) for package in wanted]:
            done.result()
    return list(wanted)


def main() -> int:
    """Command line: build into ``sys.prefix``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--jobs', type=int, default=os.cpu_count() or 2, help='parallel compilers')
    arguments = parser.parse_args()
    if sys.prefix == sys.base_prefix:
        print('build_interfaces: run it with .venv/bin/python, never with the system Python.')
        return 2
    try:
        built = build_all(Path(sys.prefix), arguments.jobs)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    print(f'interfaces: {", ".join(built) or "nothing to do"}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
