"""LoRA adapters: where they sit, that a saved one comes back exactly, and whose they are."""

import json
import logging

import pytest
import torch
import torch.nn as nn
from safetensors.torch import load_file, save_file

from lsvcr.llm import lora
from lsvcr.llm.families import backbone
from lsvcr.llm.loading import TINY, load_llm, output_head
from lsvcr.llm.lora import adapter_tensors, add_lora, delta_norm, load_adapter, save_adapter
from lsvcr.utils.errors import UserError

IDS = torch.tensor([[5, 6, 7, 8]])


def fresh(dtype=torch.float32, layers=0):
    return load_llm(TINY, dtype=dtype, llm_layers=layers)[0]


def trained(dtype=torch.float32, layers=0):
    """A model whose adapters differ from zero."""
    torch.manual_seed(0)
    model = add_lora(fresh(dtype, layers), r=4, alpha=32, dropout=0.1).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def states(model):
    with torch.no_grad():
        return backbone(model)(input_ids=IDS).last_hidden_state


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_sit_on_every_projection_in_the_models_dtype(dtype):
    model = add_lora(fresh(dtype), r=4, alpha=32, dropout=0.1)
    learnt = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(learnt) == 2 * 7 * 2  # layers, projections, A and B
    assert all("lora_" in name and "lm_head" not in name for name in learnt)
    assert {parameter.dtype for parameter in learnt.values()} == {dtype}
    assert delta_norm(model) == 0.0
    assert torch.equal(states(model.eval()), states(fresh(dtype)))


def test_gradient_reaches_every_adapter_through_backbone_and_head():
    model = trained()
    output_head(model)(backbone(model)(input_ids=IDS).last_hidden_state).logsumexp(-1).sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == ("lora_" in name), name
        if parameter.grad is not None:
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(("dtype", "layers"), [(torch.float32, 0), (torch.bfloat16, 0), (torch.float32, 1)])
def test_round_trip_is_exact(tmp_path, dtype, layers):
    model = trained(dtype, layers)
    save_adapter(model, tmp_path)
    again = load_adapter(fresh(dtype, layers), tmp_path).eval()
    assert torch.equal(states(again), states(model))
    assert not torch.equal(states(again), states(fresh(dtype, layers)))
    assert delta_norm(again) == delta_norm(model) > 0
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert {path.name for path in tmp_path.iterdir()} == {lora.CONFIG_FILE, lora.WEIGHTS_FILE}
    assert json.loads((tmp_path / lora.CONFIG_FILE).read_text())["base_model_name_or_path"] == TINY


def test_a_loaded_adapter_can_go_on_training(tmp_path):
    model = trained()
    save_adapter(model, tmp_path)
    again = load_adapter(fresh(), tmp_path, trainable=True)
    wanted = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in again.named_parameters() if parameter.requires_grad} == wanted
    assert again.peft_config["default"].lora_dropout == 0.1


@pytest.mark.parametrize(("saved_layers", "base_layers"), [(1, 0), (0, 1)])
def test_an_adapter_of_another_number_of_layers_is_refused(tmp_path, saved_layers, base_layers):
    save_adapter(trained(layers=saved_layers), tmp_path)
    base = fresh(layers=base_layers)
    with pytest.raises(UserError, match="another LLM.*llm_layers"):
        load_adapter(base, tmp_path)
    assert not any("lora" in name for name, _ in base.named_modules())


def test_an_adapter_of_another_shape_or_family_is_refused(tmp_path):
    save_adapter(trained(), tmp_path)
    weights = load_file(tmp_path / lora.WEIGHTS_FILE)
    widened = {name: value.repeat(1, 2) if "lora_A" in name else value for name, value in weights.items()}
    save_file(widened, tmp_path / lora.WEIGHTS_FILE)
    with pytest.raises(UserError, match=r"14 of another shape .*\(4, 128\), wanted \(4, 64\)"):
        load_adapter(fresh(), tmp_path)
    config = json.loads((tmp_path / lora.CONFIG_FILE).read_text())
    config["target_modules"] = ["query_key_value"]
    (tmp_path / lora.CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(UserError, match="does not fit this LLM"):
        load_adapter(fresh(), tmp_path)


def test_an_adapter_of_a_model_of_the_same_shape_is_told(tmp_path, caplog, monkeypatch):
    """Names may differ for the same weights, a folder moved for instance, so this is no error."""
    monkeypatch.setattr(logging.getLogger("lsvcr"), "propagate", True)
    save_adapter(trained(), tmp_path)
    load_adapter(fresh(), tmp_path)
    assert caplog.text == ""
    other = fresh()
    other.name_or_path = "another/model"
    load_adapter(other, tmp_path)
    assert f"was trained on {TINY!r}, not on 'another/model'" in caplog.text


def test_a_folder_without_adapter_and_a_damaged_one(tmp_path):
    with pytest.raises(UserError, match="no adapter_config.json"):
        load_adapter(fresh(), tmp_path)
    save_adapter(trained(), tmp_path)
    data = (tmp_path / lora.WEIGHTS_FILE).read_bytes()
    (tmp_path / lora.WEIGHTS_FILE).write_bytes(data[:-10])
    with pytest.raises(UserError, match="damaged"):
        load_adapter(fresh(), tmp_path)


def test_saving_proves_itself(tmp_path, monkeypatch):
    model = trained()
    written = lora._read
    monkeypatch.setattr(
        lora, "_read", lambda folder: {name: value + 1 for name, value in written(folder).items()}
    )
    with pytest.raises(UserError, match="not written whole"):
        save_adapter(model, tmp_path)


def test_a_broken_adapter_is_not_saved(tmp_path):
    model = trained()
    next(parameter for parameter in model.parameters() if parameter.requires_grad).data[0, 0] = float("nan")
    with pytest.raises(UserError, match="NaN"):
        save_adapter(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(("r", "dropout"), [(0, 0.1), (4, 1.0)])
def test_impossible_settings(r, dropout):
    with pytest.raises(UserError, match="--lora_r"):
        add_lora(fresh(), r=r, alpha=32, dropout=dropout)


def test_adapter_tensors_hold_no_base_weights():
    assert all("lora_" in name for name in adapter_tensors(trained()))
