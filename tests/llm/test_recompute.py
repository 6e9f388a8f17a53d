"""Computing activations again: the same gradients from less memory."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM

from lsvcr.llm.families import backbone
from lsvcr.llm.lora import add_lora
from lsvcr.llm.recompute import _Recorder, enable_checkpointing

FAMILIES = ["qwen2", "qwen3", "llama", "glm", "glm4"]


def llm_of(family: str, dtype: torch.dtype, dropout: float) -> nn.Module:
    config = AutoConfig.for_model(
        family,
        vocab_size=50,
        hidden_size=32,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=0,
    )
    torch.manual_seed(2)
    adapted = add_lora(AutoModelForCausalLM.from_config(config, dtype=dtype), 4, 8, dropout)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return adapted.train()


def loss_of(llm: nn.Module) -> Tensor:
    """Of 4 sequences of 60 tokens; draws the same dropout each time."""
    torch.manual_seed(3)
    ids = torch.arange(240).view(4, 60) * 7 % 50
    return backbone(llm)(input_ids=ids, use_cache=False).last_hidden_state.float().square().mean()


def gradients(llm: nn.Module) -> dict[str, Tensor]:
    llm.zero_grad()
    loss_of(llm).backward()
    return {name: p.grad for name, p in llm.named_parameters() if p.grad is not None}


def bytes_kept(llm: nn.Module) -> int:
    """Allocated in a forward pass and still there after it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss = loss_of(llm)
    assert loss.requires_grad
    return sum(event.self_cpu_memory_usage for event in profiler.key_averages())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("dtype", "dropout"), [(torch.float32, 0.0), (torch.float32, 0.3), (torch.bfloat16, 0.3)]
)
def test_gradients_are_equal_bit_for_bit(family: str, dtype: torch.dtype, dropout: float) -> None:
    llm = llm_of(family, dtype, dropout)
    expected = gradients(llm)
    enable_checkpointing(llm, "selective")
    found = gradients(llm)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name
        assert gradient.any(), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_selective_keeps_far_less_than_everything(family: str, dropout: float) -> None:
    llm = llm_of(family, torch.float32, dropout)
    kept = bytes_kept(llm)
    enable_checkpointing(llm, "selective")
    selective = bytes_kept(llm)
    enable_checkpointing(llm, "full")
    full = bytes_kept(llm)
    assert full < selective < 0.7 * kept


def recorded(function, *inputs: Tensor) -> list[Tensor]:
    """Gradients of the inputs through `function`, recorded."""
    with _Recorder():
        result = function(*inputs)
    return list(torch.autograd.grad(result.sum(), inputs))


def plain(function, *inputs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(function(*inputs).sum(), inputs))


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape).requires_grad_()


def test_views_of_a_result_are_rebuilt_as_views() -> None:
    def cut(x: Tensor) -> Tensor:
        active = F.silu(x)
        return (active[1:, ::2].T ** 3).exp() @ active[0, 1::2, None].sin()

    x = leaf(4, 6)
    for found, expected in zip(recorded(cut, x), plain(cut, x), strict=True):
        assert torch.equal(found, expected)


def test_a_result_changed_in_place_is_kept_as_it_is() -> None:
    def change(x: Tensor) -> Tensor:
        active = F.silu(x) * 1.5
        active.add_(1)
        return active.sin() * F.relu(x, inplace=False)

    x = leaf(5)
    for found, expected in zip(recorded(change, x), plain(change, x), strict=True):
        assert torch.equal(found, expected)


def test_an_activation_in_place_is_not_repeated() -> None:
    def act(x: Tensor) -> Tensor:
        y = x + 1
        return F.relu(y, inplace=True).sin()

    x = leaf(5)
    for found, expected in zip(recorded(act, x), plain(act, x), strict=True):
        assert torch.equal(found, expected)


def test_an_ingredient_changed_before_the_backward_pass_is_refused() -> None:
    x = leaf(5)
    with _Recorder():
        y = x + 1
        result = F.silu(y).sin()
    with torch.no_grad():
        y.add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        result.sum().backward()


def test_the_backward_pass_can_be_taken_twice() -> None:
    x = leaf(5)
    with _Recorder():
        result = (F.silu(x) * x).sin().sum()
    first, second = (torch.autograd.grad(result, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_in_evaluation_nothing_is_recorded(monkeypatch) -> None:
    llm = llm_of("llama", torch.float32, 0.0)
    enable_checkpointing(llm, "selective")
    entered = []
    monkeypatch.setattr(_Recorder, "__enter__", lambda self: entered.append(self))
    monkeypatch.setattr(_Recorder, "__exit__", lambda self, *error: None)
    loss_of(llm.eval())
    assert not entered
    loss_of(llm.train())
    assert len(entered) == 3
