"""The data that all recommenders of peers.py are given: one leave-last split, written as plain CSV, and evaluated once.

A folder of it holds `train.csv`, `val.csv` and `test.csv` (user,item,time), `all.csv` with all of them, and
`prepared/`, the same for `lsvcr train`. A user's last event is test, the one before it validation. Times are Unix
milliseconds, and where a user has several events in one second, they are told apart by the order of the file's rows:
no two of a user are equal, so that no system's sorting can choose other targets than another's.
"""

from pathlib import Path

import numpy as np
import polars as pl
import torch
from common import run_child, tell
from torch import Tensor

from lsvcr.data.rank import RankBatch, RankData
from lsvcr.data.store import Dataset, open_dataset
from lsvcr.evaluation.evaluator import evaluate
from lsvcr.evaluation.protocol import Protocol
from lsvcr.evaluation.result import Result
from lsvcr.schema import Split, Task

METRICS = ("ndcg@10", "recall@10", "mrr@10")
PROTOCOLS = {"": Protocol("full"), "_filtered": Protocol("full", filter_seen=True)}
"""By what is put behind a metric's name: everything ranks, or what the user has not seen (and the target)."""

PARTS = ("train", "val", "test")
_COLUMNS = """
ids: numbers
videos: {files: items.csv, id: item, title: title}
likes: {files: all.csv, user: user, video: item, time: time, unit: milliseconds}
"""


def read_recbole(file: Path) -> pl.DataFrame:
    """Events of an atomic file, `user_id:token item_id:token rating:float timestamp:float`; all ratings count."""
    raw = pl.read_csv(file, separator="\t")
    return raw.select(
        pl.col("user_id:token").alias("user"),
        pl.col("item_id:token").alias("item"),
        pl.col("timestamp:float").cast(pl.Int64).alias("time"),
    )


def read_movielens(folder: Path) -> pl.DataFrame:
    """Events of a MovieLens folder with `ratings.csv`; all ratings count."""
    raw = pl.read_csv(folder / "ratings.csv")
    return raw.select(
        pl.col("userId").alias("user"), pl.col("movieId").alias("item"), pl.col("timestamp").alias("time")
    )


def made_up(users: int = 60, items: int = 40, seed: int = 0) -> pl.DataFrame:
    """A small world in which an item is mostly followed by the next one."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(1, users + 1):
        order = (rng.integers(items) + np.arange(rng.integers(8, 20))) % items + 1
        rows += [(user, int(item), 1_000 + place) for place, item in enumerate(order)]
    return pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")


def split(events: pl.DataFrame, out: Path) -> Path:
    """Write the folder; left alone where it is there.

    Args:
        events: user, item, time in seconds; a user's repeated item counts once, the first time.

    Raises:
        SystemExit: our own command does not cut the same targets.
    """
    if (out / "prepared").exists():
        return out
    out.mkdir(parents=True, exist_ok=True)
    once = events.sort("time", maintain_order=True).unique(
        ["user", "item"], keep="first", maintain_order=True
    )
    kept = once.filter(pl.len().over("user") >= 5).sort("user", "time", maintain_order=True)
    place = pl.int_range(pl.len()).over("user", "time")
    kept = kept.with_columns((pl.col("time") * 1000 + place).alias("time"))
    left = (pl.len() - 1 - pl.int_range(pl.len())).over("user")
    for part, chosen in zip(PARTS, (left > 1, left == 1, left == 0), strict=True):
        kept.filter(chosen).write_csv(out / f"{part}.csv")
    kept.write_csv(out / "all.csv")
    items = kept.select(pl.col("item").unique().sort())
    items.with_columns(pl.format("item {}", "item").alias("title")).write_csv(out / "items.csv")
    (out / "columns.yaml").write_text(_COLUMNS)
    tell(f"{out.name}: {len(kept):,} events, {kept['user'].n_unique():,} users, {len(items):,} items")
    run_child(["-m", "lsvcr", "prepare", "tables", "--raw", str(out), "--out", str(out / "prepared")])
    _check_targets(out)
    return out


def _check_targets(folder: Path) -> None:
    """Our own split must be the one that was written."""
    dataset = open_dataset(folder / "prepared")
    users, items = (dataset.raw_ids(kind).to_numpy() for kind in ("users", "videos"))
    for part in (Split.VAL, Split.TEST):
        samples = dataset.samples(Task.REC, part)
        written = pl.read_csv(folder / f"{part.value}.csv").sort("user")
        ours = pl.DataFrame({"user": users[samples.user - 1], "item": items[samples.video - 1]}).sort("user")
        if not ours.equals(written.select("user", "item")):
            raise SystemExit(
                f"{folder}: lsvcr prepare cuts other {part.value} targets than the CSV files say"
            )


class GivenScores:
    """What another system has found, as a model that our evaluator asks.

    Args:
        scores: (users, items) float32, finite; rows and columns by rising raw ids.
        users: (n,) the user of each sample, counted from 0 in that order.
    """

    def __init__(self, scores: np.ndarray, users: np.ndarray) -> None:
        self._scores, self._users = scores, users

    def catalogue_scores(self, batch: RankBatch) -> Tensor:
        """(B, N + 1) float32 by item index; column 0 is padding."""
        rows = self._scores[self._users[batch.rows.numpy()]]
        return torch.from_numpy(np.pad(rows, ((0, 0), (1, 0)))).float()


def judge(scores: np.ndarray, dataset: Dataset, part: Split = Split.TEST) -> dict[str, Result]:
    """What our evaluator says of scores (users, items) on a split, by protocol, row by row."""
    expected = (dataset.n_users, dataset.n_videos)
    if scores.shape != expected or not np.isfinite(scores).all():
        raise ValueError(f"scores must be finite and {expected}, not {scores.shape}")
    data = RankData(dataset, Task.REC, part, with_comments=False)
    model = GivenScores(scores, dataset.samples(Task.REC, part).user.astype(np.int64) - 1)
    return evaluate(model, data, PROTOCOLS, metrics=METRICS)


def figures_of(results: dict[str, Result]) -> dict[str, float]:
    """Means over the rows by metric and protocol: `ndcg10`, `ndcg10_filtered` and so on."""
    return {
        name.replace("@", "") + behind: float(result.mean(name) or 0.0)
        for behind, result in results.items()
        for name in METRICS
    }
