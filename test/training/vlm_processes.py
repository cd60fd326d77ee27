"""One of two processes of test_vlm_distributed: ``python vlm_processes.py OUT QUESTIONS``."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from spear_ros.checkpoints.spear1 import load_checkpoint
from spear_ros.training.distributed import barrier, joined
from spear_ros.training.recipes import change, find_recipe
from spear_ros.training.trainer import Trainer
from spear_ros.training.vlm_task import VlmTask


class Stopped(VlmTask):
    """Process 1 alone is asked to stop in its second update."""

    calls = 0

    def inputs(self, batch, device, seed):
        self.calls += 1
        if self.calls == 2 and os.environ['RANK'] == '1':
            os.kill(os.getpid(), 15)
        return super().inputs(batch, device, seed)


def run(place, folder, questions, *settings, task=VlmTask):
    config = change(
        find_recipe('vlm', 'spear_vlm_debug'),
        [f'data.questions={questions}', 'data.text_length=64', 'saving.every_steps=2', *settings],
    )
    return Trainer(task(config, folder), folder, place).run()


def main():
    out, questions = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    config = change(find_recipe('vlm', 'spear_vlm_debug'), ['parallel.timeout_s=60.0'])
    with joined(config) as place:
        one = out / 'one'
        run(place, one, questions, 'phase=1', 'steps=2')
        init = f'init={one / "export"}'
        run(place, out / 'a', questions, init, 'steps=4')
        outcome = run(place, out / 'b', questions, init, 'steps=4', task=Stopped)
        assert (outcome.finished, outcome.step) == (False, 2), outcome
        assert run(place, out / 'b', questions, init, 'steps=4').finished
        if place.first:
            a, b = ((out / n / 'export' / 'model.safetensors').read_bytes() for n in 'ab')
            assert a == b
            check_phase_1(one)
        barrier(place)
        dist.barrier()
        os._exit(0)  # gloo now and then aborts while it is torn down


def check_phase_1(folder):
    """Over shards too, only the rows of 3-D tokens moved."""
    from spear_ros.processing.tokens import TextTokenizer
    from spear_ros.training.start import spear1_weights

    export = load_checkpoint(folder / 'export')
    started = spear1_weights(export.config.model, 0, '', '')['vlm.language.embedding.weight']
    now = export.model.state_dict()['vlm.language.embedding.weight']
    rows = (now != started).any(1).nonzero()[:, 0].tolist()
    assert rows
    assert set(rows) <= set(TextTokenizer(folder / 'tokenizer.json').ids.spatial)


if __name__ == '__main__':
    main()
