"""HLLM over frozen item vectors: what a step sees, what it is compared with, and which vectors it accepts."""

import json
import math
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from lsvcr.baselines import hllm_light
from lsvcr.baselines.hllm_light import HllmLight, HllmLightSettings, build, inputs, time_scale, train_data
from lsvcr.data.rank import RankData
from lsvcr.data.rank_sequences import SequenceBatch
from lsvcr.data.store import open_dataset
from lsvcr.losses.nce import START_TEMPERATURE
from lsvcr.models import checkpoint
from lsvcr.schema import EMBEDDINGS_MANIFEST_FILE, ITEM_EMBEDDINGS_FILE, Split, Task
from lsvcr.settings import EmbedSettings
from lsvcr.training.baseline import run
from lsvcr.training.embed import embed
from lsvcr.training.rank_evaluate import evaluate_checkpoint
from lsvcr.utils.errors import UserError
from tests.contract.small import embed_items
from tests.processes import run_together
from tests.training.conftest import fresh_accelerator

__all__ = ["fresh_accelerator"]

HOUR = 3_600_000
VIDEOS, WIDTH = 12, 5
SHAPE: dict[str, Any] = {
    **{"hidden": 8, "layers": 2, "heads": 2, "inner": 16, "dropout": 0.0, "attention_dropout": 0.0},
    **{"norm": "first", "activation": "gelu", "positions": "end"},
}


@pytest.fixture(scope="module")
def data(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny world with item vectors; only to be read."""
    folder = shutil.copytree(tiny_data, tmp_path_factory.mktemp("items") / "data")
    embed_items(folder)
    return folder


@pytest.fixture
def own_data(data: Path, tmp_path: Path) -> Path:
    """Another copy, to be spoilt."""
    return shutil.copytree(data, tmp_path / "data")


def model(**changes: Any) -> HllmLight:
    torch.manual_seed(1)
    vectors = torch.randn(VIDEOS + 1, WIDTH)
    vectors[0] = 0
    return HllmLight(vectors, 6, **{"time_scale": "sqrt", "time_bucket_count": 64, **SHAPE, **changes})


def batch(negatives: tuple[int, ...] = ()) -> SequenceBatch:
    """Two rows: 1 2 3 4 and 5 2 6, the first event of each at hour 1, then ever longer waits."""
    times = torch.tensor([[1, 2, 4], [1, 3, 0]]) * HOUR
    next_times = torch.tensor([[2, 4, 8], [3, 9, 0]]) * HOUR
    return SequenceBatch(
        rows=torch.arange(2),
        video_ids=torch.tensor([[1, 2, 3], [5, 2, 0]]),
        targets=torch.tensor([[2, 3, 4], [2, 6, 0]]),
        negatives=torch.tensor(negatives, dtype=torch.int64),
        times=times,
        next_times=next_times,
    )


def states(made: HllmLight, given: SequenceBatch) -> Tensor:
    items = made.represent(given.video_ids.flatten()).unflatten(0, given.video_ids.shape)
    return made.states(items, given.video_ids != 0, given.times, given.next_times)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def plain_loss(
    made: HllmLight, given: SequenceBatch, keys: list[int], counts: dict[int, float] | None = None
) -> float:
    """The loss by loops over rows, positions and keys."""
    found, losses = states(made, given).detach(), []
    for row, targets in enumerate(given.targets.tolist()):
        seen = {*given.video_ids[row].tolist(), *targets}
        for place, target in enumerate(targets):
            if not target:
                continue
            own = seen if made.mask_history else {target}
            scores = [
                1
                / START_TEMPERATURE
                * cosine(found[row, place], made.represent(torch.tensor([key]))[0].detach())
                - (math.log(counts[key]) if counts and key != target else 0)
                for key in [target, *(key for key in keys if key not in own)]
            ]
            losses.append(math.log(sum(map(math.exp, scores))) - scores[0])
    return sum(losses) / len(losses)


def test_other_rows_targets_are_the_negatives_and_own_items_never() -> None:
    """Targets 2 3 4 and 2 6: the first row has 6 as its only negative, the second 3 and 4."""
    made = model()
    found = made.training_loss(batch())
    assert found["loss"].item() == pytest.approx(plain_loss(made, batch(), [2, 3, 4, 6]), rel=1e-5)
    assert found["loss"].item() == pytest.approx(plain_loss(made, batch(), [3, 4, 6]), rel=1e-5)
    assert found["temperature"].item() == pytest.approx(START_TEMPERATURE)


def test_sampled_negatives_are_shared_and_filtered() -> None:
    """7 twice, 4 of the first row, 5 of the second, and padding, which nobody draws but nobody may count."""
    made, drawn = model(), (7, 4, 7, 5, 0, 9)
    found = made.training_loss(batch(drawn))["loss"]
    assert found.item() == pytest.approx(plain_loss(made, batch(), [7, 4, 7, 5, 9]), rel=1e-5)


def test_own_videos_may_be_negatives_too() -> None:
    made = model(mask_history=False)
    found = made.training_loss(batch())["loss"]
    assert found.item() == pytest.approx(plain_loss(made, batch(), [2, 3, 4, 6]), rel=1e-5)
    assert found > model().training_loss(batch())["loss"]
    found = made.training_loss(batch((7, 4, 7, 2)))["loss"]
    assert found.item() == pytest.approx(plain_loss(made, batch(), [7, 4, 7, 2]), rel=1e-5)


def test_negatives_are_corrected_by_how_often_they_are_expected() -> None:
    shares = torch.arange(1, VIDEOS + 2) / 100
    made = model(log_shares=shares.log())
    counts = {video: 1 - (1 - float(shares[video])) ** 5 for video in range(VIDEOS + 1)}  # of five targets
    found = made.training_loss(batch())["loss"]
    assert found.item() == pytest.approx(plain_loss(made, batch(), [3, 4, 6], counts), rel=1e-4)
    uniform = dict.fromkeys(range(VIDEOS + 1), 2 / VIDEOS)
    found = made.training_loss(batch((7, 9)))["loss"]
    assert found.item() == pytest.approx(plain_loss(made, batch(), [7, 9], uniform), rel=1e-4)


def test_a_step_sees_no_later_video_and_no_padding() -> None:
    made = model()
    read = torch.randn(1, 4, 8, requires_grad=True)
    real, times = torch.tensor([[True, True, True, False]]), torch.tensor([[1, 2, 3, 0]]) * HOUR
    for place in range(3):
        out = made.states(read, real, times, times + HOUR)[0, place].pow(2).sum()
        seen = torch.autograd.grad(out, read)[0][0].abs().sum(dim=1) > 0
        assert seen.tolist() == [step <= place for step in range(4)]


def test_a_step_knows_when_it_is_asked_and_nothing_of_later_times() -> None:
    made, given = model(), batch()
    before = states(made, given)
    later = replace(given, next_times=given.next_times.clone(), times=given.times.clone())
    later.next_times[0, 2] += 1000 * HOUR  # the query of the last step
    after = states(made, later)
    torch.testing.assert_close(after[0, :2], before[0, :2], rtol=0, atol=0)
    assert not torch.allclose(after[0, 2], before[0, 2])
    later.times[0, 2] += 500 * HOUR  # the last event and the query of the step before
    later.next_times[0, 1] += 500 * HOUR
    torch.testing.assert_close(states(made, later)[0, 0], before[0, 0], rtol=0, atol=0)


def test_without_time_buckets_times_mean_nothing() -> None:
    made, given = model(time_scale=None), batch()
    moved = replace(given, times=given.times * 7, next_times=given.next_times * 9)
    torch.testing.assert_close(states(made, moved), states(made, given), rtol=0, atol=0)
    assert not any(name.startswith("times") for name in made.state_dict())


def test_padding_changes_no_loss() -> None:
    made, given = model(), batch()
    none = torch.zeros(2, 3, dtype=torch.int64)
    grown = {
        name: torch.cat([getattr(given, name), none], dim=1)
        for name in ("video_ids", "targets", "times", "next_times")
    }
    wide = made.training_loss(replace(given, **grown))["loss"]
    torch.testing.assert_close(wide, made.training_loss(given)["loss"])


def test_evaluation_asks_as_training_did(data: Path) -> None:
    """The last step before a user's held-out video, read as a training row whose target is asked for at the cut."""
    dataset = open_dataset(data)
    made = build(HllmLightSettings(data_path=str(data), max_his=5), dataset).eval()
    assert made.time_scale == "sqrt"
    asked = RankData(dataset, Task.REC, Split.TEST, max_videos=5).evaluation(np.arange(6))
    length = asked.video_ids.shape[1]
    assert bool((asked.video_ids != 0).all())
    events, samples = dataset.video_events, dataset.samples(Task.REC, Split.TEST)
    times = torch.stack(
        [torch.from_numpy(events.times[end - length : end].copy()) for end in samples.video_end[:6]]
    )
    assert torch.equal(asked.video_times, times)
    next_times = torch.cat([times[:, 1:], torch.from_numpy(samples.cut[:6].copy()).unsqueeze(1)], dim=1)
    given = replace(batch(), video_ids=asked.video_ids, times=times, next_times=next_times)
    expected = torch.nn.functional.normalize(states(made, given)[:, -1], dim=-1)
    torch.testing.assert_close(made.user_vectors(asked), expected)
    later = replace(asked, cuts=asked.cuts + 1000 * HOUR)
    assert not torch.allclose(made.user_vectors(later), expected)


def test_ids_are_added_to_the_texts() -> None:
    made = model(use_id=True)
    plain = made.represent(torch.arange(VIDEOS + 1)) - made.items.weight
    assert made.items.weight[1:].abs().sum() > 0
    torch.testing.assert_close(plain, made.projection(made.normalised(torch.arange(VIDEOS + 1))))
    assert "items.weight" not in model().state_dict()


def test_vectors_are_whitened_over_videos_with_text_and_others_are_the_mean() -> None:
    """Numbers that go together are one direction, of spread 1; the second direction has no variance."""
    vectors = torch.tensor([[0.0, 0], [1, 10], [3, 30], [0, 0]])
    found = HllmLight(vectors, 4, **SHAPE).normalised(torch.arange(4))
    torch.testing.assert_close(found[:, 0] * found[2, 0].sign(), torch.tensor([0.0, -1, 1, 0]))
    assert not found[:, 1].any()


def test_whitened_vectors_have_no_correlation_and_the_leading_directions_come_first(monkeypatch) -> None:
    monkeypatch.setattr(hllm_light, "WHITENED_ROWS", 64)
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([1e-3, 5.0, 1.0, 0.1])
    vectors = torch.randn(501, 4, generator=generator) * spread + 7
    vectors[[0, 33]] = 0
    some = torch.tensor([row for row in range(501) if row not in (0, 33)])
    whole = HllmLight(vectors, 4, **SHAPE).normalised(some)
    torch.testing.assert_close(whole.T @ whole / len(some), torch.eye(4), rtol=1e-3, atol=1e-3)
    two = HllmLight(vectors, 4, directions=2, **SHAPE).normalised(some)
    torch.testing.assert_close(two, whole[:, :2])
    leading = torch.corrcoef(torch.stack([two[:, 0], vectors[some, 1]]))[0, 1]
    assert leading.abs() > 0.99


def test_a_direction_that_another_machine_turns_round_is_the_checkpoints(monkeypatch) -> None:
    """The whitening is kept, so that a restored model is the one that was trained."""
    made = model()
    other = hllm_light._whitening

    def turned(*arguments: Any) -> tuple[Tensor, Tensor]:
        mean, whitening = other(*arguments)
        return mean, -whitening

    monkeypatch.setattr(hllm_light, "_whitening", turned)
    again = model()
    ids = torch.arange(VIDEOS + 1)
    assert not torch.allclose(again.represent(ids), made.represent(ids))
    checkpoint.load_into(again, made.state_dict(), source="here")
    torch.testing.assert_close(again.represent(ids), made.represent(ids), rtol=0, atol=0)


def test_the_temperature_is_learned() -> None:
    made = model(temperature=0.5)
    made.training_loss(batch())["loss"].backward()
    assert made.log_scale.grad is not None and made.log_scale.grad != 0
    assert made.vectors.grad is None and not made.vectors.requires_grad


def settings(data: Path, out: Path, **changes: Any) -> HllmLightSettings:
    small = {"hidden": 32, "layers": 1, "heads": 2, "inner": 64, "dropout": 0.0, "max_his": 7}
    loop = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "report_to": "none",
    }
    return HllmLightSettings(data_path=str(data), output_dir=str(out), **{**small, **loop, **changes})


@pytest.mark.usefixtures("fresh_accelerator")
def test_a_planted_order_is_learned_from_texts_alone(data: Path, tmp_path: Path) -> None:
    """People go through the 8 videos of a topic, of 32 in all, in steps of 3. A random LLM's last token, the title's
    number, tells them apart."""
    embed(
        EmbedSettings(
            data_path=str(data),
            model_name_or_path="tiny-random",
            output_dir=str(tmp_path),
            bf16=False,
            item_prompt="hllm",
            item_fields="title",
        )
    )
    longer = {
        "num_train_epochs": 40,
        "patience": 40,
        "per_device_train_batch_size": 24,
        "learning_rate": 3e-3,
    }
    vectors = str(tmp_path / ITEM_EMBEDDINGS_FILE)
    chosen = settings(data, tmp_path / "run", item_vectors=vectors, mask_history=False, **longer)
    report = run("hllm_light", chosen)
    assert report["protocols"]["full"]["metrics"]["recall@5"]["value"] > 0.8
    assert "items.weight" not in load_file(tmp_path / "run" / "best" / "sr.safetensors")


@pytest.fixture
def finished(own_data: Path, tmp_path: Path, fresh_accelerator: None) -> Path:
    """A run on a dataset of its own."""
    run("hllm_light", settings(own_data, tmp_path / "run"))
    return tmp_path / "run"


def test_a_checkpoint_names_its_vectors_and_does_not_hold_them(finished: Path, own_data: Path) -> None:
    manifest = json.loads((finished / "best" / "manifest.json").read_text())
    told = manifest["inputs"]["item vectors"]
    described = json.loads((own_data / EMBEDDINGS_MANIFEST_FILE).read_text())
    assert told["sha256"] == described["files"][ITEM_EMBEDDINGS_FILE]["sha256"]
    assert Path(told["path"]) == (own_data / ITEM_EMBEDDINGS_FILE).resolve()
    kept = load_file(finished / "best" / "sr.safetensors")
    assert "vectors" not in kept and {"mean", "whitening"} < kept.keys()
    assert evaluate_checkpoint(str(finished), str(own_data))["protocols"]


def test_a_file_that_is_gone_or_has_changed_is_told(finished: Path, own_data: Path) -> None:
    file, manifest = own_data / ITEM_EMBEDDINGS_FILE, own_data / EMBEDDINGS_MANIFEST_FILE
    moved = file.rename(own_data / "elsewhere.npy")
    with pytest.raises(
        UserError, match=r"no vectors of items at .*item_embs.npy: put the file back, .*`lsvcr embed"
    ):
        evaluate_checkpoint(str(finished), str(own_data))
    # Whole and well described, but other numbers.
    from lsvcr.utils.io import sha256_file

    np.save(file, np.load(moved) * 2)
    about = json.loads(manifest.read_text())
    about["files"][ITEM_EMBEDDINGS_FILE]["sha256"] = sha256_file(file)
    manifest.write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"does not hold the item vectors that .*best was trained on"):
        evaluate_checkpoint(str(finished), str(own_data))


def test_an_interrupted_run_does_not_go_on_with_other_vectors(finished: Path, own_data: Path) -> None:
    from lsvcr.utils.io import sha256_file

    file, manifest = own_data / ITEM_EMBEDDINGS_FILE, own_data / EMBEDDINGS_MANIFEST_FILE
    np.save(file, np.load(file) * 2)
    about = json.loads(manifest.read_text())
    about["files"][ITEM_EMBEDDINGS_FILE]["sha256"] = sha256_file(file)
    manifest.write_text(json.dumps(about))
    with pytest.raises(UserError, match="item vectors"):
        run("hllm_light", settings(own_data, finished))


def spoil(manifest: Path, **changes: object) -> None:
    about = json.loads(manifest.read_text())
    about["files"][ITEM_EMBEDDINGS_FILE].update(changes)
    manifest.write_text(json.dumps(about))


def test_vectors_of_another_dataset_or_pooling_are_refused_with_the_command(own_data: Path) -> None:
    dataset, manifest = open_dataset(own_data), own_data / EMBEDDINGS_MANIFEST_FILE
    command = (
        "`lsvcr embed --checkpoint none --item_prompt hllm --pooling last --model_name_or_path LLM "
        f"--data_path {own_data}`"
    )
    good, chosen = manifest.read_text(), HllmLightSettings(data_path=str(own_data))
    for changes, told in (
        ({"data_hash": "0" * 64}, "was made for another dataset"),
        ({"pooling": "mean"}, "were made by --pooling mean, and --pooling last is wanted"),
    ):
        spoil(manifest, **changes)
        with pytest.raises(UserError) as error:
            inputs(chosen, dataset)
        assert told in str(error.value) and command in str(error.value)
        manifest.write_text(good)
    with pytest.raises(UserError, match="--pooling last, and --pooling mean is wanted"):
        build(replace(chosen, pooling="mean"), dataset)
    manifest.unlink()
    with pytest.raises(UserError, match=r"no embeddings.json beside .* tells how it was made"):
        inputs(chosen, dataset)


def test_damaged_vectors_are_refused(own_data: Path) -> None:
    file = own_data / ITEM_EMBEDDINGS_FILE
    array = np.load(file)
    array[3] += 1
    np.save(file, array)
    with pytest.raises(UserError, match="is not the file that embeddings.json beside it describes"):
        build(HllmLightSettings(data_path=str(own_data)), open_dataset(own_data))


def test_vectors_are_taken_from_any_file(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "vectors"
    folder.mkdir()
    for name in (ITEM_EMBEDDINGS_FILE, EMBEDDINGS_MANIFEST_FILE):
        shutil.copy(data / name, folder / name)
    chosen = HllmLightSettings(data_path=str(data), item_vectors=str(folder / ITEM_EMBEDDINGS_FILE))
    assert inputs(chosen, open_dataset(data))["item vectors"]["path"] == chosen.item_vectors
    with pytest.raises(UserError, match="name another with --item_vectors"):
        inputs(replace(chosen, item_vectors=str(tmp_path / "none.npy")), open_dataset(data))


def test_a_dataset_without_times_has_no_buckets_and_is_not_refused(data: Path) -> None:
    dataset = open_dataset(data)
    bare = replace(dataset, manifest={**dataset.manifest, "split": {"name": "as given", "cut_times": None}})
    chosen = HllmLightSettings(data_path=str(data))
    assert time_scale(chosen, dataset) == "sqrt" and time_scale(chosen, bare) is None
    with pytest.raises(UserError, match=r"--time_buckets log: .* has no times of its events"):
        time_scale(replace(chosen, time_buckets="log"), bare)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"temperature": 0.001}, "--temperature 0.001 must be from 0.01 to 1"),
        ({"time_bucket_count": 0}, "--time_bucket_count 0 must be above 0"),
        ({"directions": 0}, "--directions 0 must be above 0"),
        ({"hidden": 30, "heads": 4}, "--hidden 30 must be a multiple of --heads 4"),
    ],
)
def test_settings_out_of_range_are_refused(data: Path, wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        build(HllmLightSettings(data_path=str(data), **wrong), open_dataset(data))


def test_training_rows_end_before_what_is_held_out(data: Path) -> None:
    """Leave-last: neither the videos nor the times of validation and test are in a training row."""
    dataset = open_dataset(data)
    rows = train_data(HllmLightSettings(data_path=str(data)), dataset)
    made = rows.training(np.arange(len(rows)), (1, 0))
    held = dataset.samples(Task.REC, Split.VAL)
    cuts = dict(zip(held.user.tolist(), held.cut.tolist(), strict=True))
    for user, times, targets in zip(rows.users, made.next_times, made.targets, strict=True):
        assert int(times.max()) < cuts[int(user)]
        own = held.video[held.user == user]
        assert own[0] not in targets.tolist()


def work(rank: int, port: int, folder: str) -> None:
    """A row a process; the losses weighted by their terms, as the loop does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    given = batch()
    mine = SequenceBatch(
        **{name: getattr(given, name)[rank : rank + 1] for name in ("rows", "video_ids", "targets", "times")},
        next_times=given.next_times[rank : rank + 1],
        negatives=given.negatives,
    )
    made = model()
    (made.training_loss(mine)["loss"] * (3, 2)[rank] / 5).backward()
    for name, value in made.named_parameters():
        dist.all_reduce(value.grad)
        if rank == 0:
            np.save(f"{folder}/{name}.npy", value.grad.numpy())
    dist.destroy_process_group()


def test_two_processes_have_the_negatives_and_gradients_of_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run_together(work, (port, str(tmp_path)), 2)
    made = model()
    made.training_loss(batch())["loss"].backward()
    for name, value in made.named_parameters():
        found = torch.from_numpy(np.load(tmp_path / f"{name}.npy"))
        torch.testing.assert_close(found, value.grad, rtol=1e-4, atol=3e-6, msg=lambda m, n=name: f"{n}: {m}")
