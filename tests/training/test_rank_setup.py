"""What stage two accepts from stage one and from the disk, and what it says when it cannot."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lsvcr.models import checkpoint
from lsvcr.schema import BEST_DIR
from lsvcr.settings import RankSettings
from lsvcr.training.rank_setup import set_up
from lsvcr.utils.arguments import load_settings
from lsvcr.utils.errors import UserError
from tests.training.rank_runs import (
    COMMENTS,
    LLM_WIDTH,
    NARROW,
    VIDEOS,
    planted_world,
    settings,
    write_planted,
    write_stage_one,
    write_texts,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_planted(tmp_path / "data")


def aligned(data: Path, out: Path, **changes: object) -> RankSettings:
    return settings(data, out, pretrain_checkpoint=str(out / "stage_one"), **changes)


def test_every_stage_one_parameter_arrives(data: Path, tmp_path: Path) -> None:
    """Each SR tensor is the checkpoint's, position tables are continued by their mean; ids and gate alone are new."""
    given = checkpoint.under_prefix("sr.", write_stage_one(tmp_path / "stage_one"))
    setup = set_up(aligned(data, tmp_path))
    own = setup.model.sr.state_dict()
    assert own.keys() - given.keys() == {"video_id.weight", "gate"}
    for name, tensor in given.items():
        if name.endswith("position.weight"):
            assert torch.equal(own[name][:6], tensor)
            torch.testing.assert_close(own[name][6:], tensor.mean(0).expand(2, -1))
        else:
            assert torch.equal(own[name], tensor), name
    assert own["gate"].tolist() == [1]
    assert setup.model.head is None
    assert setup.parent is not None and setup.parent.folder == tmp_path / "stage_one" / BEST_DIR


def test_wide_vectors_bring_the_head_of_stage_one(data: Path, tmp_path: Path) -> None:
    given = checkpoint.under_prefix("head.", write_stage_one(tmp_path / "stage_one"))
    names = {"photo_emb_file": "photo_full_embs.npy", "comment_emb_file": "comment_full_embs.npy"}
    model = set_up(aligned(data, tmp_path, **names)).model
    assert model.head is not None
    for name, tensor in given.items():
        assert torch.equal(model.head.state_dict()[name], tensor), name


def test_longer_position_tables_of_stage_one_are_kept(data: Path, tmp_path: Path) -> None:
    write_stage_one(tmp_path / "stage_one", max_position=20)
    assert set_up(aligned(data, tmp_path)).model.sr.max_position == 20


def test_a_file_inside_the_folder_names_the_folder(data: Path, tmp_path: Path) -> None:
    write_stage_one(tmp_path / "stage_one")
    file = tmp_path / "stage_one" / BEST_DIR / "sr.safetensors"
    parent = set_up(settings(data, tmp_path, pretrain_checkpoint=str(file))).parent
    assert parent is not None and parent.folder == file.parent


def test_another_shape_is_told_tensor_by_tensor(data: Path, tmp_path: Path) -> None:
    write_stage_one(tmp_path / "stage_one")
    with pytest.raises(UserError, match=r"adapter\.weight is \(16, 8\) there, \(32, 8\) here"):
        set_up(aligned(data, tmp_path, hidden=32))
    with pytest.raises(UserError, match=r"missing: video_encoder\.1"):
        set_up(aligned(data, tmp_path, layers=2))


def test_a_missing_parameter_is_not_left_at_random(data: Path, tmp_path: Path) -> None:
    tensors = write_stage_one(tmp_path / "stage_one")
    del tensors["sr.merge.bias"]
    checkpoint.save(tmp_path / "stage_one" / BEST_DIR, tensors, {"kind": "stage-one"})
    with pytest.raises(UserError, match=r"missing: merge\.bias"):
        set_up(aligned(data, tmp_path))


def test_without_text_the_adapter_is_left_behind(data: Path, tmp_path: Path) -> None:
    write_stage_one(tmp_path / "stage_one")
    model = set_up(aligned(data, tmp_path, disable_text=True)).model
    assert model.video_text is None


@pytest.mark.parametrize("path", ["nowhere", "data"])
def test_a_folder_without_weights_is_named(data: Path, tmp_path: Path, path: str) -> None:
    with pytest.raises(UserError, match=r"sr\.safetensors.*none"):
        set_up(settings(data, tmp_path, pretrain_checkpoint=str(tmp_path / path)))


def test_a_stage_two_run_is_no_stage_one(data: Path, tmp_path: Path) -> None:
    """Its ids and gate would be taken over, which METHOD has new."""
    write_stage_one(tmp_path / "stage_one")
    setup = set_up(aligned(data, tmp_path))
    checkpoint.save(tmp_path / "two" / BEST_DIR, setup.model.state_dict(), setup.about(1))
    with pytest.raises(UserError, match=r"two/best holds a stage-two checkpoint.*scripts/run_lora\.sh.*none"):
        set_up(settings(data, tmp_path, pretrain_checkpoint=str(tmp_path / "two")))


def test_same_seed_same_start(data: Path, tmp_path: Path) -> None:
    first, second = (set_up(settings(data, tmp_path)).model.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = set_up(settings(data, tmp_path, seed=1)).model.state_dict()
    assert not torch.equal(first["sr.video_id.weight"], other["sr.video_id.weight"])


# Text vectors


def test_where_vectors_are_looked_for(data: Path, tmp_path: Path) -> None:
    """In the run folder of stage one, then in the dataset; an absolute path is itself."""
    write_stage_one(tmp_path / "stage_one")
    for name in NARROW:
        (data / name).unlink()
    table = set_up(aligned(data, tmp_path)).texts
    assert table is not None
    assert table.about["videos"]["path"] == str((tmp_path / "stage_one" / NARROW[0]).resolve())
    named = {"photo_emb_file": str(data / "photo_full_embs.npy"), "comment_emb_file": "comment_full_embs.npy"}
    wide = set_up(settings(data, tmp_path, **named)).texts
    assert wide is not None
    assert (wide.width, wide.needs_head) == (LLM_WIDTH, True)


def test_missing_vectors_name_the_command(data: Path, tmp_path: Path) -> None:
    (data / "photo_full_embs.npy").unlink()
    with pytest.raises(UserError, match="lsvcr embed --checkpoint none --data_path"):
        set_up(settings(data, tmp_path))
    with pytest.raises(UserError, match=r"--photo_emb_file: no nosuch\.npy"):
        set_up(settings(data, tmp_path, photo_emb_file="nosuch.npy"))


def test_wrong_vectors_are_refused(data: Path, tmp_path: Path) -> None:
    file = data / "photo_full_embs.npy"
    good = np.load(file)
    np.save(file, good[:-1])
    with pytest.raises(UserError, match=f"{VIDEOS} rows, but this dataset needs {VIDEOS + 1}"):
        set_up(settings(data, tmp_path))
    good[3, 1] = np.nan
    np.save(file, good)
    with pytest.raises(UserError, match="row 3: NaN"):
        set_up(settings(data, tmp_path))
    write_texts(data)
    mixed = {"photo_emb_file": "photo_full_embs.npy", "comment_emb_file": NARROW[1]}
    with pytest.raises(UserError, match=f"width {LLM_WIDTH}.*width 8"):
        set_up(settings(data, tmp_path, **mixed))


def test_the_row_of_padding_is_zeros(data: Path, tmp_path: Path) -> None:
    """Else an entry without a comment would show a text, and the rows may be those of other videos."""
    table = np.load(data / "photo_full_embs.npy")
    np.save(data / "photo_full_embs.npy", np.roll(table, -1, axis=0))
    with pytest.raises(UserError, match=r"photo_full_embs\.npy, row 0 belongs to padding and must be zeros"):
        set_up(settings(data, tmp_path))


def test_half_precision_vectors_are_read_in_single(data: Path, tmp_path: Path) -> None:
    for name, rows in zip(NARROW, (VIDEOS, VIDEOS * COMMENTS), strict=True):
        np.save(data / name, np.load(data / name).astype(np.float16))
        assert len(np.load(data / name)) == rows + 1
    texts = set_up(settings(data, tmp_path, photo_emb_file=NARROW[0], comment_emb_file=NARROW[1])).texts
    assert texts is not None
    assert texts.videos.dtype == torch.float32


# Settings that no single flag can check


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"finetune_task": "Recc"}, "Rec or CommRank"),
        ({"max_phis_len": 9}, "--max_phis_len 9 must be between 1 and --max_position 8"),
        ({"metric_for_best_model": "ndcg"}, "ndcg@10"),
        ({"disable_text": True, "disable_id": True}, "nothing to rank by"),
        ({"hidden": 15}, "multiple of --heads"),
        ({"finetune_task": "CommRank", "neg_comment_num": 0}, "--neg_comment_num"),
        ({"per_device_train_batch_size": 0}, "--per_device_train_batch_size 0"),
        ({"patience": 0}, "--patience 0 must be above 0"),
        ({"warmup_ratio": -0.1}, "--warmup_ratio -0.1 must be between 0 and 1"),
        ({"warmup_ratio": 1.1}, "--warmup_ratio 1.1 must be between 0 and 1"),
    ],
)
def test_impossible_settings(data: Path, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        set_up(settings(data, tmp_path, **changes))


def test_the_reference_preset_is_the_published_method(data: Path, tmp_path: Path) -> None:
    """Our defaults are the published values too, apart from the start and from what validation ranks among."""
    preset = asdict(load_settings(RankSettings, ROOT / "config" / "finetune" / "reference.yaml"))
    own = asdict(RankSettings())
    ours_alone = {"start_near_identity": False, "standardise_texts": False, "val_protocol": "sampled"}
    assert {name: value for name, value in preset.items() if value != own[name]} == ours_alone
    plain = set_up(settings(data, tmp_path, hidden=64, **ours_alone)).model
    assert plain.head is not None
    assert not plain.head.center.any() and bool((plain.head.scale == 1).all())
    ours = set_up(settings(data, tmp_path, hidden=64)).model
    assert ours.head is not None and ours.head.center.any()
    for name in ("merge", "video_join", "comment_join", "comm_rank_attention.value"):
        noise, near = (made.sr.get_submodule(name).weight.diagonal() for made in (plain, ours))
        torch.testing.assert_close(near - noise, torch.ones(64), msg=name)
        assert float(noise.detach().abs().max()) < 0.1, name


def test_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lsvcr prepare"):
        set_up(settings(tmp_path / "nowhere", tmp_path))


def test_planted_world_can_be_rewritten_with_another_hash(tmp_path: Path) -> None:
    """The other-dataset tests rest on it."""
    first = planted_world().write(tmp_path / "a").data_hash
    assert planted_world("other").write(tmp_path / "b").data_hash != first
    assert replace(planted_world(), data_hash="x").data_hash == "x"
