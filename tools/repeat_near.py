#!/usr/bin/env python3
"""Repeats the samples of demonstrations in which the tool is near what the instruction asks for.

    python tools/repeat_near.py FOLDER OUT --within 0.06 --times 6

OUT gets links to the shards of FOLDER and TIMES copies (one file, further links) of new shards with
the near samples alone. Made for the second half of the bundled checkpoint's training, whose
demonstrations were rendered without ``--close``; with it this is not needed.
"""

import argparse
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

SHARD_SAMPLES = 1500
Members = list[tuple[tarfile.TarInfo, bytes]]


def samples(path: Path) -> Iterator[Members]:
    """Members of each sample of a shard, ``info.json`` last."""
    members: Members = []
    with tarfile.open(path) as tar:
        for member in tar:
            stream = tar.extractfile(member)
            assert stream is not None
            members.append((member, stream.read()))
            if member.name.endswith('info.json'):
                yield members
                members = []


def is_near(members: Members, within_m: float) -> bool:
    """Whether the tool is closer than ``within_m``, seen from above, to the sample's target."""
    by_kind = {m.name.split('.', 1)[1]: data for m, data in members}
    info = json.loads(by_kind['info.json'])
    places = {name: p for name, p, _, _ in json.loads(info['objects'])}
    if info['target'] not in places:
        return False
    here = np.load(io.BytesIO(by_kind['numbers.npy']))[0, :2]
    return float(np.hypot(*(here - np.array(places[info['target']][:2])))) < within_m


def main() -> None:
    """Write OUT."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('folder', type=Path)
    parser.add_argument('out', type=Path)
    parser.add_argument('--within', type=float, required=True, help='m')
    parser.add_argument('--times', type=int, required=True)
    args = parser.parse_args()
    if args.out.exists():
        parser.error(f'{args.out} exists; give a new folder.')
    if not (args.folder / 'dataset.json').is_file():
        parser.error(f'{args.folder} holds no dataset.json; give a folder of demonstrations.')
    args.out.mkdir(parents=True)
    shutil.copy(args.folder / 'dataset.json', args.out)
    lines = [
        line
        for path in sorted(args.folder.glob('manifest-*.jsonl'))
        for line in path.read_text().splitlines()
        if '"shard"' in line
    ]
    shards = [args.folder / json.loads(line)['shard'] for line in lines]
    for shard in shards:
        os.link(shard, args.out / shard.name)
    near = [m for shard in shards for m in samples(shard) if is_near(m, args.within)]
    for first in range(0, len(near), SHARD_SAMPLES):
        chosen = near[first : first + SHARD_SAMPLES]
        path = args.out / f'near-0-{first // SHARD_SAMPLES:05d}.tar'
        with tarfile.open(path, 'w') as tar:
            for members in chosen:
                for member, data in members:
                    tar.addfile(member, io.BytesIO(data))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        for number in range(args.times):
            copy = path.with_name(path.name.replace('near-0', f'near-{number}'))
            if number:
                os.link(path, copy)
            entry = {'shard': copy.name, 'samples': len(chosen), 'sha256': digest, 'episodes': []}
            lines.append(json.dumps(entry))
    lines.append(json.dumps({'complete': True}))
    (args.out / 'manifest-000-of-001.jsonl').write_text('\n'.join(lines) + '\n')
    print(f'{args.out}: {len(near)} near samples, {args.times} times')


if __name__ == '__main__':
    main()
