"""torch-rechub's SASRec for peers.py: its pairwise trainer with one negative a target, and its early stopper.

Its loss takes one score a row while its SASRec gives one a position, and its validation is an AUC that pairs have not:
`Flat` hands over the real positions one by one, and the stopper is told the NDCG@10 of the validation targets. Its
search structures for users' first items are optional packages; scores are sorted by torch here.
"""

from typing import Any

import numpy as np
import torch
from peers_child import Clock, Job, Result, Split, main, ndcg10, seconds_of
from torch_rechub.basic.callback import EarlyStopper
from torch_rechub.basic.features import SequenceFeature
from torch_rechub.models.matching import SASRec
from torch_rechub.trainers import MatchTrainer
from torch_rechub.utils.data import TorchDataset

ANSWERED_AT_ONCE = 512


class Flat(torch.nn.Module):
    """A SASRec whose scores are those of the real positions alone."""

    def __init__(self, model: SASRec) -> None:
        super().__init__()
        self.sasrec = model

    def forward(self, x: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores (P,) of the targets and of their negatives."""
        real = x["pos"] != 0
        wanted, other = self.sasrec(x)
        return wanted[real], other[real]


class Sequences:
    """Each user's items numbered from 1, and rows of them padded with 0 on the right."""

    def __init__(self, job: Job, split: Split) -> None:
        self.job, self.items = job, len(split.items)
        self.train, self.known = (
            self._lists(frame.sort_values(["user", "time"]), split) for frame in (split.train, split.known)
        )
        self.wanted = np.searchsorted(split.items, split.val.sort_values("user")["item"]) + 1

    def _lists(self, events: Any, split: Split) -> list[np.ndarray]:
        users = np.searchsorted(split.users, events["user"])
        items = np.searchsorted(split.items, events["item"]) + 1
        borders = np.searchsorted(users, np.arange(1, len(split.users)))
        return np.split(items, borders)

    def rows(self, lists: list[np.ndarray]) -> np.ndarray:
        """(users, length) int64: the latest of each list."""
        found = np.zeros((len(lists), self.job.length), np.int64)
        for row, items in zip(found, lists, strict=True):
            latest = items[-self.job.length :]
            row[: len(latest)] = latest
        return found

    def batches(self, rng: np.random.Generator) -> torch.utils.data.DataLoader:
        """An epoch's batches, with fresh negatives that the user has not seen in training."""
        read = self.rows([items[:-1] for items in self.train])
        follow = self.rows([items[1:] for items in self.train])
        drawn = rng.integers(1, self.items + 1, follow.shape)
        for row, items in zip(drawn, self.train, strict=True):
            while (seen := np.isin(row, items)).any() and len(items) < self.items:
                row[seen] = rng.integers(1, self.items + 1, seen.sum())
        x = {"seq": read, "pos": follow, "neg": np.where(follow > 0, drawn, 0)}
        rows = TorchDataset(x, np.ones(len(read)))
        return torch.utils.data.DataLoader(rows, batch_size=self.job.batch, shuffle=True)


@torch.no_grad()
def scores_of(model: SASRec, lists: list[np.ndarray], sequences: Sequences) -> torch.Tensor:
    """(users, items) of what follows each list."""
    model.eval()
    model.mode = "user"
    rows = torch.from_numpy(sequences.rows(lists))
    users = torch.cat([model.user_tower({"seq": part}) for part in rows.split(ANSWERED_AT_ONCE)])
    model.mode = None
    return users @ model.item_emb.embed_dict["seq"].weight[1:].T


def first_ten(model: SASRec, sequences: Sequences) -> None:
    """The ten best unseen items of all users."""
    scores = scores_of(model, sequences.known, sequences)
    for row, items in zip(scores, sequences.known, strict=True):
        row[items - 1] = -torch.inf
    scores.topk(10)


def run(job: Job, split: Split) -> Result:
    """Train, and score all items for all users."""
    torch.manual_seed(job.seed)
    rng = np.random.default_rng(job.seed)
    sequences, clock = Sequences(job, split), Clock()
    shared: dict[str, Any] = {"vocab_size": len(split.items) + 1, "embed_dim": job.width, "pooling": "concat"}
    features = [
        SequenceFeature("seq", **shared, padding_idx=0),
        *(SequenceFeature(name, **shared, shared_with="seq") for name in ("pos", "neg")),
    ]
    model = SASRec(features, job.length, job.dropout, job.layers, job.heads)
    trainer = MatchTrainer(Flat(model), mode=1, optimizer_params={"lr": job.learning_rate})
    stopper, best, highest = EarlyStopper(job.patience), 0, -1.0
    targets = sum(min(len(items) - 1, job.length) for items in sequences.train)
    for epoch in range(1, job.epochs + 1):
        clock.start()
        trainer.train_one_epoch(sequences.batches(rng))
        clock.step(targets)
        if job.timed:
            continue
        scores = scores_of(model, sequences.train, sequences).numpy()
        own = scores[np.arange(len(scores)), sequences.wanted - 1]
        value = ndcg10((scores > own[:, None]).sum(1))
        best, highest = (epoch, value) if value > highest else (best, highest)
        if stopper.stop_training(value, model.state_dict()):
            break
    if job.timed:
        return Result(clock, answer_s=seconds_of(lambda: first_ten(model, sequences)))
    model.load_state_dict(stopper.best_weights)
    scores = scores_of(model, sequences.known, sequences).numpy()
    return Result(clock, best, scores, note="BPR, the loss of its pairwise trainer")


if __name__ == "__main__":
    main("torch-rechub", run)
