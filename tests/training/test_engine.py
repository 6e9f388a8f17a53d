"""DeepSpeed configurations and learning-rate schedules."""

import json
from pathlib import Path

import pytest

from lsvcr.training.engine import read_config
from lsvcr.training.engine_parts import is_cut
from lsvcr.training.schedule import learning_rate_factor
from lsvcr.utils.errors import UserError

ROOT = Path(__file__).parents[2]


def write(folder: Path, name: str = "mine.json", **keys: object) -> Path:
    path = folder / name
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}, **keys}))
    return path


def test_the_file_of_the_wanted_precision_is_taken() -> None:
    bf16, fp32 = (read_config(ROOT / "config" / "ds_z2_bf16.json", bf16=wanted) for wanted in (True, False))
    assert bf16["bf16"]["enabled"] is True
    assert fp32["bf16"]["enabled"] is False
    assert bf16["zero_optimization"] == fp32["zero_optimization"]
    assert bf16["data_types"]["grad_accum_dtype"] == "fp32"


def test_zero_3_is_the_other_stage_that_is_read() -> None:
    bf16, fp32 = (read_config(ROOT / "config" / "ds_z3_bf16.json", bf16=wanted) for wanted in (True, False))
    assert bf16["zero_optimization"] == fp32["zero_optimization"]
    assert is_cut(bf16) and not is_cut(read_config("config/ds_z2_bf16.json", bf16=True)) and not is_cut(None)
    assert bf16["data_types"]["grad_accum_dtype"] == "fp32"


def test_our_configurations_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_config("config/ds_z2_bf16.json", bf16=True)["zero_optimization"]["stage"] == 2


def test_auto_values_are_left_to_the_run(tmp_path: Path) -> None:
    path = write(
        tmp_path, train_batch_size="auto", gradient_clipping="auto", train_micro_batch_size_per_gpu="auto"
    )
    assert set(read_config(path, bf16=True)) == {"zero_optimization", "bf16"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"optimizer": {"type": "Adam"}}, "sets optimizer"),
        ({"gradient_clipping": 1.0}, "sets gradient_clipping"),
        ({"zero_optimization": {"stage": 1}}, "ZeRO stage 1"),
        ({"bf16": {"enabled": False}}, "contradicts bf16.enabled"),
    ],
)
def test_a_configuration_that_contradicts_the_flags_is_refused(
    tmp_path: Path, keys: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_config(write(tmp_path, **keys), bf16=True)


def test_a_missing_or_broken_configuration_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_config(tmp_path / "none.json", bf16=True)
    (tmp_path / "broken.json").write_text('{"bf16": ')
    with pytest.raises(UserError, match="line 1"):
        read_config(tmp_path / "broken.json", bf16=True)


@pytest.mark.parametrize("kind", ["cosine", "cosine_tenth", "linear", "constant"])
def test_the_rate_rises_once_and_never_reaches_zero_within_the_run(kind: str) -> None:
    rates = [learning_rate_factor(step, 100, 0.1, kind) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert all(0 < later <= earlier for earlier, later in zip(rates[10:], rates[11:], strict=False))
    assert rates[10] == 1.0


def test_known_rates() -> None:
    assert learning_rate_factor(5, 10, 0.0, "linear") == 0.5
    assert learning_rate_factor(5, 10, 0.0, "cosine") == pytest.approx(0.5)
    assert learning_rate_factor(5, 10, 0.0, "cosine_tenth") == pytest.approx(0.55)
    assert learning_rate_factor(10, 10, 0.0, "cosine_tenth") == pytest.approx(0.1)
    assert learning_rate_factor(9, 10, 0.0, "constant") == 1.0
    assert learning_rate_factor(0, 1, 0.03, "cosine") == 1.0
