"""Stage one with the LLM cut among two processes (ZeRO-3) is stage one with a whole one on each (ZeRO-2)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lsvcr.llm.tiny import tiny_weights
from lsvcr.utils.io import read_json
from tests.training.align_runs import run_processes
from tests.training.parts_runs import runs
from tests.training.test_align import ENDS, Runs, logged, same_tensors


@pytest.fixture(scope="module")
def cut(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """All runs."""
    folder = tmp_path_factory.mktemp("parts")
    return folder, run_processes(runs, 2, folder, data=str(tiny_data))


def test_the_llm_is_cut_as_it_is_loaded(cut: Runs) -> None:
    """And is in pieces between the steps too: no process ever holds it whole."""
    whole = sum(value.numel() for name, value in tiny_weights().items() if name != "lm_head.weight")
    for found in cut[1]:
        assert found["held"][0] == (whole, whole)
        assert found["held"][1] == (0, whole // 2)
        assert found["called"]["z2"] == [whole] * 3
        assert found["called"]["z3"] == [0] * 3


def test_folders_are_cut_as_they_are_read(cut: Runs) -> None:
    """Sharded or not, renamed or not: nothing is held, and used piece by piece they are the model."""
    for found in cut[1]:
        assert found["families"] == {"qwen3": (0, 0.0), "chatglm": (0, 0.0)}
        assert not found["compiled"]


def test_losses_and_weights_are_those_of_zero_2(cut: Runs) -> None:
    folder, found = cut
    for rank in range(2):
        assert found[rank]["losses"]["z3"] == pytest.approx(found[rank]["losses"]["z2"], rel=1e-5, abs=1e-5)
    two, three = logged(folder / "z2"), logged(folder / "z3")
    assert [line.keys() for line in two] == [line.keys() for line in three] and len(two) == 4
    for left, right in zip(two, three, strict=True):
        assert right == pytest.approx(left, rel=1e-4, abs=1e-5)
    for name in ("last/trainer.safetensors", "best/sr.safetensors", "best/adapter/adapter_model.safetensors"):
        left, right = load_file(folder / "z2" / name), load_file(folder / "z3" / name)
        assert left.keys() == right.keys()
        for key, value in left.items():
            # Beside tiny gradients AdamW's step is rounding.
            torch.testing.assert_close(right[key], value, rtol=1e-3, atol=2e-4, msg=key)
    manifests = [read_json(folder / name / "best" / "manifest.json") for name in ("z2", "z3")]
    assert manifests[0]["trained_parameters"] == manifests[1]["trained_parameters"] > 0


def test_embed_reads_what_was_saved_in_parts(cut: Runs) -> None:
    for name in ("photo_embs.npy", "comment_embs.npy"):
        two, three = (np.load(cut[0] / run / "best" / name) for run in ("z2", "z3"))
        assert two.std() > 0
        np.testing.assert_allclose(three, two, atol=1e-3)


def test_an_interrupted_run_goes_on(cut: Runs) -> None:
    """With the same bits in parts; and up to rounding with whole weights on every process."""
    folder = cut[0]
    for name in ENDS:
        same_tensors(folder / "z3" / name, folder / "cut" / name)
    assert logged(folder / "z3") == logged(folder / "cut")
    for left, right in zip(logged(folder / "z3"), logged(folder / "changed"), strict=True):
        assert right == pytest.approx(left, rel=1e-4, abs=1e-5)


def test_processes_with_unequal_shares_of_the_validation_do_not_wait_for_each_other(cut: Runs) -> None:
    """In bfloat16, where the heads compute in float32 all the same."""
    (figures,) = (line for line in logged(cut[0] / "uneven") if "val/lm" in line)
    assert figures["val/retrieval@1_chance"] == 1 / 5
