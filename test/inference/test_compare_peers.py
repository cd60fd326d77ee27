"""benchmarks/compare_peers.py: the peers compute the same network; missing rows say why."""

import dataclasses
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from spear_ros.inference.roofline import Workload
from spear_ros.inference.stages import random_inputs
from spear_ros.networks.spear1 import Spear1Config

BENCHMARKS = Path(__file__).resolve().parents[2] / 'benchmarks'
CONFIG = Spear1Config.named('spear1_debug')
CPU = torch.device('cpu')


@pytest.fixture(scope='module', autouse=True)
def _benchmarks_are_importable():
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope='module')
def model():
    from compare_peers import build

    model = build('spear1_debug', torch.float32, CPU)
    with torch.no_grad():  # every parameter a value of its own, so that a swapped one shows
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.bake()
    return model


@pytest.fixture
def load():
    return Workload(config=CONFIG, steps=3, text=16, weight_bytes=4)


def chunk_of(name, model, load, inputs):
    import _peers

    return _peers.make(name, model, load, 'default').chunk(inputs)


@pytest.mark.parametrize('cameras', [1, 2])
def test_engine_and_transformers_compute_what_the_plain_networks_do(model, load, cameras):
    pytest.importorskip('transformers', reason='transformers is the peer here')
    load = dataclasses.replace(load, cameras=cameras)
    inputs = random_inputs(load, (96, 128))
    expected = chunk_of('networks', model, load, inputs)
    assert expected.shape == (CONFIG.flow.horizon, 8)
    for name in ('engine', 'transformers'):
        np.testing.assert_allclose(chunk_of(name, model, load, inputs), expected, atol=2e-4)


def test_pi0_sees_as_many_patches_as_a_square_can_hold(model, load):
    transformers = pytest.importorskip('transformers', reason='transformers is the peer here')
    if not hasattr(transformers, 'PI0ForConditionalGeneration'):
        pytest.skip('this version of transformers has no PI0')
    import _peers

    peer = _peers.make('pi0', model, load, 'default')
    assert f'{int(sum(load.images) ** 0.5) ** 2} vision tokens' in peer.note
    assert np.isfinite(peer.chunk(random_inputs(load, (96, 128)))).all()


def test_ratios_are_to_the_engine_and_differences_to_the_plain_networks():
    from compare_peers import summarise, table

    ms = {'p50': 2.0, 'p99': 3.0}
    results = {
        'engine': {'ms': ms, 'chunk': np.ones(3), 'note': ''},
        'networks': {'ms': {'p50': 5.0, 'p99': 6.0}, 'chunk': np.zeros(3), 'note': ''},
        'transformers': {'ms': {'p50': 7.0, 'p99': 8.0}, 'chunk': np.zeros(3), 'note': ''},
        'compiled': {'note': 'no result within 5 s'},
        'pi0': {'ms': {'p50': 1.0, 'p99': 1.0}, 'chunk': np.full(3, 9.0), 'note': ''},
    }
    summarise(results)
    assert results['networks']['times_the_engine'] == 2.5
    assert results['engine']['difference'] == 1.0
    assert (results['transformers']['wanted'], results['transformers']['reached']) == (3.0, True)
    assert results['pi0']['reached'] is False
    assert 'difference' not in results['pi0']  # another network
    assert 'reached' not in results['compiled']
    line = next(li for li in table(results) if 'no result within 5 s' in li)
    assert not any(ch.isdigit() for ch in line.split('no result')[0])


def test_what_is_not_tried_on_a_cpu_says_so():
    from compare_peers import parse, skipped

    full, tiny = parse(['--size', 'spear1']), parse(['--size', 'spear1_tiny'])
    assert 'too long' in skipped('compiled', full, CPU)
    assert skipped('compiled', tiny, CPU) == ''
    assert skipped('compiled', full, torch.device('cuda')) == ''
    assert skipped('engine_eager', tiny, CPU)
    assert skipped('engine', tiny, CPU) == ''


def test_a_peer_over_its_limit_takes_what_it_started_with_it(tmp_path):
    from compare_peers import answer

    note = tmp_path / 'pid'
    code = (
        'import pathlib, subprocess, sys, time\n'
        'p = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])\n'
        f'pathlib.Path({str(note)!r}).write_text(str(p.pid))\n'
        'time.sleep(600)\n'
    )
    found = answer([sys.executable, '-c', code], None, 10.0)
    assert found == {'note': 'no result within 10 s'}
    worker = Path('/proc', note.read_text(), 'stat')
    for _ in range(200):  # the kernel may take a moment to reap it
        try:
            if worker.read_text().rsplit(')', 1)[1].split()[0] == 'Z':
                break
        except OSError:
            break
        time.sleep(0.05)
    else:
        pytest.fail('the worker lives')


def test_a_peer_answers_with_its_last_line_or_with_its_last_error():
    from compare_peers import answer

    good = 'import json; print("a table"); print(json.dumps({"ms": 1}))'
    assert answer([sys.executable, '-c', good], None, 60.0) == {'ms': 1}
    bad = answer([sys.executable, '-c', 'raise LookupError("no such mode")'], None, 60.0)
    assert bad == {'note': 'LookupError: no such mode'}


def test_an_unknown_peer_is_refused(capsys):
    from compare_peers import parse

    with pytest.raises(SystemExit):
        parse(['--peers', 'engine,magic'])
    assert 'magic' in capsys.readouterr().err
