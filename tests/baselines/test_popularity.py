"""Popularity against counts known by heart."""

from pathlib import Path

import pytest

from lsvcr.baselines.popularity import evaluate_popularity, popularity
from lsvcr.data.store import Dataset
from lsvcr.schema import Split, Task
from lsvcr.utils.errors import UserError
from tests.rank_world import World


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Four videos with 5, 9, 5 and 0 training interactions; each is the target of one row."""
    rec = [(1, 1, 0, video) for video in (1, 2, 3, 4)]
    return World(
        n_videos=4,
        videos=[[1, 2, 3, 4]],
        comments=[[]],
        video_of=[1, 1],
        rec={Split.TEST: rec},
        candidates={(Task.REC, Split.TEST): [[1, 2, 3, 4]] * 4},
        counts=[5, 9, 5, 0],
    ).write(tmp_path_factory.mktemp("popular"))


def test_ranks_follow_the_counts_and_ties_share(dataset: Dataset) -> None:
    results = evaluate_popularity(dataset, Task.REC)
    for result in results.values():
        assert result.values["recall@1"].tolist() == [0, 1, 0, 0]
        # Videos 1 and 3 share places 2 and 3.
        assert result.values["mrr@5"] == pytest.approx([(1 / 2 + 1 / 3) / 2, 1, (1 / 2 + 1 / 3) / 2, 1 / 4])
        assert result.slices["cold"].tolist() == [False, False, False, True]


def test_videos_have_no_likes_of_their_own(dataset: Dataset) -> None:
    with pytest.raises(UserError, match="training interactions"):
        popularity(dataset, Task.REC, "likes")


def test_comment_likes_come_from_the_table(tiny_data: Path) -> None:
    from lsvcr.data.store import open_dataset

    prepared = open_dataset(tiny_data)
    by_likes = evaluate_popularity(prepared, Task.COMM_RANK, by="likes")["full"]
    by_train = evaluate_popularity(prepared, Task.COMM_RANK)["full"]
    assert by_likes.fingerprint == by_train.fingerprint
    scores = popularity(prepared, Task.COMM_RANK, "likes").item_vectors()[:, 0]
    assert scores[0] == 0
    assert scores[1:].tolist() == prepared.column("comments", "likes").to_list()
