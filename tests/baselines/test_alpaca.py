"""Records in alpaca's form: what they tell, of whom, and in which words."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lsvcr.baselines.alpaca import NOTHING, RecordSource, quoted, unquoted, write_alpaca
from lsvcr.baselines.generative_settings import AlpacaSettings
from lsvcr.data.store import Dataset
from lsvcr.schema import Split, Task
from lsvcr.utils.errors import UserError


def settings(**changed: object) -> AlpacaSettings:
    return AlpacaSettings(**{"history_text": "Liked: ", "instruction": "Next?", "max_history": 2, **changed})


def by_hand(dataset: Dataset, split: Split, row: int) -> tuple[list[str], str]:
    """Titled history and target title of a sample, straight from the arrays."""
    titles, samples = list(dataset.titles()), dataset.samples(Task.REC, split)
    start = dataset.video_events.offsets[samples.user[row]]
    seen = dataset.video_events.items[start : samples.video_end[row]]
    return [titles[video] for video in seen if titles[video]], titles[samples.video[row]]


@pytest.mark.parametrize("split", list(Split))
def test_records_tell_the_latest_titled_videos_oldest_first(tiny_dataset: Dataset, split: Split) -> None:
    source = RecordSource(tiny_dataset, settings(quotes="single"))
    rows = source.rows(split, 0)
    records = list(source.records(split, rows))
    assert [record.row for record in records] == rows.tolist()
    untitled = 0
    for record in records:
        history, target = by_hand(tiny_dataset, split, record.row)
        told = ", ".join(f"'{title}'" for title in history[-2:])
        assert record.to_json() == {
            "instruction": "Next?",
            "input": f"Liked: {told or NOTHING}",
            "output": f"'{target}'",
        }
        untitled += not target
    every = len(tiny_dataset.samples(Task.REC, split))
    # What has no title cannot be learned, but it is asked for in a test.
    assert untitled == 0 if split is Split.TRAIN else len(rows) == every


def test_samples_without_a_title_are_no_training_records(tiny_dataset: Dataset) -> None:
    titles, samples = list(tiny_dataset.titles()), tiny_dataset.samples(Task.REC, Split.TRAIN)
    titled = [row for row in range(len(samples)) if titles[samples.video[row]]]
    assert len(titled) < len(samples)
    assert RecordSource(tiny_dataset, settings()).rows(Split.TRAIN, 0).tolist() == titled


def test_drawn_samples_are_the_seeds_alone(tiny_dataset: Dataset) -> None:
    first, again, other = (
        RecordSource(tiny_dataset, settings(seed=seed)).rows(Split.TRAIN, 10) for seed in (1, 1, 2)
    )
    assert len(np.unique(first)) == 10 and (np.diff(first) > 0).all()
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_each_record_draws_one_of_several_instructions(tiny_dataset: Dataset) -> None:
    source = RecordSource(tiny_dataset, settings(instruction="One? | Two?"))
    rows = source.rows(Split.TRAIN, 0)
    said = [record.instruction for record in source.records(Split.TRAIN, rows)]
    assert set(said) == {"One?", "Two?"}
    # A record's words do not depend on the others that are asked for.
    assert [next(source.records(Split.TRAIN, rows[i : i + 1])).instruction for i in (3, 0)] == [
        said[3],
        said[0],
    ]


def test_the_file_is_json_lines(tiny_dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "records.jsonl"
    wanted = settings(out=str(out), max_train_samples=5)
    assert write_alpaca(tiny_dataset, wanted) == 5
    records = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    source = RecordSource(tiny_dataset, wanted)
    assert records == [r.to_json() for r in source.records(Split.TRAIN, source.rows(Split.TRAIN, 5))]
    assert write_alpaca(tiny_dataset, replace(wanted, split="test")) == len(
        tiny_dataset.samples(Task.REC, Split.TEST)
    )


@pytest.mark.parametrize(
    "changed, flag", [({"instruction": "One? | "}, "--instruction"), ({"max_history": 0}, "--max_history")]
)
def test_settings_that_say_nothing_are_refused(tiny_dataset: Dataset, changed: dict, flag: str) -> None:
    with pytest.raises(UserError, match=flag):
        RecordSource(tiny_dataset, settings(**changed))


@pytest.mark.parametrize("quote", ['"', "'", ""])
@pytest.mark.parametrize("title", ["Heat (1995)", '"Heroes"', "What's Up?", "'"])
def test_quotation_marks_come_off_as_they_went_on(title: str, quote: str) -> None:
    assert unquoted(quoted(title, quote) + "\n\n### Instruction", quote) == title


@pytest.mark.parametrize("text, title", [("", ""), ('"', ""), ('"cut of', "cut of"), (" bare ", "bare")])
def test_what_is_not_quoted_whole_is_taken_as_it_is(text: str, title: str) -> None:
    assert unquoted(text, '"') == title
