"""Fixtures that several folders of tests share."""

import importlib.util
import os
from pathlib import Path

import pytest

# tools/gpu_check.py runs the GPU tests where hypothesis may be missing.
if importlib.util.find_spec('hypothesis') is not None:
    from hypothesis import settings

    # A test that is slow on a busy machine has not failed: no test judges wall-clock time.
    settings.register_profile('house', deadline=None)
    settings.load_profile('house')

# Triton decides when it is first imported, by whomever, whether its functions are interpreted.
if all(importlib.util.find_spec(name) for name in ('triton', 'torch')):
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault('TRITON_INTERPRET', '1')


@pytest.fixture(scope='session')
def bags():
    """Return the module that writes small recordings (needs rosbags)."""
    pytest.importorskip('rosbags', reason='reading recordings needs the package rosbags')
    path = Path(__file__).parent / 'bag_factory.py'
    spec = importlib.util.spec_from_file_location('bag_factory', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='session')
def real_recordings():
    """Return the folder of recordings from public sources, which the repository does not hold."""
    folder = Path(__file__).parents[2] / 'shared/data/real_recordings'
    if not folder.is_dir():
        pytest.skip(f'the real recordings are not here ({folder})')
    return folder
