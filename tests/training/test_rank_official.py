"""The reference preset on official-format data, from a simulated world and back: the same figures, row for row."""

import pickle
import shutil
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lsvcr.data.export_official import export_official
from lsvcr.data.prepare import prepare
from lsvcr.data.simulation import simulate
from lsvcr.data.store import Dataset, open_dataset
from lsvcr.settings import PrepareSettings, RankSettings, SimulateSettings
from lsvcr.training.rank import run
from lsvcr.training.rank_setup import set_up
from lsvcr.utils.arguments import load_settings
from lsvcr.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

ROOT = Path(__file__).parents[2]
WIDTH = 256


def write_vectors(dataset: Dataset) -> None:
    """Text vectors without an LLM: a random direction for every word, their mean for a text."""
    texts = {"photo_embs.npy": dataset.titles(), "comment_embs.npy": dataset.contents()}
    directions: dict[str, np.ndarray] = {}
    for name, own in texts.items():
        table = np.zeros((len(own), WIDTH), np.float32)
        for row, text in enumerate(own):
            words = text.lower().split()
            for word in words:
                if word not in directions:
                    rng = np.random.default_rng(zlib.crc32(word.encode()))
                    directions[word] = rng.normal(0, 1, WIDTH).astype(np.float32)
                table[row] += directions[word] / len(words)
        np.save(dataset.root / name, table)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the prepared world (data), its export (official) and what is imported from that (again)."""
    root = tmp_path_factory.mktemp("world")
    simulate(SimulateSettings(out=str(root / "raw"), preset="tiny"))
    write_vectors(open_dataset(prepare(PrepareSettings(raw=str(root / "raw"), out=str(root / "data")))))
    export_official(root / "data", root / "official")
    prepare(PrepareSettings(source="official", raw=str(root / "official"), out=str(root / "again")))
    return root


def reference(data: Path, out: Path, vectors: Path, **changes: object) -> RankSettings:
    """The preset on smaller batches and histories."""
    preset = load_settings(RankSettings, ROOT / "config" / "finetune" / "reference.yaml")
    small: dict[str, object] = {"per_device_train_batch_size": 64, "max_position": 16}
    small |= {"max_phis_len": 16, "max_chis_len": 16, "report_to": "none", "num_train_epochs": 2}
    files = {"photo_emb_file": str(vectors / "photo_embs.npy")}
    files |= {"comment_emb_file": str(vectors / "comment_embs.npy")}
    return replace(preset, data_path=str(data), output_dir=str(out), **files, **(small | changes))


@pytest.mark.slow
@pytest.mark.parametrize("task", ["Rec", "CommRank"])
def test_official_data_train_to_the_figures_of_the_dataset_they_came_from(
    world: Path, tmp_path: Path, task: str
) -> None:
    """Rows, candidates, histories, draws and vectors are the same after export and import; so is every metric."""
    direct = run(reference(world / "data", tmp_path / "direct", world / "data", finetune_task=task))
    official = run(reference(world / "again", tmp_path / "official", world / "official", finetune_task=task))
    fingerprints = [
        result.pop("fingerprint")["data_hash"]
        for report in (direct, official)
        for result in report["protocols"].values()
    ]
    assert len(set(fingerprints)) == 2  # the files differ, the samples do not
    assert official["protocols"] == direct["protocols"]
    metrics = official["protocols"]["sampled"]["metrics"]
    assert metrics["recall@10"]["value"] > metrics["recall@1"]["value"] > 0


def test_vectors_in_the_official_layout_fit_the_imported_dataset(world: Path, tmp_path: Path) -> None:
    setup = set_up(reference(world / "again", tmp_path, world / "official"))
    assert setup.texts is not None and setup.model.head is None
    assert torch.equal(setup.texts.videos, torch.from_numpy(np.load(world / "data" / "photo_embs.npy")))
    assert setup.texts.comments.shape == (setup.dataset.n_comments + 1, WIDTH)


def test_vectors_in_another_order_than_the_dataset_are_refused(world: Path, tmp_path: Path) -> None:
    """The list of ids beside the vectors says what their rows are."""
    folder = tmp_path / "official"
    shutil.copytree(world / "official", folder)
    ids = pickle.loads((folder / "all_photos.pkl").read_bytes())
    ids[1], ids[2] = ids[2], ids[1]
    (folder / "all_photos.pkl").write_bytes(pickle.dumps(ids))
    with pytest.raises(
        UserError, match=rf"not those of .* in this order \(row 1 is {ids[1]} there and {ids[2]} here"
    ):
        set_up(reference(world / "again", tmp_path, folder))
    (folder / "all_photos.pkl").write_bytes(pickle.dumps(ids[:-1]))
    (folder / "all_comments.pkl").unlink()  # without a list the rows are taken as they are
    with pytest.raises(UserError, match=r"all_photos\.pkl beside it"):
        set_up(reference(world / "again", tmp_path, folder))
