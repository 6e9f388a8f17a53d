"""How alike two sets of vectors of the same samples are, and how well each uses its space."""

import torch
from torch import Tensor


def linear_cka(left: Tensor, right: Tensor) -> float:
    """Linear centred kernel alignment (Kornblith et al. 2019, eq. 4): 0 = unrelated, 1 = equal up to rotation and
    one scale.

    Args:
        left, right: (N, d) and (N, e) vectors of the same N samples; N > 1.

    Returns:
        In [0, 1]; 0 where the vectors of one side are all the same. Unrelated vectors score above 0 where N is not
        much larger than d, so compare figures of one N alone.
    """
    left, right = (side.double() - side.double().mean(dim=0) for side in (left, right))
    shared = (left.T @ right).square().sum()
    own = (left.T @ left).norm() * (right.T @ right).norm()
    return float(shared / own) if float(own) > 0 else 0.0


def uniformity(vectors: Tensor) -> float:
    """How evenly unit vectors lie on the sphere (Wang and Isola 2020, section 4.1.2, t = 2): 0 = all the same, and the
    lower the more even (about -4 for random directions).

    Args:
        vectors: (N, d) of length 1, N > 1.
    """
    distances = torch.pdist(vectors.double()).square()
    return float(distances.mul(-2).exp().mean().log())
