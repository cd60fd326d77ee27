"""Annotation on many machines: Ray Data over the same stage functions as one process uses.

Every worker makes the stages once and annotates picture by picture into the same store, so all
machines must see the pictures and the output folder under the same paths. The file of records is
the one that a single process writes, byte for byte. Needs the extra ``annotate-ray``.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spear_ros.annotation.pipeline import (
    STORE,
    Stages,
    annotate_one,
    count_record,
    record_name,
)
from spear_ros.annotation.store import Store, write_atomically
from spear_ros.core.errors import UserError


class Annotator:
    """What one worker holds: called by Ray with one row, a picture's number and name.

    Args:
        folder: pictures.
        make_stages: makes the stages, in the worker.
        out: output folder.
    """

    def __init__(self, folder: Path, make_stages: Callable[[], Stages], out: Path) -> None:
        self._folder, self._stages = folder, make_stages()
        self._store = Store(out / STORE)

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Record and counts as JSON text: rows of one form, whatever the record holds.

        A UserError is handed over as a row as well: Ray would try the picture again.
        """
        self._store.hits.clear()
        self._store.made.clear()
        record, problem = None, ''
        try:
            record = annotate_one(self._folder, str(row['name']), self._stages, self._store)
        except UserError as error:
            problem = str(error)
        counts = {f'stored:{stage}': n for stage, n in self._store.hits.items()}
        counts |= {f'made:{stage}': n for stage, n in self._store.made.items()}
        used = getattr(self._stages.detector, 'used', Counter())  # of a paid service
        counts |= {f'service:{what}': n for what, n in used.items()}
        used.clear()
        return {
            'number': int(row['number']),
            'record': json.dumps(record),
            'counts': json.dumps(counts),
            'problem': problem,
        }


def annotate_with_ray(
    folder: Path,
    names: Sequence[str],
    make_stages: Callable[[], Stages],
    out: Path,
    *,
    workers: int,
    gpus_per_worker: float = 0.0,
    address: str = '',
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Mapping[str, int]:
    """Annotate all pictures by ``workers`` workers of a Ray cluster; return counts.

    Args:
        folder: pictures, the same path on every machine.
        names: of the pictures.
        make_stages: can be pickled; called once in every worker.
        out: output folder, the same path on every machine.
        workers: of all machines together.
        gpus_per_worker: share of a GPU that each takes.
        address: of a cluster that runs, such as ``auto``; '' starts one on this machine.
        progress: called with the number of pictures done and of all.

    Raises:
        UserError: Ray is not installed, the disk is full or a service refuses for good.
    """
    ray = _started(address, workers)
    # Blocks of few pictures, so that no worker is left with many at the end.
    rows = ray.data.from_items(
        [{'number': i, 'name': n} for i, n in enumerate(names)],
        override_num_blocks=max(1, min(len(names), 8 * workers)),
    )
    done = rows.map(
        Annotator,
        fn_constructor_args=(folder.resolve(), make_stages, out.resolve()),
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_gpus=gpus_per_worker or None,
    )
    lines, counts = [''] * len(names), Counter[str]()
    progress(0, len(names))
    for finished, row in enumerate(done.iter_rows(), 1):
        if row['problem']:
            raise UserError(row['problem'])
        lines[row['number']] = row['record']
        counts.update(count_record(json.loads(row['record'])))
        counts.update(json.loads(row['counts']))
        progress(finished, len(names))
    assert all(lines), 'a picture without a record'
    write_atomically(out / record_name((0, 1)), ''.join(f'{x}\n' for x in lines).encode())
    return dict(counts)


def _started(address: str, workers: int) -> Any:
    """The module ray, connected."""
    if workers < 1:
        raise UserError(f'--ray {workers}: give the number of workers, at least 1.')
    try:
        import ray
        import ray.data
    except ImportError:
        raise UserError('Ray is not installed; install the extra "annotate-ray".') from None
    if not ray.is_initialized():
        try:
            if address:
                ray.init(address=address)
            else:
                # One more than the workers hold: Ray Data's own tasks need a place as well.
                ray.init(num_cpus=workers + 1, include_dashboard=False)
        except Exception as error:  # Ray's own kinds, and a plain one where it starts too slowly
            text = ' '.join(str(error).split())[:120]
            which = f'the cluster {address} does not answer' if address else 'Ray does not start'
            raise UserError(f'--ray: {which} ({text}).') from None
    return ray
