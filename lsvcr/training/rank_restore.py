"""A checkpoint of stage two, of `lsvcr train` or of `lsvcr hllm`, whichever it is."""

from pathlib import Path
from typing import Any

from lsvcr.data.store import Dataset
from lsvcr.models import checkpoint
from lsvcr.schema import BASELINE, HLLM, MANIFEST_FILE
from lsvcr.training import baseline_setup, rank_setup
from lsvcr.training.rank_contract import Evaluated
from lsvcr.utils.io import read_json


def restore(folder: Path, dataset: Dataset) -> tuple[Evaluated, dict[str, Any]]:
    """The recommender of a checkpoint folder, and its manifest.

    Raises:
        UserError: no such checkpoint, another dataset, a recommender that is not there any more, or text vectors that
            have changed or gone.
    """
    manifest = read_json(folder / MANIFEST_FILE)
    if manifest.get("kind") == HLLM:
        from lsvcr.training import hllm_setup  # reads LLMs, which takes seconds to import

        return hllm_setup.restore(folder, dataset)
    if manifest.get("kind") == BASELINE:
        return baseline_setup.restore(checkpoint.load(folder), folder, dataset)
    return rank_setup.restore(folder, dataset)
