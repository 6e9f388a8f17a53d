"""The doctor: its report on a sound dataset, on spoilt ones, its estimates, warnings and fitted settings."""

import copy
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from lsvcr.data.calendar import Outside
from lsvcr.data.prepare import prepare
from lsvcr.data.store import open_dataset
from lsvcr.experiments import doctor_estimates, doctor_fit, doctor_texts
from lsvcr.experiments.doctor import diagnose, failure, print_report
from lsvcr.experiments.doctor_warnings import warnings
from lsvcr.llm.encoder import tokenize
from lsvcr.llm.loading import TINY, load_llm, load_tokenizer
from lsvcr.settings import AlignSettings, DoctorSettings, EmbedSettings, PrepareSettings, RankSettings
from lsvcr.utils.arguments import load_settings
from lsvcr.utils.errors import UserError
from tests.scripts.test_run_scripts import Scripts
from tests.tiny_gguf import write_tiny_gguf

GB = 2**30


@pytest.fixture(scope="session")
def report(tiny_data: Path) -> dict:
    """The tiny world, examined with the byte tokenizer; tests that change it take a copy."""
    return diagnose(DoctorSettings(data=str(tiny_data), llm=TINY))


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of the tiny world to spoil."""
    return shutil.copytree(tiny_data, tmp_path / "data")


def change(data: Path, name: str, place, value) -> None:
    """Set one element of an array of the dataset; its file keeps its size."""
    array = np.load(data / f"{name}.npy")
    array[place] = value
    np.save(data / f"{name}.npy", array)


def test_a_sound_dataset(report, tiny_data, capsys):
    assert report["ok"] and report["sound"] and failure(report) is None
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["data_hash"] == open_dataset(tiny_data).data_hash
    assert report["counts"]["users"] == 24 and report["counts"]["samples"]["rec"]["test"] == 24
    assert {row["task"] for row in report["sanity"]} == {"rec", "comm_rank"} and len(report["sanity"]) == 8
    assert all(row["ok"] and row["rows"] for row in report["sanity"])
    print_report(report)
    printed = capsys.readouterr().out
    for part in ("24", "FAILS", "Next", "estimated", "tiny-random"):
        assert (part in printed) == (part != "FAILS")
    for command in report["next"]:
        assert command in printed  # in one piece, to be copied


def test_without_an_llm_nothing_is_said_of_tokens(tiny_data, capsys):
    found = diagnose(DoctorSettings(data=str(tiny_data), llm="none"))
    assert found["ok"] and found["tokens"] is None and found["estimates"]["stage_one"] is None
    assert "max_text_length" not in found["fitted"]["align"]
    print_report(found)
    assert "--llm" in capsys.readouterr().out


@pytest.mark.parametrize(
    "empty", [["user_comment_inter.csv"], ["user_comment_inter.csv", "comment_features.csv"]]
)
def test_a_dataset_that_serves_rec_alone(empty, tiny_raw, tmp_path, capsys):
    raw = shutil.copytree(tiny_raw, tmp_path / "raw")
    for name in empty:
        header = (raw / name).read_text().splitlines()[0]
        (raw / name).write_text(header + "\n")
    data = prepare(PrepareSettings(raw=str(raw), out=str(tmp_path / "data"), user_core=3))
    found = diagnose(DoctorSettings(data=str(data), llm=TINY, write_config=str(tmp_path / "settings")))
    assert found["ok"] and {row["task"] for row in found["sanity"]} == {"rec"}
    assert "no_comm_rank_test" in {warning["name"] for warning in found["warnings"]}
    assert found["fitted"]["align"]["tasks"] == "Rec"
    assert not any("CommRank" in command for command in found["next"])
    json.dumps(found, allow_nan=False)
    print_report(found)
    assert "Rec alone" in capsys.readouterr().out


def test_a_dataset_split_by_time(tiny_raw, tmp_path):
    out = str(tmp_path / "data")
    data = prepare(PrepareSettings(raw=str(tiny_raw), out=out, user_core=3, split="temporal"))
    found = diagnose(DoctorSettings(data=str(data), llm="none"))
    assert found["ok"] and found["split"] == "temporal"


def test_auto_takes_the_bundled_llm_where_it_is(monkeypatch):
    monkeypatch.setattr(doctor_texts, "load_tokenizer", lambda name: f"tokenizer of {name}")
    monkeypatch.setattr(doctor_texts.importlib.util, "find_spec", lambda name: object())
    assert doctor_texts.open_tokenizer("auto") == ("smollm2-135m", "tokenizer of smollm2-135m")
    monkeypatch.setattr(doctor_texts.importlib.util, "find_spec", lambda name: None)
    assert doctor_texts.open_tokenizer("auto") == ("none", None)


def test_a_leaked_target_ends_in_a_sentence(data, capsys):
    rows = np.load(data / "samples/rec.train.npy")
    test = np.load(data / "samples/rec.test.npy")
    row = int(np.flatnonzero(rows["user"] == test["user"][3])[0])
    rows["video"][row] = test["video"][3]
    np.save(data / "samples/rec.train.npy", rows)
    found = diagnose(DoctorSettings(data=str(data), llm="none"))
    assert not found["ok"] and found["sound"]
    failed = {check["name"] for check in found["checks"] if not check["ok"]}
    assert "no_held_out_target" in failed
    sentence = failure(found)
    assert str(data) in sentence and "more of the kind" in sentence and "prepare" in sentence
    print_report(found)
    assert f"first {row}" in capsys.readouterr().out


def test_broken_pointers_are_reported_alone(data, capsys):
    change(data, "events/video_items", 3, 10_000)
    found = diagnose(DoctorSettings(data=str(data), llm=TINY))
    assert not found["ok"] and not found["sound"] and found["counts"] is None and found["next"] == []
    assert "items_in_range" in {check["name"] for check in found["checks"] if not check["ok"]}
    print_report(found)
    assert "cannot be followed" in capsys.readouterr().out
    assert "prepare" in failure(found)


def test_bad_vectors_fail_and_warn(data, report):
    rows = open_dataset(data).n_videos + 1
    table = np.random.default_rng(4).normal(size=(rows, 8)).astype(np.float32)
    table[[0, rows - 1]] = 0  # the last video has no title
    np.save(data / "photo_embs.npy", table)
    found = diagnose(DoctorSettings(data=str(data), llm="none"))
    assert found["ok"] and len(found["embeddings"]) == 1 and found["embeddings"][0]["zero_rows"] == 0
    elsewhere = data.parent / "run" / "best"
    elsewhere.mkdir(parents=True)
    table[4], table[5] = np.nan, 0
    np.save(elsewhere / "photo_embs.npy", table)
    found = diagnose(DoctorSettings(data=str(data), llm="none", embeddings=str(elsewhere.parent)))
    assert not found["ok"] and len(found["embeddings"]) == 2
    assert "NaN or infinity in 1 rows (first: 4)" in failure(found)
    assert "zero_vectors" in {warning["name"] for warning in found["warnings"]}


@pytest.mark.parametrize("part", ["problem", "made_for_this_data", "as_described"])
def test_vectors_that_training_would_refuse_fail(part, report):
    entry = {"folder": "f", "file": "photo_embs.npy", "problem": None, "not_finite_rows": 0}
    entry |= {"made_for_this_data": True, "as_described": True}
    assert failure(report | {"embeddings": [entry]}) is None
    entry[part] = "it has 3 rows" if part == "problem" else False
    assert "photo_embs.npy" in failure(report | {"embeddings": [entry]})


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ({"data": "nowhere"}, "nowhere"),
        ({"embeddings": "nowhere"}, "--embeddings nowhere"),
        ({"llm": "./nowhere"}, "nowhere"),
        ({"tokens_per_second": 0.0}, "--tokens_per_second"),
        ({"gflops": -1.0}, "--gflops"),
    ],
)
def test_what_is_refused(flags, part, tiny_data):
    settings = DoctorSettings(**{"data": str(tiny_data), "llm": "none"} | flags)
    with pytest.raises(UserError, match=part):
        diagnose(settings)


def test_tokens_are_those_of_the_text_branch(report, tiny_dataset):
    contents = list(tiny_dataset.contents())[1:]
    lengths = [len(ids) for ids in tokenize(load_tokenizer(TINY), contents, 10_000)]
    found = report["tokens"]["comments"]
    assert (found["texts"], found["tokens"]["max"]) == (len(contents), max(lengths))
    assert found["tokens"]["mean"] == pytest.approx(np.mean(lengths))
    assert found["longer_than_max_text_length"] == np.mean(np.array(lengths) > 64)


def test_many_texts_are_drawn_from_and_the_draw_is_fixed(tiny_dataset, monkeypatch):
    monkeypatch.setattr(doctor_texts, "TEXTS", 20)
    tokenizer = load_tokenizer(TINY)
    first, second = (doctor_texts.text_tokens(tiny_dataset, tokenizer) for _ in range(2))
    assert first == second and first["comments"]["texts"] == first["titles"]["texts"] == 20


def test_a_prompt_longer_than_the_limit_is_cut(tiny_dataset):
    tokenizer = load_tokenizer(TINY)
    whole = doctor_texts.sample_tokens(tiny_dataset, tokenizer, AlignSettings())
    short = doctor_texts.sample_tokens(tiny_dataset, tokenizer, AlignSettings(max_source_length=700))
    for task in ("rec", "comm_rank"):
        assert short[task]["prompt"]["max"] <= 700 < whole[task]["prompt"]["max"]
        assert short[task]["tokens_a_sample"] < whole[task]["tokens_a_sample"]
        assert whole[task]["tokens_a_sample"] > whole[task]["prompt"]["mean"]


def test_the_tokenizer_is_that_of_the_llm(tmp_path):
    text = "hello you 你好"
    model, tokenizer = load_llm(TINY, dtype=torch.float32)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    gguf = str(write_tiny_gguf(tmp_path / "tiny.gguf"))
    for name in (TINY, str(folder), gguf):
        expected = load_llm(name, dtype=torch.float32)[1]
        assert load_tokenizer(name)(text)["input_ids"] == expected(text)["input_ids"]
    with pytest.raises(UserError, match="does not exist"):
        load_tokenizer("./nowhere")


def test_estimates_of_stage_one_are_their_formula(report):
    prompts = {"rec": {"tokens_a_sample": 1000.0}, "comm_rank": {"tokens_a_sample": 500.0}}
    facts = copy.deepcopy(report)
    facts["counts"]["samples"]["rec"]["train"] = 36_000
    facts["counts"]["samples"]["comm_rank"]["train"] = 7_200
    found = doctor_estimates.stage_one(facts, prompts, AlignSettings(), 100.0)
    assert found["tokens_an_epoch"] == 36_000_000 + 3_600_000
    assert found["hours_an_epoch"] == pytest.approx(110.0)
    few = doctor_estimates.stage_one(facts, prompts, AlignSettings(max_train_samples=3_600), 100.0)
    assert few["hours_an_epoch"] == pytest.approx(15.0)
    texts = sum(
        report["texts"][name]["texts"] * min(64, report["tokens"][name]["tokens"]["mean"])
        for name in ("titles", "comments")
    )
    assert found["embed_hours"] == pytest.approx(texts / 650 / 3600)


def test_estimates_of_stage_two_are_their_formula(report):
    facts = copy.deepcopy(report)
    facts["counts"] |= {"videos": 1_000_000, "comments": 3_000_000}
    facts["counts"]["samples"]["rec"]["train"] = 10_000
    found = doctor_estimates.stage_two(facts, RankSettings(), 50.0)
    assert found["id_parameters"] == 1_000_001 * 64
    assert found["training_state_bytes"] == 16 * (1_000_001 * 64 + found["other_parameters"])
    assert found["text_table_bytes"] == 4_000_002 * 256 * 4
    assert found["scores_bytes"] == 512 * 1_000_000 * 4 and found["scores_at_once_bytes"] == 2**25
    entries = sum(
        max(facts["lengths"][side][task]["train"]["max"] for task in ("rec", "comm_rank"))
        for side in ("video_history", "comment_history")
    )
    operations = 6 * (entries * found["other_parameters"] / 2 + 64e6 + 1_000_000 * 256 * 64 / 512)
    assert found["minutes_an_epoch"]["rec"] == pytest.approx(10_000 * operations / 50e9 / 60)
    assert found["samples_a_second"]["rec"] == pytest.approx(50e9 / operations)
    sampled = doctor_estimates.stage_two(facts, RankSettings(neg_video_num=1000), 50.0)
    assert sampled["scores_bytes"] == 512 * 1000 * 4
    assert sampled["minutes_an_epoch"]["rec"] < found["minutes_an_epoch"]["rec"] / 10
    others = doctor_estimates.stage_two(facts, RankSettings(negative_sampler="in_batch"), 50.0)
    assert others["scores_bytes"] == others["scores_at_once_bytes"] == 512 * 512 * 4


def vectors(**changed) -> dict:
    """One audited file of vectors with nothing wrong but `changed`."""
    good = {"folder": "f", "file": "g.npy", "problem": None, "zero_rows": 0, "rows_that_should_be_zero": 0}
    return good | {"shared_by_different_texts": 0.0, "mean_cosine": 0.3, "first_zero": None} | changed


TROUBLES = {
    "no_calendar_times": ("time.outside", [Outside(5, 9, 10**9).says("likes")]),
    "no_comm_rank_test": ("counts.samples.comm_rank.test", 0),
    "few_rec_test_rows": ("counts.samples.rec.test", 499),
    "few_comm_rank_test_rows": ("counts.samples.comm_rank.test", 20),
    "one_candidate": ("shares.comm_rank_rows_with_one_candidate.test", 0.2),
    "many_ties": ("shares.likes_at_the_time_of_the_one_before", 0.1),
    "hardly_any_order": ("shares.likes_at_the_time_of_the_one_before", 0.9),
    "repeats": ("shares.repeated_likes_of_raw", 0.5),
    "shared_titles": (
        "texts.titles",
        {"shared_with_another": 0.3, "empty": 0.0, "most_repeated": [{"text": "hi", "times": 3}]},
    ),
    "empty_titles": ("texts.titles.empty", 0.3),
    "empty_comments": ("texts.comments.empty", 0.3),
    "videos_without_comments": ("shares.videos_without_comments", 0.9),
    "cold_videos": ("shares.cold_videos", 0.5),
    "unseen_targets": ("shares.unseen_test_targets.rec", 0.4),
    "clicks_all_alike": ("shares.clicked_impressions", 1.0),
    "popularity": ("shares.likes_on_the_top_videos", 0.8),
    "long_titles": ("tokens.titles.longer_than_max_text_length", 0.2),
    "long_comments": ("tokens.comments.longer_than_max_text_length", 0.2),
    "long_video_history": ("lengths.video_history.rec.train.p90", 60),
    "long_comment_history": ("lengths.comment_history.comm_rank.train.p90", 60),
    "scores": ("estimates.stage_two.full_scores_bytes", 3 * GB),
    "stage_one_time": ("fitted.align.max_train_samples", 4000),
    "zero_vectors": ("embeddings", [vectors(zero_rows=3, first_zero=4)]),
    "vectors_without_text": ("embeddings", [vectors(rows_that_should_be_zero=1)]),
    "shared_vectors": ("embeddings", [vectors(shared_by_different_texts=0.2)]),
    "collapsed_vectors": ("embeddings", [vectors(mean_cosine=0.999)]),
}
"""Warning -> the figure that calls for it."""


@pytest.fixture(scope="session")
def calm(report: dict) -> dict:
    """The report with every figure that warns of the small world's size set to a quiet one."""
    quiet = copy.deepcopy(report)
    for place, value in {
        "counts.samples.rec.test": 1000,
        "counts.samples.comm_rank.test": 1000,
        "shares.cold_videos": 0.0,
        "shares.clicked_impressions": 0.4,
        "shares.unseen_test_targets.rec": 0.0,
        "shares.likes_on_the_top_videos": 0.1,
        "shares.comm_rank_rows_with_one_candidate.test": 0.0,
        "embeddings": [vectors()],
    }.items():
        _set(quiet, place, value)
    return quiet


def _set(report: dict, place: str, value: object) -> None:
    *path, last = place.split(".")
    for key in path:
        report = report[key]
    report[last] = value


def test_calm_data_calls_for_no_warning(calm):
    assert warnings(calm) == []


@pytest.mark.parametrize(("name", "trouble"), TROUBLES.items(), ids=list(TROUBLES))
def test_each_warning_comes_alone_and_names_a_remedy(name, trouble, calm):
    troubled = copy.deepcopy(calm)
    _set(troubled, *trouble)
    (found,) = warnings(troubled)
    assert found["name"] == name
    assert any(remedy in found["says"] for remedy in ("--", "lsvcr", "judge"))


def test_flags_that_warnings_name_exist(calm):
    """Every --flag in a warning's sentence is a flag of a program or command."""
    known = set()
    for kind in (AlignSettings, RankSettings, PrepareSettings, EmbedSettings, DoctorSettings):
        known |= set(kind.__dataclass_fields__)
    for trouble in TROUBLES.values():
        troubled = copy.deepcopy(calm)
        _set(troubled, *trouble)
        words = warnings(troubled)[0]["says"].replace(")", " ").replace(",", " ").split()
        flags = {word.removeprefix("--").rstrip(";.") for word in words if word.startswith("--")}
        assert flags <= known, flags - known


def test_written_settings_are_read_back_and_say_why(tiny_data, tmp_path):
    folder = tmp_path / "my settings"
    found = diagnose(DoctorSettings(data=str(tiny_data), llm=TINY, write_config=str(folder)))
    align = load_settings(AlignSettings, folder / "align.yaml")
    finetune = load_settings(RankSettings, folder / "finetune.yaml")
    for name, settings in (("align", align), ("finetune", finetune)):
        for key, value in found["fitted"][name].items():
            assert getattr(settings, key) == value
        lines = (folder / f"{name}.yaml").read_text().splitlines()
        assert lines[0].startswith("#")
        keys = [number for number, line in enumerate(lines) if not line.startswith("#")]
        assert len(keys) == len(found["fitted"][name])
        assert all(lines[number - 1].startswith("# ") for number in keys)
    assert align.data_path == finetune.data_path == str(tiny_data.resolve())
    assert align.model_name_or_path == TINY
    assert found["written"] == [str(folder / "align.yaml"), str(folder / "finetune.yaml")]


@pytest.mark.parametrize("write", [True, False])
def test_the_next_commands_can_be_typed(write, tiny_data, tmp_path):
    folder = str(tmp_path / "my settings") if write else ""
    found = diagnose(DoctorSettings(data=str(tiny_data), llm=TINY, write_config=folder))
    scripts = Scripts(tmp_path)
    tried = []
    for command in found["next"]:
        words = shlex.split(command)
        if words[0] == "lsvcr":
            assert words[1] in ("doctor", "table")
            continue
        tried.append(words[1])
        for line in scripts.commands(Path(words[1]).name, *words[2:]):
            assert str(tiny_data) in " ".join(line) or folder in " ".join(line)
    assert tried == ["scripts/run_lora.sh", "scripts/finetune.sh", "scripts/finetune.sh"]
    assert ("--write_config" in found["next"][0]) == (not write)


def fitted(report: dict, **changed) -> tuple[dict, dict]:
    """Settings of both stages for a report with some figures changed (dots as double underscores)."""
    other = copy.deepcopy(report)
    for place, value in changed.items():
        _set(other, place.replace("__", "."), value)
    return doctor_fit.values(doctor_fit.fit_align(other)), doctor_fit.values(doctor_fit.fit_finetune(other))


def test_lengths_are_fitted_and_capped(report):
    align, finetune = fitted(
        report,
        lengths__video_history__rec__train__p90=33,
        lengths__comment_history__comm_rank__train__p90=70,
        lengths__comment_history__rec__train__p90=2,
        tokens__titles__tokens__p99=41,
        tokens__comments__tokens__p99=30,
    )
    assert (align["max_phis_len"], align["max_chis_len"], align["max_position"]) == (20, 20, 50)
    assert (finetune["max_phis_len"], finetune["max_chis_len"], finetune["max_position"]) == (33, 50, 50)
    assert (align["max_text_length"], align["max_target_length"]) == (48, 48)
    assert fitted(report, tokens__titles__tokens__p99=500)[0]["max_text_length"] == 64


def test_sizes_follow_the_number_of_samples(report):
    small = fitted(report)
    large = fitted(report, counts__samples__rec__train=2_000_000, counts__samples__rec__val=50_000,
                   counts__samples__comm_rank__val=50_000, counts__videos=2_000_000)  # fmt: skip
    assert small[0]["num_train_epochs"] == 3 and large[0]["num_train_epochs"] == 1
    assert small[0]["gradient_accumulation_steps"] == 4 and large[0]["gradient_accumulation_steps"] == 64
    sizes = ("per_device_train_batch_size", "num_train_epochs", "metric_for_best_model")
    assert [small[1][name] for name in sizes] == [64, 50, "ndcg@20"]
    assert [large[1][name] for name in sizes] == [512, 10, "ndcg@5"]
    assert "neg_video_num" not in small[1] and large[1]["neg_video_num"] == 8192
    assert "max_candidate_num" not in small[1]
    assert fitted(report, stored_candidates=20)[1]["max_candidate_num"] == 20


def test_cold_videos_and_short_comment_lists_are_fitted_to(report):
    few = fitted(report, shares__cold_videos=0.1, lengths__comments_of_a_watched_video__p50=40)[1]
    assert "min_id_count" not in few and "fill_up_comments" not in few
    many = fitted(report, shares__cold_videos=0.5, lengths__comments_of_a_watched_video__p50=3)[1]
    assert many["min_id_count"] == 5 and many["fill_up_comments"] is False
    alone = fitted(report, counts__samples__comm_rank__train=0)[0]
    assert alone["tasks"] == "Rec"


def test_stage_one_is_bounded_where_it_would_take_days(report):
    settings: doctor_fit.Fitted = {}
    stage = {"hours_an_epoch": 23.0, "tokens_per_second": 100.0}
    stage["tasks"] = {
        "rec": {"tokens_a_sample": 400, "samples": 80_000},
        "comm_rank": {"tokens_a_sample": 320, "samples": 6_000},
    }
    doctor_fit.fit_time(settings, stage)
    assert settings == {}
    doctor_fit.fit_time(settings, stage | {"hours_an_epoch": 25.0})
    assert settings["max_train_samples"][0] == 12_000  # 24 h x 3600 s x 100 tokens / 720
    assert settings["gradient_accumulation_steps"][0] == 16  # of 12,000 + 6,000 samples, 32 a step
    assert settings["save_steps"][0] == -(-2 * 18_000 // 32) // 5
