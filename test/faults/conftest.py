"""The bench of ``benchmarks/_fault_bench.py`` for the tests of this folder."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / 'benchmarks'
if str(BENCHMARKS) not in sys.path:  # the tables are needed at collection
    sys.path.append(str(BENCHMARKS))


class Benches:
    """One running system at a time: tests come sorted by robot."""

    def __init__(self, folder):
        self._folder = folder
        self._key, self._bench = None, None

    def get(self, robot, simulated_time=False):
        """Return the bench of a robot; the one of another robot ends."""
        from _fault_bench import FaultBench

        key = (robot, simulated_time)
        if key != self._key:
            self.close()
            name = f'{robot}_simulated_time' if simulated_time else robot
            self._bench = FaultBench(
                robot,
                self._folder / name,
                simulated_time=simulated_time,
                camera_process=not simulated_time,
            )
            self._key = key
        return self._bench

    def close(self):
        if self._bench is not None:
            sys.stdout.write(self._bench.logs())
            self._bench.close()
        self._key, self._bench = None, None


@pytest.fixture(scope='module')
def benches(tmp_path_factory):
    pytest.importorskip('rclpy', reason='rclpy is not installed')
    pytest.importorskip('spear_msgs', reason='the interfaces are not built')
    pytest.importorskip('mujoco', reason='mujoco is not installed')
    benches = Benches(tmp_path_factory.mktemp('faults'))
    yield benches
    benches.close()
