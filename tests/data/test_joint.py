from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lsvcr.data.joint import held_out_from, joint_samples
from lsvcr.data.prepare import prepare
from lsvcr.data.rank import RankData
from lsvcr.data.store import Dataset, open_dataset
from lsvcr.schema import Split, Task
from lsvcr.settings import PrepareSettings
from lsvcr.utils.errors import UserError
from tests.data.raw_files import write_kuaicomt
from tests.data.raw_official import line, small_lines, write_official

COMMENTS = {10 * video + k: (video, f"comment {k}", 0) for video in range(1, 8) for k in (1, 2)}


def dataset_of(folder: Path, likes: list[tuple], touches: list[tuple], **options) -> Dataset:
    """Likes as (user, video, second), touches as (user, comment, second)."""
    write_kuaicomt(
        folder / "raw",
        likes=[(user, video, 1000 * time) for user, video, time in likes],
        touches=touches,
        videos={video: f"title {video}" for video in range(1, 8)},
        comments=COMMENTS,
    )
    options = {"user_core": 0, **options}
    return open_dataset(prepare(PrepareSettings(raw=str(folder / "raw"), out=str(folder / "out"), **options)))


def test_a_training_sample_after_a_held_out_like_does_not_see_it(tmp_path: Path):
    likes = [(1, video, 10 * video) for video in range(1, 6)]
    touches = [(1, 10 * video + 1, 100 + video) for video in (1, 2, 3, 4)]
    data = dataset_of(tmp_path, likes, touches)
    assert data.samples("comm_rank", "train").video_end.tolist() == [5, 5]
    assert joint_samples(data, Task.COMM_RANK, Split.TRAIN).video_end.tolist() == [3, 3]
    assert joint_samples(data, Task.COMM_RANK, Split.VAL).video_end.tolist() == [4]
    assert joint_samples(data, Task.COMM_RANK, Split.TEST).video_end.tolist() == [5]
    assert (
        joint_samples(data, Task.REC, Split.TRAIN).rows.tolist() == data.samples("rec", "train").rows.tolist()
    )
    assert (
        RankData(data, Task.COMM_RANK, Split.TRAIN, joint=True)
        .training(np.arange(2), (0, 0))
        .video_ids.tolist()
        == [[1, 2, 3]] * 2
    )


@settings(max_examples=40, deadline=None)
@given(
    likes=st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(0, 30)), min_size=12, max_size=40
    ),
    touches=st.lists(
        st.tuples(st.integers(1, 3), st.sampled_from(sorted(COMMENTS)), st.integers(0, 30)), max_size=25
    ),
    split=st.sampled_from(["leave-last", "temporal"]),
)
def test_what_either_task_holds_out_is_in_no_history_of_training(tmp_path_factory, likes, touches, split):
    try:
        data = dataset_of(tmp_path_factory.mktemp("joint"), likes, touches, split=split)
    except UserError:
        return  # too little was drawn to split
    for own, later in ((Split.TRAIN, (Split.VAL, Split.TEST)), (Split.VAL, (Split.TEST,))):
        videos, comments = set(), set()
        for name in later:
            rec, rank = data.samples(Task.REC, name), data.samples(Task.COMM_RANK, name)
            videos |= set(zip(rec.user.tolist(), rec.video.tolist(), strict=True))
            assert rank.positives is not None
            for row, user in enumerate(rank.user.tolist()):
                comments |= {(user, comment) for comment in rank.positives.row(row).tolist()}
        for task in Task:
            plain, joint = data.samples(task, own), joint_samples(data, task, own)
            for row, user in enumerate(joint.user.tolist()):
                for events, held, name in (
                    (data.video_events, videos, "video_end"),
                    (data.comment_events, comments, "comment_end"),
                ):
                    start, end = int(events.offsets[user]), int(joint[name][row])
                    assert start <= end <= plain[name][row]
                    assert not held & {(user, item) for item in events.items[start:end].tolist()}


def test_of_a_sample_with_histories_of_its_own_training_knows_nothing(tmp_path: Path):
    lines = small_lines()
    lines[Task.REC, Split.TEST][0] = line("a", ["v5", "v2"], [], "v4")
    raw = write_official(tmp_path / "raw", lines)
    data = open_dataset(prepare(PrepareSettings(source="official", raw=str(raw), out=str(tmp_path / "out"))))
    users = data.raw_ids("users").to_list()
    assert users.count("a#2") == 1
    videos, comments = held_out_from(data, (Split.VAL, Split.TEST))
    assert (videos[1 + users.index("a#2")], comments[1 + users.index("a#2")]) == (0, 0)
    assert videos[1 + users.index("a")] > 0
