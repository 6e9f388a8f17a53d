"""Embedding a dataset: the right vector in the right row, on any number of processes, whole or not at all."""

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from lsvcr.data.vectors import load_embeddings
from lsvcr.llm.encoder import encode_inference, tokenize
from lsvcr.llm.families import backbone
from lsvcr.llm.loading import TINY, load_llm
from lsvcr.llm.lora import add_lora, load_adapter, save_adapter
from lsvcr.models import checkpoint as checkpoints
from lsvcr.models.sr import EmbeddingHead
from lsvcr.schema import (
    ADAPTER_DIR,
    BEST_DIR,
    COMMENT_EMBEDDINGS_FILE,
    COMMENT_FULL_EMBEDDINGS_FILE,
    EMBEDDINGS_MANIFEST_FILE,
    MANIFEST_FILE,
    VIDEO_EMBEDDINGS_FILE,
    VIDEO_FULL_EMBEDDINGS_FILE,
)
from lsvcr.settings import AlignSettings, EmbedSettings
from lsvcr.training import embed_plan, embed_write, embedder
from lsvcr.training.embed import embed
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import sha256_file

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 16


def settings(data, out="", checkpoint="none", **others):
    name = TINY if checkpoint == "none" else ""
    defaults = {"model_name_or_path": name, "bf16": False, "text_token_budget": 256}
    return EmbedSettings(
        data_path=str(data), output_dir=str(out), checkpoint=str(checkpoint), **{**defaults, **others}
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A stage-one run folder whose adapter and head are random but not zero; the first LLM layer only."""
    folder = tmp_path_factory.mktemp("run")
    write_checkpoint(folder / BEST_DIR)
    return folder


def write_checkpoint(folder, **changed):
    torch.manual_seed(3)
    folder.mkdir(parents=True)
    model = add_lora(load_llm(TINY, dtype=torch.float32, llm_layers=1)[0], r=2, alpha=16, dropout=0.1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    save_adapter(model, folder / ADAPTER_DIR)
    head = checkpoints.with_prefix("head.", EmbeddingHead(32, WIDTH).state_dict())
    trained = asdict(AlignSettings(model_name_or_path=TINY, llm_layers=1))
    manifest = {"kind": "stage-one", "settings": trained, **changed}
    checkpoints.save_into(folder, {**head, "contrast.weight": torch.zeros(2, 2)}, manifest)


def all_texts(dataset):
    return list(dataset.titles()), list(dataset.contents())


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_untuned_rows_are_the_mean_states_of_their_texts(tiny_dataset, tiny_llm, tmp_path):
    out = embed(settings(tiny_dataset.root, tmp_path / "out"))
    assert names(out) == sorted(
        [COMMENT_FULL_EMBEDDINGS_FILE, EMBEDDINGS_MANIFEST_FILE, VIDEO_FULL_EMBEDDINGS_FILE]
    )
    model, tokenizer = tiny_llm
    for name, texts in zip(
        [VIDEO_FULL_EMBEDDINGS_FILE, COMMENT_FULL_EMBEDDINGS_FILE], all_texts(tiny_dataset), strict=True
    ):
        found = load_embeddings(out, name, len(texts), tiny_dataset.data_hash)
        assert isinstance(found, np.memmap) and found.dtype == np.float32
        expected = encode_inference(backbone(model), tokenize(tokenizer, texts, 64), pad_id=0, budget=999)
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
        assert not found[0].any()
    titles = all_texts(tiny_dataset)[0]
    empty = next(index for index in range(1, len(titles)) if not titles[index])
    assert not np.load(out / VIDEO_FULL_EMBEDDINGS_FILE)[empty].any()


def test_description(tiny_dataset, run, tmp_path):
    embed(settings(tiny_dataset.root, tmp_path, run, full=True))
    found = json.loads((tmp_path / EMBEDDINGS_MANIFEST_FILE).read_text())
    assert found["data_hash"] == tiny_dataset.data_hash
    assert (found["kind"], found["width"], found["llm"], found["llm_layers"]) == ("tuned", WIDTH, TINY, 1)
    assert found["parent"] == sha256_file(run / BEST_DIR / MANIFEST_FILE)
    shapes = {name: (entry["rows"], entry["width"]) for name, entry in found["files"].items()}
    videos, comments = tiny_dataset.n_videos + 1, tiny_dataset.n_comments + 1
    assert shapes == {
        VIDEO_EMBEDDINGS_FILE: (videos, WIDTH),
        VIDEO_FULL_EMBEDDINGS_FILE: (videos, 32),
        COMMENT_EMBEDDINGS_FILE: (comments, WIDTH),
        COMMENT_FULL_EMBEDDINGS_FILE: (comments, 32),
    }
    for name, entry in found["files"].items():
        assert entry["sha256"] == sha256_file(tmp_path / name)


@pytest.mark.parametrize("place", ["", BEST_DIR])
def test_tuned_rows_go_through_adapter_and_head(tiny_dataset, run, place):
    out = embed(settings(tiny_dataset.root, checkpoint=run / place))
    assert out == run / BEST_DIR
    base, tokenizer = load_llm(TINY, dtype=torch.float32, llm_layers=1)
    model = load_adapter(base, run / BEST_DIR / ADAPTER_DIR).eval()
    head = EmbeddingHead(32, WIDTH)
    head.load_state_dict(checkpoints.under_prefix("head.", checkpoints.load(run / BEST_DIR).tensors))
    for name, texts in zip(
        [VIDEO_EMBEDDINGS_FILE, COMMENT_EMBEDDINGS_FILE], all_texts(tiny_dataset), strict=True
    ):
        with torch.no_grad():
            expected = head(
                encode_inference(backbone(model), tokenize(tokenizer, texts, 64), pad_id=0, budget=99)
            )
        found = load_embeddings(out, name, len(texts), tiny_dataset.data_hash)
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
        assert not found[0].any()


@pytest.mark.parametrize(("asked", "used"), [(0, 9), (5, 5)])
def test_texts_are_cut_where_stage_one_cut_them_unless_asked(tiny_dataset, tmp_path, asked, used):
    trained = {"llm_layers": 1, "model_name_or_path": TINY, "max_text_length": 9}
    write_checkpoint(tmp_path / "run", settings=trained)
    out = embed(settings(tiny_dataset.root, checkpoint=tmp_path / "run", max_text_length=asked))
    assert json.loads((out / EMBEDDINGS_MANIFEST_FILE).read_text())["max_text_length"] == used


def test_budget_changes_nothing_and_repeats_are_encoded_once(tiny_dataset, tmp_path, monkeypatch):
    encoded = []
    vectors = embedder.Embedder.vectors

    def counted(self, ids):
        encoded.extend(map(tuple, ids))
        return vectors(self, ids)

    monkeypatch.setattr(embedder.Embedder, "vectors", counted)
    monkeypatch.setattr(embed_plan, "CHUNK_TEXTS", 7)
    monkeypatch.setattr("lsvcr.training.embed._GROUP_TEXTS", 5)
    small = embed(settings(tiny_dataset.root, tmp_path / "small", text_token_budget=1))
    titles, comments = all_texts(tiny_dataset)
    assert len(encoded) == len(set(titles) - {""}) + len(set(comments) - {""})
    assert len(set(comments)) < len(comments) / 2
    monkeypatch.undo()
    large = embed(settings(tiny_dataset.root, tmp_path / "large", text_token_budget=0))
    for name in (VIDEO_FULL_EMBEDDINGS_FILE, COMMENT_FULL_EMBEDDINGS_FILE):
        np.testing.assert_allclose(np.load(small / name), np.load(large / name), atol=1e-5)


def start(script, tmp_path, *launcher):
    """Run Python lines in new processes."""
    path = tmp_path / "script.py"
    path.write_text(
        "from lsvcr.settings import EmbedSettings\nfrom lsvcr.training.embed import embed\n" + script
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *launcher, str(path)],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_two_processes_write_the_same_files_as_one(tiny_dataset, run, tmp_path):
    wanted = settings(tiny_dataset.root, tmp_path / "two", run, full=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    ended = start(f"embed({wanted!r})\n", tmp_path, *launcher)
    assert ended.returncode == 0, ended.stderr
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as torchrun does; sums over more threads round differently
    try:
        embed(settings(tiny_dataset.root, tmp_path / "one", run, full=True))
    finally:
        torch.set_num_threads(threads)
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / of).iterdir()} for of in ("one", "two"))
    assert len(one) == 5
    assert one == two


def test_a_killed_run_changes_nothing_and_the_next_one_cleans_up(tiny_dataset, tmp_path):
    out = embed(settings(tiny_dataset.root, tmp_path / "out", max_text_length=5))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    script = f"""
import os, signal
from lsvcr.training.embedder import Embedder
vectors, calls = Embedder.vectors, []
def dying(self, ids):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return vectors(self, ids)
Embedder.vectors = dying
embed({settings(tiny_dataset.root, out)!r})
"""
    assert start(script, tmp_path).returncode == -signal.SIGKILL
    left = {path.name: path for path in out.iterdir()}
    assert left.pop(embed_write._WORK).is_dir()
    assert {name: path.read_bytes() for name, path in left.items()} == before
    load_embeddings(out, VIDEO_FULL_EMBEDDINGS_FILE, tiny_dataset.n_videos + 1, tiny_dataset.data_hash)
    embed(settings(tiny_dataset.root, out))
    assert names(out) == sorted(before)
    assert (out / VIDEO_FULL_EMBEDDINGS_FILE).read_bytes() != before[VIDEO_FULL_EMBEDDINGS_FILE]


@pytest.mark.parametrize("earlier", [True, False])
def test_killed_between_the_last_moves_is_noticed_by_the_reader(tiny_dataset, tmp_path, monkeypatch, earlier):
    out = tmp_path / "out"
    if earlier:
        embed(settings(tiny_dataset.root, out, max_text_length=5))
    move = os.replace

    def stop_after_the_titles(source, target):
        if Path(target).name == COMMENT_FULL_EMBEDDINGS_FILE:
            raise KeyboardInterrupt
        move(source, target)

    monkeypatch.setattr(embed_write.os, "replace", stop_after_the_titles)
    with pytest.raises(KeyboardInterrupt):
        embed(settings(tiny_dataset.root, out))
    rows = tiny_dataset.n_comments + 1
    with pytest.raises(
        UserError, match="is not the file that embeddings.json" if earlier else "no text vectors"
    ):
        load_embeddings(out, COMMENT_FULL_EMBEDDINGS_FILE, rows, tiny_dataset.data_hash)


def test_earlier_files_of_other_names_stay_described(tiny_dataset, run, tmp_path):
    embed(settings(tiny_dataset.root, tmp_path))
    embed(settings(tiny_dataset.root, tmp_path, run))
    entries = json.loads((tmp_path / EMBEDDINGS_MANIFEST_FILE).read_text())["files"]
    assert {name: entry["kind"] for name, entry in entries.items()} == {
        VIDEO_EMBEDDINGS_FILE: "tuned",
        COMMENT_EMBEDDINGS_FILE: "tuned",
        VIDEO_FULL_EMBEDDINGS_FILE: "untuned",
        COMMENT_FULL_EMBEDDINGS_FILE: "untuned",
    }
    load_embeddings(tmp_path, VIDEO_FULL_EMBEDDINGS_FILE, tiny_dataset.n_videos + 1, tiny_dataset.data_hash)


def test_a_text_that_breaks_the_llm_is_named(tiny_dataset, tmp_path, monkeypatch):
    vectors = embedder.Embedder.vectors

    def broken(self, ids):
        short, full = vectors(self, ids)
        return short * float("nan"), full * float("nan")

    monkeypatch.setattr(embedder.Embedder, "vectors", broken)
    with pytest.raises(UserError, match=r"NaN or infinity for number \d+ of the titles \('.*part \d+'\)"):
        embed(settings(tiny_dataset.root, tmp_path / "out"))
    assert names(tmp_path / "out") == []


def test_a_full_disk_stops_before_anything_is_written(tiny_dataset, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(embed_write.os, "posix_fallocate", full)
    with pytest.raises(UserError, match="no space for .* GB of vectors"):
        embed(settings(tiny_dataset.root, tmp_path / "out"))
    assert names(tmp_path / "out") == []


def test_two_runs_into_one_folder(tiny_dataset, tmp_path):
    with embed_write.work_folder(tmp_path), pytest.raises(UserError, match="another `lsvcr embed`"):
        embed(settings(tiny_dataset.root, tmp_path))
    assert names(tmp_path) == []


def test_an_output_folder_that_cannot_be_made(tiny_dataset, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--output_dir"):
        embed(settings(tiny_dataset.root, tmp_path / "file" / "out"))


def test_an_output_folder_that_other_machines_do_not_see(tmp_path, monkeypatch):
    monkeypatch.setattr(embed_write, "is_main", lambda: False)
    with pytest.raises(UserError, match="all machines share"), embed_write.work_folder(tmp_path):
        raise AssertionError


def no_adapter(folder):
    for path in (folder / ADAPTER_DIR).iterdir():
        path.unlink()
    (folder / ADAPTER_DIR).rmdir()


def change_manifest(**changed):
    def change(folder):
        path = folder / MANIFEST_FILE
        path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))

    return change


def other_head(folder):
    tensors, manifest = checkpoints.load(folder)
    checkpoints.save_into(folder, {**tensors, "head.inner.weight": torch.zeros(8, 64)}, manifest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_adapter, "trained with LoRA but has no adapter"),
        (other_head, r"inner.weight is \(8, 64\) there, \(8, 32\) here"),
        (change_manifest(files={"sr.safetensors": "0"}), "has changed since stage one wrote it"),
        (change_manifest(kind="stage-two"), "not a stage-one checkpoint"),
        (change_manifest(settings={"llm_layers": 1}), "lacks the settings model_name_or_path"),
        (change_manifest(settings={"llm_layers": 2, "model_name_or_path": TINY}), "another LLM"),
        (lambda folder: (folder / MANIFEST_FILE).unlink(), "no finished stage one"),
        (lambda folder: (folder / "sr.safetensors").unlink(), "sr.safetensors missing"),
    ],
)
def test_checkpoints_that_cannot_be_used(tiny_dataset, tmp_path, change, message):
    write_checkpoint(tmp_path / "run")
    change(tmp_path / "run")
    with pytest.raises(UserError, match=message):
        embed(settings(tiny_dataset.root, checkpoint=tmp_path / "run"))
    assert VIDEO_EMBEDDINGS_FILE not in names(tmp_path / "run")


def test_a_checkpoint_without_lora_and_missing_names(tiny_dataset, tmp_path):
    trained = {"llm_layers": 1, "model_name_or_path": TINY, "lora": False}
    write_checkpoint(tmp_path / "run", settings=trained)
    no_adapter(tmp_path / "run")
    assert VIDEO_EMBEDDINGS_FILE in names(embed(settings(tiny_dataset.root, checkpoint=tmp_path / "run")))
    with pytest.raises(UserError, match="no such folder"):
        embed(settings(tiny_dataset.root, checkpoint=tmp_path / "nowhere"))
    with pytest.raises(UserError, match="--model_name_or_path"):
        embed(settings(tiny_dataset.root, model_name_or_path=""))
