"""Embedding a catalogue that is large for a test: what is held at a time does not grow with it."""

import numpy as np
import torch

from lsvcr.data.text_slices import TextSlices
from lsvcr.training import embed_plan, embed_shared
from lsvcr.training.embed import Job, export
from lsvcr.training.embed_write import work_folder

ROWS, DISTINCT = 300_001, 120_000


class Counted(str):
    """A text that is counted as long as anyone holds it."""

    held = most_held = 0

    def __new__(cls, text):
        cls.held += 1
        cls.most_held = max(cls.most_held, cls.held)
        return super().__new__(cls, text)

    def __del__(self):
        type(self).held -= 1


class Synthetic:
    """Texts out of row numbers: words of 1 to 9 letters, each several times; every 1,000th is empty."""

    def __init__(self):
        self.slices = []

    def __len__(self):
        return ROWS

    def take(self, rows):
        self.slices.append(len(rows))
        return [Counted(text_of(row)) for row in rows]

    def raw_ids(self, rows):
        return list(rows)


def text_of(row):
    number = (int(row) * 7919) % DISTINCT
    return "" if row % 1000 == 0 else f"{number}" * (1 + number % 2)


class LetterEmbedder:
    """Reads digits: a text is one token a digit, its vector their sum, their number and two constants."""

    width, full_width = 4, 4

    def __init__(self):
        self.batches = []

    def ids(self, texts):
        return [list(map(int, text)) for text in texts]

    def lengths(self, texts):
        return list(map(len, texts))

    def vectors(self, ids):
        self.batches.append(sum(map(len, ids)))
        found = torch.tensor([[sum(row), len(row), 1, -1] for row in ids], dtype=torch.float32)
        return found, found


def test_texts_are_held_in_slices_and_every_row_is_right(tmp_path):
    embedder, texts = LetterEmbedder(), Synthetic()
    Counted.most_held = 0
    job = Job("words", "word", texts, "keys.npy", "words.npy", None)
    with work_folder(tmp_path) as work:
        export([job], embedder, work, {"data_hash": "0"}, budget=16_384)
    most = embed_plan.PART_TEXTS
    assert most < ROWS / 10 and max(texts.slices) <= most and Counted.most_held <= most
    assert Counted.held == 0
    # Rows are read once, and distinct texts twice: for their tokens and for their vectors.
    distinct = {text_of(row) for row in range(ROWS)} - {""}
    assert sum(texts.slices) == ROWS + 2 * len(distinct)
    assert max(embedder.batches) <= 16_384 and sum(embedder.batches) == sum(map(len, distinct))
    found = np.load(tmp_path / "words.npy", mmap_mode="r")
    assert found.shape == (ROWS, 4) and np.load(tmp_path / "keys.npy", mmap_mode="r").shape == (3, ROWS)
    expected = np.zeros((ROWS, 4))
    for row in range(ROWS):
        text = text_of(row)
        if text:
            expected[row] = sum(map(int, text)), len(text), 1, -1
    np.testing.assert_array_equal(found, expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["embeddings.json", "keys.npy", "words.npy"]


def test_shared_arrays_are_made_in_slices(tmp_path, monkeypatch):
    monkeypatch.setattr(embed_shared, "CHUNK", 4)
    asked = []

    def fill(low, high):
        asked.append((low, high))
        return np.stack([np.arange(low, high), -np.arange(low, high)])

    found = embed_shared.shared(tmp_path, "x", (2, 10), np.int32, fill)
    assert asked == [(0, 4), (4, 8), (8, 10)]
    assert found.tolist() == [list(range(10)), [-n for n in range(10)]]
    assert isinstance(found, np.memmap) and sorted(p.name for p in tmp_path.iterdir()) == ["x.npy"]


def test_the_store_is_read_one_row_group_at_a_time(tmp_path, monkeypatch):
    import polars as pl

    texts = [f"text {n}" for n in range(1, 26)]
    table = pl.DataFrame({"raw_id": list(range(100, 125)), "title": texts, "likes": [0] * 25})
    table.write_parquet(tmp_path / "videos.parquet", row_group_size=4)
    slices = TextSlices(tmp_path / "videos.parquet", "title")
    read = []
    group = slices._file.read_row_group
    monkeypatch.setattr(
        slices,
        "_file",
        type(
            "File",
            (),
            {"read_row_group": lambda _, *args, **named: read.append(args[0]) or group(*args, **named)},
        )(),
    )
    assert len(slices) == 26
    rows = np.array([25, 0, 1, 4, 5, 25, 2])
    assert slices.take(rows) == ["text 25", "", "text 1", "text 4", "text 5", "text 25", "text 2"]
    assert read == [0, 1, 6] and slices.raw_ids(rows) == [124, "", 100, 103, 104, 124, 101]
    read.clear()
    every = [text for start in range(0, 26, 3) for text in slices.take(np.arange(start, min(start + 3, 26)))]
    assert every == ["", *texts] and read == list(range(7))
    assert slices.take(np.arange(0)) == []
