"""Activations that are computed anew in the backward pass instead of being kept: less memory, more time.

`full` keeps the input of every layer alone and pays one more forward pass. `selective` repeats only what costs next to
nothing: norms, activation functions, gates, LoRA's dropout. Their results are as large as those of the matrix products
and of attention, which are kept. Korthikanti et al. 2022, section 5, choose the other way round: they repeat
attention, because without a fused kernel it is large.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from lsvcr.llm.families import unwrap
from lsvcr.nn.dropout import drop
from lsvcr.utils.errors import UserError

Recompute = Literal["selective", "full"]

CHEAP = frozenset(
    {
        *(Tensor.to, Tensor.float, Tensor.mean, Tensor.pow, Tensor.rsqrt, torch.rsqrt),
        *(Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.mul),
        *(F.silu, F.gelu, F.relu, F.layer_norm, F.rms_norm, drop),
    }
)
"""Calls that norms, activation functions, gates and dropout are made of. None draws random numbers."""


def enable_checkpointing(llm: nn.Module, recompute: Recompute = "selective") -> None:
    """Recompute activations in the backward pass of both branches.

    Args:
        llm: causal LM or a `PeftModel` around one.
        recompute: what; see the module.

    Raises:
        UserError: the LLM's family cannot.
    """
    model = unwrap(llm)
    options = {"use_reentrant": False}
    try:
        # transformers 5.2x renamed it and drops the older name in version 6.
        if hasattr(model, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
        else:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    except ValueError as error:
        raise UserError(
            f"this LLM cannot recompute activations ({error}): give --gradient_checkpointing False"
        ) from error
    if recompute == "selective":
        for module in model.modules():
            if hasattr(module, "gradient_checkpointing"):
                module._gradient_checkpointing_func = _selective


def _selective(layer: Callable[..., Any], *args: Any) -> Any:
    with _Recorder():
        return layer(*args)


class _Recipe:
    """How to compute a tensor again."""

    def __init__(
        self, function: Callable[..., Tensor], args: Sequence[Any], options: Mapping[str, Any]
    ) -> None:
        self._function, self._args, self._options = function, args, options
        self._versions = self._now()
        self._value: Tensor | None = None
        self.awaited = 0  # how often the backward pass will ask for the value

    def take(self) -> Tensor:
        """The value, for one of those who wait; computed for the first, dropped with the last."""
        value = self.value()
        self.awaited -= 1
        if self.awaited <= 0:
            self._value = None
        return value

    def value(self) -> Tensor:
        """The value, for another recipe."""
        if self._value is not None:
            return self._value
        if self._now() != self._versions:
            raise RuntimeError("a tensor that the backward pass computes with has been changed in place")
        args = [_finished(arg) for arg in self._args]
        value = self._function(*args, **{name: _finished(arg) for name, arg in self._options.items()})
        if self.awaited > 0:
            self._value = value
        return value

    def _now(self) -> list[int]:
        return [arg._version for arg in _tensors(self._args, self._options)]


def _finished(ingredient: Any) -> Any:
    return ingredient.value() if isinstance(ingredient, _Recipe) else ingredient


def _tensors(args: Sequence[Any], options: Mapping[str, Any]) -> list[Tensor]:
    return [arg for arg in (*args, *options.values()) if isinstance(arg, Tensor)]


class _Made(NamedTuple):
    """A result, its version when it was made (changes in place raise it), and its recipe."""

    result: Tensor
    version: int
    recipe: _Recipe


class _Recorder(TorchFunctionMode):
    """Where a result of `CHEAP` would be kept for the backward pass, the recipe for it is kept.

    Works on one layer's forward pass: until its end the results are held here, so that a tensor's storage tells what
    it is. A recipe holds its ingredients, which are kept for the backward pass anyway, or are recipes themselves.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[int, _Made] = {}
        self._hooks = saved_tensors_hooks(self._pack, _unpack)

    def __enter__(self) -> "_Recorder":
        self._hooks.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._hooks.__exit__(*error)
        self._known.clear()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call, and remember how its result was made."""
        options = kwargs or {}
        result = func(*args, **options)
        if func in CHEAP and result.requires_grad and _repeatable(result, _tensors(args, options)):
            recipe = _Recipe(
                func,
                [self._ingredient(arg) for arg in args],
                {name: self._ingredient(arg) for name, arg in options.items()},
            )
            self._known[_storage(result)] = _Made(result.detach(), result._version, recipe)
        return result

    def _ingredient(self, arg: Any) -> Any:
        if not isinstance(arg, Tensor):
            return arg
        made = self._made(arg)
        same = made is not None and (made.result.shape, made.result.stride()) == (arg.shape, arg.stride())
        return made.recipe if made is not None and same else arg.detach()

    def _made(self, tensor: Tensor) -> _Made | None:
        """What `tensor` is or is a view of, if a recipe gives just that."""
        made = self._known.get(_storage(tensor))
        if made is None or made.result._version != made.version or made.result.dtype != tensor.dtype:
            return None
        return made if made.result.is_contiguous() else None

    def _pack(self, tensor: Tensor) -> Any:
        made = self._made(tensor)
        if made is None:
            return tensor
        made.recipe.awaited += 1
        return made.recipe, tensor.shape, tensor.stride(), tensor.storage_offset()


def _repeatable(result: Tensor, ingredients: Sequence[Tensor]) -> bool:
    """Not where the result lies in an ingredient (`to` may return its argument), nor where ZeRO-3 has cut an
    ingredient among the processes: it is whole in the forward pass alone."""
    return not any(hasattr(one, "ds_id") or _storage(one) == _storage(result) for one in ingredients)


def _unpack(packed: Any) -> Tensor:
    if isinstance(packed, Tensor):
        return packed
    recipe, shape, stride, offset = packed
    with torch.no_grad():
        return recipe.take().as_strided(shape, stride, offset)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
