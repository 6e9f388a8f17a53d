"""`lsvcr export` of BERT4Rec: what a mask behind a history asks for, whatever the model's options."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lsvcr.baselines.bert4rec import BERT4Rec, Bert4RecSettings
from lsvcr.export import bundle as exporting
from lsvcr.export.bert4rec import part
from lsvcr.export.bundle import export
from lsvcr.schema import Split, Task
from lsvcr.serving.errors import BadRequest, BundleError
from lsvcr.serving.runtime import Recommender
from lsvcr.utils.errors import UserError
from tests.export.checkpoints import Place
from tests.export.sequence_bundles import (
    ROUNDED,
    SMALL,
    answers_of_graph,
    answers_without_torch,
    rounded_as_told,
    runtime_has_the_metrics_of_evaluate,
    tampered,
)

OPTIONS = {
    "as it is": {},
    "norm last": {"norm": "last"},
    "BERT's ends": {"ends": "bert"},
    "from the oldest": {"positions": "start"},
    "no positions": {"positions": "none", "activation": "relu"},
    "one block, one head": {"layers": 1, "heads": 1, "norm": "last"},
    "three blocks, four heads": {"layers": 3, "heads": 4},
    "longer than any history": {"max_his": 200},
    "the latest video alone": {"max_his": 1},
}


def made(place: Place, name: str = "as it is") -> Path:
    folder = place.root / f"bert4rec {name}"
    return folder if folder.is_dir() else place.baseline("bert4rec", folder.name, **(SMALL | OPTIONS[name]))


def model_of(**changes: object) -> BERT4Rec:
    """A model whose every weight is random, padding's row too."""
    torch.manual_seed(0)
    shape = {**Bert4RecSettings().shape(), "hidden": 16, "inner": 24, "heads": 2, **changes}
    model = BERT4Rec(20, 6, **shape).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    return model


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(tiny: Place, tmp_path: Path, name: str) -> None:
    manifest = export(tiny.settings(made(tiny, name), out=str(tmp_path / "bundle")))
    found = manifest["verified"]["rec"]
    assert found["rows"] == len(tiny.dataset.samples(Task.REC, Split.TEST)) > 10
    assert found["max_difference"] < 1e-5 and not found["other_top_10_but_for_rounded_rows"]
    assert found["overlap@10"] == 1
    assert manifest["parts"]["rec"]["score"] == "inner product"
    assert manifest["parents"]["rec"]["model"] == "bert4rec" and manifest["hidden"] == 16
    assert manifest["max_videos"] == (SMALL | OPTIONS[name])["max_his"] and manifest["max_entries"] == 0
    answers = Recommender.load(tmp_path / "bundle")
    assert len(answers.recommend([], k=5).items) == 5


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("positions", ["end", "start", "none"])
@pytest.mark.parametrize("norm", ["first", "last"])
@pytest.mark.parametrize("ends", ["plain", "bert"])
@torch.no_grad()
def test_scores_are_the_model_s_for_any_lengths_and_padding(
    ends: str, norm: str, positions: str, activation: str
) -> None:
    """Against the output layer as it stands, a mask behind each history alone."""
    model = model_of(ends=ends, norm=norm, positions=positions, activation=activation)
    made_part = part(model)
    for lengths, ids, found in answers_of_graph(made_part, 20):
        for row, length in enumerate(lengths):
            state = model.states(torch.tensor([[*ids[row, :length].tolist(), 21]]))[0, -1]
            scores = model.items.weight[:21] @ state
            if model.head is not None:
                filled = model.head.norm(torch.nn.functional.gelu(model.head.output(state)))
                scores = model.items.weight[:21] @ filled + model.head.bias
            np.testing.assert_allclose(made_part.items @ found[row], scores.numpy(), rtol=1e-5, atol=2e-5)


def test_metrics_through_the_runtime_are_those_of_evaluate(tiny: Place, tmp_path: Path) -> None:
    runtime_has_the_metrics_of_evaluate(tiny, made(tiny), tmp_path / "bundle")


@ROUNDED
def test_rounded_rows_find_the_best_of_what_they_hold(
    tiny: Place, tmp_path: Path, changes: dict[str, str]
) -> None:
    manifest = export(tiny.settings(made(tiny), out=str(tmp_path / "bundle"), **changes))
    rounded_as_told(manifest, changes)


@pytest.mark.parametrize("what", ["items", "entries", "encoder"])
def test_a_bundle_that_answers_otherwise_is_refused(tiny: Place, tmp_path: Path, monkeypatch, what) -> None:
    run, other = made(tiny), made(tiny, "norm last")
    monkeypatch.setattr(exporting, "make_part", tampered(what, tiny, other))
    with pytest.raises(UserError, match="does not answer as .*bert4rec as it is.* does, so it was not"):
        export(tiny.settings(run, out=str(tmp_path / "bundle")))
    assert not list(tmp_path.iterdir())


def test_an_approximate_index_and_new_videos_are_refused(tiny: Place, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="ranks by inner products"):
        export(tiny.settings(made(tiny), out=str(tmp_path / "bundle"), ann_from=10))
    assert not list(tmp_path.iterdir())
    export(tiny.settings(made(tiny), out=str(tmp_path / "bundle"), verify_rows=1))
    recommender = Recommender.load(tmp_path / "bundle")
    with pytest.raises(BadRequest, match="looks at no text, so it has no place for new videos"):
        recommender.catalogue.put_video(900, "new", None)


def test_one_bundle_with_comments_ranked_by_stage_two(tiny: Place, tmp_path: Path) -> None:
    """Both parts have the width of --hidden."""
    comments = tiny.run(Task.COMM_RANK)
    same = tiny.baseline("bert4rec", **(SMALL | {"max_his": 8}))
    manifest = export(tiny.settings(same, comments, out=str(tmp_path / "bundle")))
    assert set(manifest["verified"]) == {"rec", "comm_rank"}
    scores = {name: about["score"] for name, about in manifest["parts"].items()}
    assert scores == {"rec": "inner product", "comm_rank": "cosine"}


def test_the_bundle_answers_without_torch(tiny: Place, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    export(tiny.settings(made(tiny), out=str(out), verify_rows=1, rows="int8"))
    answers_without_torch(out)
