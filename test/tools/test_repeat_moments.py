"""tools/repeat_moments.py: which moments it sees, and that it keeps everything else."""

import importlib.util
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

if not importlib.util.find_spec('cv2'):
    pytest.skip('needs opencv-python', allow_module_level=True)

from spear_ros.core.geometry import pose_parts, quat_exp, quat_to_matrix
from spear_ros.data.samples import PictureSettings, Sample
from spear_ros.data.shard_writer import ShardWriter
from spear_ros.data.shards import DatasetCard, ShardDataset
from spear_ros.processing.embodiments import default_action_specs
from spear_ros.simulation.grippers import FRANKA_HAND

ROOT = Path(__file__).resolve().parents[2]
OBJECTS = json.dumps([['red cube', [0.5, 0.1, 0.02], [0.5, 0.5], None]])


@pytest.fixture(scope='module')
def tool():
    path = ROOT / 'tools' / 'repeat_moments.py'
    spec = importlib.util.spec_from_file_location('repeat_moments', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def numbers(tool_at, way, opening):
    """The tool points down at ``tool_at``; the chunk goes ``way`` in five even steps."""
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = quat_to_matrix(quat_exp([np.pi, 0, 0])), tool_at
    p, q = pose_parts(T @ np.linalg.inv(FRANKA_HAND.T_ee_tcp))
    rows = np.ones((6, 9))
    rows[:, :3] = p + np.outer(np.arange(6) / 5, way)
    rows[:, 3:7], rows[:, 7] = q, opening
    return rows


def facts(family):
    return {'objects': OBJECTS, 'target': 'red cube', 'family': family}


BEHIND, DOWN, ON = (0.5, 0.04, 0.02), (0, 0, -0.05), (0.5, 0.1, 0.03)
CASES = [
    ('push', BEHIND, (0, 0.08, 0), 0.0, 'push'),
    ('push', BEHIND, DOWN, 0.0, 'beside'),
    ('push', BEHIND, (0, 0.01, 0), 0.0, 'beside'),
    ('push', BEHIND, (0, 0.08, 0), 1.0, ''),  # the fingers are still apart
    ('push', (0.5, -0.1, 0.02), (0, 0.08, 0), 0.0, ''),
    ('push', (0.5, 0.04, 0.2), DOWN, 0.0, ''),
    ('touch', BEHIND, (0, 0.08, 0), 0.0, ''),
    ('put', ON, (0, 0.08, 0.05), 0.5, 'held'),
    ('put', ON, (0, 0, 0), 1.0, ''),  # around it, not holding it
    ('pick', ON, (0, 0, 0.08), 0.5, ''),
]


@pytest.mark.parametrize(('family', 'at', 'way', 'opening', 'expected'), CASES)
def test_a_moment_is_told_by_place_fingers_and_motion(tool, family, at, way, opening, expected):
    assert tool.moment_of(facts(family), numbers(at, way, opening), FRANKA_HAND) == expected


def test_a_target_that_is_not_there_is_no_moment(tool):
    info = {**facts('push'), 'target': 'blue ball'}
    assert tool.moment_of(info, numbers(BEHIND, DOWN, 0.0), FRANKA_HAND) == ''


def test_the_copies_are_added_and_every_sample_stays(tool, tmp_path, capsys):
    card = DatasetCard(
        name='sim_fr3',
        spec=default_action_specs()['franka_droid'],
        label='commanded',
        pictures=PictureSettings(external_size=(28, 28), wrist_size=(28, 28)),
        source='test',
    )
    with ShardWriter(tmp_path / 'in', card) as writer:
        for i, (family, at, way, opening, _) in enumerate(CASES):
            sample = Sample(
                key=f'case-{i:05d}',
                dataset=card.name,
                embodiment='franka_droid',
                instruction='push the red cube left',
                numbers=numbers(at, way, opening),
                external=b'jpeg',
                wrist=None,
                info=facts(family),
            )
            writer.add_episode(sample.key, [sample])
    out = tmp_path / 'out'
    tool.main([str(tmp_path / 'in'), str(out), '--push', '3', '--beside', '0', '--held', '2'])
    assert 'push 1 samples, 3 times' in capsys.readouterr().out
    dataset = ShardDataset(out)
    found = Counter(
        dataset.sample(shard, index).key
        for shard, size in enumerate(dataset.sizes)
        for index in range(size)
    )
    assert found == {f'case-{i:05d}': 1 for i in range(len(CASES))} | {
        'case-00000': 4,
        'case-00007': 3,
    }
    with pytest.raises(SystemExit):
        tool.main([str(tmp_path / 'in'), str(out)])
