"""Two and four processes on this machine: sharded gradients, resume, one that dies."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name('two_processes.py')
ROOT = Path(__file__).parents[2]


def start(mode, out, shards, world=2):
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(world):
        environment = {
            **os.environ,
            'RANK': str(rank),
            'LOCAL_RANK': str(rank),
            'WORLD_SIZE': str(world),
            'MASTER_ADDR': '127.0.0.1',
            'MASTER_PORT': str(port),
            'OMP_NUM_THREADS': '1',
            'PYTHONPATH': str(ROOT),
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, str(SCRIPT), mode, str(out), *shards],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return processes


@pytest.fixture
def finish():
    running = []

    def wait(processes):
        running.extend(processes)
        return [p.communicate(timeout=900) for p in processes]

    yield wait
    for process in running:
        if process.poll() is None:
            process.kill()


def test_two_processes_have_the_gradients_of_one_and_resume_bit_by_bit(finish, shards, tmp_path):
    processes = start('all', tmp_path, shards)
    outputs = finish(processes)
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]


def test_four_processes_in_two_replicas_have_the_gradients_of_one_and_resume(
    finish, shards, tmp_path
):
    processes = start('replicas', tmp_path, shards, world=4)
    outputs = finish(processes)
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]


def test_a_dead_process_is_named_and_the_checkpoint_kept(finish, shards, tmp_path):
    processes = start('dead', tmp_path, shards)
    (said, errors), _ = finish(processes)
    assert processes[1].returncode == 9
    assert processes[0].returncode == 0, errors[-3000:]
    assert 'lost touch with another one' in said
    assert 'the checkpoint of step 1 is whole' in said
