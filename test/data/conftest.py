"""Published-format writers and recordings for the tests of the data layer."""

import json
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

RECORDINGS = Path(__file__).parents[2].parent / 'shared' / 'data' / 'real_recordings'


@pytest.fixture(scope='session')
def recordings():
    if not RECORDINGS.is_dir():
        pytest.skip('the public recordings are not at ../shared/data/real_recordings')
    return RECORDINGS


def _naive_crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def _masked(data):
    crc = _naive_crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _varint(value):
    value &= (1 << 64) - 1
    out = b''
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def _field(number, content):
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _feature(values):
    if isinstance(values, list):
        return _field(1, b''.join(_field(1, bytes(v)) for v in values))
    values = np.asarray(values)
    if np.issubdtype(values.dtype, np.floating):
        return _field(2, _field(1, values.astype('<f4').tobytes()))
    return _field(3, _field(1, b''.join(_varint(int(v)) for v in values.ravel())))


class Rlds:
    """Writes TFRecords and features.json the way TensorFlow Datasets does, by independent code."""

    example = staticmethod(
        lambda features: _field(
            1,
            b''.join(
                _field(1, _field(1, name.encode()) + _field(2, _feature(values)))
                for name, values in features.items()
            ),
        )
    )
    naive_crc32c = staticmethod(_naive_crc32c)

    @staticmethod
    def write_records(path, payloads):
        with open(path, 'wb') as stream:
            for payload in payloads:
                header = struct.pack('<Q', len(payload))
                stream.write(header + struct.pack('<I', _masked(header)))
                stream.write(payload + struct.pack('<I', _masked(payload)))

    @classmethod
    def write_dataset(cls, folder, episodes, split='train'):
        """``episodes``: list of {path below steps/ or /metadata: Column}."""
        folder.mkdir(parents=True, exist_ok=True)
        tree = {'featuresDict': {'features': {}}}
        payloads = []
        for episode in episodes:
            n = next(len(c.rows) for p, c in episode.items() if not p.startswith('/'))
            columns = {
                **episode,
                'is_first': Column(np.arange(n) == 0),
                'is_last': Column(np.arange(n) == n - 1),
            }
            features = {}
            for path, column in columns.items():
                name = path[1:] if path.startswith('/') else f'steps/{path}'
                features[name] = column.values()
                _describe(tree, name, column.description())
            payloads.append(cls.example(features))
        (folder / 'features.json').write_text(json.dumps(tree))
        cls.write_records(folder / f'x-{split}.tfrecord-00000-of-00001', payloads)
        return folder


def _describe(tree, name, leaf):
    parts = name.split('/')
    if parts[0] == 'steps':
        steps = tree['featuresDict']['features'].setdefault(
            'steps', {'sequence': {'feature': {'featuresDict': {'features': {}}}}}
        )
        node, parts = steps['sequence']['feature'], parts[1:]
    else:
        node = tree
    # A feature name may itself contain a slash (kuka's clip_function_input/...): the flat path is
    # the same either way, so nested dictionaries stand for both.
    for part in parts[:-1]:
        node = node['featuresDict']['features'].setdefault(part, {'featuresDict': {'features': {}}})
    node['featuresDict']['features'][parts[-1]] = leaf


class Column:
    """One published feature: rows, and how they are stored."""

    def __init__(self, rows, *, packed=False, dtype='float32'):
        self.rows, self.packed, self.dtype = rows, packed, dtype

    def values(self):
        if isinstance(self.rows, list):
            return [r.encode() if isinstance(r, str) else r for r in self.rows]
        rows = np.asarray(self.rows)
        if self.packed:
            return [zlib.compress(row.astype('<f4').tobytes()) for row in rows]
        return rows

    def description(self):
        if isinstance(self.rows, list) and isinstance(self.rows[0], str):
            return {'text': {}}
        if isinstance(self.rows, list):
            return {'image': {'shape': {'dimensions': ['48', '64', '3']}, 'dtype': 'uint8'}}
        rows = np.asarray(self.rows)
        shape = {'dimensions': [str(d) for d in rows.shape[1:]]} if rows.ndim > 1 else {}
        encoding = 'zlib' if self.packed else 'none'
        return {'tensor': {'shape': shape, 'dtype': self.dtype, 'encoding': encoding}}


def _jpeg(seed, height=48, width=64):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (6, 8, 3), np.uint8)
    image = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    return cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


@pytest.fixture(scope='session')
def rlds():
    return Rlds


@pytest.fixture(scope='session')
def column():
    return Column


@pytest.fixture(scope='session')
def jpeg():
    return _jpeg


@pytest.fixture
def make_episode():
    """Episodes along a smooth path at any rate; fields of Episode can be replaced."""
    from spear_ros.core.geometry import quat_exp
    from spear_ros.data.episodes import EncodedFrames, Episode, PoseTrack, ValueTrack

    def make(key='demo-0', n=21, rate_hz=5.0, dataset='demo', seed=0, **changes):
        rng = np.random.default_rng(seed)
        t = np.arange(n) / rate_hz
        stamps = np.round(t * 1e9).astype(np.int64)
        phase = rng.uniform(0, 6, 3)
        p = np.array([0.3, 0.0, 0.15]) + 0.05 * np.sin(t[:, None] + phase)
        q = quat_exp(0.3 * np.sin(0.7 * t[:, None] + phase[::-1]))
        command = (np.sin(t + phase[0]) > 0).astype(float)
        state = np.concatenate([command[:1], command[:-1]])
        fields = {
            'key': key,
            'dataset': dataset,
            'embodiment': 'widowx_bridge',
            'rate_hz': rate_hz,
            'instruction': f'put the thing on the plate {seed}',
            'reached': PoseTrack(stamps_ns=stamps, p=p, q=q),
            'gripper': ValueTrack(stamps_ns=stamps, values=state),
            'gripper_command': ValueTrack(stamps_ns=stamps, values=command),
            'cameras': {
                'external': EncodedFrames(stamps, [_jpeg(seed * 1000 + i) for i in range(n)])
            },
        }
        return Episode(**{**fields, **changes})

    return make


@pytest.fixture
def make_shards(make_episode):
    """Shard folders of synthetic episodes."""
    from spear_ros.data.resampling import ResampleSettings, resample
    from spear_ros.data.samples import PictureSettings, samples_of
    from spear_ros.data.shard_writer import ShardWriter
    from spear_ros.data.shards import DatasetCard, ShardDataset
    from spear_ros.processing.embodiments import default_action_specs

    def make(root, name='demo', episodes=4, shards=2, n=21):
        settings = ResampleSettings()
        card = DatasetCard(
            name=name,
            spec=default_action_specs()['widowx_bridge'],
            label='reached',
            pictures=PictureSettings(),
            source='synthetic',
        )
        writer = ShardWriter(root, card)
        for i in range(episodes):
            episode = make_episode(f'{name}-{i}', dataset=name, n=n, seed=i)
            samples = samples_of(episode, resample(episode, settings), PictureSettings())
            writer.add_episode(episode.key, samples)
            if (i + 1) % max(1, episodes // shards) == 0:
                writer._finish_shard()
        writer.close()
        return ShardDataset(root)

    return make
