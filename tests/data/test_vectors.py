"""Text vectors from disk: what fits is mapped, what does not is named."""

import numpy as np
import pytest

from lsvcr.data.vectors import load_embeddings
from lsvcr.llm.loading import TINY
from lsvcr.schema import EMBEDDINGS_MANIFEST_FILE, VIDEO_EMBEDDINGS_FILE, VIDEO_FULL_EMBEDDINGS_FILE
from lsvcr.settings import EmbedSettings
from lsvcr.training.embed import embed
from lsvcr.utils.errors import UserError


@pytest.fixture
def vectors(tiny_dataset, tmp_path):
    embed(
        EmbedSettings(
            data_path=str(tiny_dataset.root), output_dir=str(tmp_path), model_name_or_path=TINY, bf16=False
        )
    )
    return tmp_path


def rows_of(dataset):
    return dataset.n_videos + 1


def test_a_changed_dataset_is_noticed(tiny_dataset, vectors):
    with pytest.raises(UserError, match="another dataset, or this one has changed.*lsvcr embed"):
        load_embeddings(vectors, VIDEO_FULL_EMBEDDINGS_FILE, rows_of(tiny_dataset), "0" * 64)
    load_embeddings(vectors, VIDEO_FULL_EMBEDDINGS_FILE, rows_of(tiny_dataset))


def test_wrong_rows_and_missing_files(tiny_dataset, vectors):
    with pytest.raises(
        UserError, match=rf"has {rows_of(tiny_dataset)} rows, but this dataset needs 8 \(7 and"
    ):
        load_embeddings(vectors, VIDEO_FULL_EMBEDDINGS_FILE, 8)
    with pytest.raises(UserError, match="no text vectors at .*photo_embs.npy"):
        load_embeddings(vectors, VIDEO_EMBEDDINGS_FILE, 8)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 7.0])
def test_changed_numbers_are_noticed(tiny_dataset, vectors, value):
    path = vectors / VIDEO_FULL_EMBEDDINGS_FILE
    array = np.load(path)
    array[5, 2] = value
    np.save(path, array)
    with pytest.raises(UserError, match="row 5: NaN" if value != 7.0 else "is not the file that"):
        load_embeddings(path, "", rows_of(tiny_dataset), tiny_dataset.data_hash)


def test_files_of_the_official_layout_need_no_description(tmp_path):
    np.save(tmp_path / VIDEO_EMBEDDINGS_FILE, np.ones((4, 3), dtype=np.float32))
    assert load_embeddings(tmp_path, VIDEO_EMBEDDINGS_FILE, 4, "any").shape == (4, 3)
    np.save(tmp_path / VIDEO_EMBEDDINGS_FILE, np.asfortranarray(np.ones((4, 3), dtype=np.float16)))
    assert load_embeddings(tmp_path / VIDEO_EMBEDDINGS_FILE, "", 4).dtype == np.float16


@pytest.mark.parametrize(
    "content", [np.ones(4), np.ones((4, 3), dtype=np.int64), np.ones((4, 0)), "text", None]
)
def test_files_that_hold_no_vectors(tmp_path, content):
    path = tmp_path / VIDEO_EMBEDDINGS_FILE
    if isinstance(content, np.ndarray):
        np.save(path, content)
    else:
        np.save(path, np.ones((4, 3)))
        path.write_bytes(path.read_bytes()[:100] if content is None else content.encode())
    with pytest.raises(UserError, match="not one vector|damaged"):
        load_embeddings(tmp_path, VIDEO_EMBEDDINGS_FILE, 4)


@pytest.mark.parametrize("content", ["{", "[]", '{"files": {"photo_embs.npy": {}}}'])
def test_a_broken_description(tmp_path, content):
    np.save(tmp_path / VIDEO_EMBEDDINGS_FILE, np.ones((4, 3)))
    (tmp_path / EMBEDDINGS_MANIFEST_FILE).write_text(content)
    with pytest.raises(UserError, match=EMBEDDINGS_MANIFEST_FILE):
        load_embeddings(tmp_path, VIDEO_EMBEDDINGS_FILE, 4)
