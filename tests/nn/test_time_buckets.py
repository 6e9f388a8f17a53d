"""Time buckets by hand, at their edges and for padding."""

import pytest
import torch

from lsvcr.nn.time_buckets import PADDING_BUCKET, Scale, time_buckets

MINUTE, DAY, YEAR = 60_000, 86_400_000, 31_557_600_000


def bucket(milliseconds: int, scale: Scale = "sqrt", buckets: int = 2048) -> int:
    then = torch.tensor(1_600_000_000_000)
    return int(time_buckets(then, then + milliseconds, torch.tensor(True), scale, buckets))


@pytest.mark.parametrize(
    ("milliseconds", "expected"),
    [
        (0, 1),
        (MINUTE - 1, 1),
        (MINUTE, 2),
        (4 * MINUTE - 1, 2),
        (4 * MINUTE, 3),
        (DAY, 1 + 37),  # 1,440 minutes, whose root is 37.9
        (7 * YEAR, 1 + 1918),
        (9 * YEAR, 2048),
        (-DAY, 1),
    ],
)
def test_square_roots_of_minutes(milliseconds: int, expected: int) -> None:
    assert bucket(milliseconds) == expected


@pytest.mark.parametrize(
    ("milliseconds", "expected"),
    [(0, 1), (MINUTE, 3), (DAY, 1 + 24), (15 * YEAR, 1 + 52)],  # ln 2 / .301 = 2.3, ln 1,441 / .301 = 24.2
)
def test_logarithms_of_minutes(milliseconds: int, expected: int) -> None:
    assert bucket(milliseconds, "log") == expected


def test_the_last_bucket_takes_what_lies_beyond() -> None:
    assert bucket(DAY, buckets=8) == 8 and bucket(MINUTE, buckets=8) == 2


def test_padding_has_a_bucket_of_its_own() -> None:
    then, now = torch.tensor([[5, 0]]), torch.tensor([[5, 0]])
    found = time_buckets(then, now, torch.tensor([[True, False]]), "sqrt", 10)
    assert found.tolist() == [[1, PADDING_BUCKET]]
