"""LoRA as one operation gives what peft's own layer gives."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as PeftLinear
from torch import nn

from lsvcr.llm.loading import TINY, load_llm
from lsvcr.llm.lora import add_lora, load_adapter, save_adapter
from lsvcr.llm.lora_linear import LoraLinear, fuse_lora
from lsvcr.nn.dropout import Dropout


class Pair(nn.Module):
    """Two projections, with a bias and without one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 5, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., 6) -> (..., 5)."""
        return self.second(self.first(x).tanh())


def both(dropout=0.0, dtype=torch.float32):
    """The same small model with peft's layers and with ours."""
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["first", "second"], lora_dropout=dropout)
    config.init_lora_weights = False
    theirs = get_peft_model(Pair().to(dtype), config, autocast_adapter_dtype=False)
    for layer in theirs.modules():
        for name, drop in getattr(layer, "lora_dropout", {}).items():
            if isinstance(drop, nn.Dropout):
                layer.lora_dropout[name] = Dropout(drop.p)
    ours = copy.deepcopy(theirs)
    fuse_lora(ours)
    assert sum(type(layer) is LoraLinear for layer in ours.modules()) == 2
    return theirs, ours


def run(model, x):
    """Output and the gradients of the input and of every adapter."""
    torch.manual_seed(7)
    x = x.clone().requires_grad_()
    out = model(x)
    out.square().sum().backward()
    return [out.detach(), x.grad, *(p.grad for p in model.parameters() if p.requires_grad)]


@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6)])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_outputs_and_gradients_are_pefts(shape, dropout):
    theirs, ours = (model.train().double() for model in both(dropout))
    x = torch.randn(shape, dtype=torch.float64)
    for expected, found in zip(run(theirs, x), run(ours, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_dropout_changes_the_training_output_alone():
    _, ours = both(dropout=0.4)
    x = torch.randn(4, 6)
    assert not torch.equal(run(ours.train(), x)[0], run(ours.eval(), x)[0])


def test_an_adapter_switched_off_or_merged_is_left_to_peft():
    theirs, ours = both()
    x = torch.randn(4, 6)
    with theirs.disable_adapter(), ours.disable_adapter():
        assert torch.equal(ours(x), theirs(x))
    adapted = ours(x)
    torch.testing.assert_close(ours.merge_and_unload()(x), adapted, rtol=1e-5, atol=1e-6)


def test_another_dtype_of_the_input_is_left_to_peft():
    theirs, ours = both(dtype=torch.bfloat16)
    x = torch.randn(4, 6).bfloat16()
    torch.testing.assert_close(ours(x), theirs(x), rtol=0.05, atol=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ours(x), theirs(x))


def test_two_adapters_are_left_to_peft():
    theirs, ours = both()
    for model in (theirs, ours):
        torch.manual_seed(1)
        model.add_adapter(
            "second_one",
            LoraConfig(r=2, target_modules=["first", "second"], init_lora_weights=False),
        )
        model.base_model.set_adapter(["default", "second_one"])
    x = torch.randn(4, 6)
    assert torch.equal(ours(x), theirs(x))


def test_new_and_loaded_adapters_are_computed_so(tmp_path):
    model = add_lora(load_llm(TINY)[0], r=2, alpha=4, dropout=0.1)
    save_adapter(model, tmp_path)
    for adapted in (model, load_adapter(load_llm(TINY)[0], tmp_path)):
        kinds = {type(layer) for layer in adapted.modules() if isinstance(layer, PeftLinear)}
        assert kinds == {LoraLinear}
