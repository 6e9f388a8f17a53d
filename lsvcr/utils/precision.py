"""In which precision the LLM computes."""

import torch


def wants_bf16(asked: bool | None) -> bool:
    """What was asked for; left open, bfloat16 where the machine has instructions for it.

    A CPU without them emulates each product: SmolLM2 then takes several times as long as in float32 (docs/log.md).
    """
    if asked is not None:
        return asked
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # an older torch does not say
    return any(present for name, present in known.items() if "bf16" in name)


def compute_dtype(asked: bool | None) -> torch.dtype:
    """`torch.bfloat16` or `torch.float32`, by `wants_bf16`."""
    return torch.bfloat16 if wants_bf16(asked) else torch.float32
