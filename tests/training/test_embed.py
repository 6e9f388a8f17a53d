"""Embedding a dataset: the right vector in the right row, or an error that says what to do."""

import dataclasses
import errno
import json
import os

import numpy as np
import pytest
import torch

from lsvcr.data.vectors import load_embeddings
from lsvcr.llm.encoder import encode_inference, tokenize
from lsvcr.llm.families import backbone, fingerprint
from lsvcr.llm.loading import TINY, load_llm
from lsvcr.llm.lora import load_adapter
from lsvcr.models import checkpoint as checkpoints
from lsvcr.models.sr import EmbeddingHead
from lsvcr.schema import (
    ADAPTER_DIR,
    BEST_DIR,
    COMMENT_EMBEDDINGS_FILE,
    COMMENT_FULL_EMBEDDINGS_FILE,
    COMMENT_KEYS_FILE,
    EMBEDDINGS_MANIFEST_FILE,
    MANIFEST_FILE,
    VIDEO_EMBEDDINGS_FILE,
    VIDEO_FULL_EMBEDDINGS_FILE,
    VIDEO_KEYS_FILE,
)
from lsvcr.training import embed_plan, embed_shared, embed_write, embedder
from lsvcr.training.embed import embed
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import sha256_file
from tests.training.embed_runs import WIDTH, count_texts, names, settings, write_checkpoint

KEYS = [COMMENT_KEYS_FILE, VIDEO_KEYS_FILE]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A stage-one run folder whose adapter and head are random but not zero; the first LLM layer only."""
    folder = tmp_path_factory.mktemp("run")
    write_checkpoint(folder / BEST_DIR)
    return folder


def all_texts(dataset):
    return list(dataset.titles()), list(dataset.contents())


def test_untuned_rows_are_the_mean_states_of_their_texts(tiny_dataset, tiny_llm, tmp_path):
    out = embed(settings(tiny_dataset.root, tmp_path / "out"))
    assert names(out) == sorted(
        [COMMENT_FULL_EMBEDDINGS_FILE, EMBEDDINGS_MANIFEST_FILE, VIDEO_FULL_EMBEDDINGS_FILE, *KEYS]
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
    assert sorted(found["keys"]) == KEYS
    for name, entry in [*found["files"].items(), *found["keys"].items()]:
        assert entry["sha256"] == sha256_file(tmp_path / name)


def test_statistics_of_the_norms_are_told_and_written_down(tiny_dataset, tmp_path, capsys):
    embed(settings(tiny_dataset.root, tmp_path))
    said = capsys.readouterr().err
    entries = json.loads((tmp_path / EMBEDDINGS_MANIFEST_FILE).read_text())["files"]
    for name, empty in ((VIDEO_FULL_EMBEDDINGS_FILE, 1), (COMMENT_FULL_EMBEDDINGS_FILE, 0)):
        norms = np.linalg.norm(np.load(tmp_path / name)[1:], axis=1)
        norms = norms[norms > 0]
        found = entries[name]["norms"]
        expected = [norms.min(), np.median(norms), norms.max()]
        np.testing.assert_allclose([found["min"], found["median"], found["max"]], expected, rtol=1e-6)
        assert (entries[name]["zero_rows"], entries[name]["empty_texts"]) == (empty, empty)
        assert f"norms {found['min']:.4g} to {found['max']:.4g}, median {found['median']:.4g}" in said


def test_a_dataset_without_comments(tiny_dataset, tmp_path, monkeypatch):
    from lsvcr.training import embed as module

    class Nothing(list):
        def take(self, rows):
            return [self[row] for row in rows]

        raw_ids = take

    jobs = module._jobs

    def without_comments(*args):
        titles, comments = jobs(*args)
        return [titles, module.Job(**{**vars(comments), "texts": Nothing([""])})]

    monkeypatch.setattr(module, "_jobs", without_comments)
    out = embed(settings(tiny_dataset.root, tmp_path))
    found = load_embeddings(out, COMMENT_FULL_EMBEDDINGS_FILE, 1)
    assert found.shape == (1, 32) and not found.any()
    assert (
        json.loads((out / EMBEDDINGS_MANIFEST_FILE).read_text())["files"][COMMENT_FULL_EMBEDDINGS_FILE][
            "norms"
        ]
        is None
    )


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


def test_budget_and_slices_change_nothing_and_repeats_are_read_once(tiny_dataset, tmp_path, monkeypatch):
    encoded = count_texts(monkeypatch)
    monkeypatch.setattr(embed_shared, "CHUNK", 7)
    monkeypatch.setattr(embed_plan, "WINDOW", 11)
    monkeypatch.setattr(embed_plan, "PART_TEXTS", 3)
    monkeypatch.setattr("lsvcr.training.embed_merge._CHUNK_BYTES", 5 * 32 * 4)
    small = embed(settings(tiny_dataset.root, tmp_path / "small", text_token_budget=1))
    titles, comments = all_texts(tiny_dataset)
    assert len(encoded) == len(set(titles) - {""}) + len(set(comments) - {""})
    assert len(set(comments)) < len(comments) / 2
    monkeypatch.undo()
    large = embed(settings(tiny_dataset.root, tmp_path / "large", text_token_budget=0))
    for name in (VIDEO_FULL_EMBEDDINGS_FILE, COMMENT_FULL_EMBEDDINGS_FILE):
        np.testing.assert_allclose(np.load(small / name), np.load(large / name), atol=1e-5)
    for name in KEYS:
        assert (small / name).read_bytes() == (large / name).read_bytes()


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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_texts_that_break_the_llm_are_named_with_their_ids(
    tiny_dataset, tiny_llm, tmp_path, monkeypatch, value
):
    comments = all_texts(tiny_dataset)[1]
    rows = [comments.index(f"what a skill, these {topic}") for topic in ("pasta", "chess")]
    breaking = tokenize(tiny_llm[1], [comments[row] for row in rows], 64)
    vectors = embedder.Embedder.vectors

    def broken(self, ids):
        short, full = vectors(self, ids)
        return short, torch.where(torch.tensor([[row in breaking] for row in ids]), value, full)

    monkeypatch.setattr(embedder.Embedder, "vectors", broken)
    with pytest.raises(UserError) as error:
        embed(settings(tiny_dataset.root, tmp_path / "out"))
    ids = tiny_dataset.raw_ids("comments")
    told = [f"comment {ids[row - 1]} ({comments[row]!r})" for row in rows]
    assert f"NaN or infinity for {', '.join(told)}: try --bf16 False" in str(error.value)
    assert not (tmp_path / "out" / VIDEO_FULL_EMBEDDINGS_FILE).exists()


def test_a_full_disk_stops_before_anything_is_written(tiny_dataset, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="no space for the vectors .No space left.*Nothing there has changed"):
        embed(settings(tiny_dataset.root, tmp_path / "out"))
    assert names(tmp_path / "out") == []


def test_too_little_space_is_told_before_the_llm_reads_anything(tiny_dataset, tmp_path, monkeypatch):
    encoded = count_texts(monkeypatch)
    # 33 and 121 rows, 31 and 16 different texts, each 32 numbers of 4 bytes; told as if they were millions.
    needed = (33 + 121 + 31 + 16) * 32 * 4
    monkeypatch.setattr(embed_write, "GIGABYTE", 1e3)
    usage = type("Usage", (), {"free": needed - 1})
    monkeypatch.setattr(embed_write.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"no space for 25\.728 GB of vectors .25\.727 GB are free"):
        embed(settings(tiny_dataset.root, tmp_path / "out"))
    assert not encoded and names(tmp_path / "out") == []
    usage.free = needed
    embed(settings(tiny_dataset.root, tmp_path / "out"))


def test_two_runs_into_one_folder(tiny_dataset, tmp_path):
    with embed_write.work_folder(tmp_path), pytest.raises(UserError, match="another `lsvcr embed`"):
        embed(settings(tiny_dataset.root, tmp_path))
    assert names(tmp_path) == []


def test_an_output_folder_that_cannot_be_made(tiny_dataset, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--output_dir"):
        embed(settings(tiny_dataset.root, tmp_path / "file" / "out"))


@pytest.mark.parametrize("action", ["mkdir", "touch"])
def test_an_output_folder_without_the_right_to_write(tiny_dataset, tmp_path, monkeypatch, action):
    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    encoded = count_texts(monkeypatch)
    monkeypatch.setattr(embed_write.Path, action, refused)
    with pytest.raises(
        UserError, match=r"cannot write to .*out .Permission denied.: give another --output_dir"
    ):
        embed(settings(tiny_dataset.root, tmp_path / "out"))
    assert not encoded


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


def test_another_llm_of_the_same_shape_is_refused(tiny_dataset, tmp_path):
    model, tokenizer = load_llm(TINY, dtype=torch.float32)
    model.save_pretrained(tmp_path / "same")
    tokenizer.save_pretrained(tmp_path / "same")
    model.get_input_embeddings().weight.data.mul_(1.1)
    model.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    write_checkpoint(tmp_path / "run", llm_fingerprint=fingerprint(load_llm(TINY, llm_layers=1)[0]))
    embedding = settings(tiny_dataset.root, tmp_path / "out", tmp_path / "run")
    with pytest.raises(UserError, match="other is not the LLM that .* was trained on"):
        embed(dataclasses.replace(embedding, model_name_or_path=str(tmp_path / "other")))
    assert embed(dataclasses.replace(embedding, model_name_or_path=str(tmp_path / "same"))).is_dir()


def test_a_checkpoint_without_lora_and_missing_names(tiny_dataset, tmp_path):
    trained = {"llm_layers": 1, "model_name_or_path": TINY, "lora": False}
    write_checkpoint(tmp_path / "run", settings=trained)
    no_adapter(tmp_path / "run")
    assert VIDEO_EMBEDDINGS_FILE in names(embed(settings(tiny_dataset.root, checkpoint=tmp_path / "run")))
    with pytest.raises(UserError, match="no such folder"):
        embed(settings(tiny_dataset.root, checkpoint=tmp_path / "nowhere"))
    with pytest.raises(UserError, match="--model_name_or_path"):
        embed(settings(tiny_dataset.root, model_name_or_path=""))
