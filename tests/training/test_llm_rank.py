"""Stage one's LLM as a recommender: its vectors are those of training, its figures the evaluator's."""

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lsvcr import cli
from lsvcr.data.align_samples import AlignSamples
from lsvcr.data.rank import RankData
from lsvcr.data.store import open_dataset
from lsvcr.evaluation.result import load_rows
from lsvcr.experiments import against
from lsvcr.experiments.table import compare_runs
from lsvcr.nn.similarity import unit
from lsvcr.schema import BEST_DIR, Split, Task
from lsvcr.settings import EvaluateLlmSettings
from lsvcr.training import llm_rank, llm_users
from lsvcr.training.llm_rank import evaluate_llm, mean_cosine
from lsvcr.training.llm_users import PromptReader, item_vectors, open_source
from lsvcr.utils.errors import UserError
from tests.training.aligned_runs import write_aligned


@pytest.fixture(scope="module")
def world(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A stage-one run on the tiny world, and the model that was written there."""
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("aligned") / "run"
    parts = write_aligned(tiny_data, run)
    return SimpleNamespace(run=run, parts=parts, dataset=open_dataset(tiny_data))


def asked(world: SimpleNamespace, **changes: object) -> EvaluateLlmSettings:
    known = {"run": str(world.run), "data": str(world.dataset.root), "bf16": False, "max_candidate_num": 0}
    return EvaluateLlmSettings(**{**known, **changes})


def reader(world: SimpleNamespace, task: Task) -> PromptReader:
    source = open_source(world.run / BEST_DIR, task)
    return PromptReader(source, asked(world), world.dataset, task, Split.TEST)


@pytest.mark.parametrize("task", list(Task))
def test_users_and_items_are_those_that_stage_one_trains(world: SimpleNamespace, task: Task) -> None:
    # Test samples see all that lies before them, jointly trained or not.
    samples = AlignSamples(world.dataset, Split.TEST, [task], max_videos=4, max_comments=4)
    batch = world.parts.collator([samples.evaluation(row) for row in range(6)])
    with torch.no_grad():
        expected = world.parts.model.vectors(batch, None)
        texts = world.parts.model.text_vectors([*batch.texts])
    users, reading = reader(world, task).users(np.arange(6))
    np.testing.assert_allclose(users, expected.llm_users.numpy(), atol=1e-5)
    assert reading.prompts == 6 and reading.tokens > 0 and reading.seconds > 0
    items = item_vectors(open_source(world.run / BEST_DIR, task), world.dataset, task)
    targets = [samples.evaluation(row).target for row in range(6)]
    np.testing.assert_allclose(items[targets], unit(texts[batch.target]), atol=1e-5)
    np.testing.assert_allclose(unit(expected.targets), items[targets], atol=1e-5)


def test_figures_are_ranks_by_cosine(world: SimpleNamespace, tmp_path: Path) -> None:
    report = evaluate_llm(asked(world, out=str(tmp_path)))
    data = RankData(world.dataset, Task.REC, Split.TEST)
    users, _ = reader(world, Task.REC).users(np.arange(len(data)))
    items = item_vectors(open_source(world.run / BEST_DIR, Task.REC), world.dataset, Task.REC).numpy()
    scores = (users / np.linalg.norm(users, axis=1, keepdims=True)).astype(np.float64) @ items.T
    own = scores[np.arange(len(data)), data.samples.video][:, None]
    above, tied = (scores[:, 1:] > own + 1e-6).sum(1), (np.abs(scores[:, 1:] - own) <= 1e-6).sum(1)
    by_hand = np.clip((10 - above) / tied, 0, 1)
    rows = load_rows(tmp_path / "rows_full.safetensors")
    np.testing.assert_allclose(rows.values["recall@10"], by_hand, atol=1e-9)
    full = report["protocols"]["full"]
    assert full["metrics"]["recall@10"]["value"] == pytest.approx(by_hand.mean())
    assert full["fingerprint"]["split"] == "test" and full["fingerprint"]["candidates"] == "all videos"
    assert report == json.loads((tmp_path / "metrics.json").read_text())


def test_users_that_are_all_the_same_are_told(
    world: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = torch.Generator().manual_seed(1)
    directions = unit(torch.randn(9, 5, generator=rng))
    pairs = [float(directions[i] @ directions[j]) for i in range(9) for j in range(9) if i != j]
    assert mean_cosine(directions) == pytest.approx(np.mean(pairs), abs=1e-6)
    assert mean_cosine(directions[:1]) == 0
    monkeypatch.setattr(logging.getLogger("lsvcr"), "propagate", True)
    found = evaluate_llm(asked(world, out=str(tmp_path)))["users_mean_cosine"]
    monkeypatch.setattr(llm_rank, "ALIKE", found + 0.001)
    caplog.clear()
    evaluate_llm(asked(world, out=str(tmp_path)))
    assert "nearly all the same" not in caplog.text
    monkeypatch.setattr(llm_rank, "ALIKE", found - 0.001)
    evaluate_llm(asked(world, out=str(tmp_path)))
    assert f"nearly all the same (mean cosine {found:.3f})" in caplog.text


def test_equal_prompts_are_read_once(world: SimpleNamespace) -> None:
    told: list[int] = []
    users, reading = reader(world, Task.REC).users(np.array([2, 0, 2]), told.append)
    assert (reading.prompts, reading.distinct) == (3, 2) and sum(told) == 3
    assert np.array_equal(users[0], users[2]) and not np.allclose(users[0], users[1])


def test_a_killed_reading_goes_on_behind_its_last_part(
    world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm_users, "PART_ROWS", 4)
    read: list[list[int]] = []
    real, stop = PromptReader.users, [2]

    def counted(self: PromptReader, rows: np.ndarray, *tell: object) -> object:
        if len(read) == stop[0]:
            raise KeyboardInterrupt
        read.append(rows.tolist())
        return real(self, rows, *tell)

    monkeypatch.setattr(PromptReader, "users", counted)
    cut, straight = (asked(world, out=str(tmp_path / name)) for name in ("cut", "straight"))
    with pytest.raises(KeyboardInterrupt):
        evaluate_llm(cut)
    assert not (tmp_path / "cut" / "metrics.json").exists()
    stop[0] = 999
    evaluate_llm(cut)
    total = len(world.dataset.samples(Task.REC, Split.TEST))
    assert sum(read, []) == list(range(total)) and len(read) > 3
    read.clear()
    report = evaluate_llm(straight)
    assert len(read) == -(-total // 4) and report["reading"]["prompts"] == total
    one, other = (load_rows(tmp_path / name / "rows_full.safetensors") for name in ("cut", "straight"))
    assert all(np.array_equal(one.values[name], other.values[name]) for name in one.values)
    # A damaged part is read again, and nothing else.
    (tmp_path / "cut" / "users" / "users-00001.safetensors").write_bytes(b"half")
    read.clear()
    evaluate_llm(cut)
    assert read == [[4, 5, 6, 7]]
    read.clear()
    evaluate_llm(asked(world, out=str(tmp_path / "cut"), overwrite=True))
    assert len(read) == -(-total // 4)


def test_drawn_rows_stand_beside_no_others(world: SimpleNamespace, tmp_path: Path) -> None:
    run = shutil.copytree(world.run, tmp_path / "run")
    whole = evaluate_llm(asked(world, run=str(run)))
    some = evaluate_llm(asked(world, run=str(run), max_rows=5, seed=7))
    assert whole["folder"] == str(run / "llm" / "test" / "Rec")
    assert some["folder"] == str(run / "llm" / "test-5-7" / "Rec")
    one, all_rows = (load_rows(Path(found["folder"]) / "rows_full.safetensors") for found in (some, whole))
    assert np.array_equal(one.values["ndcg@10"], all_rows.values["ndcg@10"][one.rows])
    with pytest.raises(UserError, match=r"differ in split .*5 of \d+ rows, seed 7"):
        against.compare(some["folder"], whole["folder"], against.Question(protocol="full"))
    with pytest.raises(UserError, match="cannot stand in one table"):
        compare_runs(str(world.dataset.root), {"some": str(run / "llm" / "test-5-7")})
    table = compare_runs(str(world.dataset.root), {"LLM": str(run / "llm" / "test")})
    assert table["models"]["LLM"]["rec"]["ndcg@10"] == pytest.approx(all_rows.mean("ndcg@10"))


def test_the_command_ranks_comments(
    world: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate-llm", str(world.run), "--data", str(world.dataset.root), "--task", "CommRank"]
    words += ["--bf16", "False", "--split", "val", "--max_candidate_num", "0", "--out", str(tmp_path)]
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    assert "CommRank, val split" in shown and "ms each" in shown and str(tmp_path) in shown
    assert load_rows(tmp_path / "rows_sampled.safetensors").fingerprint.task == "comm_rank"


def test_what_cannot_be_measured_is_told(world: SimpleNamespace, tmp_path: Path) -> None:
    def refused(**changes: object) -> str:
        with pytest.raises(UserError) as error:
            evaluate_llm(asked(world, out=str(tmp_path / "out"), **changes))
        return str(error.value)

    assert "--max_rows -1 must be 0 or more" in refused(max_rows=-1)
    assert "is no folder of a stage-one run" in refused(run=str(tmp_path / "nowhere"))
    bare = shutil.copytree(world.run, tmp_path / "bare")
    for file in (bare / BEST_DIR).glob("*.npy"):
        file.unlink()
    assert "has no photo_embs.npy" in refused(run=str(bare)) and "lsvcr embed --checkpoint" in refused(
        run=str(bare)
    )
    moved = shutil.copytree(world.run, tmp_path / "moved") / BEST_DIR / "manifest.json"
    moved.write_text(moved.read_text().replace('"trained_parameters": 7', '"trained_parameters": 8'))
    assert "was not made by the checkpoint" in refused(run=str(moved.parent))
    moved.write_text(moved.read_text().replace('"tasks": "both"', '"tasks": "CommRank"'))
    assert "knows nothing of --task Rec" in refused(run=str(moved.parent))
    with pytest.raises(UserError, match="`lsvcr evaluate-llm` measures its LLM"):
        from lsvcr.training.rank_evaluate import evaluate_checkpoint

        evaluate_checkpoint(str(world.run), str(world.dataset.root))
