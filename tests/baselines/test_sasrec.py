"""SASRec: its losses by hand, its options, what it refuses, and that it learns what can be learned."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from lsvcr.baselines.sasrec import SASRec, SasrecSettings, build
from lsvcr.data.rank_sequences import SequenceBatch, SequenceData
from lsvcr.data.store import Dataset
from lsvcr.losses.ranking import gbce_beta
from lsvcr.losses.scores import binary_of_scores
from lsvcr.training.baseline import run
from lsvcr.utils.errors import UserError
from tests.guards.source import ROOT
from tests.ports import free_port

SMALL = {"max_his": 6, "hidden": 16, "inner": 16, "heads": 2, "dropout": 0.0, "attention_dropout": 0.0}


def made(dataset: Dataset, **changes: object) -> tuple[SASRec, SequenceBatch]:
    """A model with weights of size 1 and a batch of all sequences."""
    settings = SasrecSettings(**{**SMALL, **changes})
    torch.manual_seed(0)
    model = build(settings, dataset)
    with torch.no_grad():
        model.items.weight[1:].normal_()
    rows = SequenceData(dataset, settings.max_his, share=settings.share_negatives)
    return model, rows.training(np.arange(6), (1, 0), settings.neg_video_num)


def plain_loss(
    model: SASRec, batch: SequenceBatch, loss: str, beta: float = 1.0, offset: float = 0.0
) -> Tensor:
    """Position by position, as the papers have it, with `offset` added to all scores."""
    states = model.states(batch.video_ids)
    scored = F.normalize(states, dim=-1) if model.cosine else states
    table = F.normalize(model.items.weight, dim=-1) if model.cosine else model.items.weight
    terms = []
    for row, step in (batch.targets > 0).nonzero().tolist():
        scores = (table @ scored[row, step] / model.temperature).double() + offset
        target = int(batch.targets[row, step])
        if batch.negatives.numel() == 0:
            terms.append(scores[1:].logsumexp(0) - scores[target])
            continue
        drawn = {1: lambda: batch.negatives, 2: lambda r=row: batch.negatives[r]}.get(
            batch.negatives.dim(), lambda r=row, s=step: batch.negatives[r, s]
        )()
        others = torch.stack([scores[int(j)] for j in drawn if int(j) != target])
        if loss == "softmax":
            terms.append(torch.cat([scores[target : target + 1], others]).logsumexp(0) - scores[target])
        else:
            yes, no = scores[target].sigmoid().log(), (1 - others.sigmoid()).log()
            terms.append(-(beta * yes + no.sum()) / (1 + len(others)))
    return torch.stack(terms).mean().float()


@pytest.mark.parametrize("share", ["position", "sequence", "batch"])
@pytest.mark.parametrize("base_rate", [True, False])
@pytest.mark.parametrize("loss", ["softmax", "bce", "gbce"])
def test_sampled_losses_are_those_of_the_papers(
    tiny_dataset: Dataset, loss: str, base_rate: bool, share: str
) -> None:
    """12 draws of 32 videos: some are targets."""
    changes = {"loss": loss, "share_negatives": share, "base_rate": base_rate}
    model, batch = made(tiny_dataset, neg_video_num=12, **changes)
    beta = gbce_beta(12, 32, 0.75) if loss == "gbce" else 1.0
    assert beta == 1.0 or 0.4 < beta < 0.6
    offset = math.log(beta / 12) if base_rate else 0.0  # which softmax does not see
    expected = plain_loss(model, batch, loss, beta, offset)
    torch.testing.assert_close(model.training_loss(batch)["loss"], expected)


@pytest.mark.parametrize("loss", ["bce", "gbce"])
def test_scores_of_0_are_right_about_how_rare_targets_are(tiny_dataset: Dataset, loss: str) -> None:
    """Then no other constant, added to all scores, has a lower loss."""
    model = made(tiny_dataset, loss=loss, neg_video_num=9)[0]
    own, others = torch.zeros(1), torch.zeros(1, 9)
    offset = torch.tensor(model.offset, requires_grad=True)
    binary_of_scores(own + offset, others + offset, None, model.beta).backward()
    assert model.offset < -2 and offset.grad is not None and abs(offset.grad.item()) < 1e-6
    # The original has one negative for one target: nothing is added.
    assert made(tiny_dataset, loss="bce", neg_video_num=1)[0].offset == 0.0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"score": "cosine", "temperature": 0.07},
        {"norm": "last", "activation": "gelu"},
        {"positions": "start"},
        {"positions": "none", "scale_items": False},
    ],
    ids=str,
)
def test_the_whole_softmax_with_every_option(tiny_dataset: Dataset, options: dict) -> None:
    model, batch = made(tiny_dataset, **options)
    torch.testing.assert_close(model.training_loss(batch)["loss"], plain_loss(model, batch, "softmax"))


@pytest.mark.parametrize("positions", ["end", "start", "none"])
@pytest.mark.parametrize("norm", ["first", "last"])
def test_no_position_sees_a_later_one_or_padding(tiny_dataset: Dataset, norm: str, positions: str) -> None:
    model, batch = made(tiny_dataset, norm=norm, positions=positions)
    ids = batch.video_ids.clone()
    before = model.states(ids)
    ids[:, 2:] = ids[:, 2:].flip(0) % 32 + 1
    torch.testing.assert_close(model.states(ids)[:, :2], before[:, :2])
    assert not torch.allclose(model.states(ids)[:, 2:], before[:, 2:])


def test_positions_are_counted_from_where_the_setting_says(tiny_dataset: Dataset) -> None:
    """Of a table of 6: a history of two has the last two rows, or the first two."""
    short = torch.tensor([[5, 9, 0]])
    for positions, rows in (("end", [4, 5]), ("start", [0, 1])):
        model, _ = made(tiny_dataset, positions=positions)
        read: list[Tensor] = []
        model.blocks[0].register_forward_pre_hook(lambda _, given, read=read: read.append(given[0]))
        model.states(short)
        wanted = model.items(short[0, :2]) * 4 + model.positions.weight[rows]
        torch.testing.assert_close(read[0][0, :2], wanted)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": "bce"}, "--neg_video_num, such as 1"),
        ({"loss": "gbce"}, "--neg_video_num, such as 256"),
        ({"loss": "gbce", "neg_video_num": 32}, "31 negatives"),
        ({"hidden": 15}, "a multiple of --heads"),
        ({"dropout": 1.0}, "--dropout 1.0"),
        ({"temperature": 0.0}, "--temperature 0.0"),
        ({"gbce_t": 1.5}, "--gbce_t 1.5"),
    ],
)
def test_what_does_not_go_together_is_refused(tiny_dataset: Dataset, changes: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build(SasrecSettings(**{**SMALL, **changes}), tiny_dataset)


def flags(data: Path, out: Path, **changes: object) -> list[str]:
    named = {**SMALL, "layers": 1, "learning_rate": 0.01, "report_to": "none", **changes}
    return [f"--{name}={value}" for name, value in {"data_path": data, "output_dir": out, **named}.items()]


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize("options", [{}, {"neg_video_num": 20}], ids=str)
def test_it_learns_whose_topic_is_whose(tiny_data: Path, tmp_path: Path, options: dict) -> None:
    """People go through the 8 videos of their topic in steps of 3: the next one is certain."""
    named = {**SMALL, "learning_rate": 0.01, "num_train_epochs": 40, "per_device_train_batch_size": 8}
    settings = SasrecSettings(
        data_path=str(tiny_data), output_dir=str(tmp_path), report_to="none", **named, **options
    )
    report = run("sasrec", settings)
    assert report["protocols"]["full"]["metrics"]["recall@5"]["value"] > 0.9


@pytest.mark.usefixtures("fresh_accelerator")
def test_a_run_cut_between_epochs_ends_as_one_that_was_not(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout and drawn negatives."""
    from lsvcr.training import rank

    def settings(name: str) -> SasrecSettings:
        named = {**SMALL, "dropout": 0.2, "neg_video_num": 5, "per_device_train_batch_size": 7}
        return SasrecSettings(
            data_path=str(tiny_data),
            output_dir=str(tmp_path / name),
            num_train_epochs=4,
            report_to="none",
            **named,
        )

    whole = run("sasrec", settings("whole"))
    close = rank.Trainer._close_epoch

    def stop(self: rank.Trainer, state: rank.Progress, *rest: object) -> None:
        close(self, state, *rest)
        if state.epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(rank.Trainer, "_close_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        run("sasrec", settings("cut"))
    monkeypatch.undo()
    assert run("sasrec", settings("cut")) == whole
    one, two = (load_file(tmp_path / name / "last" / "sr.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.slow
def test_two_processes_train_as_one_that_accumulates_twice(tiny_data: Path, tmp_path: Path) -> None:
    """24 sequences in steps of twice 6, with negatives of each position; started as a user starts them."""
    command = [sys.executable, "-m", "lsvcr", "train", "sasrec"]
    common = {"neg_video_num": 4, "loss": "bce", "per_device_train_batch_size": 6, "num_train_epochs": 3}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    alone = flags(tiny_data, tmp_path / "one", gradient_accumulation_steps=2, **common)
    subprocess.run([*command, *alone], check=True, cwd=ROOT, env=environment, capture_output=True)
    port = str(free_port())
    both = flags(tiny_data, tmp_path / "two", **common)
    started = []
    for number in range(2):
        own = {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        started.append(
            subprocess.Popen(
                [*command, *both],
                cwd=ROOT,
                env={**environment, **own, **where},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
    assert [process.wait(timeout=240) for process in started] == [0, 0]
    one, two = (load_file(tmp_path / name / "last" / "sr.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=2e-3, msg=lambda m, n=name: f"{n}: {m}")
