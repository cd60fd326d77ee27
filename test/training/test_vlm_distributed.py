"""SPEAR-VLM under torchrun on two processes, and killed in the middle of a run."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name('vlm_processes.py')
LIMIT_S = 1800


def environment():
    return {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}


def test_two_processes_run_both_phases_and_resume_bit_by_bit(questions, tmp_path):
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', '2',
        '--master-port', str(port), str(SCRIPT), str(tmp_path), questions,
    ]  # fmt: skip
    result = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]


def test_a_killed_run_goes_on_to_the_weights_of_one_never_killed(questions, tmp_path):
    def start(folder):
        return subprocess.Popen(
            [
                sys.executable, '-m', 'spear_ros.training.vlm', '--recipe', 'spear_vlm_debug',
                '--out', str(folder), f'data.questions={questions}', 'data.text_length=64',
                'saving.every_steps=3', 'steps=40', 'device=cpu',
            ],
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip

    killed = start(tmp_path / 'killed')
    until = time.monotonic() + LIMIT_S
    while not list((tmp_path / 'killed' / 'checkpoints').glob('step-*[0-9]')):
        assert killed.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    assert not (tmp_path / 'killed' / 'export').exists(), 'killed too late to show anything'
    exports = []
    for name in ('killed', 'whole'):
        assert start(tmp_path / name).wait(timeout=LIMIT_S) == 0
        exports.append((tmp_path / name / 'export' / 'model.safetensors').read_bytes())
    assert exports[0] == exports[1]
