"""`lsvcr export` of SASRec: inner products or cosines, whatever its options, or a sentence and no bundle."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lsvcr import cli
from lsvcr.baselines.registry import entries
from lsvcr.baselines.sasrec import SASRec, SasrecSettings
from lsvcr.export import bundle as exporting
from lsvcr.export.asked import Questions
from lsvcr.export.bundle import export, summary
from lsvcr.export.models import exporter
from lsvcr.export.parts import open_sources
from lsvcr.export.sasrec import part
from lsvcr.schema import BEST_DIR, SR_WEIGHTS_FILE, Split, Task
from lsvcr.serving.bundle import amend_manifest, open_bundle
from lsvcr.serving.bundle_write import Part
from lsvcr.serving.errors import BadRequest, BundleError
from lsvcr.serving.runtime import Recommender
from lsvcr.training.baseline import run as train
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
    "inner products": {},
    "cosine": {"score": "cosine", "temperature": 0.07},
    "norm last": {"norm": "last"},
    "norm last, cosine, gelu": {"norm": "last", "score": "cosine", "activation": "gelu"},
    "unscaled": {"scale_items": False},
    "from the oldest": {"positions": "start"},
    "no positions": {"positions": "none", "activation": "gelu"},
    "one block, one head": {"layers": 1, "heads": 1, "norm": "last"},
    "three blocks, four heads": {"layers": 3, "heads": 4},
    "bce": {"loss": "bce", "neg_video_num": 1},
    "gbce": {"loss": "gbce", "neg_video_num": 8, "positions": "start"},
    "sampled softmax": {"neg_video_num": 4},
    "longer than any history": {"max_his": 200},
    "the latest video alone": {"max_his": 1},
}
SCORES = pytest.mark.parametrize("score", ["inner", "cosine"])


def made(place: Place, name: str = "inner products") -> Path:
    folder = place.root / f"sasrec {name}"
    return folder if folder.is_dir() else place.baseline("sasrec", folder.name, **(SMALL | OPTIONS[name]))


def model_of(**changes: object) -> SASRec:
    """A model whose every weight is random, padding's row too."""
    torch.manual_seed(0)
    model = SASRec(
        20, 6, **{**SasrecSettings().shape(), "hidden": 16, "inner": 24, "heads": 2, **changes}
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    return model


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(tiny: Place, tmp_path: Path, name: str) -> None:
    run = made(tiny, name)
    manifest = export(tiny.settings(run, out=str(tmp_path / "bundle")))
    found = manifest["verified"]["rec"]
    assert found["rows"] == len(tiny.dataset.samples(Task.REC, Split.TEST)) > 10
    assert found["max_difference"] < 1e-5 and not found["other_top_10_but_for_rounded_rows"]
    assert found["overlap@10"] == 1
    score = "cosine" if "cosine" in name else "inner product"
    assert manifest["parts"]["rec"]["score"] == score
    assert manifest["parents"]["rec"]["model"] == "sasrec" and manifest["text_width"] == 0
    assert manifest["max_videos"] == (SMALL | OPTIONS[name])["max_his"] and manifest["max_entries"] == 0
    assert (" of the largest possible," in summary(manifest, "bundle")) == (score == "inner product")


@SCORES
@pytest.mark.parametrize("positions", ["end", "start", "none"])
@pytest.mark.parametrize("norm", ["first", "last"])
@torch.no_grad()
def test_graph_equals_the_model_for_any_lengths_and_padding(score: str, positions: str, norm: str) -> None:
    model = model_of(positions=positions, norm=norm, cosine=score == "cosine")
    for lengths, ids, found in answers_of_graph(part(model), 20):
        last = np.maximum(np.array(lengths) - 1, 0)
        states = model.states(ids)[torch.arange(len(lengths)), torch.from_numpy(last)]
        expected = torch.nn.functional.normalize(states, dim=-1) if score == "cosine" else states
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["inner products", "cosine", "norm last"])
def test_metrics_through_the_runtime_are_those_of_evaluate(tiny: Place, tmp_path: Path, name: str) -> None:
    runtime_has_the_metrics_of_evaluate(tiny, made(tiny, name), tmp_path / "bundle")


@pytest.mark.parametrize("name", ["inner products", "cosine"])
@ROUNDED
def test_rounded_rows_find_the_best_of_what_they_hold(
    tiny: Place, tmp_path: Path, name: str, changes: dict[str, str]
) -> None:
    manifest = export(tiny.settings(made(tiny, name), out=str(tmp_path / "bundle"), **changes))
    rounded_as_told(manifest, changes)


def test_scores_are_inner_products_of_any_size(tiny: Place, tmp_path: Path) -> None:
    run = made(tiny)
    export(tiny.settings(run, out=str(tmp_path / "bundle")))
    source = open_sources([str(run)], tiny.dataset)[Task.REC]
    data = source.setup.data(Split.TEST)
    query = Questions(data).videos(np.arange(1), 32)[0]
    answer = Recommender.load(tmp_path / "bundle").recommend_many([query])[0]
    with torch.no_grad():
        user = source.setup.model.user_vectors(data.evaluation(np.arange(1)))
        scores = (user @ source.setup.model.item_vectors()[1:].T)[0].sort(descending=True).values
    assert scores[0] > 2
    np.testing.assert_allclose([item.score for item in answer.items], scores.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("what", ["items", "entries", "encoder"])
def test_a_bundle_that_answers_otherwise_is_refused(tiny: Place, tmp_path: Path, monkeypatch, what) -> None:
    run, other = made(tiny), made(tiny, "norm last")
    monkeypatch.setattr(exporting, "make_part", tampered(what, tiny, other))
    with pytest.raises(UserError, match="does not answer as .*sasrec inner products.* does, so it was not"):
        export(tiny.settings(run, out=str(tmp_path / "bundle")))
    assert not list(tmp_path.iterdir())


@SCORES
def test_a_single_item_that_is_a_little_longer_is_found(
    tiny: Place, tmp_path: Path, monkeypatch, score
) -> None:
    """The lists are the same, the scores are not."""
    run = made(tiny, "inner products" if score == "inner" else "cosine")
    make = exporting.make_part

    def longer(source) -> Part:
        right = make(source)
        return replace(right, items=right.items * np.float32(1.001))

    monkeypatch.setattr(exporting, "make_part", longer)
    with pytest.raises(UserError, match=r"a score differs by \d\.\de-04 \(1e-04 is allowed\)"):
        export(tiny.settings(run, out=str(tmp_path / "bundle")))


def test_what_has_no_vectors_is_refused_by_name(tiny: Place, tmp_path: Path, capsys) -> None:
    for name in ("popularity", "item_knn"):
        run = tiny.baseline(name)
        words = ["export", str(run), "--data", str(tiny.data), "--out", str(tmp_path / "bundle")]
        assert cli.main(words) != 0
        told = capsys.readouterr().err
        assert f"is a run of {name}, which cannot be exported" in told
        assert "`lsvcr train sasrec`" in told and "`lsvcr train bert4rec`" in told
    assert not list(tmp_path.iterdir())


def test_every_exporter_that_is_named_is_there() -> None:
    named = {name: entry for name, entry in entries().items() if entry.exporter}
    assert set(named) >= {"sasrec", "bert4rec", "hllm_light"}
    for entry in named.values():
        assert callable(exporter(entry, Path("run")))


def test_an_approximate_index_is_refused_where_long_vectors_win(tiny: Place, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="ranks by inner products.*--ann_from 0.*--score cosine"):
        export(tiny.settings(made(tiny), out=str(tmp_path / "bundle"), ann_from=10))
    assert not list(tmp_path.iterdir())
    cosine = export(tiny.settings(made(tiny, "cosine"), out=str(tmp_path / "bundle"), ann_from=10))
    assert cosine["index"]["kind"] == "hnsw" and cosine["index"]["recall@10"] > 0.9


def test_new_videos_have_no_place_and_titles_may_change(tiny: Place, tmp_path: Path) -> None:
    export(tiny.settings(made(tiny), out=str(tmp_path / "bundle"), verify_rows=1))
    recommender = Recommender.load(tmp_path / "bundle")
    before = recommender.recommend([1, 2], k=32, exclude_seen=False)
    for vector in (None, [0.5] * 16):
        with pytest.raises(BadRequest, match="looks at no text, so it has no place for new videos"):
            recommender.catalogue.put_video(900, "new", vector)
    recommender.catalogue.put_video(3, "another title", None)
    after = recommender.recommend([1, 2], k=32, exclude_seen=False)
    assert recommender.title(3) == "another title"
    assert [item.id for item in after.items] == [item.id for item in before.items]
    assert [item.score for item in after.items] == [item.score for item in before.items]
    with pytest.raises(UserError, match="these models have no text .*video ids alone"):
        export(tiny.settings(made(tiny), out=str(tmp_path / "other"), text_encoder=True))


def test_users_and_their_liked_videos(tiny: Place, tmp_path: Path) -> None:
    export(tiny.settings(made(tiny), out=str(tmp_path / "bundle"), with_users=True, verify_rows=3))
    recommender = Recommender.load(tmp_path / "bundle")
    user = tiny.dataset.raw_ids("users").to_list()[2]
    liked, visits = recommender.histories(user)
    assert len(liked) == 5 and visits == []
    answer = recommender.recommend_user(user, k=5)
    mine = recommender.recommend(liked, k=32).items
    assert [item.id for item in answer.items] == [i.id for i in mine if i.id not in seen(tiny, user)][:5]


def seen(place: Place, user: int) -> set[int]:
    events = place.dataset.video_events
    row = place.dataset.raw_ids("users").to_list().index(user) + 1
    videos = [None, *place.dataset.raw_ids("videos").to_list()]
    return {videos[v] for v in events.items[events.offsets[row] : events.offsets[row + 1]]}


def test_one_bundle_with_comments_ranked_by_stage_two(tiny: Place, tmp_path: Path) -> None:
    comments = tiny.run(Task.COMM_RANK)
    same = tiny.baseline("sasrec", **(SMALL | {"max_his": 8}))
    manifest = export(tiny.settings(same, comments, out=str(tmp_path / "bundle")))
    assert set(manifest["verified"]) == {"rec", "comm_rank"}
    assert (manifest["max_videos"], manifest["max_entries"], manifest["text_width"]) == (8, 8, 8)
    scores = {name: about["score"] for name, about in manifest["parts"].items()}
    assert scores == {"rec": "inner product", "comm_rank": "cosine"}
    with pytest.raises(UserError, match="--max_his 5, .* with --max_phis_len 8"):
        export(tiny.settings(made(tiny), comments, out=str(tmp_path / "other")))


def test_a_trained_run_and_its_metrics(tiny: Place, tmp_path: Path, fresh_accelerator) -> None:
    run = tmp_path / "run"
    flags = {"hidden": 16, "max_his": 8, "num_train_epochs": 1, "report_to": "none"}
    train("sasrec", SasrecSettings(data_path=str(tiny.data), output_dir=str(run), **flags))
    manifest = export(tiny.settings(run, out=str(tmp_path / "bundle")))
    told = json.loads((run / "metrics.json").read_text())["protocols"]["full"]["metrics"]["ndcg@10"]["value"]
    assert manifest["parents"]["rec"]["metrics"]["ndcg@10"] == told
    assert manifest["verified"]["rec"]["metrics"]["ndcg@10"]["bundle"] == pytest.approx(told, abs=1e-6)


def test_the_bundle_answers_without_torch(tiny: Place, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    export(tiny.settings(made(tiny), out=str(out), verify_rows=1, rows="int8"))
    answers_without_torch(out)


def test_what_a_part_ranks_by_is_read_back_and_checked(tiny: Place, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    export(tiny.settings(made(tiny), out=str(out), verify_rows=1))
    assert open_bundle(out).parts[Task.REC].score == "inner product"
    about = open_bundle(out).manifest["parts"]["rec"]
    amend_manifest(out, parts={"rec": {**about, "score": "distance"}})
    with pytest.raises(BundleError, match="ranks by 'distance'.*export it again"):
        open_bundle(out)
    amend_manifest(out, parts={"rec": {key: value for key, value in about.items() if key != "score"}})
    assert open_bundle(out).parts[Task.REC].score == "cosine", (
        "bundles from before parts could rank otherwise"
    )


def test_items_beyond_float16_are_refused_and_fit_elsewhere(tiny: Place, tmp_path: Path) -> None:
    run = tiny.baseline("sasrec", **(SMALL | {"scale_items": False, "layers": 1}))
    weights = run / BEST_DIR / SR_WEIGHTS_FILE
    tensors = load_file(weights)
    tensors["items.weight"] *= 1e6
    save_file(tensors, weights)
    with pytest.raises(BundleError, match="beyond float16: use --rows float32 or int8"):
        export(tiny.settings(run, out=str(tmp_path / "bundle"), rows="float16"))
    for rows in ("float32", "int8"):
        found = export(tiny.settings(run, out=str(tmp_path / "bundle"), rows=rows))["verified"]["rec"]
        assert found["max_difference_but_for_rounded_rows"] < 1e-5


def test_a_tower_goes_with_cosines_alone(tiny: Place, tmp_path: Path, monkeypatch) -> None:
    make = exporting.make_part
    monkeypatch.setattr(exporting, "make_part", lambda source: replace(make(source), score="inner product"))
    with pytest.raises(ValueError, match="a part with a tower ranks by cosine"):
        export(tiny.settings(tiny.run(Task.REC), out=str(tmp_path / "bundle")))
