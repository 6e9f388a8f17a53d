"""Our own training loop and ranking with a clock, for peers.py: `python peers_ours.py JOB.json`, the speed alone."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers_child import Clock, Job, seconds_of, write_result

from lsvcr.evaluation.evaluator import CPU_CHUNK
from lsvcr.evaluation.lists import best
from lsvcr.schema import Split
from lsvcr.training.baseline_setup import TrainedSetup, set_up
from lsvcr.training.rank import Trainer, start_accelerator
from lsvcr.training.rank_evaluate import RankJudge
from lsvcr.training.rank_state import Progress, RunFolder
from lsvcr.utils.arguments import parse_settings
from lsvcr.utils.logging import Progress as Bar

AT_ONCE = 512
"""Users whose first ten are found together."""


class TimedTrainer(Trainer):
    """The loop as it is, told how long each pass over the training rows takes."""

    clock = Clock()

    def _epoch(self, state: Progress, bar: Bar[None]) -> dict[str, float]:
        self.clock.start()
        losses = super()._epoch(state, bar)
        keys = (self.settings.seed, state.epoch)
        self.clock.step(self.data.terms(np.arange(len(self.data)), keys))
        return losses


@torch.no_grad()
def first_ten(setup: TrainedSetup) -> None:
    """The ten best unseen videos of every test user."""
    data, model = setup.data(Split.TEST), setup.model.eval()
    items = model.item_vectors()
    for start in range(0, len(data), AT_ONCE):
        rows = np.arange(start, min(start + AT_ONCE, len(data)))
        seen = data.seen_videos(rows)
        pairs = (torch.from_numpy(seen.owner()), torch.from_numpy(seen.flat().astype(np.int64)))
        best(model.user_vectors(data.evaluation(rows)), items, pairs, 10, CPU_CHUNK)


def main() -> None:
    """Train the epochs of the job and answer; the flags of `lsvcr train` follow it."""
    job = Job(**json.loads(Path(sys.argv[1]).read_text()))
    from lsvcr.baselines.registry import find

    settings: Any = parse_settings(find(job.model).settings, sys.argv[2:], "peers", "", "")
    accelerator = start_accelerator()
    setup = set_up(job.model, settings)
    assert isinstance(setup, TrainedSetup)
    trainer = TimedTrainer(accelerator, setup, RunFolder(setup, 1, "no"), RankJudge(setup))
    trainer.train(None)
    write_result(job, "lsvcr", trainer.clock, answer_s=seconds_of(lambda: first_ten(setup)))


if __name__ == "__main__":
    main()
