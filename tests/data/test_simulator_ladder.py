"""The simulated world is worth learning: whoever knows more of it ranks better, up to the planted truth."""

from pathlib import Path

import numpy as np
import pytest

from lsvcr.data.prepare import prepare
from lsvcr.data.simulation import simulate
from lsvcr.settings import PrepareSettings, SimulateSettings
from tests.data.simulated_readers import LADDER, Readers

SEEDS = (1, 2, 3)
SHUFFLED, ORACLE = "shuffled comments", "oracle"


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Rec NDCG@10 on the test split of each rung in the demo worlds of three seeds, (3,)."""
    found: dict[str, list[float]] = {}
    for seed in SEEDS:
        folder = tmp_path_factory.mktemp(f"world{seed}")
        for name, values in climb(folder, seed).items():
            found.setdefault(name, []).append(float(values.mean()))
    return {name: np.array(values) for name, values in found.items()}


def climb(folder: Path, seed: int) -> dict[str, np.ndarray]:
    raw = simulate(SimulateSettings(out=str(folder / "raw"), seed=seed))
    data = prepare(PrepareSettings(raw=str(raw), out=str(folder / "data")))
    readers = Readers.open(data, raw)
    strangers = Readers.open(data, raw, shuffle=np.random.default_rng(seed))
    return {
        **{name: readers.judge(features) for name, features in LADDER.items()},
        SHUFFLED: strangers.judge(LADDER["ids, texts and comments"]),
        ORACLE: readers.oracle(),
    }


@pytest.mark.parametrize(
    "lower, higher", [*zip(LADDER, list(LADDER)[1:], strict=False), ("ids, texts and comments", ORACLE)]
)
def test_every_rung_is_higher_by_more_than_the_noise_of_seeds(
    ladder: dict[str, np.ndarray], lower: str, higher: str
) -> None:
    gaps = ladder[higher] - ladder[lower]
    assert gaps.min() > 0
    assert gaps.mean() > 3 * gaps.std(ddof=1) / np.sqrt(len(gaps))


def test_comments_of_another_person_give_nothing(ladder: dict[str, np.ndarray]) -> None:
    own = ladder["ids, texts and comments"] - ladder["ids and texts"]
    others = ladder[SHUFFLED] - ladder["ids and texts"]
    assert others.max() < own.min() / 4
    assert abs(others.mean()) < own.mean() / 8
