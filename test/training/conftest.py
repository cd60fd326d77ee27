"""Small data for the tests of training: shards of both embodiments, questions, depth scenes."""

import json

import cv2
import numpy as np
import pytest
import torch

from spear_ros.core.geometry import quat_exp
from spear_ros.data.samples import PictureSettings, Sample
from spear_ros.data.shard_writer import ShardWriter
from spear_ros.data.shards import DatasetCard
from spear_ros.processing.embodiments import default_action_specs
from spear_ros.processing.spatial_bins import SpatialBins


@pytest.fixture(autouse=True, scope='session')
def one_thread():
    torch.set_num_threads(1)


def jpeg(rng, height, width, level):
    image = np.full((height, width, 3), level, np.uint8)
    image[: height // 2] = rng.integers(0, 255, 3)
    return cv2.imencode('.jpg', image)[1].tobytes()


def write_shards(
    folder, embodiment, *, samples=32, seed=0, shard_mb=1, name=None, per_picture=1, info=None
):
    """Samples whose targets follow from the grey level of the picture: something to learn."""
    rng = np.random.default_rng(seed)
    spec = default_action_specs()[embodiment]
    card = DatasetCard(
        name=name or embodiment,
        spec=spec,
        label='commanded',
        pictures=PictureSettings(external_size=(84, 112), wrist_size=(56, 56)),
        source='test',
    )
    with ShardWriter(folder, card, shard_mb=shard_mb) as writer:
        for i in range(samples):
            level = int(rng.integers(0, 255))
            if i % per_picture == 0:
                pictures = jpeg(rng, 84, 112, level), jpeg(rng, 56, 56, level) if i % 3 else None
            numbers = np.zeros((1 + spec.horizon, 9))
            numbers[:, 8] = 1
            numbers[:, 0:3] = rng.uniform(0.2, 0.5, 3)
            numbers[:, 3:7] = quat_exp([np.pi, 0, 0])
            steps = np.arange(1 + spec.horizon)
            numbers[:, 0] += 0.1 * (level / 255 - 0.5) * steps
            numbers[:, 1] += rng.normal(0, 0.01) * steps
            numbers[:, 2] += rng.normal(0, 0.01) * steps
            numbers[:, 7] = level > 128
            sample = Sample(
                key=f'{folder.name}-{i:05d}',
                dataset=card.name,
                embodiment=embodiment,
                instruction=('touch the red cube', 'pick up the blue ball')[i % 2],
                numbers=numbers,
                external=pictures[0],
                wrist=pictures[1],
                info=info or {},
            )
            writer.add_episode(sample.key, [sample])
    return folder


@pytest.fixture(scope='session')
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp('shards')
    return [
        str(write_shards(root / 'franka', 'franka_droid')),
        str(write_shards(root / 'widowx', 'widowx_bridge', seed=1)),
    ]


@pytest.fixture(scope='session')
def questions(tmp_path_factory):
    folder = tmp_path_factory.mktemp('questions')
    rng = np.random.default_rng(0)
    lines = []
    for i in range(12):
        (folder / f'{i}.jpg').write_bytes(jpeg(rng, 84, 112, 20 * i))
        lines.append(
            {
                'key': f'q{i}',
                'image': f'{i}.jpg',
                'question': 'where is the centre of the red cube?',
                'answer': f'<3d{80 * i:04d}><3d{40 * i:04d}><3d0512>',
                'family': 'centre',
            }
        )
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    (folder / 'questions.jsonl').write_text(text)
    write_bins(folder / 'bins.json')
    return str(folder)


def write_bins(path, mean=0.5, scale='metric'):
    bins = SpatialBins.normal(mean, 0.3)
    data = {'scale_type': scale, 'edges': bins.edges, 'centres': bins.centres}
    path.write_text(json.dumps(data))
