"""Item-kNN against a dense second implementation, and recent popularity by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lsvcr.baselines import item_knn, popularity
from lsvcr.baselines.item_knn import ItemKnnSettings, build, likes, neighbours
from lsvcr.baselines.popularity import RecentPopularitySettings, build_recent
from lsvcr.baselines.registry import check_needs, find
from lsvcr.data.rank import RankData
from lsvcr.data.store import Dataset
from lsvcr.schema import Split, Task
from lsvcr.utils.errors import UserError

DAY = 86_400_000


def dense(users: np.ndarray, videos: np.ndarray, n: int, shrinkage: float) -> np.ndarray:
    """(N + 1, N + 1) similarities, 0 on the diagonal."""
    table = np.zeros((users.max() + 1, n + 1))
    table[users, videos] = 1
    common, sizes = table.T @ table, table.sum(0)
    bottom = np.sqrt(np.outer(sizes, sizes)) + shrinkage
    similar = np.divide(common, bottom, out=np.zeros_like(common), where=bottom > 0)
    np.fill_diagonal(similar, 0)
    return similar


@pytest.mark.parametrize("at_once", [1, 200, 1 << 22])
def test_neighbours_are_the_most_similar_ones(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(item_knn, "PAIRS_AT_ONCE", at_once)
    rng = np.random.default_rng(1)
    pairs = np.unique(rng.integers(0, 30, 200) * 26 + rng.integers(1, 21, 200))  # videos 21 to 25 have no one
    users, videos = pairs // 26, pairs % 26
    nearest, similar = neighbours(users, videos, 25, 4, 2.0)
    wanted = dense(users, videos, 25, 2.0)
    for video in range(26):
        order = np.lexsort((np.arange(26), -wanted[video]))[:4]
        order = order[wanted[video, order] > 0]
        assert nearest[video].tolist() == [*order.tolist(), *[0] * (4 - len(order))]
        assert similar[video, : len(order)] == pytest.approx(wanted[video, order], rel=1e-6)
        assert not similar[video, len(order) :].any()
    assert not nearest[0].any() and not nearest[21:].any() and nearest[1:21].any(axis=1).all()


@pytest.mark.parametrize("fading", [1.0, 0.5])
def test_scores_are_sums_of_similarities_to_the_history(tiny_dataset: Dataset, fading: float) -> None:
    model = build(ItemKnnSettings(neighbours=31, shrinkage=1.0, fading=fading), tiny_dataset)
    batch = RankData(tiny_dataset, Task.REC, Split.TEST, max_videos=4).evaluation(np.arange(24))
    users, videos = likes(tiny_dataset)
    similar = dense(users, videos, tiny_dataset.n_videos, 1.0)
    wanted = np.stack(
        [
            sum(similar[video] * fading**age for age, video in enumerate(reversed(history)))
            for history in batch.video_ids.tolist()
        ]
    )
    found = model.catalogue_scores(batch).numpy()
    assert found[:, 1:] == pytest.approx(wanted[:, 1:], rel=1e-6)


def test_likes_are_those_that_training_knows_once_each(tiny_dataset: Dataset) -> None:
    users, videos = likes(tiny_dataset)
    assert np.array_equal(np.bincount(videos, minlength=33), tiny_dataset.train_counts())
    assert len(np.unique(users * 100 + videos)) == len(users)


@pytest.mark.parametrize(
    "changes", [{"neighbours": 0}, {"shrinkage": -1.0}, {"fading": 0.0}, {"fading": 1.5}], ids=str
)
def test_settings_out_of_range_are_refused(tiny_dataset: Dataset, changes: dict) -> None:
    with pytest.raises(UserError, match=f"--{next(iter(changes))}"):
        build(ItemKnnSettings(**changes), tiny_dataset)


def recent(dataset: Dataset, monkeypatch: pytest.MonkeyPatch, **changes: object) -> list[float]:
    """Scores of videos 0 to 3: video 1 was liked on days 0 and 9, video 2 on day 10, video 3 on day 7."""
    events = dataset.video_events._replace(items=np.array([1, 3, 1, 2]), times=np.array([0, 7, 9, 10]) * DAY)
    monkeypatch.setattr(popularity, "known_events", lambda dataset: np.arange(4))
    model = build_recent(RecentPopularitySettings(**changes), replace(dataset, video_events=events))
    return model.item_vectors()[:4, 0].tolist()


def test_recent_popularity_counts_what_is_recent(
    tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    window = recent(tiny_dataset, monkeypatch, fading="window", days=3.0)
    assert window == [0, 1, 1, 0]  # what is three days old has just left the window
    decay = recent(tiny_dataset, monkeypatch, days=1.0)
    assert decay == pytest.approx([0, 1 / 2 + 1 / 1024, 1, 1 / 8])
    with pytest.raises(UserError, match="--days"):
        recent(tiny_dataset, monkeypatch, days=0.0)


def test_a_dataset_without_times_is_told_what_to_use(tiny_dataset: Dataset) -> None:
    given = {**tiny_dataset.manifest, "split": {"name": "as given", "cut_times": None}}
    with pytest.raises(UserError, match="recent_popularity needs times of its events.*use popularity"):
        check_needs(find("recent_popularity"), replace(tiny_dataset, manifest=given))
    check_needs(find("recent_popularity"), tiny_dataset)
    check_needs(find("popularity"), replace(tiny_dataset, manifest=given))


def test_what_a_checkpoint_keeps(tiny_dataset: Dataset) -> None:
    model = build(ItemKnnSettings(), tiny_dataset)
    assert set(model.state_dict()) == {"neighbours", "similarities"}
    assert all(bool(torch.isfinite(value.float()).all()) for value in model.state_dict().values())
    assert model.neighbours.shape == (33, 31)  # no more than there are
