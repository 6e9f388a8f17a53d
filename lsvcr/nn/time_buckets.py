"""Time differences as bucket numbers: minutes on a square-root or logarithmic scale."""

from typing import Literal

import torch
from torch import Tensor

Scale = Literal["sqrt", "log"]

PADDING_BUCKET = 0
"""Of positions without an event. No difference falls into it, so that padding and "just now" are told apart."""

_MINUTE = 60_000
_LOG_STEP = 0.301
"""Width of a logarithmic bucket: 3.3 a factor of e, as HSTU has it (Zhai et al. 2024, published code)."""


def time_buckets(then: Tensor, now: Tensor, real: Tensor, scale: Scale, buckets: int) -> Tensor:
    """Bucket of the time from an event to its query.

    With m the minutes between them, which is at least 0: `sqrt` is 1 + floor(sqrt(m)), so that 2,048 buckets reach 8
    years; `log` is 1 + floor(ln(1 + m) / 0.301), of which 53 reach 15 years. What lies beyond has the last bucket.

    Args:
        then: int64 Unix milliseconds of events, any shape.
        now: the same of their queries.
        real: bool, False where there is no event.
        scale: of the buckets.
        buckets: K, the padding bucket not counted.

    Returns:
        int64 from 1 to K, `PADDING_BUCKET` where nothing is real.
    """
    minutes = (now - then).clamp(min=0).double() / _MINUTE
    place = minutes.sqrt() if scale == "sqrt" else minutes.log1p() / _LOG_STEP
    return torch.where(real, 1 + place.long().clamp(max=buckets - 1), PADDING_BUCKET)
