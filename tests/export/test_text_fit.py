"""The bundle's text encoder: fitted to planted vectors, read back, in any script."""

from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch

from lsvcr.export import text_fit
from lsvcr.export.text_fit import fit_text_encoder
from lsvcr.serving.errors import BundleError
from lsvcr.serving.text_encoder import FOLDER, TextEncoder, buckets_of, weighted
from lsvcr.training.rank_texts import TextTables
from lsvcr.utils.errors import UserError

WIDTH = 6
ENGLISH = ("cats", "pasta", "chess", "hiking", "football", "painting")
CHINESE = ("猫咪", "面条", "象棋", "登山", "足球", "绘画")
FILLERS = ("so much", "today", "again and again", "with friends", "真的很好看", "今天又来了", "太可爱啦")


class Words:
    """What `fit_text_encoder` reads of a dataset."""

    root = Path("a dataset")

    def __init__(self, titles: list[str], comments: list[str]) -> None:
        self._titles, self._comments = Listed(["", *titles]), Listed(["", *comments])

    def titles(self) -> "Listed":
        return self._titles

    def contents(self) -> "Listed":
        return self._comments


class Listed(list):
    def take(self, indices: np.ndarray) -> list[str]:
        return [self[i] for i in indices]


def planted(words: tuple[str, ...], count: int = 400) -> tuple[Words, TextTables, list[str]]:
    """Texts about one of `words` each; its vector is the word's direction on top of what all share."""
    rng = np.random.default_rng(0)
    fillers = [f for f in FILLERS if f.isascii() == words[0].isascii()]
    texts, vectors = [], [np.zeros(WIDTH)]
    for number in range(count):
        topic = number % len(words)
        first, last = rng.choice(fillers, 2)
        glue = " " if words[0].isascii() else ""
        texts.append(glue.join([first, words[topic], last, str(number)]))
        vectors.append(np.full(WIDTH, 3.0) + np.eye(WIDTH)[topic] + rng.normal(0, 0.05, WIDTH))
    table = torch.from_numpy(np.stack(vectors).astype(np.float32))
    half = count // 2
    dataset = Words(texts[:half], texts[half:])
    videos, comments = table[: half + 1], torch.cat([table[:1], table[half + 1 :]])
    return dataset, TextTables(videos, comments, False, {}), texts


def written(files: dict[str, np.ndarray], folder: Path) -> Path:
    for name, array in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / name, array)
    return folder


@pytest.mark.parametrize("words", [ENGLISH, CHINESE], ids=["english", "chinese"])
def test_unseen_texts_come_near_what_they_are_about(words: tuple[str, ...], tmp_path: Path) -> None:
    dataset, tables, texts = planted(words)
    fitted = fit_text_encoder(dataset, tables, buckets=512)
    held = fitted.about["held_out"]
    assert held["texts"] == 40 and fitted.about["texts"] == 400
    assert held["cosine"] > 0.99 and held["centred_cosine"] > 0.95
    # The nearest are those of the same topic: a random one would be right in one of six.
    assert held["same_nearest"] <= 1 and held["neighbours@10"] > 10 / len(texts)
    encoder = TextEncoder.open(written(fitted.files, tmp_path))
    assert encoder is not None and encoder.width == WIDTH
    glue = " " if words is ENGLISH else ""
    made = encoder.encode([glue.join(["new", word, "unheard"]) for word in words]) - 3
    assert made.argmax(axis=1).tolist() == list(range(len(words)))


def test_case_width_and_space_make_no_difference() -> None:
    rng = np.random.default_rng(1)
    encoder = TextEncoder(
        rng.normal(size=(64, 4)).astype(np.float32), np.ones(64, np.float32), np.zeros(4, np.float32)
    )
    same = encoder.encode(["CATS  and dogs!", "cats and\tdogs !", "ｃａｔｓ and DOGS！"])
    assert np.array_equal(same[0], same[1]) and np.array_equal(same[0], same[2])
    other = encoder.encode(["dogs and cats!"])
    assert not np.array_equal(same[0], other[0]), "pairs of words tell order"
    alone = encoder.encode(["CATS  and dogs!"])
    assert np.array_equal(alone[0], same[0]), "what else is asked makes no difference"


@pytest.mark.parametrize("text", ["", " ", "\n\t"])
def test_no_text_is_zeros(text: str) -> None:
    encoder = TextEncoder(np.ones((8, 3), np.float32), np.ones(8, np.float32), np.ones(3, np.float32))
    assert not encoder.encode([text]).any() and encoder.encode([]).shape == (0, 3)


@pytest.mark.parametrize("text", ["a", "。", "😱", "\ud800", "x" * 10_000, "नमस्ते दुनिया", "สวัสดี", "\0"])
def test_any_text_has_a_finite_vector(text: str) -> None:
    encoder = TextEncoder(np.ones((8, 3), np.float32), np.ones(8, np.float32), np.ones(3, np.float32))
    vector = encoder.encode([text])[0]
    assert np.isfinite(vector).all() and vector.any()


def test_buckets_are_the_same_everywhere_and_always() -> None:
    # Written out: a bundle of today is read by later releases, on other machines.
    grams = ["whi", "w猫咪", "phi 猫咪", "c<hi", "chi>", "c<hi>", "c猫", "c咪", "c猫咪"]
    assert buckets_of("Hi 猫咪", 1000).tolist() == [crc32(gram.encode()) % 1000 for gram in grams]
    found, weights = weighted("to be to be", np.ones(1 << 16, np.float32))
    assert len(found) == len(set(found.tolist())) and weights @ weights == pytest.approx(1)


def test_the_same_texts_give_the_same_encoder() -> None:
    dataset, tables, _ = planted(ENGLISH, 60)
    first, second = (fit_text_encoder(dataset, tables, buckets=64) for _ in range(2))
    assert first.about == second.about
    for name, array in first.files.items():
        assert np.array_equal(array, second.files[name])


def test_few_texts_and_many_are_solved_alike() -> None:
    dataset, tables, texts = planted(ENGLISH, 120)
    vectors = torch.cat([tables.videos[1:], tables.comments[1:]]).numpy()
    many = text_fit._System(texts, vectors, buckets=100)
    few = text_fit._System(texts, vectors, buckets=100)
    few._few = True
    for system in (many, few):
        system.add(40, 120)
        system.add(0, 40)
    np.testing.assert_allclose(few.weights(), many.weights(), atol=1e-4)
    x = np.zeros((120, 100))
    for row, text in zip(x, texts, strict=True):
        found, weights = weighted(text, many.rarity)
        row[found] = weights
    plain = np.linalg.solve(x.T @ x + text_fit.RIDGE * np.eye(100), x.T @ (vectors - vectors.mean(axis=0)))
    np.testing.assert_allclose(many.weights(), plain, atol=1e-4)


def test_of_very_many_texts_a_draw_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_fit, "MOST_TEXTS", 50)
    dataset, tables, _ = planted(ENGLISH, 600)
    fitted = fit_text_encoder(dataset, tables, buckets=64)
    assert fitted.about["texts"] == 50 and fitted.about["held_out"]["texts"] == 5


def test_texts_without_vectors_and_empty_ones_teach_nothing() -> None:
    dataset, tables, _ = planted(ENGLISH, 60)
    blank = TextTables(tables.videos, tables.comments.clone(), False, {})
    blank.comments[5:] = 0
    fitted = fit_text_encoder(dataset, blank, buckets=64)
    assert fitted.about["texts"] == 30 + 4
    assert np.allclose(fitted.files[f"{FOLDER}/mean.npy"], 3 + 1 / 6, atol=0.1)


def test_too_few_texts_are_refused() -> None:
    dataset, tables, _ = planted(ENGLISH, 8)
    with pytest.raises(UserError, match="8 distinct texts"):
        fit_text_encoder(dataset, tables)


def test_an_encoder_that_is_not_whole(tmp_path: Path) -> None:
    assert TextEncoder.open(tmp_path) is None
    dataset, tables, _ = planted(ENGLISH, 60)
    folder = written(fit_text_encoder(dataset, tables, buckets=64).files, tmp_path)
    np.save(folder / FOLDER / "rarity.npy", np.ones(63, np.float32))
    with pytest.raises(BundleError, match="differ in shape"):
        TextEncoder.open(folder)
    (folder / FOLDER / "mean.npy").unlink()
    with pytest.raises(BundleError, match="not whole.*mean.npy"):
        TextEncoder.open(folder)
