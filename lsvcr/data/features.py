"""What is known of a video besides its title, as whole numbers that can have embeddings."""

import numpy as np

from lsvcr.data.store import Dataset
from lsvcr.schema import AUTHOR, CATEGORY
from lsvcr.utils.errors import UserError

FEATURES = (CATEGORY, AUTHOR)
ALL, NONE = "auto", "none"


def feature_codes(dataset: Dataset, name: str) -> np.ndarray:
    """int64 (n_videos + 1,) by video index: 0 = padding or not told, else 1 .. number of values, in their order."""
    values = np.array([str(value or "").strip() for value in dataset.column("videos", name)], dtype=object)
    told = values != ""
    codes = np.zeros(dataset.n_videos + 1, dtype=np.int64)
    if told.any():
        codes[1:][told] = np.unique(values[told].astype(str), return_inverse=True)[1] + 1
    return codes


def chosen_features(dataset: Dataset, asked: str) -> dict[str, np.ndarray]:
    """Codes of the features that a model shall read, by name.

    Args:
        dataset: the prepared dataset.
        asked: names with commas between them; `auto` = those of which the videos have two values or more; `none`.

    Raises:
        UserError: an unknown name, or one that the dataset tells of no video.
    """
    if asked == NONE:
        return {}
    if asked == ALL:
        known = {name: feature_codes(dataset, name) for name in FEATURES}
        return {name: codes for name, codes in known.items() if codes.max(initial=0) > 1}
    codes_of = {}
    for name in dict.fromkeys(asked.replace(",", " ").split()):
        if name not in FEATURES:
            raise UserError(f"--features {asked}: {name!r} is none of {', '.join((*FEATURES, ALL, NONE))}")
        codes_of[name] = feature_codes(dataset, name)
        if not codes_of[name].any():
            raise UserError(
                f"--features {asked}: no video of {dataset.root} has a value of {name}; leave it away"
            )
    return codes_of
