"""RePlay's SASRec and BERT4Rec for peers.py: its datasets and Lightning modules, stopped by its own NDCG@10."""

import logging
import warnings
from tempfile import mkdtemp
from typing import Any

import lightning
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from peers_child import Clock, Job, Result, Split, main, seconds_of
from replay.data import FeatureHint, FeatureSource, FeatureType
from replay.data.nn import PandasSequentialDataset, TensorFeatureInfo, TensorFeatureSource, TensorSchema
from replay.models.nn.optimizer_utils import FatOptimizerFactory
from replay.models.nn.sequential import Bert4Rec, SasRec
from replay.models.nn.sequential.bert4rec import (
    Bert4RecPredictionDataset,
    Bert4RecTrainingDataset,
    Bert4RecValidationDataset,
)
from replay.models.nn.sequential.callbacks import PandasPredictionCallback, ValidationMetricsCallback
from replay.models.nn.sequential.postprocessors import RemoveSeenItems
from replay.models.nn.sequential.sasrec import (
    SasRecPredictionDataset,
    SasRecTrainingDataset,
    SasRecValidationDataset,
)
from torch.utils.data import DataLoader

DATASETS = {
    "sasrec": (SasRecTrainingDataset, SasRecValidationDataset, SasRecPredictionDataset),
    "bert4rec": (Bert4RecTrainingDataset, Bert4RecValidationDataset, Bert4RecPredictionDataset),
}
EVALUATED_AT_ONCE = 512


class Watch(lightning.Callback):
    """Times the epochs."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_epoch_start(self, *_: Any) -> None:
        """Start the clock."""
        self.clock.start()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, number: int) -> None:
        """Count targets."""
        if "target_padding_mask" in batch:
            self.clock.step(int(batch["target_padding_mask"].sum()))
        else:
            self.clock.step(int((batch["pad_mask"] & ~batch["token_mask"]).sum()))


class Data:
    """The split as its sequences: users and items numbered from 0."""

    def __init__(self, job: Job, split: Split) -> None:
        self.job, self.split = job, split
        items = len(split.items)
        self.schema = TensorSchema(
            [
                TensorFeatureInfo(
                    "item",
                    FeatureType.CATEGORICAL,
                    is_seq=True,
                    feature_hint=FeatureHint.ITEM_ID,
                    feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, "item")],
                    cardinality=items,
                    # Its BERT4Rec has no row for padding, which it never looks at.
                    padding_value=0 if job.model == "bert4rec" else items,
                    embedding_dim=job.width,
                )
            ]
        )
        self.training, self.validating, self.predicting = DATASETS[job.model]

    def sequences(self, frame: pd.DataFrame) -> PandasSequentialDataset:
        """A frame of events as sequences."""
        events = frame.sort_values(["user", "time"])
        numbered = pd.DataFrame(
            {
                "user": np.searchsorted(self.split.users, events["user"]),
                "item": np.searchsorted(self.split.items, events["item"]),
            }
        )
        lists = numbered.groupby("user")["item"].agg(list).reset_index()
        return PandasSequentialDataset(self.schema, "user", "item", lists)

    def train(self) -> DataLoader:
        """Batches of training."""
        rows = self.training(self.sequences(self.split.train), self.job.length, **self._masking())
        return DataLoader(rows, batch_size=self.job.batch, shuffle=True)

    def _masking(self) -> dict[str, float]:
        return {"mask_prob": 0.2} if self.job.model == "bert4rec" else {}

    def validation(self) -> DataLoader:
        """Batches that end in the validation's targets."""
        known, wanted = self.sequences(self.split.train), self.sequences(self.split.val)
        rows = self.validating(known, wanted, known, max_sequence_length=self.job.length)
        return DataLoader(rows, batch_size=EVALUATED_AT_ONCE)

    def test(self) -> DataLoader:
        """Batches of all that is known, to be answered."""
        rows = self.predicting(self.sequences(self.split.known), max_sequence_length=self.job.length)
        return DataLoader(rows, batch_size=EVALUATED_AT_ONCE)


def build(job: Job, schema: TensorSchema) -> Any:
    """The Lightning module."""
    losses: dict[str, Any] = {"softmax": {"loss_type": "CE"}}
    losses["bce"] = {"loss_type": "BCE", "loss_sample_count": job.negatives}
    kind = Bert4Rec if job.model == "bert4rec" else SasRec
    return kind(
        schema,
        block_count=job.layers,
        head_count=job.heads,
        hidden_size=job.width,
        max_seq_len=job.length,
        dropout_rate=job.dropout,
        optimizer_factory=FatOptimizerFactory(learning_rate=job.learning_rate),
        **losses[job.loss],
    )


def trainer_of(job: Job, callbacks: list[Any]) -> lightning.Trainer:
    """A trainer that says nothing."""
    return lightning.Trainer(
        max_epochs=job.epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(one, ModelCheckpoint) for one in callbacks),
        callbacks=callbacks,
    )


def first_ten(module: Any, data: Data, known: PandasSequentialDataset) -> None:
    """The ten best unseen items of all users, as its callback gives them."""
    found = PandasPredictionCallback(10, "user", "item", postprocessors=[RemoveSeenItems(known)])
    trainer_of(data.job, [found]).predict(module, data.test(), return_predictions=False)
    found.get_result()


def run(job: Job, split: Split) -> Result:
    """Train, and score all items for all users."""
    lightning.seed_everything(job.seed)
    data, clock = Data(job, split), Clock()
    module = build(job, data.schema)
    if job.timed:
        trainer_of(job, [Watch(clock)]).fit(module, data.train())
        known = data.sequences(split.known)
        return Result(clock, answer_s=seconds_of(lambda: first_ten(module, data, known)))
    keep = ModelCheckpoint(mkdtemp(dir=job.out), monitor="ndcg@10", mode="max", save_weights_only=True)
    callbacks = [
        ValidationMetricsCallback(["ndcg"], [10], item_count=len(split.items)),
        EarlyStopping("ndcg@10", mode="max", patience=job.patience),
        keep,
        Watch(clock),
    ]
    trainer_of(job, callbacks).fit(module, data.train(), data.validation())
    found = torch.load(keep.best_model_path, weights_only=False)
    module.load_state_dict(found["state_dict"])
    scores = torch.cat(trainer_of(job, []).predict(module, data.test()))
    return Result(clock, int(found["epoch"]) + 1, scores[:, : len(split.items)].numpy())


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    main("replay-rec", run)
