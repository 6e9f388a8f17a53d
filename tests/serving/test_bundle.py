"""A bundle on disk: what is written, and what is told when it is broken."""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from lsvcr.schema import Task
from lsvcr.serving.bundle import amend_manifest, open_bundle, write_bundle
from lsvcr.serving.bundle_write import CommentTable, Csr, VideoTable
from lsvcr.serving.errors import BundleError
from lsvcr.serving.runtime import Recommender
from tests.serving.bundles import World, csr, make_bundle


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "b"
    return path, make_bundle(path, seed=6, n_videos=12, n_comments=30)


@pytest.fixture
def bundle(pristine, tmp_path):
    return shutil.copytree(pristine[0], tmp_path / "b")


def manifest(path):
    return json.loads((path / "manifest.json").read_text())


def put_manifest(path, **entries):
    (path / "manifest.json").write_text(json.dumps({**manifest(path), **entries}))


def test_what_is_in_a_bundle(pristine):
    path, world = pristine
    opened = open_bundle(path)
    assert opened.manifest["counts"] == {"videos": 12, "comments": 30, "users": 6}
    assert (opened.n_videos, opened.n_comments, opened.hidden) == (12, 30, 16)
    assert set(opened.manifest["files"]) == {
        p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file() and p.name != "manifest.json"
    }
    np.testing.assert_array_equal(opened.comment_video, world.own)
    np.testing.assert_array_equal(opened.likes, world.likes)
    for video in range(13):
        assert opened.lists.row(video).tolist() == world.lists.row(video).tolist()
        assert opened.top_comment[video] == next(iter(world.lists.row(video)), 0)
    for task in Task:
        part = opened.parts[task]
        np.testing.assert_array_equal(part.items.values, world.items(task))
        np.testing.assert_array_equal(part.entries, world.entries(task))
        assert not part.entries.flags.writeable
    assert opened.parts[Task.REC].watched is None


def test_equal_content_has_an_equal_id(pristine, tmp_path):
    path, _ = pristine
    make_bundle(tmp_path / "same", seed=6, n_videos=12, n_comments=30)
    make_bundle(tmp_path / "other", seed=7, n_videos=12, n_comments=30)
    assert open_bundle(tmp_path / "same").id == open_bundle(path).id != open_bundle(tmp_path / "other").id


def test_the_manifest_is_amended_without_a_change_of_the_id(bundle):
    before = open_bundle(bundle).id
    amend_manifest(bundle, verified={"rows": 3})
    after = open_bundle(bundle)
    assert after.manifest["verified"] == {"rows": 3} and after.id == before


@pytest.mark.parametrize(("rows", "off"), [("float16", 1e-3), ("int8", 2e-2)])
def test_rows_in_fewer_bytes(tmp_path, rows, off):
    world = make_bundle(tmp_path / "b", n_videos=300, rows=rows)
    whole = make_bundle(tmp_path / "whole", n_videos=300)
    opened = open_bundle(tmp_path / "b")
    assert opened.manifest["rows"] == rows and opened.parts[Task.REC].items.values.dtype == rows
    user = world.user(Task.REC, [3], [])
    scores = whole.items(Task.REC) @ user
    answer = Recommender(opened).recommend([1021], k=5)
    for item in answer.items:
        assert abs(item.score - scores[(item.id - 1000) // 7]) < off
    ranked = Recommender(opened).rank_comments([1021], [], 1007)
    assert [item.score for item in ranked.items] == sorted((i.score for i in ranked.items), reverse=True)


def test_further_files_are_kept_and_checked(pristine, tmp_path):
    _, world = pristine
    make_bundle(tmp_path / "b", files={"text_encoder/words.npy": np.ones(3), "text_encoder/a.txt": b"a"})
    opened = open_bundle(tmp_path / "b")
    assert {"text_encoder/words.npy", "text_encoder/a.txt"} < set(opened.manifest["files"])
    (tmp_path / "b/text_encoder/a.txt").write_bytes(b"b")
    with pytest.raises(BundleError, match=r"a\.txt has changed since the export"):
        open_bundle(tmp_path / "b")


FILES = [
    "videos/ids.npy",
    "videos/titles.bytes.npy",
    "comments/likes.npy",
    "users/seen_items.npy",
    "rec/encoder.onnx",
    "rec/items.npy",
    "comm_rank/watched.npy",
]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(bundle, name):
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=rf"{name} is missing from the bundle; copy the bundle again or"):
        open_bundle(bundle, verify=False)


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short(bundle, name):
    content = (bundle / name).read_bytes()
    (bundle / name).write_bytes(content[:-7])
    with pytest.raises(BundleError, match=rf"{name} has {len(content) - 7} bytes, the manifest says"):
        open_bundle(bundle, verify=False)


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file(bundle, name):
    content = bytearray((bundle / name).read_bytes())
    content[-1] ^= 1
    (bundle / name).write_bytes(content)
    open_bundle(bundle, verify=False)  # the size is right
    with pytest.raises(BundleError, match=rf"{name} has changed since the export; copy the bundle again"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        (
            {"kind": "dataset"},
            "holds an artefact of kind 'dataset', not a bundle; make one with `lsvcr export",
        ),
        ({"format": 2}, "is a bundle of format 2, this release reads 1; export it again with this release"),
        ({"files": ["a"]}, r"manifest.json is damaged \(its list of files\)"),
        ({"files": {"../x": {"bytes": 1, "sha256": ""}}}, r"is damaged \(its list of files\)"),
        ({"files": {"/x": {"bytes": 1, "sha256": ""}}}, r"is damaged \(its list of files\)"),
        ({"files": {"x": {}}}, r"is damaged \(its list of files\)"),
        ({"hidden": 17}, r"items.npy is damaged \(it holds float32 \(13, 16\), not \(13, 17\)\)"),
        ({"hidden": None}, "is damaged .*; export it again"),
        ({"counts": {"videos": 12}}, "is damaged .manifest.json lacks 'comments'.; export it again"),
        ({"counts": {"videos": 3, "comments": 30, "users": 6}}, r"top_comment.npy is damaged"),
        ({"parts": {"ranking": {}}}, "is damaged .*; export it again"),
    ],
)
def test_a_manifest_that_does_not_fit(bundle, entries, told):
    put_manifest(bundle, **entries)
    with pytest.raises(BundleError, match=told):
        open_bundle(bundle)


def test_no_bundle(tmp_path):
    with pytest.raises(BundleError, match="does not exist or is no folder; make one with `lsvcr export"):
        open_bundle(tmp_path / "none")
    with pytest.raises(BundleError, match="is no bundle .it has no manifest.json.; make one with"):
        open_bundle(tmp_path)
    for text, told in (("{", "line 1: not valid JSON"), ("[]", "of kind None, not a bundle")):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(BundleError, match=told):
            open_bundle(tmp_path)


def test_what_cannot_be_read_is_refused_with_its_name(bundle, tmp_path):
    with pytest.raises(BundleError, match="aaa cannot be read: File name too long; mend its path"):
        open_bundle(tmp_path / ("a" * 4000))
    put_manifest(bundle, files={**manifest(bundle)["files"], f"rec/{'b' * 300}": {"bytes": 1, "sha256": ""}})
    with pytest.raises(BundleError, match="rec/bbb.*bbb cannot be read: File name too long"):
        open_bundle(bundle)


@pytest.mark.skipif(sys.platform != "linux", reason="a file of /proc that fails when it is read")
def test_a_disk_that_fails_is_told(bundle):
    name = "videos/ids.npy"
    (bundle / name).unlink()
    (bundle / name).symlink_to("/proc/self/mem")
    put_manifest(bundle, files={**manifest(bundle)["files"], name: {"bytes": 0, "sha256": ""}})
    with pytest.raises(BundleError, match=f"{bundle} cannot be read: Input/output error"):
        open_bundle(bundle)


@pytest.fixture
def open_place():
    """A folder that everybody may enter; in it the test is nobody, if it is root, who may read everything."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)
        if os.getuid() == 0:
            os.seteuid(0)


@pytest.mark.parametrize(("name", "rights"), [(".", 0o600), ("rec", 0o600), ("rec/items.npy", 0)])
def test_what_may_not_be_read_is_refused_with_its_name(pristine, open_place, name, rights):
    bundle = shutil.copytree(pristine[0], open_place / "b")
    os.chmod(bundle / name, rights)
    if os.getuid() == 0:
        os.seteuid(65534)
    with pytest.raises(
        BundleError, match=rf"{bundle}/.* cannot be read: Permission denied; mend .*its rights"
    ):
        open_bundle(bundle)


def swap_graph(path, content: bytes) -> None:
    """Put another encoder into a bundle, with a manifest that knows it."""
    from lsvcr.utils.io import sha256_file

    target = path / "rec/encoder.onnx"
    target.write_bytes(content)
    files = manifest(path)["files"]
    files["rec/encoder.onnx"] = {"bytes": len(content), "sha256": sha256_file(target)}
    put_manifest(path, files=files)


def test_a_graph_that_is_none(bundle):
    swap_graph(bundle, b"no graph at all")
    with pytest.raises(BundleError, match=r"encoder.onnx cannot be read by onnxruntime .*export the bundle"):
        Recommender.load(bundle)


def test_a_graph_of_a_later_opset(bundle, pristine):
    model = onnx.load_from_string(pristine[1].encoder(Task.REC))
    model.opset_import[0].version = 999
    swap_graph(bundle, model.SerializeToString())
    with pytest.raises(BundleError, match="encoder.onnx cannot be read .* or install a newer onnxruntime"):
        Recommender.load(bundle)


def test_a_graph_of_another_kind(bundle, pristine):
    swap_graph(bundle, pristine[1].tower(Task.REC))
    with pytest.raises(BundleError, match=r"reads \['text'\] and gives \['entry', .*export the bundle again"):
        Recommender.load(bundle)


def tables(world: World, **changed):
    """Arguments of `write_bundle`."""
    n, m = len(world.lists.offsets) - 2, len(world.own) - 1
    return {
        "videos": VideoTable(range(1, n + 1), ["t"] * n, world.lists),
        "comments": CommentTable(range(1, m + 1), ["c"] * m, world.likes[1:]),
        "parts": {Task.REC: world.part(Task.REC)},
        "text_width": world.w,
        "max_videos": 50,
        "max_entries": 50,
        **changed,
    }


def test_what_cannot_be_a_bundle(pristine, tmp_path):
    _, world = pristine
    broken = world.part(Task.REC)
    broken.entries = broken.entries.copy()
    broken.entries[3, 2] = np.nan
    wrong = world.part(Task.REC)
    wrong.items = wrong.items[:-1]
    cases = [
        ({"parts": {}}, ValueError, "at least one part"),
        (
            {"parts": {Task.REC: broken}},
            BundleError,
            "rec/entries.npy would hold numbers that are not finite",
        ),
        ({"parts": {Task.REC: wrong}}, ValueError, r"rec/items.npy has shape \(12, 16\), not \(13, 16\)"),
        ({"parts": {Task.COMM_RANK: world.part(Task.REC)}}, ValueError, "comm_rank has `watched`"),
        ({"videos": VideoTable([1] * 12, ["t"] * 12, world.lists)}, ValueError, "the id 1 stands twice"),
        ({"videos": VideoTable(["a"] * 12, ["t"] * 12, world.lists)}, ValueError, "the id 'a' stands twice"),
        (
            {"videos": VideoTable([1, "a"] * 6, ["t"] * 12, world.lists)},
            ValueError,
            "all whole numbers or all",
        ),
        ({"videos": VideoTable(range(12), ["t"] * 11, world.lists)}, ValueError, "11 texts for 12 ids"),
        ({"videos": VideoTable(range(12), ["t"] * 12, csr([[31]] * 12))}, ValueError, "from 1 to 30, not 31"),
        (
            {"videos": VideoTable(range(12), ["t"] * 12, Csr(np.zeros(3), np.zeros(0)))},
            ValueError,
            "offsets do not cut",
        ),
    ]
    for changed, kind, told in cases:
        with pytest.raises(kind, match=told):
            write_bundle(tmp_path / "b", **tables(world, **changed))
        assert not (tmp_path / "b").exists()
    write_bundle(tmp_path / "b", **tables(world))
    assert open_bundle(tmp_path / "b").n_videos == 12


def test_a_model_that_ignores_comments(pristine, tmp_path):
    _, world = pristine
    part = world.part(Task.REC)
    part.shown = None
    write_bundle(tmp_path / "b", **tables(world, parts={Task.REC: part}))
    recommender = Recommender.load(tmp_path / "b")
    answer = recommender.recommend([3, 5], [{"video": 7, "comments": [2]}], k=12, exclude_seen=False)
    assert answer == recommender.recommend([3, 5], [], k=12, exclude_seen=False)
    model = world.models[Task.REC]
    entries = world.entries(Task.REC)[[3, 5]].mean(axis=0)
    user = model.start + entries @ model.encoder[0]
    scores = world.items(Task.REC)[1:] @ (user / np.linalg.norm(user))
    np.testing.assert_allclose([i.score for i in answer.items], np.sort(scores)[::-1], atol=1e-6)
