"""Checkpoints are whole or absent, and fit or raise."""

import json

import pytest
import torch
from safetensors.torch import save_file

from lsvcr.models.checkpoint import extend_positions, load, load_into, save, under_prefix, with_prefix
from lsvcr.models.sr import SRModel
from lsvcr.utils.errors import UserError

SMALL = {"text_width": 6, "hidden": 8, "inner": 16, "layers": 1, "max_position": 5}


def stage_one() -> SRModel:
    torch.manual_seed(0)
    return SRModel(**SMALL)


def test_round_trip_is_exact(tmp_path):
    model = stage_one()
    save(tmp_path / "run", model.state_dict(), {"model": model.arguments})
    tensors, manifest = load(tmp_path / "run")
    assert manifest == {"model": model.arguments}
    again = SRModel(**manifest["model"])
    assert load_into(again, tensors, source="run") == []
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path):
    model = stage_one()
    save(tmp_path / "run", model.state_dict(), {"step": 1})
    with pytest.raises(TypeError):
        save(tmp_path / "run", model.state_dict(), {"step": object()})
    assert load(tmp_path / "run").manifest == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_every_fault_is_listed_at_once_and_nothing_is_copied():
    model = SRModel(**SMALL, n_videos=4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tensors = with_prefix("", stage_one().state_dict())
    tensors["merge.weight"] = torch.ones(8, 99)
    tensors["old_name"] = torch.ones(3)
    del tensors["merge.bias"]
    with pytest.raises(UserError) as raised:
        load_into(model, tensors, source="ckpt/best")
    text = str(raised.value)
    for part in (
        "ckpt/best does not fit",
        "missing: merge.bias (8,)",
        "missing: video_id.weight (5, 8)",
        "missing: gate (1,)",
        "unexpected: old_name (3,)",
        "wrong shape: merge.weight is (8, 99) there, (8, 16) here",
    ):
        assert part in text
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_named_exceptions_are_allowed_and_reported():
    model, tensors = SRModel(**SMALL, n_videos=4), stage_one().state_dict()
    with_extra = {**tensors, "contrast.weight": torch.ones(2)}
    fresh = load_into(
        model, with_extra, source="x", may_miss=("video_id.*", "gate"), may_ignore=("contrast.*",)
    )
    assert fresh == ["gate", "video_id.weight"]
    assert torch.equal(model.merge.weight, tensors["merge.weight"])
    assert model.gate.item() == 1.0


def test_loading_leaves_the_given_mapping_alone():
    tensors = stage_one().state_dict()
    names, values = list(tensors), [value.clone() for value in tensors.values()]
    load_into(SRModel(**SMALL, n_videos=4), tensors, source="x", may_miss=("video_id.*", "gate"))
    extend_positions(tensors, 9)
    under_prefix("merge.", with_prefix("sr.", tensors))
    assert list(tensors) == names
    assert all(torch.equal(a, b) for a, b in zip(values, tensors.values(), strict=True))


def test_prefixes():
    tensors = {"sr.a": torch.ones(1), "head.sr.b": torch.ones(2)}
    assert list(under_prefix("sr.", tensors)) == ["a"]
    assert list(with_prefix("sr.", under_prefix("sr.", tensors))) == ["sr.a"]


def test_missing_positions_are_the_mean_of_those_present():
    table = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    longer = extend_positions({"sr.video_position.weight": table, "merge.bias": table}, 4)
    assert longer["sr.video_position.weight"].tolist() == [[1, 2], [3, 6], [2, 4], [2, 4]]
    assert longer["merge.bias"] is table
    assert extend_positions({"comment_position.weight": table}, 1)["comment_position.weight"] is table


def test_a_longer_model_takes_a_shorter_checkpoint():
    short, long = stage_one(), SRModel(**{**SMALL, "max_position": 7})
    with pytest.raises(UserError, match="wrong shape: video_position.weight"):
        load_into(long, short.state_dict(), source="x")
    load_into(long, extend_positions(short.state_dict(), 7), source="x")
    assert torch.equal(long.video_position.weight[:5], short.video_position.weight)
    torch.testing.assert_close(long.comment_position.weight[6], short.comment_position.weight.mean(0))


def test_values_take_the_modules_precision():
    model = stage_one().bfloat16()
    load_into(model, stage_one().state_dict(), source="x")
    assert model.merge.weight.dtype == torch.bfloat16
    assert torch.equal(model.merge.weight, stage_one().merge.weight.bfloat16())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_both_ways(tmp_path, bad):
    with pytest.raises(UserError, match="NaN or infinity in b: the run has diverged"):
        save(tmp_path / "run", {"a": torch.ones(2), "b": torch.tensor([1.0, bad])}, {})
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    save_file({"b": torch.tensor([bad])}, tmp_path / "run" / "sr.safetensors")
    (tmp_path / "run" / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"sr\.safetensors holds NaN or infinity in b"):
        load(tmp_path / "run")


def test_broken_folders_are_named(tmp_path):
    with pytest.raises(UserError, match="nowhere is not a checkpoint folder"):
        load(tmp_path / "nowhere")
    save(tmp_path / "run", {"a": torch.ones(2)}, {})
    weights = tmp_path / "run" / "sr.safetensors"
    weights.write_bytes(weights.read_bytes()[:20])
    with pytest.raises(UserError, match=r"sr\.safetensors is damaged"):
        load(tmp_path / "run")
    weights.unlink()
    with pytest.raises(UserError, match=r"not a complete checkpoint: sr\.safetensors missing"):
        load(tmp_path / "run")


def test_tensors_that_share_memory_are_written_apart(tmp_path):
    whole = torch.arange(6.0)
    save(tmp_path / "run", {"a": whole[:3], "b": whole}, json.loads("{}"))
    tensors = load(tmp_path / "run").tensors
    assert tensors["a"].tolist() == [0, 1, 2] and tensors["b"].tolist() == [0, 1, 2, 3, 4, 5]
