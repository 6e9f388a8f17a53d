"""Frozen parts keep their weights to the bit, cost the optimiser nothing, and are part of what a run is."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lsvcr.training import rank as training
from lsvcr.training.rank import run
from lsvcr.training.rank_freeze import GROUPS, group_of
from lsvcr.training.rank_setup import set_up
from lsvcr.utils.errors import UserError
from tests.training.rank_runs import NARROW, settings, write_planted

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

MODULES = {
    "text": {"head.inner", "head.outer", "sr.adapter"},
    "id": {"sr.video_id", "sr.gate"},
    "encoders": {
        "sr.merge",
        "sr.video_position",
        "sr.comment_position",
        "sr.video_norm",
        "sr.comment_norm",
        "sr.video_encoder",
        "sr.comment_encoder",
        "sr.video_cross",
        "sr.comment_cross",
        "sr.video_join",
        "sr.comment_join",
        "sr.rec_pooling",
        "sr.comm_rank_attention",
    },
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_planted(tmp_path_factory.mktemp("planted"))


def last(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "last" / "sr.safetensors")


def module(name: str) -> str:
    return ".".join(name.split(".")[:2])


def test_every_parameter_is_of_one_group(data: Path, tmp_path: Path) -> None:
    names = [name for name, _ in set_up(settings(data, tmp_path)).model.named_parameters()]
    for group in GROUPS:
        assert {module(name) for name in names if group_of(name) == group} == MODULES[group]
    without_text = set_up(settings(data, tmp_path, disable_text=True)).model
    ids = {module(name) for name, _ in without_text.named_parameters() if group_of(name) == "id"}
    assert ids == {"sr.video_id", "sr.comment_id", "sr.gate"}


@pytest.mark.parametrize("task", ["Rec", "CommRank"])
@pytest.mark.parametrize("freeze", ["text", "id", "encoders", "text,encoders", "id, text", "encoders id"])
def test_frozen_parts_stay_and_the_others_move(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, freeze: str
) -> None:
    """Under a weight decay that would shrink every weight by a fifth."""
    chosen = settings(
        data, tmp_path, finetune_task=task, num_train_epochs=2, freeze=freeze, weight_decay=5.0, dropout=0.1
    )
    before = {name: value.clone() for name, value in set_up(chosen).model.state_dict().items()}
    with_gradient: set[str] = set()
    update = training.Trainer._update

    def spy(self: training.Trainer, step: int) -> None:
        with_gradient.update(n for n, p in self.model.named_parameters() if p.grad is not None)
        update(self, step)

    monkeypatch.setattr(training.Trainer, "_update", spy)
    run(chosen)
    after, frozen = last(tmp_path), freeze.replace(",", " ").split()
    state = {key.split("|")[0] for key in load_file(tmp_path / "last" / "optimizer.safetensors")}
    assert with_gradient == state
    for name in before:
        if name in ("head.center", "head.scale"):
            continue
        if group_of(name) in frozen:
            assert torch.equal(after[name], before[name]), name
            assert name not in with_gradient
        elif name in with_gradient:
            assert not torch.equal(after[name], before[name]), name
    assert {group_of(name) for name in with_gradient} == set(GROUPS) - set(frozen)


class Killed(BaseException):
    """Stands for kill -9: no clean-up of the loop sees it as an error."""


def test_an_interrupted_run_with_frozen_parts_goes_on_exactly(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chosen(out: str, freeze: str = "text,encoders") -> training.RankSettings:
        return settings(data, tmp_path / out, num_train_epochs=3, dropout=0.2, freeze=freeze)

    whole = run(chosen("whole"))
    update = training.Trainer._update

    def stop(self: training.Trainer, step: int) -> None:
        if step == 7:
            raise Killed
        update(self, step)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training.Trainer, "_update", stop)
        run(chosen("cut"))
    with pytest.raises(UserError, match="freeze is 'text' here and 'text,encoders' there"):
        run(chosen("cut", "text"))
    # The same parts in another order are the same run.
    assert run(chosen("cut", "encoders text")) == whole
    both = [last(tmp_path / name) for name in ("cut", "whole")]
    assert all(torch.equal(both[0][name], both[1][name]) for name in both[1])


def test_a_run_of_a_version_without_the_setting_goes_on(data: Path, tmp_path: Path) -> None:
    report = run(settings(data, tmp_path, num_train_epochs=1))
    file = tmp_path / "last" / "manifest.json"
    manifest = json.loads(file.read_text())
    for name in ("freeze", "val_protocol", "start_near_identity", "standardise_texts"):
        del manifest["identity"][name]
    file.write_text(json.dumps(manifest))
    assert run(settings(data, tmp_path, num_train_epochs=1)) == report
    with pytest.raises(UserError, match="freeze is 'id' here and '' there"):
        run(settings(data, tmp_path, num_train_epochs=1, freeze="id"))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"freeze": "text,id,encoders"}, "--freeze text,id,encoders leaves nothing to train"),
        ({"freeze": "encoders,text", "disable_id": True}, "--freeze text,encoders leaves nothing to train"),
        ({"freeze": "encoder"}, "'encoder'; did you mean encoders"),
    ],
)
def test_what_cannot_be_frozen(data: Path, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        set_up(settings(data, tmp_path, **changes))


def test_vectors_that_need_no_head_leave_the_adapter_to_freeze(data: Path, tmp_path: Path) -> None:
    chosen = settings(data, tmp_path, freeze="text", photo_emb_file=NARROW[0], comment_emb_file=NARROW[1])
    frozen = {name for name, p in set_up(chosen).model.named_parameters() if not p.requires_grad}
    assert frozen == {"sr.adapter.weight"}
