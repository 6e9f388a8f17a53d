"""The simulated world: its files, its proportions, its order of events, its texts and its truth."""

import csv
import hashlib
import re
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from lsvcr.data.simulation import simulate
from lsvcr.data.simulation.lexicon import load_lexicon
from lsvcr.data.simulation.presets import PRESETS
from lsvcr.data.simulation.tastes import taste_at
from lsvcr.data.simulation.truth import load_truth, oracle_comment_scores, oracle_scores, video_scores
from lsvcr.settings import SimulateSettings
from lsvcr.utils.errors import UserError
from tests.data.simulator_texts import PlantedReader

COLUMNS = {
    "user_video_inter.csv": "user_id video_id p_hourmin time_ms is_click is_like is_follow is_comment is_forward "
    "is_collect is_hate long_view play_time_ms duration_ms profile_stay_time comment_stay_time",
    "user_comment_inter.csv": "user_id comment_id time_stamp photo_id is_like is_reply",
    "user_features.csv": "user_id user_active_degree is_live_author produce_video_num follow_count "
    "follow_user_num_range fans_count fans_user_num_range friend_user_num_range register_days gender age_range "
    + " ".join(f"onehot_feat{i}" for i in range(19)),
    "video_features.csv": "video_id author_id video_type upload_dt caption duration category",
    "comment_features.csv": "comment_id comment_content video_id comment_like_cnt comment_reply_out "
    "show_comment_cnt_td",
}


def make(folder: Path, **options: object) -> Path:
    return simulate(SimulateSettings(out=str(folder), **options))  # type: ignore[arg-type]


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("tiny") / "raw", preset="tiny")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("demo") / "raw")


@pytest.fixture(scope="module")
def chinese(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("zh") / "raw", preset="tiny", language="zh")


def table(folder: Path, name: str) -> pl.DataFrame:
    return pl.read_csv(folder / name)


@pytest.mark.parametrize("name", COLUMNS)
def test_every_file_has_the_published_columns_and_whole_rows(demo: Path, name: str) -> None:
    with (demo / name).open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == COLUMNS[name].split()
    assert {len(row) for row in rows} == {len(rows[0])}


def test_ids_refer_to_each_other(demo: Path) -> None:
    inter, comment_inter = table(demo, "user_video_inter.csv"), table(demo, "user_comment_inter.csv")
    videos, comments = table(demo, "video_features.csv"), table(demo, "comment_features.csv")
    users = set(table(demo, "user_features.csv")["user_id"])
    assert videos["video_id"].is_unique().all()
    assert comments["comment_id"].is_unique().all()
    assert set(inter["user_id"]) == users
    assert set(inter["video_id"]) <= set(videos["video_id"])
    assert set(comments["video_id"]) <= set(videos["video_id"])
    joined = comment_inter.join(comments, on="comment_id", how="left")
    assert (joined["photo_id"] == joined["video_id"]).all()


def test_values_are_plausible(demo: Path) -> None:
    inter = table(demo, "user_video_inter.csv")
    assert inter.select(pl.col("^is_.*$").is_in([0, 1]).all()).row(0) == (True,) * 7
    long = pl.col("play_time_ms") >= pl.min_horizontal("duration_ms", pl.lit(18_000.0))
    assert inter.select((pl.col("long_view") == long.cast(pl.Int64)).all()).item()
    hour_minute = pl.col("time_ms").cast(pl.Int64).cast(pl.Datetime("ms"))
    told = hour_minute.dt.hour().cast(pl.Int64) * 100 + hour_minute.dt.minute().cast(pl.Int64)
    assert inter.select((pl.col("p_hourmin") == told).all()).item()
    assert inter["time_ms"].is_between(1_696_032_000_000, 1_696_032_000_000 + 36 * 86_400_000).all()
    liked = inter.filter(pl.col("is_like") == 1)
    assert liked.select("user_id", "video_id").is_unique().all()
    assert inter.select("user_id", "video_id").is_unique().all()
    assert table(demo, "video_features.csv")["upload_dt"].str.contains(r"^2023-\d\d-\d\d$").all()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_world(
    tiny: Path, tmp_path: Path
) -> None:
    assert digest(make(tmp_path / "a", preset="tiny")) == digest(tiny)
    assert digest(make(tmp_path / "b", preset="tiny", seed=7)) != digest(tiny)


def test_what_people_do_does_not_depend_on_the_language(tiny: Path, chinese: Path) -> None:
    for name in ("user_video_inter.csv", "user_comment_inter.csv"):
        assert (tiny / name).read_bytes() == (chinese / name).read_bytes()


def test_blocks_of_users_and_texts_only_bound_memory(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A world written in many blocks has the same videos and every user once."""
    from dataclasses import replace

    monkeypatch.setitem(PRESETS, "tiny", replace(PRESETS["tiny"], user_block=17, text_block=31))
    small = make(tmp_path / "blocks", preset="tiny")
    for name in ("video_features.csv", "comment_features.csv", "user_features.csv"):
        assert table(small, name).height == table(tiny, name).height
    assert table(small, "video_features.csv")["video_id"].equals(
        table(tiny, "video_features.csv")["video_id"]
    )
    assert set(table(small, "user_features.csv")["user_id"]) == set(
        table(tiny, "user_features.csv")["user_id"]
    )


def test_proportions_are_those_of_a_sparse_platform(demo: Path) -> None:
    inter, videos = table(demo, "user_video_inter.csv"), table(demo, "video_features.csv")
    liked = inter.filter(pl.col("is_like") == 1)
    counts = videos.select("video_id").join(liked["video_id"].value_counts(), on="video_id", how="left")
    likes = np.sort(counts["count"].fill_null(0).to_numpy())[::-1]
    assert (likes < 5).mean() >= 0.4
    assert 10 <= len(liked) / PRESETS["demo"].users <= 18
    assert 1.5 <= (inter.height - len(liked)) / len(liked) <= 4
    head = np.arange(20, 400)
    slope = np.polyfit(np.log(head + 1), np.log(likes[head]), 1)[0]
    assert -1.5 < slope < -0.5
    comments = table(demo, "comment_features.csv")["video_id"].value_counts()["count"].to_numpy()
    assert np.quantile(comments, 0.1) <= 4
    assert comments.max() == PRESETS["demo"].shape.comments_most
    assert 8 <= table(demo, "user_comment_inter.csv").height / PRESETS["demo"].users <= 12


def test_whatever_is_liked_was_clicked_and_other_clicks_follow_tastes(demo: Path) -> None:
    inter = table(demo, "user_video_inter.csv")
    assert inter.filter(pl.col("is_like") == 1)["is_click"].min() == 1
    rest = inter.filter(pl.col("is_like") == 0)
    assert 0.15 < rest["is_click"].mean() < 0.45  # type: ignore[operator]
    truth = load_truth(demo)
    user = np.array([truth.user_row[raw] for raw in rest["user_id"]])
    video = np.array([truth.video_row[raw] for raw in rest["video_id"]])
    time = rest["time_ms"].to_numpy().astype(np.int64)
    shape, related = truth.shape, truth.related
    topic, tone = taste_at(truth.tastes, shape, related, len(truth.tones), user, time, "video")
    rows = np.arange(len(rest))
    suits = topic[rows, truth.videos.topic[video]] * tone[rows, truth.videos.tone[video]]
    shares = [rest["is_click"].to_numpy()[part].mean() for part in np.array_split(np.argsort(suits), 5)]
    assert shares == sorted(shares) and shares[-1] > 3 * shares[0] > 0


def test_most_telling_words_stand_in_few_titles(demo: Path) -> None:
    titles = [text.lower() for text in table(demo, "video_features.csv")["caption"]]
    words = {word for topic in load_lexicon("en").topics for word in topic.words}
    shown = np.array([sum(word in title for title in titles) for word in sorted(words) if len(word) > 4])
    assert (shown < 3).mean() > 0.5
    lengths = [len(title.split()) for title in titles]
    assert 9 <= np.mean(lengths) <= 16
    assert len({*titles}) > 0.99 * len(titles)
    vocabulary, counts = np.unique(re.findall(r"[a-z']+", " ".join(titles)), return_counts=True)
    assert len(vocabulary) > 3_000
    assert (counts < 3).mean() > 0.4


def test_nobody_touches_a_video_before_it_is_there_or_its_comments_before_liking_it(demo: Path) -> None:
    inter, comment_inter = table(demo, "user_video_inter.csv"), table(demo, "user_comment_inter.csv")
    videos = table(demo, "video_features.csv")
    uploaded = inter.join(videos.select("video_id", "upload_dt"), on="video_id")
    day = pl.col("time_ms").cast(pl.Int64).cast(pl.Datetime("ms")).dt.strftime("%Y-%m-%d")
    assert uploaded.select((pl.col("upload_dt") <= day).all()).item()
    likes = inter.filter(pl.col("is_like") == 1).select("user_id", photo_id="video_id", liked="time_ms")
    both = comment_inter.join(likes, on=["user_id", "photo_id"])
    assert len(both) > 1_000
    assert (both["time_stamp"] * 1_000 > both["liked"]).all()
    watched = inter.select("user_id", photo_id="video_id", watched="time_ms")
    visits = comment_inter.join(watched, on=["user_id", "photo_id"], how="left")
    assert visits["watched"].null_count() == 0
    assert (visits["time_stamp"] * 1_000 + 1_000 > visits["watched"]).all()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_reader_who_knows_the_phrases_recovers_topic_and_tone(
    language: str, tmp_path: Path, demo: Path
) -> None:
    folder = demo if language == "en" else make(tmp_path / "raw", language="zh")
    truth, reader = load_truth(folder), PlantedReader(load_lexicon(language))
    rows = np.random.default_rng(3).permutation(len(truth.videos))[:200]
    titles = table(folder, "video_features.csv")["caption"].to_list()
    topics = np.array([reader.topic(titles[row]) for row in rows])
    tones = np.array([reader.tone(titles[row], comment=False) for row in rows])
    assert np.mean((topics == truth.videos.topic[rows]) | (topics == truth.videos.second[rows])) > 0.75
    assert np.mean(tones == truth.videos.tone[rows]) > 0.9
    rows = np.random.default_rng(4).permutation(len(truth.comments))[:200]
    contents = table(folder, "comment_features.csv")["comment_content"].to_list()
    tones = np.array([reader.tone(contents[row], comment=True) for row in rows])
    assert np.mean(tones == truth.comments.tone[rows]) > 0.9
    rows = rows[truth.comments.mention[rows] >= 0]
    topics = np.array([reader.topic(contents[row]) for row in rows])
    assert np.mean(topics == truth.comments.mention[rows]) > 0.75


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_lexicons_are_wide(language: str) -> None:
    lexicon = load_lexicon(language)
    least = {"en": 80, "zh": 40}[language]
    assert 40 <= len(lexicon.topics) <= 60
    for topic in lexicon.topics:
        assert len(topic.words) >= least, topic.name
        assert min(len(topic.acts), len(topic.hints)) >= 5, topic.name
    assert len(lexicon.tone_names) == 8
    for name in lexicon.tone_names:
        banks = lexicon.tones[name]
        assert len(banks["titles"]) + len(banks["tags"]) >= 25
        assert len(set(banks["comments"])) >= 20
    np.testing.assert_allclose(lexicon.related.sum(axis=1), 1.0)
    assert not lexicon.related.diagonal().any()


def test_chinese_texts_are_chinese(chinese: Path) -> None:
    texts = [
        *table(chinese, "video_features.csv")["caption"],
        *table(chinese, "comment_features.csv")["comment_content"],
    ]
    letters = "".join(re.findall(r"\w", "".join(texts)))
    assert len(re.findall(r"[\u4e00-\u9fff]", letters)) / len(letters) > 0.95


def test_no_slot_is_left_open(demo: Path, chinese: Path) -> None:
    for folder in (demo, chinese):
        for name, column in (("video_features.csv", "caption"), ("comment_features.csv", "comment_content")):
            texts = table(folder, name)[column]
            assert not texts.str.contains(r"[{}]").any()
            assert texts.str.len_chars().min() > 3


def test_the_truth_is_complete_and_ranks_what_was_liked_first(demo: Path) -> None:
    truth = load_truth(demo)
    videos, comments = table(demo, "video_features.csv"), table(demo, "comment_features.csv")
    np.testing.assert_array_equal(truth.videos.raw_id, videos["video_id"])
    np.testing.assert_array_equal(truth.comments.raw_id, comments["comment_id"])
    np.testing.assert_array_equal(np.sort(truth.user_ids), table(demo, "user_features.csv")["user_id"].sort())
    likes = table(demo, "user_video_inter.csv").filter(pl.col("is_like") == 1).sample(300, seed=1)
    user = np.array([truth.user_row[raw] for raw in likes["user_id"]])
    time = likes["time_ms"].to_numpy().astype(np.int64)
    scores = video_scores(truth, user, time)
    target = np.array([truth.video_row[raw] for raw in likes["video_id"]])
    own = scores[np.arange(300), target]
    assert np.isfinite(own).all()
    assert ((scores > own[:, None]).sum(axis=1) < 10).mean() > 0.3
    one = oracle_scores(truth, likes["user_id"][0], int(time[0]), truth.videos.raw_id)
    np.testing.assert_allclose(one, scores[0], rtol=1e-12)


def test_the_comment_oracle_prefers_liked_comments(demo: Path) -> None:
    truth = load_truth(demo)
    rows = table(demo, "user_comment_inter.csv").sample(300, seed=2)
    places = []
    for user, comment, seconds in rows.select("user_id", "comment_id", "time_stamp").iter_rows():
        video = truth.comments.video[truth.comment_row[comment]]
        start, stop = truth.comments.offsets[video : video + 2]
        raw = truth.comments.raw_id[start:stop]
        scores = oracle_comment_scores(truth, user, seconds * 1_000, raw)
        places.append((scores > scores[raw == comment][0]).mean())
    assert np.mean(places) < 0.3


def test_tiny_takes_a_second_and_mistakes_are_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--out"):
        simulate(SimulateSettings())
    with pytest.raises(UserError, match="preset"):
        make(tmp_path / "x", preset="huge")
    with pytest.raises(UserError, match="language"):
        make(tmp_path / "x", preset="tiny", language="fr")
    with pytest.raises(UserError, match="no planted truth"):
        load_truth(tmp_path)
    with pytest.raises(UserError, match="--seed -1 must be 0 or more"):
        make(tmp_path / "x", preset="tiny", seed=-1)
    assert not (tmp_path / "x").exists()


def test_a_disk_that_is_really_full_is_told_wherever_it_gets_full(small_disk: Path) -> None:
    filler = small_disk / "filler"
    for room in (16, 80, 160, 200):
        filler.unlink(missing_ok=True)
        filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - room * 1024))
        with pytest.raises(UserError, match="cannot write .*world: no space left"):
            make(small_disk / "world", preset="tiny")
        assert list(small_disk.iterdir()) == [filler]


def test_only_a_world_or_an_empty_folder_is_written_over(tmp_path: Path) -> None:
    world = tmp_path / "world"
    world.mkdir()
    before = digest(make(world, preset="tiny"))
    make(world, preset="tiny", seed=1)
    assert digest(make(world, preset="tiny")) == before
    (world / "data").mkdir()
    (world / "data" / "manifest.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"other files than a simulated world: data/manifest\.json\. .*empty one"
    ):
        make(world, preset="tiny")
    for others in ({"best.safetensors": "a month"}, {"simulation.json": "[]"}, {"simulation.json": "{}"}):
        project = tmp_path / "project"
        (project / "ckpt").mkdir(parents=True)
        for name, text in others.items():
            (project / "ckpt" / name).write_text(text)
        with pytest.raises(UserError, match="other files than a simulated world: ckpt/"):
            make(project, preset="tiny")
        with pytest.raises(UserError, match="other files than a simulated world: "):
            make(project / "ckpt", preset="tiny")
        assert [path.name for path in (project / "ckpt").iterdir()] == list(others)
        shutil.rmtree(project)
