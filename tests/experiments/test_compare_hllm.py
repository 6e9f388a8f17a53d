"""The row `hllm` of `lsvcr compare`: HLLM with both its LLMs in training, beside the other recommenders."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lsvcr.data.rank_sequences import SequenceData
from lsvcr.data.store import Dataset, open_dataset
from lsvcr.evaluation.protocol import draw
from lsvcr.evaluation.result import Result
from lsvcr.experiments import compare_job, compare_speed
from lsvcr.experiments.compare import compare
from lsvcr.experiments.compare_job import Job
from lsvcr.experiments.compare_models import choose
from lsvcr.experiments.compare_recipe import job, recipe
from lsvcr.experiments.runs import load_run
from lsvcr.experiments.table import compare_runs
from lsvcr.schema import BEST_DIR, MANIFEST_FILE, Split, Task
from lsvcr.settings import CompareSettings
from lsvcr.training.rank_evaluate import evaluate_checkpoint, evaluate_rows
from lsvcr.training.rank_restore import restore
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import read_json
from tests.experiments.compare_runs import InProcess, asked, forget_accelerate, one_thread, write_world

SMALL = """
llm_layers: 1
user_layers: 1
lora_r: 2
max_his: 4
per_device_train_batch_size: 4
max_steps: 5
evaluation_strategy: steps
eval_steps: 3
save_strategy: steps
save_steps: 2
logging_steps: 1
gradient_checkpointing: false
bf16: true
"""
ROWS, SEED = 6, 11
MODELS = "popularity,sasrec,hllm"


class ApartFromHllm(InProcess):
    """HLLM's workers are processes: DeepSpeed, once it has ended, cannot be used again in one."""

    real: Callable[..., None] = staticmethod(compare_job.run_worker)

    def __call__(self, words: list[str], log: Path, tell: Callable[[str], None], threads: int = 0) -> None:
        """As `compare_job.run_worker`."""
        name = "" if words[0] == "--speed" else Path(words[0]).parts[-3]
        if name != "hllm":
            super().__call__(words, log, tell, threads)
            return
        self.jobs.append(name)
        self.real(words, log, tell, threads)


@pytest.fixture(scope="module")
def world(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny world of the other comparisons, with a small HLLM."""
    folder = write_world(tmp_path_factory.mktemp("compare"), tiny_data)
    file = folder / "config" / "hllm" / "hllm.yaml"
    file.parent.mkdir()
    file.write_text(SMALL)
    return folder


@pytest.fixture(scope="module")
def worker() -> Iterator[ApartFromHllm]:
    """Workers, each with one thread."""
    with pytest.MonkeyPatch.context() as patch, one_thread():
        patch.setenv("OMP_NUM_THREADS", "1")
        own = ApartFromHllm()
        for module in (compare_job, compare_speed):
            patch.setattr(module, "run_worker", own)
        yield own
    forget_accelerate()


@pytest.fixture(scope="module")
def settings(world: Path) -> CompareSettings:
    """A comparison on drawn rows."""
    return asked(world, MODELS, seed=SEED, max_rows=ROWS, llm="tiny-random")


@pytest.fixture(scope="module")
def report(settings: CompareSettings, worker: ApartFromHllm) -> dict:
    """That comparison, done, after HLLM had died in training once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare_job, "_WORKER", "tests.experiments.dying_worker")
        died = row(compare(settings))
    assert "Stopped" in died["failed"]
    return compare(settings)


def row(report: dict, name: str = "hllm") -> dict:
    """A row of a report."""
    return next(row for row in report["rows"] if row["name"] == name)


def own_job(settings: CompareSettings, place: int = 0, **chosen: object) -> Job:
    """The row's model of a seed."""
    dataset = open_dataset(settings.data)
    ((member,), _) = choose("hllm", dataset, settings)
    return job(recipe(member, dataset, settings), chosen, dataset, settings, place)


def drawn_mean(result: Result, settings: CompareSettings, split: Split) -> float:
    """NDCG@10 by hand on the rows that the table is about."""
    total = len(open_dataset(settings.data).samples(Task.REC, split))
    chosen = draw(total, settings.max_rows, settings.seed, split)
    assert chosen is not None and len(result.rows) == total
    return float(result.values["ndcg@10"][np.isin(result.rows, chosen.rows)].mean())


def test_its_figures_are_its_runs_and_of_the_rows_of_all(settings: CompareSettings, report: dict) -> None:
    found = row(report)
    assert not found["failed"] and found["baseline"] and not found["asks_llm"]
    for other in report["rows"]:
        assert other["metrics"]["ndcg@10"]["rows"] == ROWS
    whole = load_run(found["runs"][0])
    expected = drawn_mean(whole, settings, Split.TEST)
    assert found["metrics"]["ndcg@10"]["by_seed"] == [pytest.approx(expected)]
    validated = evaluate_rows(found["runs"][0], settings.data, "val", "full", ("ndcg@10",), False)[2]["full"]
    assert found["validation"] == pytest.approx(drawn_mean(validated, settings, Split.VAL))
    assert report["fingerprint"]["split"].startswith(f"test ({ROWS} of ")


def test_its_costs_are_told(report: dict) -> None:
    found = row(report)
    manifest = read_json(Path(found["runs"][0]) / BEST_DIR / MANIFEST_FILE)
    assert found["parameters"] == manifest["trained_parameters"] > 0
    assert found["epochs"] == [manifest["progress"]["epoch"]]
    assert found["seconds"] > 0 and found["answer_ms"] > 0
    assert manifest["settings"]["model_name_or_path"] == "tiny-random"
    assert manifest["settings"]["user_model_name_or_path"] == ""  # the same


def test_what_died_went_on_and_is_not_done_again(
    settings: CompareSettings, report: dict, worker: ApartFromHllm
) -> None:
    assert worker.trained() == ["popularity", "sasrec", "hllm", "hllm"]
    (log,) = (Path(settings.out) / "logs").glob("hllm-*.log")
    assert "continues after step 2" in log.read_text()
    lines = (Path(row(report)["runs"][0]) / "metrics.jsonl").read_text().splitlines()
    assert [line["step"] for line in map(json.loads, lines) if "train/loss" in line] == [1, 2, 3, 4, 5]
    assert compare(settings) == report
    whole = compare(replace(settings, max_rows=0))  # it has been measured on all rows
    assert worker.trained() == [] and whole["split"] == "test" and not row(whole)["failed"]


def test_its_run_is_read_by_the_other_commands(settings: CompareSettings, report: dict) -> None:
    run = row(report)["runs"][0]
    figures = read_json(Path(run) / "metrics.json")
    assert evaluate_checkpoint(run, settings.data) == figures
    told = compare_runs(settings.data, {"HLLM": run})["models"]["HLLM"][Task.REC.value]
    assert told["ndcg@10"] == figures["protocols"]["full"]["metrics"]["ndcg@10"]["value"]
    restored, _ = restore(Path(run) / BEST_DIR, open_dataset(settings.data))
    # All is in the precision in which the run was tested: finer heads would give other figures.
    assert {parameter.dtype for parameter in restored.model.parameters()} == {torch.bfloat16}


def test_seeds_and_bounds_of_the_command_reach_the_training(settings: CompareSettings) -> None:
    two = replace(settings, seeds=2, metric="recall@5")
    first, second = own_job(two), own_job(two, 1)
    assert [each.settings["seed"] for each in (first, second)] == [SEED, SEED + 1]
    assert first.key != second.key and first.settings["metric_for_best_model"] == "recall@5"
    assert first.settings["max_steps"] == 5
    users = len(SequenceData(open_dataset(settings.data), 4))
    assert own_job(replace(settings, epochs=1), per_device_train_batch_size=8).settings["max_steps"] == min(
        5, -(-users // 8)
    )
    assert own_job(replace(settings, epochs=1), max_steps=-1).settings["num_train_epochs"] == 1
    long = own_job(replace(settings, epochs=3), max_steps=10_000).settings
    assert long["max_steps"] == -(-3 * users // 4)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"llm": ""}, "hllm needs an LLM: give --llm smollm2-135m (or another), or use hllm_light"),
        ({"task": "CommRank"}, "hllm recommends videos: compare it with --task Rec; here use comment_popularity"),
        ({"models": "hllm:publisht"}, "no settings hllm/publisht.yaml"),
        ({"models": "hllm:{world}/fields.yaml"}, "hllm: --item_fields: 'plot' is no column of"),
    ],
)  # fmt: skip
def test_what_is_lacking_is_told_before_anything_is_done(
    world: Path, settings: CompareSettings, changes: dict, told: str, tmp_path: Path
) -> None:
    (world / "fields.yaml").write_text("item_fields: plot\n")
    changes = {name: value.format(world=world) for name, value in changes.items()}
    with pytest.raises(UserError) as error:
        compare(replace(settings, **{"models": "hllm", "out": str(tmp_path), **changes}))
    assert told in str(error.value) and not (tmp_path / "runs").exists()


def test_all_means_it_where_there_are_an_llm_and_texts(
    settings: CompareSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset(settings.data)

    def reason(llm: str) -> str:
        chosen, left_out = choose("all", dataset, replace(settings, llm=llm))
        assert ("hllm" in {member.name for member in chosen}) != ("hllm" in left_out)
        return left_out.get("hllm", "")

    assert reason("tiny-random") == "" and reason("").startswith("hllm needs an LLM: give --llm")
    real = Dataset.column
    monkeypatch.setattr(
        Dataset,
        "column",
        lambda self, table, name: (
            real(self, table, name).head(0) if table == "videos" else real(self, table, name)
        ),
    )
    assert "has no text about its videos" in reason("tiny-random")
