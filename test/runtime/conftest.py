"""The bench of ``benchmarks/executor_rig.py`` for the tests of the execution core."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / 'benchmarks'


@pytest.fixture(scope='session')
def bench():
    """Return the module with ``Rig`` and ``motion_of``."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import executor_rig
    finally:
        sys.path.remove(str(BENCHMARKS))
    return executor_rig


@pytest.fixture(scope='session')
def fuzz(bench):
    """Return the module ``benchmarks/fuzz_executor.py``."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import fuzz_executor
    finally:
        sys.path.remove(str(BENCHMARKS))
    return fuzz_executor
