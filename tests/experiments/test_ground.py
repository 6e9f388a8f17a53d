"""`lsvcr ground` from end to end: tuned tiny LLM, both decodings, another run's scores, tables, page."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from lsvcr import cli
from lsvcr.baselines.generations import GENERATIONS_FILE, read_generations
from lsvcr.baselines.generative_settings import GroundSettings
from lsvcr.data.store import open_dataset
from lsvcr.evaluation.result import load_rows
from lsvcr.experiments.against import Question, compare
from lsvcr.experiments.ground import ground
from lsvcr.experiments.ground_page import gamma_axis
from lsvcr.experiments.runs import collaborative_scores, load_run
from lsvcr.experiments.table import compare_runs
from lsvcr.schema import Split, Task
from lsvcr.training.rank import run as finetune
from lsvcr.utils.errors import UserError
from tests.generative_world import generate_settings, tune_settings
from tests.training.rank_runs import SMALL


@pytest.fixture(scope="module")
def other(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished stage-two run on the tiny world, ids alone."""
    folder = tmp_path_factory.mktemp("other") / "Rec"
    finetune(
        replace(
            SMALL, data_path=str(tiny_data), output_dir=str(folder), disable_text=True, num_train_epochs=1
        )
    )
    return folder


@pytest.fixture(scope="module")
def grounded(
    generative_run: Path, other: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict]:
    """A copy of the run, grounded along the trie with the other run's scores; its report."""
    run = tmp_path_factory.mktemp("grounded") / "run"
    shutil.copytree(generative_run, run)
    settings = GroundSettings(run=str(run), decoding="trie", collaborative=str(other), bf16=False)
    return run, ground(settings)


def test_every_ranking_has_figures_and_rows(grounded: tuple[Path, dict], other: Path) -> None:
    run, report = grounded
    folder = run / "trie" / "ground"
    assert json.loads((folder / "metrics.json").read_text()) == json.loads(json.dumps(report))
    assert list(report["rankings"]) == [
        "exact",
        "normalised",
        "l2",
        "cosine",
        "bigrec_popularity",
        "log_popularity",
        "bigrec_collaborative",
        "add_collaborative",
        "rrf",
        "popularity",
        "collaborative",
    ]
    for name, ranking in report["rankings"].items():
        for protocol, summary in ranking["protocols"].items():
            rows = load_rows(folder / name / "Rec" / f"rows_{protocol}.safetensors")
            assert rows.mean("ndcg@10") == summary["metrics"]["ndcg@10"]["value"]
        assert (ranking["gamma"] is not None) == (name in report["curves"])
    # The other run alone is measured here as it measured itself.
    for protocol in ("full", "sampled"):
        theirs, ours = load_run(other, protocol), load_run(folder / "collaborative" / "Rec", protocol)
        assert theirs.fingerprint == ours.fingerprint
        for metric, values in theirs.values.items():
            np.testing.assert_allclose(ours.values[metric], values, atol=1e-12)


def test_trie_decoding_is_all_titles_and_free_decoding_is_counted(
    grounded: tuple[Path, dict], generative_run: Path
) -> None:
    for said in grounded[1]["generated"].values():
        assert said["valid"] == 1.0 and said["duplicates"] == 0.0 and said["rows_without_title"] == 0
    report = ground(GroundSettings(run=str(grounded[0]), decoding="free", bf16=False))
    # Random weights say no title.
    assert report["generated"]["test"]["valid"] == 0.0
    assert report["rankings"]["exact"]["protocols"]["full"]["metrics"]["hr@20"]["value"] == 0.0
    found, _ = read_generations(generative_run / "free")
    empty = sum(not texts[0] for texts in found[Split.TEST].texts)
    assert report["generated"]["test"]["rows_without_title"] == empty
    assert report["rankings"]["l2"]["protocols"]["full"]["positives_not_listed"] == empty
    assert set(report["rankings"]) & {"rrf", "collaborative"} == set()


def test_an_exact_hit_by_hand(grounded: tuple[Path, dict], tiny_data: Path) -> None:
    run, report = grounded
    dataset = open_dataset(tiny_data)
    titles, samples = list(dataset.titles()), dataset.samples(Task.REC, Split.TEST)
    found, _ = read_generations(run / "trie")
    hits = [
        titles[samples.video[row]] in texts[:1]
        for row, texts in zip(found[Split.TEST].rows, found[Split.TEST].texts, strict=True)
    ]
    value = report["rankings"]["exact"]["protocols"]["full"]["metrics"]["hr@1"]["value"]
    assert value == pytest.approx(np.mean(hits))


def test_tables_and_comparisons_read_the_rows(
    grounded: tuple[Path, dict], tiny_data: Path, other: Path
) -> None:
    folder = grounded[0] / "trie" / "ground"
    runs = {"l2": str(folder / "l2"), "other": str(other.parent)}
    models = compare_runs(str(tiny_data), runs)["models"]
    assert models["l2"]["rec"]["ndcg@10"] == load_run(folder / "l2" / "Rec").mean("ndcg@10")
    report = compare(str(folder / "rrf" / "Rec"), str(other), Question())
    assert report["source"] == "stored" and set(report["protocols"]) == {"full", "sampled"}


def test_the_command_prints_json_or_a_table(
    generative_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(generative_run, tmp_path / "run")
    words = ["ground", str(tmp_path / "run"), "--decoding", "trie", "--bf16", "False"]
    assert cli.main([*words, "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["rankings"]) >= {"exact", "l2", "popularity"}
    assert cli.main(words) == 0
    text = capsys.readouterr().out
    assert "log_popularity" in text and "100.0% of the beams are titles" in text


def test_the_other_commands_reach_their_functions(
    generative_run: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "records.jsonl"
    assert cli.main(["alpaca", "--data_path", str(tiny_data), "--out", str(out), "--quotes", "single"]) == 0
    assert json.loads(out.read_text().splitlines()[0])["output"].startswith("'")
    # Runs that are finished: nothing is left to do, and nothing changes.
    before = (generative_run / "last" / "manifest.json").read_bytes()
    changed = vars(tune_settings(tiny_data, generative_run))
    flags = [word for name, value in changed.items() for word in (f"--{name}", str(value)) if value != ""]
    assert cli.main(["tune", *(word for word in flags if word != "--lora_targets")]) == 0
    words = [str(generative_run), *"--decoding trie --max_new_tokens 16 --num_beams 3 --bf16 False".split()]
    assert cli.main(["generate", *words, "--num_return_sequences", "3"]) == 0
    assert (generative_run / "last" / "manifest.json").read_bytes() == before
    assert cli.main(["generate", *words]) == 2
    assert "more than --num_beams 3" in capsys.readouterr().err


def test_the_page_needs_nothing_beside_itself(grounded: tuple[Path, dict]) -> None:
    source = (grounded[0] / "trie" / "ground" / "curves.html").read_text(encoding="utf-8")
    assert re.findall(r"https?:|<script", source) == []
    found = re.findall(r'<svg [^>]*role="img".*?</svg>', source, re.S)
    pictures = [ElementTree.fromstring(svg) for svg in found]
    names = [next(p.iter("title")).text for p in pictures]
    # Two for each ranking that has a gamma.
    assert names == ["ndcg@10, recall@10 by gamma", "popularity_bias@10, coverage@10 by gamma"] * 4
    for picture in pictures:
        assert len([path for path in picture.iter("path") if path.get("d")]) == 2
        assert "gamma" in [text.text for text in picture.iter("text")]
    for name, curve in grounded[1]["curves"].items():
        assert f"gamma = {curve['chosen']:g}" in source and name in source


def test_the_picture_has_a_curve_for_each_ranking_with_a_gamma(grounded: tuple[Path, dict]) -> None:
    picture = ElementTree.parse(grounded[0] / "trie" / "ground" / "curves.svg").getroot()
    kind = "{http://www.w3.org/2000/svg}"
    words = {text.text for text in picture.iter(f"{kind}text")}
    assert set(grounded[1]["curves"]) < words and "gamma" in words
    assert len([path for path in picture.iter(f"{kind}path") if path.get("d")]) == len(grounded[1]["curves"])


def test_the_axis_shows_zero_at_its_left_end() -> None:
    axis = gamma_axis((0.0, 0.01, 1.0, 99.0))
    assert axis.place(0.0) == 0.0 < axis.place(0.01) < axis.place(1.0) < axis.place(99.0) == 1.0
    assert axis.marks == (0.01, 0.1, 1.0, 10.0)


def test_some_rows_alone_stand_in_no_table(generative_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    from lsvcr.baselines.generations import generate

    for name in ("best", "last"):
        (tmp_path / name).symlink_to(generative_run / name)
    generate(generate_settings(tmp_path, decoding="trie", max_rows=5))
    report = ground(GroundSettings(run=str(tmp_path), decoding="trie", bf16=False))
    assert report["rankings"]["l2"]["protocols"]["full"]["rows"] == 5
    with pytest.raises(UserError, match="5 of 24 rows, seed 2024"):
        compare_runs(str(tiny_data), {"l2": str(tmp_path / "trie" / "ground" / "l2")})


def test_what_does_not_fit_is_told(
    grounded: tuple[Path, dict], generative_run: Path, tiny_raw: Path, tmp_path: Path
) -> None:
    def refused(match: str, **changed: Any) -> None:
        known = {"run": str(generative_run), "decoding": "trie", "bf16": False}
        with pytest.raises(UserError, match=match):
            ground(GroundSettings(**{**known, **changed}))

    refused("--rrf_k", rrf_k=-1)
    refused("lsvcr tune", run=str(tmp_path))
    refused("checkpoint", collaborative=str(tmp_path))
    run = tmp_path / "run"
    shutil.copytree(generative_run, run)
    manifest = json.loads((run / "trie" / "manifest.json").read_text())
    (run / "trie" / "manifest.json").write_text(json.dumps({**manifest, "adapter": "another"}))
    refused("--overwrite", run=str(run))
    (run / "free" / GENERATIONS_FILE).unlink()
    refused("lsvcr generate", run=str(run), decoding="free")


def test_a_run_on_comments_gives_no_scores_for_videos(tiny_data: Path, tmp_path: Path) -> None:
    settings = replace(
        SMALL, data_path=str(tiny_data), output_dir=str(tmp_path), finetune_task="CommRank", disable_text=True
    )
    finetune(replace(settings, num_train_epochs=1))
    with pytest.raises(UserError, match="ranks comments"):
        collaborative_scores(tmp_path, open_dataset(tiny_data), Split.VAL)
