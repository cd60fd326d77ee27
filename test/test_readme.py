"""The README is run: blocks behind ``<!-- run -->`` are executed, linked files must exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / 'README.md').read_text()
BLOCKS = re.findall(r'<!-- run -->\n```bash\n(.*?)```', README, re.DOTALL)


def test_the_readme_has_blocks_to_run():
    assert BLOCKS


@pytest.mark.parametrize('block', BLOCKS, ids=lambda b: b.strip().splitlines()[-1][:50])
def test_block_runs(block, tmp_path):
    if '../shared/data' in block and not (ROOT.parent / 'shared' / 'data').is_dir():
        pytest.skip('needs the recordings in ../shared/data')
    for name in os.listdir(ROOT):  # the commands are written for the clone's top folder
        if name not in ('out', '.git'):
            (tmp_path / name).symlink_to(ROOT / name)
    shared = ROOT.parent / 'shared'
    if shared.is_dir() and not (tmp_path.parent / 'shared').exists():
        (tmp_path.parent / 'shared').symlink_to(shared)
    venv = Path(sys.executable).parent
    environment = {**os.environ, 'PATH': f'{venv}:{os.environ["PATH"]}'}
    done = subprocess.run(
        ['bash', '-euc', block],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, f'{block}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}'


def test_every_file_that_the_readme_links_to_exists():
    links = [t for t in re.findall(r'\]\(([^)#:]+)\)', README) if not t.startswith('http')]
    missing = [t for t in links if not (ROOT / t).exists()]
    assert not missing
