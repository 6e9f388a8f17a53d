"""The tiny world with what people passed over: behind each like two videos of other topics, which nobody clicks."""

import csv
from pathlib import Path

from lsvcr.data.prepare import prepare
from lsvcr.settings import PrepareSettings
from tests.tiny_world import TOPICS, VIDEOS, write_raw

MINUTE_MS = 60_000


def write_click_world(folder: Path, split: str = "leave-last") -> Path:
    """A prepared dataset of the tiny world with three impressions a like, of which the like alone is clicked.

    The passed-over videos come seconds after the like, so that the like is in their histories.
    """
    raw = write_raw(folder / "raw")
    path = raw / "user_video_inter.csv"
    with path.open(newline="", encoding="utf-8") as stream:
        header, *likes = list(csv.reader(stream))
    place = {name: number for number, name in enumerate(header)}
    rows = []
    for number, like in enumerate(likes):
        like[place["is_click"]] = "1"
        rows.append(like)
        for behind in (1, 2):
            other = list(like)
            video = (int(like[place["video_id"]]) + behind + number % 7 * len(TOPICS)) % VIDEOS
            other[place["video_id"]] = str(video)
            other[place["time_ms"]] = str(float(like[place["time_ms"]]) + 1000 * behind)
            other[place["is_click"]] = other[place["is_like"]] = "0"
            rows.append(other)
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])
    return prepare(PrepareSettings(raw=str(raw), out=str(folder / "data"), user_core=3, split=split))
