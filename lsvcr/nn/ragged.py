"""Groups of different sizes, flat: one row a member, one number a row that names its group."""

from torch import Tensor


def segment_mean(values: Tensor, segment: Tensor, n_segments: int) -> Tensor:
    """Mean of the rows of each segment.

    Args:
        values: (N, D) floating point.
        segment: (N,) int64 in [0, n_segments); any order, a segment may have no row.
        n_segments: number of segments.

    Returns:
        (n_segments, D) in the dtype of `values`; zeros for a segment without rows. Differentiable.
    """
    sums = values.new_zeros(n_segments, values.shape[-1]).index_add(0, segment, values)
    counts = values.new_zeros(n_segments).index_add(0, segment, values.new_ones(segment.shape[0]))
    return sums / counts.clamp_min(1).unsqueeze(-1)
