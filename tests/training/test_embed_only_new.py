"""`--only_new`: vectors of unchanged videos and comments come from an earlier export, whatever their rows are now."""

import csv
import io
import json
import os

import numpy as np
import pytest

from lsvcr.data.prepare import prepare
from lsvcr.data.store import open_dataset
from lsvcr.llm.encoder import tokenize
from lsvcr.schema import (
    BEST_DIR,
    COMMENT_EMBEDDINGS_FILE,
    COMMENT_FULL_EMBEDDINGS_FILE,
    COMMENT_KEYS_FILE,
    EMBEDDINGS_MANIFEST_FILE,
    VIDEO_EMBEDDINGS_FILE,
    VIDEO_FULL_EMBEDDINGS_FILE,
)
from lsvcr.settings import PrepareSettings
from lsvcr.training import embed_write
from lsvcr.training.embed import embed
from lsvcr.utils.errors import UserError
from tests.tiny_world import write_raw
from tests.training.embed_runs import contents, count_texts, names, settings, write_checkpoint

FILES = [
    VIDEO_EMBEDDINGS_FILE,
    COMMENT_EMBEDDINGS_FILE,
    VIDEO_FULL_EMBEDDINGS_FILE,
    COMMENT_FULL_EMBEDDINGS_FILE,
]
LATER_VIDEO, LATER_COMMENTS = 2, range(8, 12)
"""A video and its comments that the first dataset lacks; all rows behind them move up later."""


def rewrite(path, keep=lambda row: True, change=lambda row: row):
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(change(row) for row in rows if keep(row))


def prepared(folder, is_later):
    raw = write_raw(folder / "raw")
    video, comments = str(LATER_VIDEO), set(map(str, LATER_COMMENTS))
    if is_later:
        new = {"9": "a text of its own", "40": "it was edited"}
        rewrite(
            raw / "comment_features.csv",
            change=lambda row: {
                **row,
                "comment_content": new.get(row["comment_id"], row["comment_content"]),
            },
        )
        rewrite(
            raw / "video_features.csv",
            change=lambda row: {
                **row,
                "caption": "a better title" if row["video_id"] == "7" else row["caption"],
            },
        )
    else:
        rewrite(raw / "video_features.csv", lambda row: row["video_id"] != video)
        rewrite(raw / "comment_features.csv", lambda row: row["comment_id"] not in comments)
        rewrite(raw / "user_video_inter.csv", lambda row: row["video_id"] != video)
        rewrite(raw / "user_comment_inter.csv", lambda row: row["photo_id"] != video)
    return open_dataset(prepare(PrepareSettings(raw=str(raw), out=str(folder / "data"), user_core=3)))


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """The same platform on two days, and a stage-one checkpoint."""
    folder = tmp_path_factory.mktemp("worlds")
    write_checkpoint(folder / "run" / BEST_DIR)
    return prepared(folder / "monday", False), prepared(folder / "tuesday", True), folder / "run"


@pytest.fixture
def exported(worlds, tmp_path):
    """Monday's export."""
    return embed(settings(worlds[0].root, tmp_path / "out", worlds[2], full=True))


def new_texts(worlds):
    """Tuesday's texts that no row of Monday with the same id has."""
    found = []
    for kind, texts in (("videos", "titles"), ("comments", "contents")):
        monday, tuesday = (
            dict(zip(world.raw_ids(kind), list(getattr(world, texts)())[1:], strict=True))
            for world in worlds[:2]
        )
        known = {text for raw, text in tuesday.items() if monday.get(raw) == text}
        found += sorted(set(tuesday.values()) - known - {""})
    return found


@pytest.mark.parametrize("elsewhere", [False, True])
def test_only_what_is_new_is_read_and_the_result_is_that_of_a_full_export(
    worlds, exported, tiny_llm, tmp_path, monkeypatch, capsys, elsewhere
):
    monday, tuesday, run = worlds
    full = embed(settings(tuesday.root, tmp_path / "full", run, full=True))
    encoded = count_texts(monkeypatch)
    place = {"earlier_dir": str(exported)} if elsewhere else {}
    out = tmp_path / "other" if elsewhere else exported
    before = contents(exported)
    capsys.readouterr()
    embed(settings(tuesday.root, out, run, full=True, only_new=True, **place))
    expected = new_texts(worlds)
    assert {"a better title", "a text of its own", "it was edited", "chess part 0"} == set(expected)
    assert sorted(encoded) == sorted(map(tuple, tokenize(tiny_llm[1], expected, 64)))
    for name, entry in json.loads((out / EMBEDDINGS_MANIFEST_FILE).read_text())["files"].items():
        assert name in FILES and entry["data_hash"] == tuesday.data_hash
        wanted = np.load(full / name)
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(np.load(out / name) / scale, wanted / scale, atol=1e-5)
        # Row numbers do not help: other texts have moved into them.
        old = np.load(io.BytesIO(before[name]))
        assert len(old) < len(wanted) and np.abs(old[20] - wanted[20]).max() > 1e-2 * scale
    assert (out / COMMENT_KEYS_FILE).read_bytes() == (full / COMMENT_KEYS_FILE).read_bytes()
    assert "rows are taken from the earlier export" in capsys.readouterr().err
    assert (contents(exported) == before) == elsewhere
    # And on from there: nothing is new any more.
    encoded.clear()
    embed(settings(tuesday.root, out, run, full=True, only_new=True))
    assert not encoded


def test_killed_in_its_last_moves_it_needs_nothing_from_the_files_it_replaced(
    worlds, exported, tmp_path, monkeypatch
):
    wanted = settings(worlds[1].root, exported, worlds[2], full=True, only_new=True)
    straight = embed(
        settings(
            worlds[1].root,
            tmp_path / "straight",
            worlds[2],
            full=True,
            only_new=True,
            earlier_dir=str(exported),
        )
    )
    move = os.replace

    def stop(source, target):
        if os.path.basename(target) == FILES[2] and os.path.dirname(target) == str(exported):
            raise KeyboardInterrupt
        move(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(embed_write.os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            embed(wanted)
    encoded = count_texts(monkeypatch)
    embed(wanted)
    assert not encoded and contents(exported) == contents(straight)
    assert names(exported) == names(straight)


def remove(name):
    return lambda out: (out / name).unlink()


def damage(name):
    def change(out):
        content = bytearray((out / name).read_bytes())
        content[-1] ^= 1
        (out / name).write_bytes(content)

    return change


def of_other_data(out):
    path = out / EMBEDDINGS_MANIFEST_FILE
    content = json.loads(path.read_text())
    content["keys"][COMMENT_KEYS_FILE]["data_hash"] = "0" * 64
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "others", "message"),
    [
        (
            None,
            {"max_text_length": 5},
            r"another checkpoint or with other settings .max_text_length 64 there, 5 here",
        ),
        (
            None,
            {"checkpoint": "second"},
            r"another checkpoint or with other settings .*weights \w+ there, \w+ here",
        ),
        (
            None,
            {"output_dir": "nowhere"},
            r"nowhere has no photo_embs.npy that `lsvcr embed` wrote.*--earlier_dir",
        ),
        (None, {"only_new": False, "earlier_dir": "x"}, "add --only_new"),
        (remove(FILES[3]), {}, "has no comment_full_embs.npy"),
        (remove(COMMENT_KEYS_FILE), {}, "comment_keys.npy, which tells the texts .* is missing"),
        (of_other_data, {}, "comment_keys.npy, .* belongs to other data"),
        (damage(COMMENT_KEYS_FILE), {}, "comment_keys.npy has changed since it was written"),
        (damage(FILES[1]), {}, "comment_embs.npy is not the file that embeddings.json"),
    ],
)
def test_earlier_exports_that_do_not_fit(worlds, exported, tmp_path, monkeypatch, change, others, message):
    others = dict(others)
    if "checkpoint" in others:
        write_checkpoint(tmp_path / "second" / BEST_DIR, seed=4)
        others["checkpoint"] = str(tmp_path / "second")
    if "output_dir" in others:
        others["output_dir"] = str(tmp_path / "nowhere")
    if change:
        change(exported)
    before = contents(exported)
    encoded = count_texts(monkeypatch)
    wanted = settings(worlds[1].root, exported, worlds[2], full=True, only_new=True)
    for name, value in others.items():
        setattr(wanted, name, value)
    with pytest.raises(UserError, match=message):
        embed(wanted)
    assert not encoded and contents(exported) == before


@pytest.mark.parametrize("flag", ["--only_new", "--only-new"])
def test_both_spellings(flag, monkeypatch):
    from lsvcr import cli

    seen = []
    monkeypatch.setattr("lsvcr.training.embed.embed", seen.append)
    assert cli.main(["embed", flag, "--earlier-dir", "x"]) == 0
    assert seen[0].only_new and seen[0].earlier_dir == "x"
