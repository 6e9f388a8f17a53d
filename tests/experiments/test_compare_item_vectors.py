"""`lsvcr compare` takes a recommender over item vectors where they are, and else says how to make them."""

import shutil
from pathlib import Path

import pytest

from lsvcr.data.store import open_dataset
from lsvcr.experiments.compare import compare
from lsvcr.experiments.compare_models import choose
from lsvcr.experiments.compare_recipe import job, recipe
from lsvcr.schema import EMBEDDINGS_MANIFEST_FILE, ITEM_EMBEDDINGS_FILE
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import read_json
from tests.contract.small import embed_items
from tests.experiments.compare_runs import asked, forget_accelerate, in_process, one_thread, write_world

SMALL = """
hidden: 16
inner: 16
layers: 1
heads: 2
max_his: 6
learning_rate: 0.01
num_train_epochs: 1
per_device_train_batch_size: 8
"""


@pytest.fixture
def world(tiny_data: Path, tmp_path: Path) -> Path:
    """The world of the other comparisons, without item vectors; `hllm_light` is small there."""
    folder = write_world(tmp_path / "world", tiny_data)
    (folder / "config" / "baselines" / "hllm_light.yaml").write_text(SMALL)
    return folder


def test_without_vectors_it_is_left_out_with_the_command(world: Path) -> None:
    settings = asked(world, "all")
    dataset = open_dataset(settings.data)
    chosen, left_out = choose("all", dataset, settings)
    assert "hllm_light" not in {member.name for member in chosen}
    assert left_out["hllm_light"].startswith("hllm_light: there are no vectors of items at ")
    made_by = "`lsvcr embed --checkpoint none --item_prompt hllm --pooling last --model_name_or_path LLM"
    assert f"{made_by} --data_path {dataset.root}`" in left_out["hllm_light"]
    with pytest.raises(UserError, match="hllm_light: there are no vectors of items"):
        choose("sasrec,hllm_light", dataset, settings)


def test_with_vectors_it_is_trained_and_its_job_names_them(world: Path) -> None:
    embed_items(world / "data")
    settings = asked(world, "popularity,hllm_light")
    dataset = open_dataset(settings.data)
    member = choose("hllm_light", dataset, settings)[0][0]
    described = read_json(world / "data" / EMBEDDINGS_MANIFEST_FILE)["files"][ITEM_EMBEDDINGS_FILE]
    assert job(recipe(member, dataset, settings), {}, dataset, settings).inputs == {
        "item vectors": described["sha256"]
    }
    with pytest.MonkeyPatch.context() as patch, one_thread():
        in_process(patch)
        report = compare(settings)
    forget_accelerate()
    row = next(row for row in report["rows"] if row["name"] == "hllm_light")
    assert not row["failed"] and row["answer_ms"] > 0


def test_its_file_may_name_vectors_that_lie_elsewhere(world: Path) -> None:
    embed_items(world / "data")
    elsewhere = world / "vectors"
    elsewhere.mkdir()
    file = Path(shutil.move(world / "data" / ITEM_EMBEDDINGS_FILE, elsewhere))
    shutil.copy(world / "data" / EMBEDDINGS_MANIFEST_FILE, elsewhere)
    own = world / "config" / "baselines" / "hllm_light.yaml"
    own.write_text(f"{SMALL}item_vectors: {file}\n")
    settings = asked(world, "hllm_light")
    assert [member.name for member in choose("hllm_light", open_dataset(settings.data), settings)[0]] == [
        "hllm_light"
    ]
