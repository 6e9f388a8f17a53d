"""RecTools' SASRec and BERT4Rec for peers.py: its own fit, stopped and picked by NDCG@10 of the validation targets."""

import logging
import warnings
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pandas as pd
import torch
from peers_child import Clock, Job, Result, Split, main, ndcg10, seconds_of
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import BERT4RecModel, SASRecModel

NAMES = {"user": Columns.User, "item": Columns.Item, "time": Columns.Datetime}
LOSSES = {"softmax": "softmax", "bce": "BCE", "gbce": "gBCE"}


class Watch(Callback):
    """Times the epochs and says how good the validation was."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.ranks = clock, []

    def __deepcopy__(self, memo: Any) -> "Watch":
        """RecTools trains with a copy of its trainer; the clock is this one."""
        return self

    def on_train_epoch_start(self, *_: Any) -> None:
        """Start the clock."""
        self.clock.start()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, number: int) -> None:
        """Count targets."""
        self.clock.step(int((batch["y"] != 0).sum()))

    def on_validation_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        """Rank the targets among all items."""
        states = module.torch_model.encode_sessions(batch, module.item_embs)[:, -1]
        scores = states @ module.item_embs.T
        scores[:, : module.data_preparator.n_item_extra_tokens] = -torch.inf
        own = scores.gather(1, batch["y"][:, -1:])
        self.ranks.append((scores > own).sum(1).numpy())

    def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
        """Log their NDCG@10."""
        module.log("ndcg", ndcg10(np.concatenate(self.ranks)))
        self.ranks = []


def dataset_of(frame: pd.DataFrame) -> Dataset:
    """Its dataset of all events of a frame."""
    events = frame.rename(columns=NAMES)
    events[Columns.Datetime] = pd.to_datetime(events[Columns.Datetime], unit="ms")
    events[Columns.Weight] = 1.0
    return Dataset.construct(events)


def last_of_each(events: pd.DataFrame) -> np.ndarray:
    """Which rows are a user's last: the validation."""
    order = events.groupby(Columns.User)[Columns.Datetime].rank(method="first", ascending=False)
    return (order == 1).to_numpy()


def build(job: Job, clock: Clock, checkpoints: str) -> Any:
    """The model with its trainer."""

    def trainer() -> Trainer:
        stopping: list[Callback] = []
        if not job.timed:
            stopping = [
                EarlyStopping("ndcg", mode="max", patience=job.patience),
                ModelCheckpoint(checkpoints, monitor="ndcg", mode="max", save_weights_only=True),
            ]
        return Trainer(
            max_epochs=job.epochs,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=not job.timed,
            callbacks=[Watch(clock), *stopping],
        )

    shape = {
        "n_blocks": job.layers,
        "n_heads": job.heads,
        "n_factors": job.width,
        "session_max_len": job.length,
        "dropout_rate": job.dropout,
        "batch_size": job.batch,
        "lr": job.learning_rate,
        "loss": LOSSES[job.loss],
        "n_negatives": job.negatives,
        "get_trainer_func": trainer,
        "get_val_mask_func": None if job.timed else last_of_each,
    }
    if job.loss == "gbce":
        shape["gbce_t"] = 0.75
    if job.model == "bert4rec":
        return BERT4RecModel(**shape, mask_prob=0.2)
    return SASRecModel(**shape)


def run(job: Job, split: Split) -> Result:
    """Train, and score all items for all users."""
    seed_everything(job.seed)
    clock, checkpoints = Clock(), mkdtemp(dir=job.out)
    model = build(job, clock, checkpoints)
    known = dataset_of(split.known)
    model.fit(dataset_of(split.train) if job.timed else known)
    best = 0
    if not job.timed:
        kept = model.fit_trainer.checkpoint_callback.best_model_path
        found = torch.load(kept, weights_only=False)
        model.lightning_model.load_state_dict(found["state_dict"])
        best = int(found["epoch"]) + 1
    if job.timed:
        answer = seconds_of(lambda: model.recommend(split.users, known, k=10, filter_viewed=True))
        return Result(clock, answer_s=answer)
    every = model.recommend(split.users, known, k=len(split.items), filter_viewed=False)
    scores = np.full((len(split.users), len(split.items)), float(every["score"].min()) - 1)
    rows, columns = (
        np.searchsorted(ids, every[name])
        for ids, name in ((split.users, Columns.User), (split.items, Columns.Item))
    )
    scores[rows, columns] = every["score"]
    missing = len(split.items) - every[Columns.Item].nunique()
    return Result(clock, best, scores, note=f"{missing} items that training lacks never rank")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    main("rectools", run)
