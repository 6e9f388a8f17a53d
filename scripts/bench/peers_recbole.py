"""RecBole's SASRec and BERT4Rec for peers.py: its data files, its trainer, its validation by NDCG@10.

It keeps times in single precision, in which milliseconds of a user would be equal: it is given their order instead. One
sample a prefix makes it slow; how many epochs it is given stands in its row.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers_child import Clock, Job, Result, Split, main, seconds_of
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed

MODELS = {"sasrec": "SASRec", "bert4rec": "BERT4Rec"}


def write_atomic(job: Job, split: Split) -> Path:
    """The events as a RecBole data set in the job's folder."""
    import pandas as pd

    events = pd.concat([split.known, split.test]).sort_values(["user", "time"])
    folder = Path(job.out) / "events"
    folder.mkdir(exist_ok=True)
    table = pd.DataFrame(
        {
            "user_id:token": events["user"],
            "item_id:token": events["item"],
            "timestamp:float": events.groupby("user").cumcount(),
        }
    )
    table.to_csv(folder / "events.inter", sep="\t", index=False)
    return folder.parent


def config_of(job: Job, data: Path) -> Config:
    """Its settings."""
    settings = {
        "data_path": str(data),
        "checkpoint_dir": f"{job.out}/saved",
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "MAX_ITEM_LIST_LENGTH": job.length,
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full", "group_by": "user"},
        "train_neg_sample_args": None,
        "metrics": ["NDCG"],
        "topk": [10],
        "valid_metric": "NDCG@10",
        "epochs": job.epochs,
        "stopping_step": job.patience,
        "train_batch_size": 2048,
        "eval_batch_size": 4096 * 16,
        "learning_rate": job.learning_rate,
        "hidden_size": job.width,
        "n_layers": job.layers,
        "n_heads": job.heads,
        "hidden_dropout_prob": job.dropout,
        "attn_dropout_prob": job.dropout,
        "loss_type": "CE",
        "seed": job.seed,
        "use_gpu": False,
        "show_progress": False,
    }
    # It reads the command line too, where our job stands.
    sys.argv = sys.argv[:1]
    return Config(model=MODELS[job.model], dataset="events", config_dict=settings)


def watch(model: Any, trainer: Any, clock: Clock) -> None:
    """Let the clock run through its epochs and count targets."""
    loss, epoch = model.calculate_loss, trainer._train_epoch

    def counted(interaction: Any) -> Any:
        value = loss(interaction)
        masked = getattr(model, "MASK_INDEX", None)
        clock.step(int((interaction[masked] > 0).sum()) if masked else len(interaction))
        return value

    def timed(*words: Any, **named: Any) -> Any:
        clock.start()
        value = epoch(*words, **named)
        clock.step(0)
        return value

    model.calculate_loss, trainer._train_epoch = counted, timed


@torch.no_grad()
def scores_of(model: Any, batches: Any, split: Split) -> np.ndarray:
    """(users, items) by rising raw ids, of the last part of its split."""
    model.eval()
    data = batches.dataset
    rows_of, columns_of = (
        np.array(
            [-1, *(np.searchsorted(ids, int(name)) for name in data.id2token(field, range(1, len(ids) + 1)))]
        )
        for ids, field in ((split.users, "user_id"), (split.items, "item_id"))
    )
    scores = np.zeros((len(split.users), len(split.items)), np.float32)
    for interaction, *_ in batches:
        part = model.full_sort_predict(interaction).view(len(interaction), -1).numpy()
        rows = rows_of[interaction["user_id"].numpy()]
        scores[rows[:, None], columns_of[None, 1:]] = part[:, 1 : len(columns_of)]
    return scores


@torch.no_grad()
def first_ten(model: Any, batches: Any) -> None:
    """The ten best items of all users that they have not seen, as its evaluation finds them."""
    for interaction, *_ in batches:
        scores = model.full_sort_predict(interaction).view(len(interaction), -1)
        scores[:, 0] = -torch.inf
        scores.scatter_(1, interaction["item_id_list"], -torch.inf)
        scores.topk(10)


def run(job: Job, split: Split) -> Result:
    """Train, and score all items for all users."""
    config = config_of(job, write_atomic(job, split))
    init_seed(job.seed, True)
    data = create_dataset(config)
    train, validation, test = data_preparation(config, data)
    model = get_model(config["model"])(config, train.dataset)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    clock = Clock()
    watch(model, trainer, clock)
    trainer.fit(train, validation, verbose=False)
    found = torch.load(trainer.saved_model_file, weights_only=False)
    model.load_state_dict(found["state_dict"])
    answer = seconds_of(lambda: first_ten(model, test))
    return Result(
        clock,
        int(found["epoch"]) + 1,
        scores_of(model, test, split),
        answer,
        note=f"stopped at {job.epochs} epochs, for it trains one sample a prefix",
    )


if __name__ == "__main__":
    main("recbole", run)
