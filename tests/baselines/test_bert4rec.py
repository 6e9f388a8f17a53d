"""BERT4Rec: what is hidden and that nothing leaks, its loss by hand, both directions, and the command that asks it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor

from lsvcr import cli
from lsvcr.baselines.bert4rec import BERT4Rec, Bert4RecSettings, MaskedData, build, complete, train_data
from lsvcr.data.prepare import prepare
from lsvcr.data.rank import RankData
from lsvcr.data.rank_sequences import known_ends
from lsvcr.data.store import Dataset, open_dataset
from lsvcr.schema import Split, Task
from lsvcr.settings import PrepareSettings
from lsvcr.training.baseline import run
from lsvcr.training.rank_restore import restore
from lsvcr.utils.errors import UserError
from tests.data.raw_files import write_movielens

SMALL = {
    "max_his": 6,
    "hidden": 16,
    "inner": 32,
    "heads": 2,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "replaced": 0.0,
}
ALL_ROWS = np.arange(24)
BOTH_ENDS = pytest.mark.parametrize("ends", ["plain", "bert"])


def made(dataset: Dataset, **changes: object) -> BERT4Rec:
    """A model in evaluation mode whose every weight matters."""
    torch.manual_seed(0)
    model = build(Bert4RecSettings(**{**SMALL, **changes}), dataset).eval()
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight.normal_(std=0.3)
        model.items.weight[1:].normal_()
        if model.head is not None:
            model.head.bias.normal_()
    return model


# What is hidden.


def sequences(dataset: Dataset, most: int) -> list[list[int]]:
    """What training may know of each person of the tiny world, the latest `most` videos."""
    events, ends = dataset.video_events, known_ends(dataset)
    found = (events.items[int(events.offsets[user]) : int(end)].tolist() for user, end in enumerate(ends))
    return [videos[-most:] for videos in found if len(videos) > 1]


@pytest.mark.parametrize("length", [3, 6])
def test_a_row_is_a_sequence_of_which_some_videos_are_hidden(tiny_dataset: Dataset, length: int) -> None:
    """Histories of 5: of length 3 a row has the latest 4."""
    rows = MaskedData(tiny_dataset, length)
    batch = rows.training(np.arange(len(rows)), (1, 0))
    hidden = batch.targets > 0
    assert bool(hidden.any(dim=1).all()) and not bool(hidden.all(dim=1).any())
    assert torch.equal(batch.video_ids == 33, hidden)
    whole = torch.where(hidden, batch.targets, batch.video_ids)
    assert [[v for v in row if v] for row in whole.tolist()] == sequences(tiny_dataset, length + 1)
    assert rows.terms(np.arange(len(rows)), (1, 0)) == int(hidden.sum())


def masks(rows: MaskedData, epochs: int) -> np.ndarray:
    """(epochs * 24, 5) bool."""
    return np.concatenate([rows.hidden(ALL_ROWS, (1, epoch)) for epoch in range(epochs)])


def test_each_place_is_hidden_as_often_as_asked(tiny_dataset: Dataset) -> None:
    """Of 5 places one is hidden in any case: where chance hides none, each is it equally often."""
    hidden = masks(MaskedData(tiny_dataset, 6, probability=0.2, last_only=0.0), 400)
    assert hidden.shape == (9600, 5) and hidden.any(axis=1).all()
    expected = 0.2 + 0.8**5 / 5
    np.testing.assert_allclose(hidden.mean(axis=0), expected, atol=0.015)
    # Two places are hidden together as often as independent draws say.
    assert (hidden[:, 0] & hidden[:, 3]).mean() == pytest.approx(0.04, abs=0.01)


def test_half_of_the_sequences_hide_their_latest_video_alone(tiny_dataset: Dataset) -> None:
    latest = np.arange(5) == 4
    for share in (0.5, 1.0):
        hidden = masks(MaskedData(tiny_dataset, 6, probability=0.2, last_only=share), 400)
        alone = (hidden == latest).all(axis=1).mean()
        by_chance = 0.8**4 * 0.2 + 0.8**5 / 5
        assert alone == pytest.approx(share + (1 - share) * by_chance, abs=0.02)


def test_one_is_hidden_at_least_and_all_at_most(tiny_dataset: Dataset) -> None:
    assert (masks(MaskedData(tiny_dataset, 6, probability=0.0, last_only=0.0), 20).sum(axis=1) == 1).all()
    assert masks(MaskedData(tiny_dataset, 6, probability=1.0, last_only=0.0), 20).all()


def test_some_hidden_videos_show_another_or_themselves(tiny_dataset: Dataset) -> None:
    """Of the hidden a tenth each; another one is any of 32, the hidden one among them."""
    rows = MaskedData(tiny_dataset, 6, last_only=0.0, replaced=0.2)
    batches = [rows.training(ALL_ROWS, (1, epoch)) for epoch in range(600)]
    shown, targets = (
        torch.stack([getattr(batch, name) for batch in batches]) for name in ("video_ids", "targets")
    )
    hidden = targets > 0
    masked, same = (shown == 33)[hidden], (shown == targets)[hidden]
    assert masked.float().mean().item() == pytest.approx(0.8, abs=0.015)
    assert same.float().mean().item() == pytest.approx(0.1 + 0.1 / 32, abs=0.012)
    others = shown[hidden][~masked & ~same]
    assert torch.bincount(others, minlength=33)[1:].min() > 0.5 * len(others) / 32 and others.max() == 32
    # What is not hidden is as it was, and the targets are those that are without it.
    alone = MaskedData(tiny_dataset, 6, last_only=0.0)
    for epoch in (0, 1):
        before = alone.training(ALL_ROWS, (1, epoch))
        assert torch.equal(before.targets, targets[epoch])
        assert torch.equal(before.video_ids[~hidden[epoch]], shown[epoch][~hidden[epoch]])


def test_masks_are_a_function_of_seed_epoch_and_row(tiny_dataset: Dataset) -> None:
    """However rows are spread over processes and batches."""
    rows = MaskedData(tiny_dataset, 6, replaced=0.5)
    together = rows.training(ALL_ROWS, (1, 3))
    order = np.random.default_rng(0).permutation(24)
    for process in range(3):
        mine = order[process::3]
        part = rows.training(mine, (1, 3))
        assert torch.equal(part.video_ids, together.video_ids[mine])
        assert torch.equal(part.targets, together.targets[mine])
    for other in ((1, 4), (2, 3)):
        assert not torch.equal(rows.training(ALL_ROWS, other).targets, together.targets)
    hidden = rows.hidden(ALL_ROWS, (1, 3))
    assert len(np.unique(hidden, axis=0)) > 3


def test_windows_cover_a_history(tiny_dataset: Dataset) -> None:
    """5 videos in windows of 3, of which two share one."""
    rows = train_data(Bert4RecSettings(**{**SMALL, "max_his": 2, "windows": True}), tiny_dataset)
    assert isinstance(rows, MaskedData) and len(rows) == 48
    batch = rows.training(np.arange(48), (1, 0))
    whole = torch.where(batch.targets > 0, batch.targets, batch.video_ids)
    first, second = whole[::2].tolist(), whole[1::2].tolist()
    assert [a + b[1:] for a, b in zip(first, second, strict=True)] == sequences(tiny_dataset, 9)


# The model.


@BOTH_ENDS
@pytest.mark.parametrize("norm", ["first", "last"])
def test_a_hidden_video_does_not_reach_its_own_place(tiny_dataset: Dataset, norm: str, ends: str) -> None:
    """Nobody sees a video twice: what is found at a mask may depend on every row that is read, and no other."""
    model = made(tiny_dataset, norm=norm, ends=ends)
    batch = train_data(Bert4RecSettings(**SMALL, last_only=0.0), tiny_dataset).training(ALL_ROWS, (1, 0))
    for row in range(24):
        ids, targets = batch.video_ids[row : row + 1], batch.targets[row]
        for place in targets.nonzero().flatten().tolist():
            # The weights keep the norm from cancelling the sum.
            query = model.vectors_at(ids, torch.tensor([place]))[0] @ torch.arange(16.0)
            (gradient,) = torch.autograd.grad(query, model.items.weight)
            assert not bool(gradient[int(targets[place])].any())
            read = set(gradient.any(dim=1).nonzero().flatten().tolist())
            assert read == set(ids[0].tolist()) - {0}


@BOTH_ENDS
def test_a_mask_sees_both_sides(tiny_dataset: Dataset, ends: str) -> None:
    model = made(tiny_dataset, ends=ends)
    ids, place = torch.tensor([[3, 9, 33, 5, 7]]), torch.tensor([2])
    asked = model.vectors_at(ids, place)
    for changed in ([3, 8, 33, 5, 7], [3, 9, 33, 6, 7], [9, 3, 33, 5, 7]):
        assert not torch.allclose(model.vectors_at(torch.tensor([changed]), place), asked, atol=1e-3)


def plain_loss(model: BERT4Rec, ids: Tensor, targets: Tensor) -> Tensor:
    """Place by place, as the paper has it: softmax(GELU(h W + b) E^T + b), with the norm of its authors' code; or
    softmax(h E^T)."""
    states, terms, head = model.states(ids), [], model.head
    for row, place in targets.nonzero().tolist():
        x, bias = states[row, place], torch.zeros(33)
        if head is not None:
            x = F.gelu(x @ head.output.weight.T + head.output.bias)
            x, bias = (x - x.mean()) / (x.var(correction=0) + 1e-8).sqrt(), head.bias
        logits = (model.items.weight[1:33] @ x + bias[1:]).double()
        terms.append(logits.logsumexp(0) - logits[int(targets[row, place]) - 1])
    return torch.stack(terms).mean().float()


@BOTH_ENDS
@pytest.mark.parametrize(
    "options",
    [{}, {"norm": "last", "activation": "relu"}, {"positions": "start"}, {"positions": "none"}],
    ids=str,
)
def test_the_loss_is_that_of_the_paper(tiny_dataset: Dataset, options: dict, ends: str) -> None:
    model = made(tiny_dataset, ends=ends, **options)
    batch = train_data(Bert4RecSettings(**SMALL), tiny_dataset).training(ALL_ROWS, (1, 0))
    expected = plain_loss(model, batch.video_ids, batch.targets)
    torch.testing.assert_close(model(batch)["loss"], expected)


@BOTH_ENDS
def test_neither_padding_nor_the_mask_gets_a_score(tiny_dataset: Dataset, ends: str) -> None:
    model = made(tiny_dataset, ends=ends)
    batch = train_data(Bert4RecSettings(**SMALL), tiny_dataset).training(ALL_ROWS, (1, 0))
    before = model(batch)["loss"]
    with torch.no_grad():
        if model.head is None:
            model.items.weight[0] = 50.0
        else:
            model.head.bias[0] = 50.0
    assert model.item_vectors().shape == (33, 16) and torch.equal(model(batch)["loss"], before)


@torch.no_grad()
def test_products_of_vectors_are_what_the_output_layer_says(tiny_dataset: Dataset) -> None:
    """norm(GELU(h W + b)) E^T + c, its norm with any weights."""
    model = made(tiny_dataset, ends="bert")
    head = model.head
    head.norm.weight.normal_()
    head.norm.bias.normal_()
    ids, places = torch.tensor([[3, 9, 33, 5], [33, 0, 0, 0]]), torch.tensor([2, 0])
    states = model.states(ids)[torch.arange(2), places]
    x = head.norm(F.gelu(states @ head.output.weight.T + head.output.bias))
    wanted = x @ model.items.weight[:33].T + head.bias
    found = model.vectors_at(ids, places) @ model.item_vectors().T
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@BOTH_ENDS
def test_a_mask_behind_the_latest_videos_asks_for_the_next(tiny_dataset: Dataset, ends: str) -> None:
    """Test histories have 6 videos, of which the model reads 4."""
    model = made(tiny_dataset, max_his=4, ends=ends)
    batch = RankData(tiny_dataset, Task.REC, Split.TEST, max_videos=4).evaluation(np.arange(3))
    samples, events = tiny_dataset.samples(Task.REC, Split.TEST), tiny_dataset.video_events
    found = model.user_vectors(batch)
    for row in range(3):
        end = int(samples.video_end[row])
        ids = torch.tensor([[*events.items[end - 4 : end].tolist(), 33]])
        torch.testing.assert_close(model.vectors_at(ids, torch.tensor([4]))[0], found[row])


def test_positions_are_counted_from_where_the_setting_says(tiny_dataset: Dataset) -> None:
    """Of a table of 7: a history of two and a mask have the last three rows, or the first three."""
    for positions, rows in (("end", [4, 5, 6]), ("start", [0, 1, 2])):
        model = made(tiny_dataset, positions=positions)
        read: list[Tensor] = []
        model.blocks[0].register_forward_pre_hook(lambda _, given, read=read: read.append(given[0]))
        model.states(torch.tensor([[5, 33, 9, 0]]))
        wanted = model.input_norm(model.items(torch.tensor([5, 33, 9])) + model.positions.weight[rows])
        torch.testing.assert_close(read[0][0, :3], wanted)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden": 15}, "a multiple of --heads"),
        ({"dropout": 1.0}, "--dropout 1.0"),
        ({"layers": 0}, "--layers 0"),
        ({"mask_probability": 1.5}, "--mask_probability 1.5"),
        ({"last_only": -0.1}, "--last_only -0.1"),
        ({"replaced": 1.1}, "--replaced 1.1"),
        ({"adam_beta2": 1.0}, "--adam_beta2 1.0"),
        ({"neg_video_num": 9}, "--neg_video_num 9: bert4rec learns from the whole catalogue"),
    ],
)
def test_what_does_not_go_together_is_refused(tiny_dataset: Dataset, changes: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build(Bert4RecSettings(**{**SMALL, **changes}), tiny_dataset)


# Directions.


class Planted(BERT4Rec):
    """Of 9 videos, in a row 1 .. 9: a mask behind v wants v + 1, then v + 2; in front of v, v - 1, then v - 2."""

    def __init__(self, max_his: int) -> None:
        super().__init__(9, max_his, **Bert4RecSettings(hidden=4, heads=1, layers=1).shape())
        self.read: list[list[int]] = []

    def item_vectors(self) -> Tensor:
        return torch.eye(10)

    def vectors_at(self, ids: Tensor, places: Tensor) -> Tensor:
        assert not self.training and ids[0, int(places[0])] == self.mask
        self.read.append(ids[0].tolist())
        scores = torch.zeros(1, 10)
        scores[0, 0] = 9.0  # padding must not win
        line = ids[0].tolist()
        if len(line) > 1:
            beside, sign = (line[1], -1) if int(places[0]) == 0 else (line[-2], 1)
            for step in (1, 2, 3):
                if 1 <= beside + sign * step <= 9:
                    scores[0, beside + sign * step] = 4.0 - step
        else:
            scores[0, 5] = 1.0
        return scores


class Stubborn(Planted):
    """It wants the video of the largest number, whatever it reads."""

    def vectors_at(self, ids: Tensor, places: Tensor) -> Tensor:
        return torch.arange(10.0)[None]


def test_after_and_before_and_in_turn() -> None:
    after = complete(Planted(9), [3, 5], 3, "post")
    assert (after.before, after.history, after.after) == ((), (3, 5), (6, 7, 8))
    before = complete(Planted(9), [5, 7], 3, "pre")
    assert (before.before, before.after) == ((2, 3, 4), ())
    assert before.sequence == (2, 3, 4, 5, 7)
    both = complete(Planted(9), [4, 5], 5, "both")
    assert (both.before, both.after) == ((2, 3), (6, 7, 8))
    assert both.sequence == (2, 3, 4, 5, 6, 7, 8)


def test_no_video_stands_there_twice() -> None:
    """6 is in the history, so 7 comes; at the end of the row the best of what is left; then there is none."""
    assert complete(Planted(9), [6, 5], 2, "post").after == (7, 8)
    assert complete(Planted(9), [5, 6], 2, "both").sequence == (4, 5, 6, 7)
    assert complete(Stubborn(9), [8], 4, "both").sequence == (5, 7, 8, 9, 6)
    assert complete(Stubborn(9), [8, 3], 3, "post").after == (9, 7, 6)
    every = complete(Planted(9), [8], 8, "both").sequence
    assert sorted(every) == list(range(1, 10))
    assert complete(Planted(9), [], 2, "post").after == (5, 6)
    with pytest.raises(UserError, match="9 videos cannot be filled in: 8 are not in the history"):
        complete(Planted(9), [8], 9, "both")
    for wrong in (0, 10):
        with pytest.raises(UserError, match="indices from 1 to 9"):
            complete(Planted(9), [3, wrong], 1)


def test_the_window_slides_with_the_end_that_grows() -> None:
    model = Planted(2).train()
    complete(model, [1, 2, 3], 2, "post")
    assert model.read == [[2, 3, 10], [3, 4, 10]] and model.training
    model = Planted(2)
    complete(model, [7, 8, 9], 2, "pre")
    assert model.read == [[10, 7, 8], [10, 6, 7]]
    model = Planted(2)
    complete(model, [4, 5, 6], 3, "both")
    assert model.read == [[5, 6, 10], [10, 4, 5], [6, 7, 10]]


# All of it.

RING, PEOPLE = 24, 240


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Films 100 .. 123 in a ring: people begin with any film at some time and go on film by film, 4 to 16 of them."""
    folder = tmp_path_factory.mktemp("ring")
    draw, ratings = np.random.default_rng(0), []
    for person in range(PEOPLE):
        first, hour, count = (int(draw.integers(*bounds)) for bounds in ((0, RING), (0, 12), (4, 17)))
        for step in range(count):
            ratings.append((person, 100 + (first + step) % RING, 5.0, 1_000_000 + 3600 * (hour + step)))
    movies = [(100 + film, f"film {film}", "Drama") for film in range(RING)]
    raw = write_movielens(folder / "raw", ratings, movies, [])
    return prepare(PrepareSettings(source="movielens", raw=str(raw), out=str(folder / "data")))


@pytest.fixture(scope="module")
def learned(ring: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run: what comes next is certain, and so is what came before."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("bert4rec") / "run"
    settings = Bert4RecSettings(
        data_path=str(ring),
        output_dir=str(out),
        report_to="none",
        learning_rate=0.003,
        num_train_epochs=120,
        evaluation_strategy="steps",
        eval_steps=120,
        per_device_train_batch_size=32,
        **{**SMALL, "max_his": 8, "hidden": 32, "inner": 64},
    )
    run("bert4rec", settings)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return out


def test_it_learns_what_comes_next(learned: Path) -> None:
    figures = json.loads((learned / "metrics.json").read_text())["protocols"]["full"]["metrics"]
    assert figures["recall@1"]["value"] > 0.9


def test_it_learns_both_ways(learned: Path, ring: Path) -> None:
    """From wherever in the ring: two more films in front of three, or behind them, or one at either end."""
    model = restore(learned / "best", open_dataset(ring))[0].model
    right = {"pre": 0, "post": 0, "both": 0}
    for start in range(RING):
        line = tuple((start + step) % RING + 1 for step in range(7))
        right["pre"] += complete(model, line[2:5], 2, "pre").before == line[:2]
        right["post"] += complete(model, line[2:5], 2, "post").after == line[5:]
        right["both"] += complete(model, line[2:5], 2, "both").sequence == line[1:6]
    assert min(right.values()) > 18, right  # of 24, where chance finds one in 500


def asked(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict:
    capsys.readouterr()
    assert cli.main(["complete", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_command_speaks_in_ids_and_titles(
    learned: Path, ring: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Raw ids run from 100 and indices from 1."""
    model = restore(learned / "best", open_dataset(ring))[0].model
    words = [
        str(learned),
        "--data",
        str(ring),
        "--history",
        "104 105, 106",
        "--direction",
        "both",
        "--n",
        "3",
    ]
    report = asked(words, capsys)
    made_here = complete(model, [5, 6, 7], 3, "both")
    for name in ("before", "history", "after"):
        assert [video["id"] - 99 for video in report[name]] == list(getattr(made_here, name))
    assert [len(report[name]) for name in ("before", "history", "after")] == [1, 3, 2]
    assert report["history"][1] == {"id": 105, "title": "film 5"} and report["unknown"] == []
    assert cli.main(["complete", *words]) == 0
    told = capsys.readouterr().out
    assert all(part in told for part in ("-1", "history", "+1", "+2", "film 5"))
    for video in [*report["before"], *report["after"]]:
        assert video["title"] in told


def test_the_command_tells_what_it_does_not_know(
    learned: Path, ring: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = [str(learned), "--data", str(ring), "--history"]
    report = asked([*start, "104 400 105 none"], capsys)
    assert report["unknown"] == ["400", "none"] and [v["id"] for v in report["history"]] == [104, 105]
    assert (len(report["before"]), len(report["after"])) == (0, 5)
    for words, part in (
        ([*start, "400"], "holds none of the videos"),
        ([*start, "104", "--n", "24"], "23 are not in the history"),
        ([*start, "104", "--n", "0"], "--n 0 must be above 0"),
        ([str(learned)], "needs --data and --history"),
    ):
        assert cli.main(["complete", *words]) == 2
        assert part in capsys.readouterr().err


@pytest.mark.usefixtures("fresh_accelerator")
def test_the_command_needs_a_model_that_looks_both_ways(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "popularity", f"--data_path={tiny_data}", f"--output_dir={tmp_path}"]) == 0
    assert cli.main(["complete", str(tmp_path), f"--data={tiny_data}", "--history=4"]) == 2
    assert "holds popularity, which looks back only" in capsys.readouterr().err
