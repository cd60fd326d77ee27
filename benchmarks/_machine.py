"""Where a figure was measured, and percentiles."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]


def machine() -> dict:
    """Processor, cores, load, versions, commit."""
    model = platform.machine()
    for line in Path('/proc/cpuinfo').read_text().splitlines():
        if line.startswith('model name'):
            model = line.partition(':')[2].strip()
            break
    versions = {}
    for package in ('rclpy', 'numpy', 'mujoco', 'torch'):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    commit = subprocess.run(
        ['git', 'rev-parse', '--short', 'HEAD'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return {
        'processor': model,
        'cores': len(os.sched_getaffinity(0)),
        'load_average': [round(v, 1) for v in os.getloadavg()],
        'python': platform.python_version(),
        'versions': versions,
        'commit': commit,
    }


def percentiles(values: list[float]) -> dict[str, float]:
    """Median, 99th percentile, largest; empty = none."""
    if not values:
        return {'n': 0}
    p50, p99 = np.percentile(values, (50, 99))
    return {
        'n': len(values),
        'p50': round(float(p50), 2),
        'p99': round(float(p99), 2),
        'max': round(float(max(values)), 2),
    }


def uss_mb(pid: int) -> float:
    """Memory of a process that nobody else shares (unique set size), MB; 0 when it is gone."""
    try:
        text = Path(f'/proc/{pid}/smaps_rollup').read_text()
    except OSError:
        return 0.0
    kb = sum(
        int(line.split()[1])
        for line in text.splitlines()
        if line.startswith(('Private_Clean', 'Private_Dirty'))
    )
    return kb / 1000.0 * 1.024
