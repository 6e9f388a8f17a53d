import random
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lsvcr.data.assemble import Prepared, assemble
from lsvcr.data.prepare import prepare
from lsvcr.data.sources.logs import ROW, BadRows, RawLogs
from lsvcr.data.store import SAMPLE_DTYPE
from lsvcr.settings import PrepareSettings
from lsvcr.utils.errors import UserError
from tests.data.raw_files import small_kuaicomt, write_csv, write_kuaicomt
from tests.reference import prepare_plain

N_VIDEOS = 9
COMMENT_VIDEO = {100 + c: 1 + c * c % N_VIDEOS for c in range(20)}
"""Comment id -> video; some videos have none."""

likes_strategy = st.lists(
    st.tuples(st.integers(1, 6), st.integers(1, N_VIDEOS), st.integers(0, 25)), min_size=8, max_size=70
)
touches_strategy = st.lists(
    st.tuples(st.integers(1, 6), st.sampled_from(sorted(COMMENT_VIDEO)), st.integers(0, 25)), max_size=40
)
options_strategy = st.fixed_dictionaries(
    {
        "user_core": st.integers(0, 4),
        "video_core": st.integers(0, 2),
        "min_history": st.integers(0, 2),
        "split": st.sampled_from(["leave-last", "temporal"]),
        "candidates": st.integers(2, 6),
        "seed": st.integers(0, 3),
    }
)


class NoFile:
    """Stands for a raw file in logs that were made by hand."""

    name = "made by hand"

    def places(self, rows):
        return [f"row {row}" for row in rows]


def frame(columns: list[str], rows: list[tuple]) -> pl.DataFrame:
    schema = {
        name: pl.String if name in ("title", "category", "author", "content") else pl.Int64
        for name in columns
    }
    return pl.DataFrame(rows, schema=schema, orient="row").with_row_index(ROW)


def raw_logs(likes: list[tuple], touches: list[tuple]) -> RawLogs:
    origins = dict.fromkeys(["users", "videos", "comments", "video_events", "comment_events"], NoFile())
    touches = [(user, comment, COMMENT_VIDEO[comment], time) for user, comment, time in touches]
    return RawLogs(
        users=frame(["raw_id"], [(user,) for user in (5, 4, 6, 1, 2, 3)]),
        videos=frame(
            ["raw_id", "title", "category", "author"], [(v, f"v{v}", "", "") for v in range(N_VIDEOS, 0, -1)]
        ),
        comments=frame(
            ["raw_id", "content", "video", "likes"],
            [(c, f"c{c}", v, c % 3) for c, v in COMMENT_VIDEO.items()],
        ),
        video_events=frame(["user", "video", "time"], likes),
        comment_events=frame(["user", "comment", "video", "time"], touches),
        origins=origins,
    )


def assembled(likes: list[tuple], touches: list[tuple], options: dict) -> Prepared:
    """What is prepared of the logs; examples that leave nothing to split are passed over."""
    try:
        return assemble(raw_logs(likes, touches), PrepareSettings(**options), BadRows(False))
    except UserError:
        assume(False)
        raise


def ids(prepared: Prepared, table: str) -> np.ndarray:
    """Raw ids by index, 0 for padding."""
    return np.concatenate([[0], prepared.tables[f"{table}.parquet"]["raw_id"].to_numpy()])


def found_samples(prepared: Prepared, task: str, split: str) -> list[tuple]:
    """Samples in raw ids, in the shape of `prepare_plain.samples`."""
    arrays = prepared.arrays
    users, videos, comments = (ids(prepared, table) for table in ("users", "videos", "comments"))
    rows = arrays[f"samples/{task}.{split}"]
    assert rows.dtype == SAMPLE_DTYPE
    found = []
    for i, row in enumerate(rows):
        user = row["user"]
        seen = arrays["events/video_items"][arrays["events/video_offsets"][user] : row["video_end"]]
        touched = arrays["events/comment_items"][arrays["events/comment_offsets"][user] : row["comment_end"]]
        positives: tuple = ()
        if task == "comm_rank":
            offsets = arrays[f"samples/{task}.{split}.positive_offsets"]
            own = arrays[f"samples/{task}.{split}.positive_items"][offsets[i] : offsets[i + 1]]
            positives = tuple(comments[own].tolist())
        found.append(
            (
                int(users[user]),
                int(row["cut"]),
                tuple(videos[seen].tolist()),
                tuple(comments[touched].tolist()),
                int(videos[row["video"]]),
                positives,
            )
        )
    return found


@settings(max_examples=150, deadline=None)
@given(likes_strategy, touches_strategy, options_strategy)
def test_samples_are_those_of_the_plain_rules(likes, touches, options):
    prepared = assembled(likes, touches, options)
    out_users, out_videos = prepare_plain.core(likes, options["user_core"], options["video_core"])
    full = [(user, comment, COMMENT_VIDEO[comment], time) for user, comment, time in touches]
    if options["user_core"]:
        out_users |= set(range(1, 7)) - {user for user, *_ in likes}
    if options["video_core"]:
        out_videos |= set(range(1, N_VIDEOS + 1)) - {video for _, video, _ in likes}
    likes_of = prepare_plain.histories(likes, 1, 2)
    touches_of = prepare_plain.histories(full, 1, 3)
    likes_of = {
        u: [x for x in own if x[1] not in out_videos] for u, own in likes_of.items() if u not in out_users
    }
    touches_of = {
        u: [x for x in own if x[2] not in out_videos] for u, own in touches_of.items() if u not in out_users
    }
    cuts = (prepared.cuts.val, prepared.cuts.test) if prepared.cuts else None
    expected = prepare_plain.samples(likes_of, touches_of, options["min_history"], cuts)
    for task, splits in expected.items():
        for split, rows in splits.items():
            assert found_samples(prepared, task, split) == rows, (task, split)
    assert set(ids(prepared, "videos")[1:]) == set(range(1, N_VIDEOS + 1)) - out_videos
    assert set(ids(prepared, "comments")[1:]) == {c for c, v in COMMENT_VIDEO.items() if v not in out_videos}
    acting = {user for user, own in (*likes_of.items(), *touches_of.items()) if own}
    assert set(ids(prepared, "users")[1:]) == acting


@settings(max_examples=80, deadline=None)
@given(likes_strategy, touches_strategy, options_strategy)
def test_nothing_at_or_after_the_cut_is_in_a_history(likes, touches, options):
    arrays = assembled(likes, touches, options).arrays
    for task in ("rec", "comm_rank"):
        for split in ("train", "val", "test"):
            for row in arrays[f"samples/{task}.{split}"]:
                for kind in ("video", "comment"):
                    start, stop = arrays[f"events/{kind}_offsets"][[row["user"], row["user"] + 1]]
                    times = arrays[f"events/{kind}_times"][start:stop]
                    length = row[f"{kind}_end"] - start
                    assert (times[:length] < row["cut"]).all()
                    assert (times[length:] >= row["cut"]).all()


@settings(max_examples=80, deadline=None)
@given(likes_strategy, touches_strategy, options_strategy)
def test_what_is_tested_is_never_trained_on(likes, touches, options):
    prepared = assembled(likes, touches, options)
    targets: dict[str, set] = {}
    for split in ("train", "val", "test"):
        targets[split] = {(row[0], row[4]) for row in found_samples(prepared, "rec", split)}
        targets[split] |= {
            (row[0], "comment", comment)
            for row in found_samples(prepared, "comm_rank", split)
            for comment in row[5]
        }
    assert not targets["test"] & targets["train"]
    assert not targets["test"] & targets["val"]
    assert not targets["val"] & targets["train"]
    if prepared.cuts:
        for split, low, high in (
            ("train", -1, prepared.cuts.val),
            ("val", prepared.cuts.val, prepared.cuts.test),
            ("test", prepared.cuts.test, 1 << 60),
        ):
            for task in ("rec", "comm_rank"):
                cut = prepared.arrays[f"samples/{task}.{split}"]["cut"]
                assert ((cut >= low) & (cut < high)).all()


@settings(max_examples=80, deadline=None)
@given(likes_strategy, touches_strategy, options_strategy)
def test_the_core_is_a_core_and_the_largest(likes, touches, options):
    prepared = assembled(likes, touches, options)
    items, offsets = prepared.arrays["events/video_items"], prepared.arrays["events/video_offsets"]
    users = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    assert len(set(zip(users, items, strict=True))) == len(items)
    n_users, n_videos = len(ids(prepared, "users")) - 1, len(ids(prepared, "videos")) - 1
    assert (np.bincount(users, minlength=n_users + 1)[1:] >= options["user_core"]).all()
    assert (np.bincount(items, minlength=n_videos + 1)[1:] >= options["video_core"]).all()


@settings(max_examples=80, deadline=None)
@given(likes_strategy, touches_strategy, options_strategy)
def test_training_counts_leave_out_what_is_held_back(likes, touches, options):
    prepared = assembled(likes, touches, options)
    arrays = prepared.arrays
    if prepared.cuts:
        known = arrays["events/video_times"] < prepared.cuts.val
        expected = np.bincount(arrays["events/video_items"][known], minlength=len(ids(prepared, "videos")))
        touched = arrays["events/comment_items"][arrays["events/comment_times"] < prepared.cuts.val]
        all_touched = np.bincount(touched, minlength=len(ids(prepared, "comments")))
    else:
        expected = np.bincount(arrays["events/video_items"], minlength=len(ids(prepared, "videos")))
        all_touched = np.bincount(arrays["events/comment_items"], minlength=len(ids(prepared, "comments")))
        for split in ("val", "test"):
            np.subtract.at(expected, arrays[f"samples/rec.{split}"]["video"], 1)
            np.subtract.at(all_touched, arrays[f"samples/comm_rank.{split}.positive_items"], 1)
    assert arrays["train_counts/videos"].tolist() == expected.tolist()
    assert arrays["train_counts/comments"].tolist() == all_touched.tolist()


@settings(max_examples=60, deadline=None)
@given(likes_strategy, touches_strategy, options_strategy)
def test_comment_lists_and_entries(likes, touches, options):
    prepared = assembled(likes, touches, options)
    arrays, comments = prepared.arrays, prepared.tables["comments.parquet"]
    table = list(comments.select("video", "likes").iter_rows())
    for video in range(len(ids(prepared, "videos"))):
        start, stop = arrays["video_comments/offsets"][[video, video + 1]]
        expected = sorted(
            (-n_likes, index) for index, (v, n_likes) in enumerate(table, start=1) if v == video
        )
        assert arrays["video_comments/items"][start:stop].tolist() == [index for _, index in expected]
    offsets, groups = arrays["events/comment_offsets"], arrays["events/comment_groups"]
    for user in range(len(offsets) - 1):
        videos = arrays["events/comment_videos"][offsets[user] : offsets[user + 1]]
        changes = np.cumsum(np.concatenate([[0], videos[1:] != videos[:-1]])) if len(videos) else []
        assert groups[offsets[user] : offsets[user + 1]].tolist() == list(changes)
    own = comments["video"].to_numpy()[arrays["events/comment_items"] - 1]
    assert (own == arrays["events/comment_videos"]).all()


def shuffled(path: Path) -> None:
    header, *rows = path.read_text().splitlines()
    random.Random(1).shuffle(rows)
    path.write_text("\n".join([header, *rows]) + "\n")


def test_the_order_of_rows_matters_to_ties_alone(tmp_path: Path):
    options = {"out": str(tmp_path / "out"), "user_core": 3}
    raw = small_kuaicomt(tmp_path / "raw")
    first = open_hash(prepare(PrepareSettings(raw=str(raw), **options)))
    for path in raw.iterdir():
        shuffled(path)
    assert open_hash(prepare(PrepareSettings(raw=str(raw), **options))) == first
    like_rows = [(7, v, v * 100) for v in range(1, 6)] + [(7, 6, 500)]
    texts = dict.fromkeys(range(1, 8), "")
    tied = [like_rows, [*like_rows[:4], like_rows[5], like_rows[4]]]
    last = []
    for number, rows in enumerate(tied):
        folder = tmp_path / f"tied{number}"
        write_kuaicomt(folder, likes=rows, touches=[], videos=texts, comments={})
        out = prepare(PrepareSettings(raw=str(folder), out=str(tmp_path / "tied"), user_core=3))
        last.append(int(np.load(out / "samples" / "rec.test.npy")["video"][0]))
    assert last == [6, 5], "of two events at the same time the later row is the later event"


def open_hash(folder: Path) -> str:
    from lsvcr.data.store import open_dataset

    return open_dataset(folder, verify=True).data_hash


@pytest.mark.slow
def test_the_number_of_threads_does_not_matter(tmp_path: Path):
    import subprocess
    import sys

    generator = random.Random(0)
    users, videos, comments = 60, 80, 400
    times = generator.sample(range(10**6), 4000)
    likes = [(generator.randrange(users), generator.randrange(videos), time) for time in times[:3000]]
    owners = {c: generator.randrange(videos) for c in range(comments)}
    touches = [(generator.randrange(users), generator.randrange(comments), time) for time in times[3000:]]
    raw = write_kuaicomt(
        tmp_path / "raw",
        likes=likes,
        touches=touches,
        videos={v: f"title {v}" for v in range(videos)},
        comments={c: (v, f"text {c}", c % 7) for c, v in owners.items()},
    )
    script = (
        "import sys\nfrom lsvcr.data.prepare import prepare\nfrom lsvcr.data.store import open_dataset\n"
        "from lsvcr.settings import PrepareSettings\n"
        "print(open_dataset(prepare(PrepareSettings(raw=sys.argv[1], out=sys.argv[2]))).data_hash)"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", script, str(raw), str(tmp_path / f"out{threads}")],
            env={
                "POLARS_MAX_THREADS": str(threads),
                "PYTHONPATH": str(Path(__file__).parents[2]),
                "PATH": "/bin",
            },
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in (1, 2, 5)
    }
    assert len(hashes) == 1


def test_empty_histories_on_either_side_are_kept(tmp_path: Path):
    likes = [(1, v, 100 * v) for v in range(1, 6)]
    touches = [(2, 11, 1), (2, 21, 2), (2, 31, 3)]
    raw = write_kuaicomt(
        tmp_path / "raw",
        likes=likes,
        touches=touches,
        videos=dict.fromkeys(range(1, 9), ""),
        comments={v * 10 + 1: (v, "text", 0) for v in range(1, 4)},
    )
    out = prepare(PrepareSettings(raw=str(raw), out=str(tmp_path / "out"), user_core=0))
    rank = np.load(out / "samples" / "comm_rank.test.npy")
    assert rank["video_end"].tolist() == [5] and rank["comment_end"].tolist() == [2]
    rec = np.load(out / "samples" / "rec.test.npy")
    assert rec["comment_end"].tolist() == [0]
    counts = np.load(out / "video_comments" / "offsets.npy")
    assert np.diff(counts).tolist() == [0, 1, 1, 1, 0, 0, 0, 0, 0]


def test_a_dataset_without_comments_serves_rec(tmp_path: Path):
    likes = [(u, v, 100 * v) for u in (1, 2) for v in range(1, 6)]
    raw = write_kuaicomt(
        tmp_path / "raw", likes=likes, touches=[], videos=dict.fromkeys(range(1, 6), ""), comments={}
    )
    write_csv(raw / "user_features.csv", "user_id", [(1,), (2,)])
    out = prepare(PrepareSettings(raw=str(raw), out=str(tmp_path / "out")))
    assert len(np.load(out / "samples" / "comm_rank.test.npy")) == 0
    assert np.load(out / "candidates" / "comm_rank.test.offsets.npy").tolist() == [0]


def test_a_comment_after_the_cut_is_no_positive_of_an_entry_before_it():
    likes = [(1, 1 + v % N_VIDEOS, v) for v in range(9)] + [(2, v, 9) for v in range(1, 10)]
    # One entry: three comments in a row under video 2, before, between and at the cut times.
    assert {COMMENT_VIDEO[c] for c in (101, 108, 110)} == {2}
    touches = [(1, 101, 3), (1, 108, 5), (1, 110, 8)]
    options = {"user_core": 0, "split": "temporal", "val_share": 0.2, "test_share": 0.55}
    prepared = assembled(likes, touches, options)
    assert prepared.cuts is not None
    assert (prepared.cuts.val, prepared.cuts.test) == (4, 8)
    assert found_samples(prepared, "comm_rank", "train") == [(1, 3, (1, 2, 3), (), 2, (101,))]
    assert found_samples(prepared, "comm_rank", "val") == found_samples(prepared, "comm_rank", "test") == []
