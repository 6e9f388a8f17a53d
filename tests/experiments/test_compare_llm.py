"""The rows of `lsvcr compare` that ask an LLM, and a table about drawn rows."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lsvcr.baselines import generations
from lsvcr.data.store import Dataset, open_dataset
from lsvcr.evaluation.protocol import draw
from lsvcr.evaluation.result import load_rows
from lsvcr.experiments.compare import compare
from lsvcr.experiments.compare_figures import on_rows
from lsvcr.experiments.compare_job import Job
from lsvcr.experiments.compare_models import choose
from lsvcr.experiments.compare_recipe import job, recipe
from lsvcr.experiments.compare_text import cells, notes
from lsvcr.experiments.runs import load_run
from lsvcr.llm.loading import load_llm
from lsvcr.schema import BEST_DIR, MANIFEST_FILE, Split, Task
from lsvcr.settings import CompareSettings, EvaluateLlmSettings
from lsvcr.training.llm_rank import evaluate_llm
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import read_json
from tests.experiments import fabricated
from tests.experiments.compare_runs import (
    InProcess,
    asked,
    forget_accelerate,
    in_process,
    one_thread,
    write_world,
)
from tests.training.aligned_runs import write_aligned

GENERATIVE = """
instruction: Next?
history_text: "Liked: "
max_history: 3
max_train_samples: 8
max_val_samples: 4
per_device_train_batch_size: 4
gradient_accumulation_steps: 1
learning_rate: 0.01
num_train_epochs: 1
max_source_length: 400
num_beams: 2
max_new_tokens: 16
bf16: true
"""
ROWS, SEED = 6, 11
MODELS = "popularity,sasrec,generative,lsvcr-id,llm-aligned"


@pytest.fixture(scope="module")
def world(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny world with a stage-one run of the tiny LLM in `llm`."""
    folder = write_world(tmp_path_factory.mktemp("compare"), tiny_data)
    write_aligned(folder / "data", folder / "llm")
    file = folder / "config" / "generative" / "generative.yaml"
    file.parent.mkdir()
    file.write_text(GENERATIVE)
    return folder


@pytest.fixture(scope="module")
def worker():
    """Workers run in this process."""
    with pytest.MonkeyPatch.context() as patch, one_thread():
        torch.set_num_threads(1)
        yield in_process(patch)
    forget_accelerate()


@pytest.fixture(scope="module")
def drawn(world: Path, worker: InProcess) -> tuple[CompareSettings, dict]:
    """A comparison on drawn rows, whose LLM was stopped once in the middle of what it said."""
    settings = asked(
        world, MODELS, seed=SEED, max_rows=ROWS, aligned=str(world / "llm"), llm="tiny-random", seeds=2
    )
    real, calls = generations.Speaker.say, []

    def stopped(self: generations.Speaker, *words: object):
        calls.append(words)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, *words)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generations.Speaker, "say", stopped)
        with pytest.raises(KeyboardInterrupt):
            compare(settings)
    assert not (world / "out" / "compare.json").exists()
    return settings, compare(settings)


def row(report: dict, name: str) -> dict:
    """A row of a report."""
    return next(row for row in report["rows"] if row["name"] == name)


def test_every_row_is_about_the_drawn_rows(world: Path, drawn: tuple[CompareSettings, dict]) -> None:
    settings, report = drawn
    dataset = open_dataset(settings.data)
    chosen = draw(len(dataset.samples(Task.REC, Split.TEST)), ROWS, SEED, Split.TEST)
    assert chosen is not None
    assert report["split"] == f"test ({chosen.about})" and report["max_rows"] == ROWS
    for found in report["rows"]:
        assert not found["failed"] and found["metrics"]["ndcg@10"]["rows"] == ROWS
    whole = load_run(row(report, "sasrec")["runs"][0])
    assert whole.fingerprint.split == "test" and len(whole.rows) > ROWS
    by_hand = whole.values["ndcg@10"][np.isin(whole.rows, chosen.rows)].mean()
    assert row(report, "sasrec")["metrics"]["ndcg@10"]["by_seed"][0] == pytest.approx(by_hand)
    validation = draw(len(dataset.samples(Task.REC, Split.VAL)), ROWS, SEED, Split.VAL)
    assert validation is not None
    kept = load_rows(Path(row(report, "popularity")["runs"][0]).parent / "rows_validation.safetensors")
    expected = kept.values["ndcg@10"][np.isin(kept.rows, validation.rows)].mean()
    assert row(report, "popularity")["validation"] == pytest.approx(expected)


def test_the_llm_of_stage_one_has_the_figures_of_its_command(
    world: Path, drawn: tuple[CompareSettings, dict], tmp_path: Path
) -> None:
    settings, report = drawn
    alone = EvaluateLlmSettings(
        run=str(world / "llm"), data=settings.data, max_rows=ROWS, seed=SEED, out=str(tmp_path)
    )
    expected = evaluate_llm(alone)["protocols"]["full"]["metrics"]["ndcg@10"]["value"]
    found = row(report, "llm-aligned")
    assert found["metrics"]["ndcg@10"]["by_seed"] == [pytest.approx(expected)]  # one run, so one model
    assert not found["baseline"] and found["answer_ms"] > 0 and found["parameters"] == 7
    assert found["seconds"] is None  # this run was never trained
    heads, lines = cells(report)
    assert dict(zip(heads, lines[-1], strict=True))["training"] == "-"
    assert set(found["inputs"]) == {"stage-one checkpoint", "photo_embs.npy"}


def test_titles_are_ranked_as_is_best_on_validation(drawn: tuple[CompareSettings, dict]) -> None:
    report = drawn[1]
    found = row(report, "generative")
    assert found["baseline"] and len(found["metrics"]["ndcg@10"]["by_seed"]) == 2
    assert found["seconds"] > 0 and found["parameters"] > 0 and found["answer_ms"] > 0
    values = []
    for run, told in zip(found["runs"], found["details"], strict=True):
        made = read_json(Path(run) / "metrics.json")
        assert not {"popularity", "collaborative", "rrf"} & set(made["validation"])
        assert made["validation"][made["ranking"]] == max(made["validation"].values())
        assert f"ranking {made['ranking']} (" in told and "6 by ndcg@10 on validation" in told
        values.append(made["validation"][made["ranking"]])
        settings = read_json(Path(run) / BEST_DIR / MANIFEST_FILE)["settings"]
        assert settings["max_train_samples"] == 8 and settings["model_name_or_path"] == "tiny-random"
    assert found["validation"] == pytest.approx(np.mean(values))
    assert "generative: ranking" in "\n".join(notes(report))
    assert [row["settings"]["seed"] for row in report["rows"] if row["name"] == "generative"] == [SEED]


def test_what_was_stopped_went_on_and_is_not_done_again(
    world: Path, drawn: tuple[CompareSettings, dict], worker: InProcess
) -> None:
    settings, report = drawn
    # Popularity and SASRec were done before the stop, and generative's first model was tuned.
    names = worker.trained()
    assert names.count("popularity") == 1 and names.count("sasrec") == 2 and names.count("generative") == 3
    log = Path(row(report, "generative")["runs"][0]) / "metrics.jsonl"
    assert len([line for line in log.read_text().splitlines() if "train/loss" in line]) == 2
    assert compare(settings) == report and worker.trained() == []


def test_other_rows_are_asked_for_anew_and_all_rows_need_no_drawing(
    world: Path, drawn: tuple[CompareSettings, dict], worker: InProcess
) -> None:
    more = compare(replace(drawn[0], models="popularity,llm-aligned", max_rows=ROWS - 1))
    assert worker.trained() == ["llm-aligned"] and f"{ROWS - 1} of" in more["split"]
    whole = compare(replace(drawn[0], models="popularity,llm-aligned", max_rows=0))
    assert worker.trained() == ["llm-aligned"] and whole["split"] == "test"


def test_comments_are_ranked_by_the_llm_too(world: Path, worker: InProcess) -> None:
    settings = asked(
        world, "comment_popularity,llm-aligned", task="CommRank", out=str(world / "comments"), max_rows=5,
        aligned=f"{world / 'llm'},{world / 'llm'}", seeds=3, metric="map@20",
    )  # fmt: skip
    report = compare(settings)
    found = row(report, "llm-aligned")
    assert len(found["metrics"]["ndcg@10"]["by_seed"]) == 2  # as many as there are stage-one runs
    assert found["metrics"]["ndcg@10"]["spread"] == 0 and found["validation"] > 0
    worker.jobs.clear()


@pytest.mark.parametrize(
    ("models", "changes", "told"),
    [
        ("generative", {}, "generative needs an LLM: give --llm smollm2-135m (or another), or use sasrec"),
        ("generative", {"task": "CommRank", "llm": "x"}, "compare it with --task Rec; here use comment_popularity"),
        ("llm-aligned", {}, "llm-aligned needs a stage-one run: give --aligned RUN, or use lsvcr-untuned"),
        ("llm-aligned", {"aligned": "nowhere"}, "llm-aligned: nowhere is no folder of a stage-one run"),
        ("llm-aligned", {"aligned": "{world}/aligned"}, "; or use lsvcr-untuned"),
        ("sasrec", {"max_rows": -1}, "--max_rows -1 must be 0 or more"),
        ("generative:bigrek", {"llm": "x"}, "no settings generative/bigrek.yaml"),
    ],
)  # fmt: skip
def test_what_is_lacking_is_told_before_anything_is_done(
    world: Path, worker: InProcess, models: str, changes: dict, told: str, tmp_path: Path
) -> None:
    worker.jobs.clear()
    changes = {k: v.format(world=world) if isinstance(v, str) else v for k, v in changes.items()}
    with pytest.raises(UserError) as error:
        compare(asked(world, models, out=str(tmp_path), **changes))
    assert told in str(error.value) and worker.trained() == []


def test_all_means_the_llm_of_stage_one_where_its_rows_are_bounded(world: Path) -> None:
    dataset = open_dataset(world / "data")
    for rows, there in ((0, False), (ROWS, True)):
        settings = asked(world, "all", aligned=str(world / "llm"), max_rows=rows)
        chosen, left_out = choose("all", dataset, settings)
        assert ("llm-aligned" in {member.name for member in chosen}) == there
        prompts = sum(len(dataset.samples(Task.REC, split)) for split in (Split.VAL, Split.TEST))
        assert there or f"reads {prompts} prompts with the LLM: name it" in left_out["llm-aligned"]


def test_titles_are_needed_to_say_them(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = asked(world, "generative", llm="tiny-random")
    dataset = open_dataset(settings.data)
    monkeypatch.setattr(Dataset, "titles", lambda self: ["", " "])
    with pytest.raises(UserError, match="generative needs titles, which .* does not have; use sasrec"):
        choose("generative", dataset, settings)


def test_a_part_of_a_result_is_that_of_its_rows() -> None:
    users = np.array([3, 3, 5, 8])
    whole = replace(
        fabricated.result([0.1, 0.2, 0.3, 0.4], [True, False, True, True]),
        overall={"gini@10": 0.5},
        users=users,
    )
    some = draw(4, 2, 1, Split.TEST)
    assert some is not None
    found = on_rows(whole, some)
    assert np.array_equal(found.rows, some.rows) and found.overall == {}
    assert np.array_equal(found.values["ndcg@10"], whole.values["ndcg@10"][some.rows])
    assert np.array_equal(found.slices["cold"], whole.slices["cold"][some.rows])
    assert np.array_equal(found.users, users[some.rows])
    assert found.fingerprint.split == "test (2 of 4 rows, seed 1)"
    assert on_rows(found, some) is found and on_rows(whole, None) is whole


def job_of(settings: CompareSettings, **chosen: object) -> Job:
    """The first model of a comparison's only row."""
    dataset = open_dataset(settings.data)
    ((member,), _) = choose(settings.models, dataset, settings)
    return job(recipe(member, dataset, settings), chosen, dataset, settings)


def change_weights(llm: Path) -> None:
    """Other weights in the same folder; no embedding changes."""
    model, _ = load_llm(str(llm))
    with torch.no_grad():
        model.model.layers[-1].mlp.down_proj.weight.mul_(2)
    model.save_pretrained(llm)


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """The tiny LLM as a folder."""
    for part in load_llm("tiny-random"):
        part.save_pretrained(tmp_path / "local")
    return tmp_path / "local"


@pytest.mark.parametrize("models", ["generative", "hllm"])
def test_other_weights_in_the_same_folder_are_another_model(world: Path, local: Path, models: str) -> None:
    settings = asked(world, models, llm=str(local))
    before = job_of(settings)
    assert job_of(settings).key == before.key and set(before.inputs) == {"LLM"}
    change_weights(local)
    after = job_of(settings)
    assert after.settings == before.settings and after.key != before.key


def test_the_user_llm_of_hllm_is_another_model_too(world: Path, local: Path) -> None:
    """Named by the row's file, or by its search."""
    file = world / "two.yaml"
    file.write_text(f"user_model_name_or_path: {local}\n")
    named = asked(world, f"hllm:{file}", llm="tiny-random")
    chosen = {"user_model_name_or_path": str(local)}
    searched = asked(world, "hllm", llm="tiny-random")
    before = job_of(named).key, job_of(searched, **chosen).key
    assert set(job_of(named).inputs) == {"user LLM"}
    change_weights(local)
    after = job_of(named).key, job_of(searched, **chosen).key
    assert after[0] != before[0] and after[1] != before[1]


def test_so_is_the_llm_that_stage_one_was_trained_on(world: Path, local: Path, tmp_path: Path) -> None:
    write_aligned(world / "data", tmp_path / "run", model_name_or_path=str(local))
    settings = asked(world, "llm-aligned", aligned=str(tmp_path / "run"))
    before = job_of(settings)
    change_weights(local)
    assert before.inputs["LLM"] and job_of(settings).key != before.key
    file = tmp_path / "named.yaml"
    file.write_text("model_name_or_path: tiny-random\n")
    named = replace(settings, models=f"llm-aligned:{file}")
    assert set(job_of(named).inputs) == {"stage-one checkpoint", "photo_embs.npy"}


@pytest.mark.parametrize("llm", ["tiny-random", "smollm2-135m", "org/model"])
def test_llms_that_are_known_by_their_names_leave_the_key_as_it_was(world: Path, llm: str) -> None:
    assert all(job_of(asked(world, models, llm=llm)).inputs == {} for models in ("generative", "hllm"))
    aligned = job_of(asked(world, "llm-aligned", aligned=str(world / "llm")))
    assert set(aligned.inputs) == {"stage-one checkpoint", "photo_embs.npy"}
