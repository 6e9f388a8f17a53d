"""`lsvcr clicks`: what passes from pretraining and what is frozen, what is refused, what is learned, and going on."""

import json
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from lsvcr import cli
from lsvcr.baselines.gpsd_clicks import TRANSFERS, group_of, transfer_name
from lsvcr.baselines.gpsd_settings import ClickSettings, GpsdSettings
from lsvcr.evaluation.clicks import auc, grouped_auc, log_loss
from lsvcr.schema import Split
from lsvcr.training import baseline, clicks
from lsvcr.training.clicks_setup import set_up
from lsvcr.utils.errors import UserError
from tests.click_world import write_click_world
from tests.processes import run_together

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

SHAPE = {"hidden": 16, "layers": 1, "heads": 2, "dropout": 0.0, "max_his": 5, "report_to": "none"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_click_world(tmp_path_factory.mktemp("clicks"))


@pytest.fixture(scope="module")
def pretrained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of pretraining."""
    from accelerate.state import AcceleratorState, GradientState

    out = tmp_path_factory.mktemp("pretrained")
    named = {**SHAPE, "learning_rate": 0.01, "num_train_epochs": 2, "neg_video_num": 5}
    baseline.run("gpsd", GpsdSettings(data_path=str(data), output_dir=str(out), **named))
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return out


def settings(
    data: Path, out: Path, transfer: str, pretrained: Path | None = None, **more: object
) -> ClickSettings:
    named = {**SHAPE, "learning_rate": 0.01, "num_train_epochs": 2, "per_device_train_batch_size": 16, **more}
    where = {"data_path": str(data), "output_dir": str(out), "pretrained": str(pretrained or "")}
    return ClickSettings(transfer=transfer, **where, **named)


def test_every_parameter_has_its_group(data: Path, tmp_path: Path) -> None:
    model = set_up(settings(data, tmp_path, "nt")).model
    groups = {name: group_of(name) for name in model.state_dict()}
    assert {name.split(".")[0] for name, group in groups.items() if group == "sparse"} == {"tables"}
    assert {name.split(".")[0] for name, group in groups.items() if group == "dense"} == {"body"}
    assert {name.split(".")[0] for name, group in groups.items() if group == "fresh"} == {"segments", "head"}


@pytest.mark.parametrize("name", TRANSFERS)
def test_what_is_loaded_what_stays_and_what_moves(
    data: Path, pretrained: Path, tmp_path: Path, name: str
) -> None:
    """Before training each group is the pretraining's or the fresh one; afterwards only frozen groups are where they
    were."""
    plan = TRANSFERS[name]
    chosen = settings(data, tmp_path / "run", name, pretrained if plan.load else None)
    theirs = load_file(pretrained / "best" / "sr.safetensors")
    fresh = set_up(settings(data, tmp_path, "nt")).model.state_dict()
    setup = set_up(chosen)
    start = {key: value.clone() for key, value in setup.model.state_dict().items()}
    for key, value in start.items():
        wanted = theirs[key] if group_of(key) in plan.load else fresh[key]
        assert torch.equal(value, wanted), key
    assert set(setup.handover["frozen"]) == {k for k in start if group_of(k) in plan.freeze}
    assert set(setup.handover["loaded"]) | set(setup.handover["fresh"]) == set(start)
    clicks.run(chosen)
    moved = load_file(tmp_path / "run" / "last" / "sr.safetensors")
    for key, value in start.items():
        same = torch.equal(moved[key], value)
        assert same == (group_of(key) in plan.freeze), key


def test_names_as_the_paper_writes_them() -> None:
    assert [transfer_name(word) for word in ("FT&SF", "st_sf", "NT")] == ["ft-sf", "st-sf", "nt"]
    with pytest.raises(UserError, match="did you mean ft-sf"):
        transfer_name("ftsf")


@pytest.mark.parametrize(
    ("transfer", "changes", "words"),
    [
        ("ft", {"hidden": 32}, r"was pretrained with --hidden 16, --inner 48; give the same"),
        ("ft-sf", {"layers": 2}, "--layers 1"),
        ("ft", {"heads": 4}, "--heads 2"),
        ("st", {"features": "none"}, "--features author,category"),
        ("nt", {}, "--transfer nt takes nothing"),
        ("ft", {"pretrained": ""}, r"needs --pretrained RUN .*--transfer nt trains without"),
        ("ft", {"max_his": 0}, "--max_his 0 must be above 0"),
        ("ft", {"sample_seed": -1}, "--sample_seed -1"),
        ("ft", {"patience": 0}, "--patience 0 must be above 0"),
        ("ft", {"warmup_ratio": 2.0}, "--warmup_ratio 2.0 must be between 0 and 1"),
    ],
)
def test_what_does_not_go_together_is_refused(
    data: Path, pretrained: Path, tmp_path: Path, transfer: str, changes: dict, words: str
) -> None:
    from dataclasses import replace

    with pytest.raises(UserError, match=words):
        set_up(replace(settings(data, tmp_path, transfer, pretrained), **changes))


def test_features_are_compared_by_what_they_stand_for(data: Path, pretrained: Path, tmp_path: Path) -> None:
    """The pretraining had `auto`."""
    given = load_file(pretrained / "best" / "sr.safetensors")
    setup = set_up(settings(data, tmp_path, "ft", pretrained, features="category,author"))
    assert set(setup.handover["loaded"]) == given.keys()


def test_only_what_is_loaded_must_fit(data: Path, pretrained: Path, tmp_path: Path) -> None:
    """The transformer of st is its own: two layers on tables that one layer has pretrained."""
    setup = set_up(settings(data, tmp_path, "st-sf", pretrained, layers=2, heads=1))
    assert len(setup.model.body.blocks) == 2
    assert [name for name in setup.handover["left"] if name.startswith("body.blocks.0.")]


def test_another_run_or_dataset_is_no_pretraining(
    data: Path, pretrained: Path, tiny_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="another dataset"):
        set_up(settings(tiny_data, tmp_path, "ft", pretrained, click_samples="sampled"))
    clicks.run(settings(data, tmp_path / "nt", "nt", num_train_epochs=1))
    with pytest.raises(UserError, match="holds a checkpoint of gpsd_clicks, not a pretraining"):
        set_up(settings(data, tmp_path, "ft", tmp_path / "nt"))


def test_a_damaged_pretraining_lists_every_tensor(data: Path, pretrained: Path, tmp_path: Path) -> None:
    from lsvcr.models import checkpoint

    weights = checkpoint.load(pretrained / "best")
    tensors = dict(weights.tensors)
    tensors["body.extra"] = tensors.pop("body.norm.weight")
    checkpoint.save(tmp_path / "odd", tensors, weights.manifest)
    with pytest.raises(UserError, match=r"(?s)missing: body.norm.weight.*unexpected: body.extra"):
        set_up(settings(data, tmp_path, "ft", tmp_path / "odd"))


@pytest.mark.parametrize("look", ["causal", "both_ways"])
def test_a_row_alone_is_as_in_company_and_the_candidate_counts(data: Path, tmp_path: Path, look: str) -> None:
    setup = set_up(settings(data, tmp_path, "nt", look=look))
    model, rows = setup.model.eval(), setup.training()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    batch = rows.training(np.arange(40))
    together = model.logits(batch)
    for row in (0, 7, 39):
        torch.testing.assert_close(model.logits(rows.training(np.array([row])))[0], together[row])
    ids = batch.ids.clone()
    ids[torch.arange(40), batch.places] = 1 + ids[torch.arange(40), batch.places] % 32
    batch.ids = ids
    assert not torch.isclose(model.logits(batch), together).any()


def test_both_ways_differs_and_the_loss_is_the_papers(data: Path, tmp_path: Path) -> None:
    logits = []
    for look in ("causal", "both_ways"):
        setup = set_up(settings(data, tmp_path, "nt", look=look, layers=2))
        for parameter in setup.model.parameters():
            torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(1))
        batch = setup.training().training(np.arange(30))
        logits.append(setup.model.logits(batch))
        chance = logits[-1].double().sigmoid()
        plain = -torch.where(batch.labels > 0, chance, 1 - chance).log().mean()
        torch.testing.assert_close(
            setup.model.training_loss(batch)["loss"].double(), plain, rtol=1e-5, atol=0
        )
    long = batch.places > 1
    assert not torch.isclose(logits[0][long], logits[1][long]).any()


def test_it_learns_whose_topic_is_whose(data: Path, tmp_path: Path) -> None:
    """A video of the user's topic is clicked, any other passed over."""
    own = settings(data, tmp_path, "nt", num_train_epochs=12)
    figures = clicks.run(own)["protocols"]["impressions"]
    assert figures["metrics"]["auc"]["value"] > 0.9
    assert figures["rows"] == len(set_up(own).data(Split.TEST))
    assert figures["users"] + figures["users_left_out"] == 24


def test_sampled_negatives_where_there_are_no_impressions(
    data: Path, pretrained: Path, tmp_path: Path
) -> None:
    """24 users' test likes with two draws each."""
    figures = clicks.run(settings(data, tmp_path, "ft", pretrained, click_samples="sampled", negatives=2))
    found = figures["protocols"]["sampled"]
    assert (found["rows"], found["clicks"], found["users"]) == (72, 24, 24)


def test_a_run_writes_its_figures_epoch_by_epoch(data: Path, pretrained: Path, tmp_path: Path) -> None:
    report = clicks.run(settings(data, tmp_path, "FT&SF", pretrained, num_train_epochs=3))
    assert report == json.loads((tmp_path / "metrics.json").read_text())
    assert report["transfer"] == "ft-sf" and report["parameters"]["trained"] < report["parameters"]["all"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    names = {f"{split}/{name}" for split in ("val", "test") for name in clicks.METRICS} | {"train/loss"}
    assert all(names <= line.keys() for line in lines)
    best = max(lines, key=lambda line: line["val/auc"])
    assert report["protocols"]["impressions"]["metrics"]["auc"]["value"] == best["test/auc"]
    manifest = json.loads((tmp_path / "best" / "manifest.json").read_text())
    assert manifest["parent"]["path"] == str(pretrained / "best")
    assert manifest["handover"]["frozen"] == sorted(
        k for k in manifest["handover"]["loaded"] if "tables" in k
    )


def test_measure_is_the_metrics_of_plain_scores(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the batch; blocks of 7 rows."""
    monkeypatch.setattr(clicks, "BLOCK", 7)
    setup = set_up(settings(data, tmp_path, "nt"))
    rows, model = setup.data(Split.TEST), setup.model.eval()
    found = [clicks.measure(model, rows, size, torch.device("cpu")) for size in (1, 14, 1000)]
    assert found[0] == found[1] == found[2]
    with torch.no_grad():
        scores = torch.cat([model.logits(rows.training(np.array([i]))) for i in range(len(rows))]).numpy()
    moments = rows.moments(np.arange(len(rows)))
    metrics = found[0]["metrics"]
    assert metrics["auc"] == pytest.approx(auc(scores, moments.labels), abs=1e-3)
    assert metrics["gauc"] == pytest.approx(
        grouped_auc(scores, moments.labels, moments.users).value, abs=1e-3
    )
    assert metrics["log_loss"] == pytest.approx(log_loss(scores, moments.labels), rel=1e-5)
    assert found[0]["clicks"] == moments.labels.sum()


def test_a_run_cut_between_epochs_ends_as_one_that_was_not(
    data: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout and frozen tables."""
    from lsvcr.training import rank

    def own(name: str) -> ClickSettings:
        return settings(data, tmp_path / name, "ft-sf", pretrained, dropout=0.2, num_train_epochs=4)

    whole = clicks.run(own("whole"))
    close = rank.Trainer._close_epoch

    def stop(self: rank.Trainer, state: rank.Progress, *rest: object) -> None:
        close(self, state, *rest)
        if state.epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(rank.Trainer, "_close_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        clicks.run(own("cut"))
    monkeypatch.undo()
    assert clicks.run(own("cut")) == whole
    one, two = (load_file(tmp_path / name / "last" / "sr.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    with pytest.raises(UserError, match="transfer is 'ft' here and 'ft-sf' there"):
        clicks.run(settings(data, tmp_path / "cut", "ft", pretrained, dropout=0.2, num_train_epochs=4))


def test_the_command_and_its_report(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"clicks --data_path {data} --output_dir {tmp_path} --transfer nt --hidden 16 --layers 1"
    assert cli.main([*words.split(), "--num_train_epochs", "1", "--report_to", "none"]) == 0
    assert "AUC" in capsys.readouterr().out
    assert cli.main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "click model" in page and ">auc</figcaption>" in page
    assert cli.main(["evaluate", str(tmp_path), "--data", str(data)]) == 2
    assert "clicks checkpoint" in capsys.readouterr().err


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _measure(rank: int, processes: int, port: int, data: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=processes)
    clicks.BLOCK = 8
    setup = set_up(settings(Path(data), Path(out), "nt"))
    found = clicks.measure(setup.model.eval(), setup.data(Split.TEST), 16, torch.device("cpu"))
    Path(f"{out}/{processes}.{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.mark.slow
def test_any_number_of_processes_measures_the_same(data: Path, tmp_path: Path) -> None:
    for processes in (1, 2, 3):
        run_together(_measure, (processes, _port(), str(data), str(tmp_path)), processes)
    found = [(tmp_path / f"{n}.{rank}.json").read_text() for n in (1, 2, 3) for rank in range(n)]
    assert len(set(found)) == 1


def _train(rank: int, processes: int, port: int, data: str, out: str, batch: int) -> None:
    import os

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": str(processes)}
    clicks.run(settings(Path(data), Path(out), "nt", per_device_train_batch_size=batch))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_as_one_on_the_joined_batch(data: Path, tmp_path: Path) -> None:
    for processes, batch in ((1, 24), (2, 12)):
        out = str(tmp_path / str(processes))
        run_together(_train, (processes, _port(), str(data), out, batch), processes)
    lines = [
        [json.loads(line)["train/loss"] for line in (tmp_path / n / "metrics.jsonl").read_text().splitlines()]
        for n in "12"
    ]
    assert lines[0] == pytest.approx(lines[1], rel=1e-3)
