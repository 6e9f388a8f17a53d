"""Samples of click models against counting by hand: who, when, what, and what came before."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from lsvcr.data.rank_clicks import CONTEXT, ClickData, LikedBefore, choose_source, cut_times
from lsvcr.data.store import Dataset, VideoEvents, open_dataset
from lsvcr.schema import Split, Task
from lsvcr.utils.errors import UserError
from tests.click_world import write_click_world


@pytest.fixture(scope="module", params=["leave-last", "temporal"])
def shown(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_dataset(write_click_world(tmp_path_factory.mktemp("clicks"), request.param))


def events_of(dataset: Dataset, user: int) -> list[tuple[int, int]]:
    """(time, video) of a user's likes."""
    events = dataset.video_events
    span = slice(events.offsets[user], events.offsets[user + 1])
    return list(zip(events.times[span].tolist(), events.items[span].tolist(), strict=True))


def cuts_of(dataset: Dataset, user: int) -> tuple[int, int]:
    """When validation and test of a user begin."""
    cuts = dataset.manifest["split"]["cut_times"]
    if cuts is not None:
        return cuts["val"], cuts["test"]
    found = []
    for split in (Split.VAL, Split.TEST):
        samples = dataset.samples(Task.REC, split)
        found.append(int(samples.cut[samples.user == user][0]))
    return found[0], found[1]


def liked_until(dataset: Dataset, data: ClickData, row: int) -> set[int]:
    """What the user of a row had liked at its time."""
    moments = data.moments(np.array([row]))
    return {v for t, v in events_of(dataset, int(moments.users[0])) if t <= moments.times[0]}


def test_every_impression_is_in_the_split_of_its_time(shown: Dataset) -> None:
    impressions = shown.impressions
    wanted: dict[Split, Counter] = {split: Counter() for split in Split}
    for user in range(1, shown.n_users + 1):
        val, test = cuts_of(shown, user)
        for i in range(impressions.offsets[user], impressions.offsets[user + 1]):
            time = int(impressions.times[i])
            split = Split.TEST if time >= test else Split.VAL if time >= val else Split.TRAIN
            wanted[split][user, time, int(impressions.items[i]), int(impressions.clicked[i])] += 1
    for split in Split:
        data = ClickData(shown, split, length=5, source="impressions")
        found = data.moments(np.arange(len(data)))
        columns = (found.users, found.times, found.videos, found.labels)
        assert Counter(zip(*(column.tolist() for column in columns), strict=True)) == wanted[split]
        assert len(data) == wanted[split].total() > 0


@pytest.mark.parametrize("source", ["impressions", "sampled"])
def test_a_history_is_the_latest_likes_strictly_before(shown: Dataset, source: str) -> None:
    for split in Split:
        data = ClickData(shown, split, length=3, source=source, negatives=2)
        rows = np.arange(len(data))[::-1].copy()
        batch, moments = data.training(rows), data.moments(rows)
        assert batch.rows.tolist() == rows.tolist() and batch.ids.shape[1] == 4
        assert batch.labels.tolist() == moments.labels.tolist()
        for i, user in enumerate(moments.users):
            before = [(t, v) for t, v in events_of(shown, int(user)) if t < moments.times[i]]
            history = [video for _, video in before[-3:]]
            line = [*history, int(moments.videos[i])]
            assert batch.ids[i].tolist() == line + [0] * (4 - len(line))
            assert int(batch.places[i]) == len(history)
            hours = (moments.times[i] - before[-1][0]) / 3_600_000 if before else 0.0
            told = batch.context[i, :2].tolist()
            assert told == pytest.approx([np.log1p(len(before)), np.log1p(hours)], rel=1e-5)
        assert batch.context.shape == (len(rows), CONTEXT) and batch.context.dtype == torch.float32


def test_likes_and_what_was_not_liked_until_then(shown: Dataset) -> None:
    """Each like once, in the split of the dataset's own samples; four draws behind it, at its time."""
    total = 0
    for split in Split:
        data = ClickData(shown, split, length=3, source="sampled", negatives=4)
        moments = data.moments(np.arange(len(data)))
        total += len(data) // 5
        assert moments.labels.tolist() == [1, 0, 0, 0, 0] * (len(data) // 5)
        positives = {
            (int(u), int(t), int(v))
            for u, t, v in zip(moments.users[::5], moments.times[::5], moments.videos[::5], strict=True)
        }
        samples = shown.samples(Task.REC, split)
        own = zip(samples.user.tolist(), samples.cut.tolist(), samples.video.tolist(), strict=True)
        assert set(own) <= positives  # samples leave out a user's very first like
        if split is not Split.TRAIN:
            assert len(samples) == len(positives)
        for i in range(len(data)):
            time, video = int(moments.times[i]), int(moments.videos[i])
            assert time == moments.times[i - i % 5] and 1 <= video <= shown.n_videos
            liked = {v for t, v in events_of(shown, int(moments.users[i])) if t <= time}
            assert (video in liked) == bool(moments.labels[i])
    assert total == len(shown.video_events.items)


def test_draws_are_a_function_of_seed_split_and_row(shown: Dataset) -> None:
    train = ClickData(shown, Split.TRAIN, length=3, source="sampled", seed=1)
    some = np.array([7, 3, 11, 4])
    one = train.training(some, (1, 0))
    assert torch.equal(one.ids, train.training(some, (9, 4), 12).ids)
    for i, row in enumerate(some):
        alone = train.moments(np.array([row]))
        assert alone.videos[0] == train.moments(some).videos[i]
    other = ClickData(shown, Split.TRAIN, length=3, source="sampled", seed=2)
    rows = np.arange(len(train))
    assert not np.array_equal(train.moments(rows).videos, other.moments(rows).videos)
    assert np.array_equal(train.moments(rows).labels, other.moments(rows).labels)


def test_draws_are_even_over_what_is_left(shown: Dataset) -> None:
    """1,000 draws a like: nothing that was not liked until then is left out, nor much more frequent."""
    data = ClickData(shown, Split.TEST, length=3, source="sampled", negatives=1000)
    videos = data.moments(np.arange(1, 1001)).videos
    liked = liked_until(shown, data, 0)
    counts = Counter(videos.tolist())
    assert set(counts) == set(range(1, shown.n_videos + 1)) - liked
    even = 1000 / len(counts)
    assert all(abs(count - even) < 6 * even**0.5 for count in counts.values())


class Likes:
    """A dataset of one user, as far as `LikedBefore` and draws ask."""

    root = Path("likes")

    def __init__(self, videos: list[int], n_videos: int) -> None:
        offsets, times = np.array([0, 0, len(videos)]), np.arange(len(videos)) * 10
        self.n_videos, self.video_events = n_videos, VideoEvents(offsets, np.array(videos), times)


def test_what_is_liked_twice_counts_from_the_first_time() -> None:
    liked = LikedBefore(Likes([4, 2, 4], 5))
    one = np.ones(4, dtype=np.int64)
    assert liked(one, np.array([4, 4, 2, 3]), np.array([0, -1, 9, 99])).tolist() == [
        True,
        False,
        False,
        False,
    ]


def test_somebody_who_likes_everything_can_pass_over_nothing() -> None:
    with pytest.raises(UserError, match="likes all 3 videos"):
        LikedBefore(Likes([1, 2, 3, 1], 3))


def test_where_draws_are_all_liked_the_next_video_is_taken(
    shown: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a draw were always one video that the user likes."""
    from lsvcr.data import rank_clicks

    data = ClickData(shown, Split.TEST, length=3, source="sampled", negatives=1)
    target = int(data.moments(np.array([0])).videos[0])
    monkeypatch.setattr(
        rank_clicks, "integers", lambda keys, rows, slots, below: np.full((len(rows), slots), target - 1)
    )
    liked = liked_until(shown, data, 0)
    wanted = next(v for v in (*range(target, 33), *range(1, 33)) if v not in liked)
    assert data.moments(np.array([1])).videos.tolist() == [wanted]


def test_cut_times_of_users_without_held_out_samples_are_never(tiny_dataset: Dataset) -> None:
    assert cut_times(tiny_dataset, Split.VAL)[0] == np.iinfo(np.int64).max
    assert (cut_times(tiny_dataset, Split.VAL) <= cut_times(tiny_dataset, Split.TEST)).all()


def test_what_a_dataset_lacks_is_told(tiny_dataset: Dataset) -> None:
    """All of the tiny world's impressions are clicked."""
    assert choose_source(tiny_dataset, "auto") == "impressions"
    with pytest.raises(UserError, match="none was clicked, or all were; use --click_samples sampled"):
        ClickData(tiny_dataset, Split.TRAIN, length=3, source="impressions")


def test_a_dataset_without_impressions_says_what_to_use(tmp_path: Path) -> None:
    from lsvcr.data.prepare import prepare
    from lsvcr.settings import PrepareSettings
    from tests.tiny_world import write_raw

    raw = write_raw(tmp_path / "raw")
    settings = PrepareSettings(raw=str(raw), out=str(tmp_path / "data"), user_core=3, impressions=False)
    dataset = open_dataset(prepare(settings))
    assert choose_source(dataset, "auto") == "sampled"
    with pytest.raises(UserError, match="has no impressions; use --click_samples sampled"):
        choose_source(dataset, "impressions")
