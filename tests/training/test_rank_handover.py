"""Stage two on an official checkpoint: every tensor arrives under its name, and the log says which."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from lsvcr.llm.aligned import AlignedHeads
from lsvcr.models.sr import SRModel
from lsvcr.schema import BEST_DIR
from lsvcr.settings import RankSettings
from lsvcr.training.rank import run
from lsvcr.training.rank_handover import find_stage_one
from lsvcr.training.rank_setup import set_up
from lsvcr.utils.errors import UserError
from tests.models.test_official import NAMES, official
from tests.training.rank_runs import LLM_WIDTH, NARROW, settings, write_planted, write_stage_one, write_texts

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

FUSED = "base_model.model.transformer.encoder.layers.0.self_attention.query_key_value"
LORA = {f"{FUSED}.lora_A.weight": torch.ones(2, 16), f"{FUSED}.lora_B.weight": torch.ones(24, 2)}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_planted(tmp_path / "data")


def write_official(folder: Path, max_position: int = 6) -> AlignedHeads:
    """An official folder: adapter_model.bin with random weights and LoRA, and the vectors beside it."""
    sr = SRModel(text_width=8, hidden=16, layers=1, heads=2, inner=32, max_position=max_position)
    made = AlignedHeads(sr, LLM_WIDTH, 8)
    generator = torch.Generator().manual_seed(1)
    for value in made.parameters():
        value.data = torch.randn(value.shape, generator=generator) * 0.1
    write_texts(folder, 8, NARROW)
    torch.save({**official(made, "modules_to_save.default."), **LORA}, folder / "adapter_model.bin")
    return made


def chosen(data: Path, out: Path, checkpoint: Path, **changes: object) -> RankSettings:
    return settings(data, out / "run", pretrain_checkpoint=str(checkpoint), **changes)


@pytest.mark.parametrize("name", ["", "adapter_model.bin"], ids=["folder", "file"])
def test_every_tensor_of_an_official_checkpoint_arrives(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    made = write_official(tmp_path / "official")
    for own in NARROW:
        (data / own).unlink()  # so that those beside the checkpoint are read
    setup = set_up(chosen(data, tmp_path, tmp_path / "official" / name))
    given, found = made.sr.state_dict(), setup.model.sr.state_dict()
    assert found.keys() - given.keys() == {"video_id.weight", "gate"}
    for key, value in given.items():
        assert torch.equal(found[key][: len(value)], value), key
        if key.endswith("position.weight"):
            torch.testing.assert_close(found[key][6:], value.mean(0).expand(2, -1))
    report = setup.handover
    assert report is not None and setup.parent is not None and setup.parent.official
    theirs = {
        f"{ours}.{kind}": f"{name}.{kind}" for ours, name in NAMES.items() for kind in ("weight", "bias")
    }
    assert report.taken == {f"sr.{key}": theirs[f"sr.{key}"] for key in given}
    heads = ("contrast_adapter", "llm_emb_mlp.0", "llm_emb_mlp.2")
    assert report.left == [f"{module}.{kind}" for module in heads for kind in ("bias", "weight")]
    assert report.new == ["sr.gate", "sr.video_id.weight"] and report.lora == 2
    assert report.lengthened == {f"sr.{side}_position.weight": [6, 8] for side in ("video", "comment")}
    told = capsys.readouterr().err
    for part in (
        f"from the official checkpoint {tmp_path / 'official' / 'adapter_model.bin'}: {len(given)} tensors taken",
        "sr.merge from reccom.pc_merge (2)",
        "sr.video_position.weight: 6 rows there, continued to 8 by their mean",
        "the LLM's LoRA (2); new: sr.gate, sr.video_id.weight",
    ):
        assert part in told


def test_with_the_llms_own_states_the_official_head_arrives_too(data: Path, tmp_path: Path) -> None:
    made = write_official(tmp_path / "official")
    wide = {"photo_emb_file": "photo_full_embs.npy", "comment_emb_file": "comment_full_embs.npy"}
    setup = set_up(chosen(data, tmp_path, tmp_path / "official", **wide))
    head, report = setup.model.head, setup.handover
    assert head is not None and report is not None
    for key, value in made.head.state_dict().items():
        assert torch.equal(head.state_dict()[key], value), key
    # As it was trained: on the states as they are.
    assert not head.center.any() and bool((head.scale == 1).all())
    assert report.left == ["contrast_adapter.bias", "contrast_adapter.weight"]


def test_a_run_on_an_official_checkpoint_knows_it_by_its_content(data: Path, tmp_path: Path) -> None:
    write_official(tmp_path / "official")
    settings = chosen(data, tmp_path, tmp_path / "official", num_train_epochs=1)
    report = run(settings)
    manifest = json.loads((tmp_path / "run" / BEST_DIR / "manifest.json").read_text())
    assert manifest["parent"]["path"] == str(tmp_path / "official" / "adapter_model.bin")
    assert manifest["parent"]["tensors"]["taken"]["sr.merge.weight"] == "reccom.pc_merge.weight"
    shutil.move(tmp_path / "official", tmp_path / "moved")
    assert run(chosen(data, tmp_path, tmp_path / "moved", num_train_epochs=1)) == report
    write_official(tmp_path / "moved", max_position=7)
    with pytest.raises(UserError, match="stage-one checkpoint is"):
        run(chosen(data, tmp_path, tmp_path / "moved", num_train_epochs=1))


def test_longer_official_position_tables_are_kept(data: Path, tmp_path: Path) -> None:
    write_official(tmp_path / "official", max_position=20)
    setup = set_up(chosen(data, tmp_path, tmp_path / "official"))
    assert setup.model.sr.max_position == 20
    assert setup.handover is not None and setup.handover.lengthened == {}


def test_what_an_official_checkpoint_lacks_is_named(data: Path, tmp_path: Path) -> None:
    write_official(tmp_path / "official")
    file = tmp_path / "official" / "adapter_model.bin"
    content = torch.load(file)
    torch.save({name: value for name, value in content.items() if "pc_merge.modules" not in name}, file)
    with pytest.raises(UserError, match=r"official checkpoint .* does not fit.*\n *missing: merge\.bias"):
        set_up(chosen(data, tmp_path, file))
    torch.save({**content, "base_model.model.reccom.other.weight": torch.zeros(1)}, file)
    with pytest.raises(UserError, match="1 tensors that an official LSVCR checkpoint does not have"):
        set_up(chosen(data, tmp_path, file))
    torch.save(LORA, file)
    with pytest.raises(UserError, match="an adapter of an LLM and no SR model"):
        set_up(chosen(data, tmp_path, file))


def test_without_vectors_the_way_to_them_is_named(data: Path, tmp_path: Path) -> None:
    write_official(tmp_path / "official")
    for folder in (data, tmp_path / "official"):
        (folder / NARROW[0]).unlink()
    with pytest.raises(
        UserError, match=r"`lsvcr convert .*adapter_model\.bin .*`lsvcr embed --checkpoint RUN"
    ):
        set_up(chosen(data, tmp_path, tmp_path / "official"))


def test_the_reference_commands_name_for_a_run_of_ours(tmp_path: Path) -> None:
    write_stage_one(tmp_path / "run")
    found = find_stage_one(str(tmp_path / "run" / "adapter_model.bin"))
    assert found is not None and found.folder == tmp_path / "run" / BEST_DIR and not found.official
