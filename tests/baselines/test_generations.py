"""Generations on disk: complete or not there, the same after a kill, refused where they are another's."""

import json
from pathlib import Path
from typing import Any

import pytest

from lsvcr.baselines import generations
from lsvcr.baselines.generations import GENERATIONS_FILE, generate, read_generations
from lsvcr.schema import Split, Task
from lsvcr.utils.errors import UserError
from tests.generative_world import generate_settings


@pytest.fixture
def run(generative_run: Path, tmp_path: Path) -> Path:
    """A run of its own, without generations."""
    for name in ("best", "last"):
        (tmp_path / name).symlink_to(generative_run / name)
    return tmp_path


def test_every_row_has_its_beams(generative_run: Path, tiny_dataset: Any) -> None:
    titles = set(tiny_dataset.titles())
    for decoding in ("free", "trie"):
        found, manifest = read_generations(generative_run / decoding)
        assert manifest["settings"]["decoding"] == decoding
        for split in (Split.VAL, Split.TEST):
            part = found[split]
            assert part.rows.tolist() == list(range(len(tiny_dataset.samples(Task.REC, split))))
            assert all(len(texts) == 3 for texts in part.texts)
            assert all(scores == sorted(scores, reverse=True) for scores in part.scores)
            if decoding == "trie":
                assert all(text in titles and text for texts in part.texts for text in texts)


def test_a_killed_run_goes_on_behind_its_last_part(
    run: Path, generative_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generations, "PART_ROWS", 10)
    settings = generate_settings(run, decoding="trie")
    real, asked = generations.Speaker.say, []

    def dies(self: Any, source: Any, split: Split, rows: Any) -> Any:
        asked.append((split, rows.tolist()))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return real(self, source, split, rows)

    monkeypatch.setattr(generations.Speaker, "say", dies)
    with pytest.raises(KeyboardInterrupt):
        generate(settings)
    with pytest.raises(UserError, match="lsvcr generate"):
        read_generations(run / "trie")
    with pytest.raises(UserError, match=r"num_beams is 4 here and 3 there.*--overwrite"):
        generate(generate_settings(run, decoding="trie", num_beams=4))
    generate(settings)
    # Two parts were kept; the third and the three of the other split are made.
    assert [rows[0] for _, rows in asked] == [0, 10, 20, 20, 0, 10, 20]
    # Other parts make other batches, whose sums are rounded otherwise.
    ours, theirs = (read_generations(folder / "trie")[0] for folder in (run, generative_run))
    for split, part in ours.items():
        assert part.texts == theirs[split].texts
        for left, right in zip(part.scores, theirs[split].scores, strict=True):
            assert left == pytest.approx(right, abs=1e-4)
    assert not (run / "trie" / "parts").exists()
    generate(settings)
    assert len(asked) == 7  # done is done


def test_some_rows_are_drawn_and_told(run: Path) -> None:
    generate(generate_settings(run, decoding="trie", max_rows=5))
    found, manifest = read_generations(run / "trie")
    rows = found[Split.TEST].rows
    assert len(rows) == 5 and (rows[1:] > rows[:-1]).all() and manifest["settings"]["max_rows"] == 5


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"num_return_sequences": 4}, "more than --num_beams 3"),
        ({"num_beams": 0}, "--num_beams"),
        ({"max_new_tokens": 1}, "--max_new_tokens"),
        ({"decoding": "trie", "max_new_tokens": 3}, "no title"),
        ({"run": "nowhere"}, "lsvcr tune"),
    ],
)
def test_settings_that_cannot_work_are_told(run: Path, changed: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        generate(generate_settings(**{"run": run, **changed}))


@pytest.mark.parametrize(
    "line, message",
    [
        ("nonsense", "line 2"),
        (json.dumps({"split": "test", "row": 0, "beams": [["a"]]}), "line 2"),
        (json.dumps({"split": "test", "row": 0, "beams": [["a", float("nan")]]}), "not finite"),
        (json.dumps({"split": "test", "row": 1, "beams": []}), "twice"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    first = json.dumps({"split": "test", "row": 1, "beams": [["a\u2028b", -1.0]]}, ensure_ascii=False)
    (tmp_path / GENERATIONS_FILE).write_text(f"{first}\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_generations(tmp_path)
