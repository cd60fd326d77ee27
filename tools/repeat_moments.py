#!/usr/bin/env python3
"""Repeats the moments of demonstrations that a skill consists of and that are few.

    python tools/repeat_moments.py FOLDER OUT [--push 10] [--beside 2] [--held 5]

Most of a demonstration is the way there, and ``--relabel`` and ``--imagined`` multiply that: of
93,000 samples of the Franka 389 show a push under way and 1,247 a held object on its way to a
receptacle, and a policy trained on them did neither. OUT gets links to the shards of FOLDER and, as
often as the options say, new shards with these alone:

- push: the closed tool is beside the target and the chunk moves it sideways, at one height.
- beside: the same place, but the chunk does something else (it mostly comes down).
- held: ``put`` with the target between the fingers.
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

from spear_ros.core.geometry import pose
from spear_ros.data.shards import read_card
from spear_ros.simulation.grippers import DEFAULT_GRIPPER, GRIPPERS, GripperGeometry
from spear_ros.simulation.tasks import PUSH, PUT

SHARD_SAMPLES = 1500
PUSH_MOMENT, BESIDE, HELD = 'push', 'beside', 'held'
Members = list[tuple[tarfile.TarInfo, bytes]]


def moment_of(info: dict[str, str], numbers: np.ndarray, gripper: GripperGeometry) -> str:
    """Which of the moments a sample shows, '' = none.

    Args:
        info: its facts.
        numbers: (1 + H, 9), see :mod:`spear_ros.data.samples`.
        gripper: of the robot, for the tool's place and the size of the objects.
    """
    places = {name: place for name, place, _, _ in json.loads(info['objects'])}
    if info['target'] not in places:
        return ''
    scale, opening = gripper.object_scale, numbers[0, 7]
    tool = (pose(numbers[0, :3], numbers[0, 3:7]) @ gripper.T_ee_tcp)[:3, 3]
    off = tool - np.asarray(places[info['target']])
    aside = float(np.hypot(*off[:2]))
    if info['family'] == PUSH and aside < 0.10 * scale and off[2] < 0.06 * scale and opening < 0.3:
        way = numbers[1:, :3] - numbers[0, :3]
        level = float(np.abs(way[:, 2]).max()) < 0.02 * scale
        return PUSH_MOMENT if level and float(np.hypot(*way[-1, :2])) > 0.03 else BESIDE
    between = aside < 0.025 * scale and abs(off[2]) < 0.03 * scale
    return HELD if info['family'] == PUT and between and 0.1 < opening < 0.95 else ''


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


def read(members: Members) -> tuple[dict[str, str], np.ndarray]:
    """Facts and numbers of a sample."""
    by_kind = {m.name.split('.', 1)[1]: data for m, data in members}
    return json.loads(by_kind['info.json']), np.load(io.BytesIO(by_kind['numbers.npy']))


def write_copies(out: Path, name: str, chosen: list[Members], times: int) -> list[str]:
    """Write shards of ``chosen`` and ``times`` - 1 links to each; return their manifest lines."""
    lines = []
    for first in range(0, len(chosen) if times else 0, SHARD_SAMPLES):
        part = chosen[first : first + SHARD_SAMPLES]
        path = out / f'{name}-0-{first // SHARD_SAMPLES:05d}.tar'
        with tarfile.open(path, 'w') as tar:
            for members in part:
                for member, data in members:
                    tar.addfile(member, io.BytesIO(data))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        for number in range(times):
            copy = path.with_name(path.name.replace(f'{name}-0', f'{name}-{number}'))
            if number:
                os.link(path, copy)
            entry = {'shard': copy.name, 'samples': len(part), 'sha256': digest, 'episodes': []}
            lines.append(json.dumps(entry))
    return lines


def main(arguments: list[str] | None = None) -> None:
    """Write OUT."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('folder', type=Path)
    parser.add_argument('out', type=Path)
    parser.add_argument('--push', type=int, default=10, help='times')
    parser.add_argument('--beside', type=int, default=2, help='times')
    parser.add_argument('--held', type=int, default=5, help='times')
    args = parser.parse_args(arguments)
    if args.out.exists():
        parser.error(f'{args.out} exists; give a new folder.')
    if not (args.folder / 'dataset.json').is_file():
        parser.error(f'{args.folder} holds no dataset.json; give a folder of demonstrations.')
    family = read_card(args.folder).spec.embodiment.split('_')[0]
    gripper = GRIPPERS[DEFAULT_GRIPPER[family]]
    args.out.mkdir(parents=True)
    shutil.copy(args.folder / 'dataset.json', args.out)
    lines = [
        line
        for path in sorted(args.folder.glob('manifest-*.jsonl'))
        for line in path.read_text().splitlines()
        if '"shard"' in line
    ]
    moments: dict[str, list[Members]] = {PUSH_MOMENT: [], BESIDE: [], HELD: []}
    for shard in [args.folder / json.loads(line)['shard'] for line in lines]:
        os.link(shard, args.out / shard.name)
        for members in samples(shard):
            kind = moment_of(*read(members), gripper)
            if kind:
                moments[kind].append(members)
    for name, chosen in moments.items():
        times = getattr(args, name)
        lines += write_copies(args.out, name, chosen, times)
        print(f'{args.out}: {name} {len(chosen)} samples, {times} times')
    lines.append(json.dumps({'complete': True}))
    (args.out / 'manifest-000-of-001.jsonl').write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
    main()
