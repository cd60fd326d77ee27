"""How fast training samples come off the disk, and that memory stays flat while they do.

Synthetic shards with the bytes of real ones (320x240 external and wrist JPEG, about 20 KB each) are
written to --folder, then read as batches. CPU time of the process, not wall time, gives the samples
per second of one core, so that other work on the machine does not count. The memory run goes over
--samples samples and compares the resident memory after the first tenth with that at the end.

    python benchmarks/loader.py [--samples 100000] [--folder /tmp/x]

The last line is one JSON object.
"""

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from spear_ros.data.loader import BatchLoader, LoaderSettings
from spear_ros.data.mixtures import Mixture, MixturePart, MixtureSampler
from spear_ros.data.samples import PictureSettings, Sample
from spear_ros.data.shard_writer import ShardWriter
from spear_ros.data.shards import DatasetCard, ShardDataset
from spear_ros.processing.embodiments import default_action_specs

STORED = 8192
EPISODE = 64
PICTURES = 64
BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--samples', type=int, default=100_000)
    parser.add_argument('--folder', type=Path, default=None)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix='loader-', dir=args.folder))
    try:
        result = run(folder, args.samples)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(result))


def run(folder: Path, samples: int) -> dict:
    started = cpu()
    datasets = {name: write(folder / name, name) for name in ('one', 'two')}
    written_per_s = 2 * STORED / (cpu() - started)
    size = sum(s.path.stat().st_size for d in datasets.values() for s in d.shards)
    print(
        f'{2 * STORED} samples of {size / 2 / STORED / 1024:.1f} KiB in {len(datasets)} data sets'
    )
    draws = draws_per_s(datasets)
    native = samples_per_core(datasets, (240, 320), wrist=True)
    one_camera = samples_per_core(datasets, (240, 320), wrist=False)
    resized = samples_per_core(datasets, (210, 280), wrist=True)
    numbers = numbers_per_core(datasets)
    memory = memory_over(datasets, samples)
    return {
        'benchmark': 'loader',
        'cpu': platform.processor() or platform.machine(),
        'cores': os.cpu_count(),
        'sample_kib': round(size / 2 / STORED / 1024, 1),
        'draws_per_s': round(draws),
        'samples_per_core_s_two_cameras': round(native),
        'samples_per_core_s_external_only': round(one_camera),
        'samples_per_core_s_two_cameras_resized_210x280': round(resized),
        'numbers_only_per_core_s': round(numbers),
        'written_per_core_s': round(written_per_s),
        **memory,
    }


def write(root: Path, name: str) -> ShardDataset:
    card = DatasetCard(
        name=name,
        spec=default_action_specs()['widowx_bridge'],
        label='reached',
        pictures=PictureSettings(),
        source='benchmark',
    )
    rng = np.random.default_rng(len(name))
    blobs = [picture(rng) for _ in range(PICTURES)]
    with ShardWriter(root, card, shard_mb=64) as writer:
        for first in range(0, STORED, EPISODE):
            writer.add_episode(
                f'{name}-{first}', (sample(name, first + i, blobs) for i in range(EPISODE))
            )
    return ShardDataset(root)


def picture(rng: np.random.Generator) -> bytes:
    """A scene with edges and texture, so that the JPEG is as large as a camera's."""
    image = cv2.resize(rng.integers(0, 255, (12, 16, 3), np.uint8), (320, 240))
    for _ in range(30):
        x, y = rng.integers(0, 320), rng.integers(0, 240)
        color = tuple(int(c) for c in rng.integers(0, 255, 3))
        cv2.circle(image, (int(x), int(y)), int(rng.integers(5, 40)), color, -1)
    noisy = np.clip(image + rng.normal(scale=6, size=image.shape), 0, 255).astype(np.uint8)
    return cv2.imencode('.jpg', noisy, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()


def sample(name: str, number: int, blobs: list[bytes]) -> Sample:
    numbers = np.zeros((6, 9))
    numbers[:, 3] = numbers[:, 8] = 1.0
    return Sample(
        key=f'{name}-{number:07d}',
        dataset=name,
        embodiment='widowx_bridge',
        instruction='put the carrot on the plate',
        numbers=numbers,
        external=blobs[number % PICTURES],
        wrist=blobs[(number * 7 + 3) % PICTURES],
        info={'step': number % EPISODE, 'view': 'external', 'image_age_s': 0.0},
    )


def loader(datasets: dict[str, ShardDataset], size: tuple[int, int], wrist: bool) -> BatchLoader:
    settings = LoaderSettings(
        batch_size=BATCH, external_size=size, wrist_size=(160, 160), wrist=wrist, threads=1
    )
    return BatchLoader(sampler(datasets), datasets, settings)


def sampler(datasets: dict[str, ShardDataset]) -> MixtureSampler:
    parts = tuple(
        MixturePart(dataset=n, weight=w, weight_from='ours')
        for n, w in (('one', 1.0), ('two', 3.0))
    )
    mixture = Mixture(name='benchmark', weight_is='probability', parts=parts)
    return MixtureSampler(mixture, datasets, seed=0)


def samples_per_core(
    datasets: dict, size: tuple[int, int], *, wrist: bool, batches: int = 60
) -> float:
    with loader(datasets, size, wrist) as batches_of:
        next(batches_of)
        started = cpu()
        for _ in islice(batches_of, batches):
            pass
        spent = cpu() - started
    print(f'{size}, wrist {wrist}: {batches * BATCH / spent:.0f} samples per CPU second')
    return batches * BATCH / spent


def draws_per_s(datasets: dict, count: int = 100_000) -> float:
    draws = sampler(datasets)
    started = cpu()
    draws.advance(count)
    return count / (cpu() - started)


def numbers_per_core(datasets: dict, count: int = 20_000) -> float:
    addresses = list(islice(sampler(datasets), count))
    started = cpu()
    for a in addresses:
        datasets[a.dataset].numbers(a.shard, a.index)
    return count / (cpu() - started)


def memory_over(datasets: dict, samples: int) -> dict:
    marks = []
    with loader(datasets, (240, 320), wrist=True) as batches:
        for number in range(samples // BATCH + 1):
            next(batches)
            if (number * BATCH) % (samples // 10) < BATCH:
                marks.append(resident_mib())
                print(f'after {number * BATCH} samples: {marks[-1]:.1f} MiB', flush=True)
    return {
        'memory_samples': samples,
        'resident_mib_after_a_tenth': round(marks[1], 1),
        'resident_mib_at_the_end': round(marks[-1], 1),
    }


def resident_mib() -> float:
    with open('/proc/self/statm', encoding='ascii') as stream:
        return int(stream.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 2**20


def cpu() -> float:
    return time.process_time()


if __name__ == '__main__':
    main()
