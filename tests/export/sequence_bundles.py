"""What every exported model over a user's videos is asked: its graph for any lengths, its bundle as a whole."""

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from lsvcr.evaluation.metrics import Ranks, compute
from lsvcr.export import bundle as exporting
from lsvcr.export.asked import Questions
from lsvcr.export.bundle import export
from lsvcr.export.parts import open_sources
from lsvcr.schema import PAD, Split, Task
from lsvcr.serving.bundle_write import Part
from lsvcr.serving.runtime import Recommender
from lsvcr.training.rank_evaluate import evaluate_checkpoint
from tests.export.checkpoints import Place
from tests.guards.source import ROOT

SMALL = {"max_his": 5, "hidden": 16, "inner": 24, "heads": 2, "report_to": "none"}
ROUNDED = pytest.mark.parametrize(
    "changes", [{"rows": "float16"}, {"rows": "int8"}, {"quantize": "int8"}], ids=lambda changes: str(changes)
)
"""What an exporter may round."""


def answers_of_graph(made: Part, videos: int) -> Iterator[tuple[list[int], Tensor, np.ndarray]]:
    """Lengths, histories (B, L) int64 of drawn videos, padded on the right, and what the graph answers, (B, d).

    Padded steps and all comments hold NaN: the graph must not look at them.
    """
    session = onnxruntime.InferenceSession(made.encoder, providers=["CPUExecutionProvider"])
    width = made.entries.shape[1]
    for lengths in ([0], [1], [6], [0, 0], [3, 6, 0, 1, 5, 2], [1, 2]):
        ids = torch.zeros(len(lengths), max(1, *lengths), dtype=torch.int64)
        for row, length in enumerate(lengths):
            ids[row, :length] = torch.randint(1, videos + 1, (length,))
        mask = (ids != PAD).numpy()
        steps = made.entries[ids.numpy()]
        steps[~mask] = math.nan
        comments = np.full((len(lengths), 3, width), math.nan, dtype=np.float32)
        nothing = np.zeros((len(lengths), 3), dtype=bool)
        feed = {"video": steps, "video_mask": mask, "comment": comments, "comment_mask": nothing}
        found = session.run(None, feed)[0]
        assert found.shape == (len(lengths), width) and found.dtype == np.float32
        yield lengths, ids, found


def runtime_has_the_metrics_of_evaluate(place: Place, run: Path, out: Path) -> None:
    """Ranks that the runtime gives every test row's target make the figures of `lsvcr evaluate`."""
    export(place.settings(run, out=str(out), verify_rows=1))
    data = open_sources([str(run)], place.dataset)[Task.REC].setup.data(Split.TEST)
    rows = np.arange(len(data))
    answers = Recommender.load(out).recommend_many(Questions(data).videos(rows, place.dataset.n_videos))
    ids = [None, *place.dataset.raw_ids("videos").to_list()]
    higher, tied = [], []
    for target, answer in zip(data.samples.video, answers, strict=True):
        scores = {item.id: item.score for item in answer.items}
        own = scores[ids[target]]
        higher.append(sum(score > own for score in scores.values()))
        tied.append(sum(score == own for score in scores.values()))
    metrics = ("ndcg@10", "recall@5", "mrr@10")
    values = compute(Ranks(np.arange(len(rows) + 1), np.array(higher), np.array(tied)), metrics)
    report = evaluate_checkpoint(str(run), str(place.data), protocol="full")["protocols"]["full"]["metrics"]
    for metric, value in values.items():
        assert value.mean() == pytest.approx(report[metric]["value"], abs=1e-6), metric


def rounded_as_told(manifest: dict[str, Any], changes: dict[str, str]) -> None:
    """Rounding costs little, is told, and is all that differs."""
    found = manifest["verified"]["rec"]
    assert 0.7 < found["overlap@10"] <= 1 and 1e-6 < found["max_difference"] < 0.05
    if "rows" in changes:
        assert found["max_difference_but_for_rounded_rows"] < 1e-5
        assert not found["other_top_10_but_for_rounded_rows"]
    else:
        assert manifest["parts"]["rec"]["encoder"] == "int8"


def tampered(what: str, place: Place, other: Path) -> Callable[[Any], Part]:
    """What makes a part whose `what` is wrong: tables shifted by a row, or the graph of the run `other`."""
    make = exporting.make_part

    def made(source: Any) -> Part:
        right = make(source)
        if what == "encoder":
            return replace(right, encoder=make(open_sources([str(other)], place.dataset)[Task.REC]).encoder)
        wrong = getattr(right, what).copy()
        wrong[1:] = np.roll(wrong[1:], 1, axis=0)
        return replace(right, **{what: wrong})

    return made


def answers_without_torch(bundle: Path) -> None:
    """A process that loads the bundle and asks it needs none of the training's libraries."""
    code = (
        "import sys; from lsvcr.serving.runtime import Recommender\n"
        f"r = Recommender.load({str(bundle)!r})\n"
        "assert len(r.recommend([1, 2], [{'video': 1, 'comments': [4]}], k=3).items) == 3\n"
        "assert len(r.recommend([], k=3).items) == 3\n"
        "assert not {'torch', 'transformers', 'polars', 'onnx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
