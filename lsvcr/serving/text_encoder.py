"""Titles and comments that come later, turned into text vectors without the language model.

A linear map of hashed n-grams, fitted by `lsvcr export --text_encoder` to the texts and vectors of the dataset. It
knows words, pairs of words and pieces of words; in scripts without spaces, characters and their pairs. What a language
model knows beyond these is lost: the manifest says how much, on texts that the fit had not seen.

Files, in the bundle's folder `text_encoder/`: weights.npy (buckets, w) float32, rarity.npy (buckets,) float32,
mean.npy (w,) float32.
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import numpy as np

from lsvcr.serving.errors import BundleError
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import load_npy

FOLDER = "text_encoder"
WEIGHTS_FILE, RARITY_FILE, MEAN_FILE = "weights.npy", "rarity.npy", "mean.npy"

_WORD = re.compile(r"\w+|[^\w\s]+")
_PIECES = (3, 4)
"""Lengths of the pieces of a word, its ends marked."""
_FIRST_DENSE = 0x2E80
"""From here on scripts are written without spaces, a character a syllable or a word."""


class TextEncoder:
    """Texts to vectors.

    Args:
        weights: (buckets, w) float32, the vector of each bucket.
        rarity: (buckets,) float32, how much an n-gram of a bucket says.
        mean: (w,) float32, the vector of a text that says nothing.
    """

    def __init__(self, weights: np.ndarray, rarity: np.ndarray, mean: np.ndarray) -> None:
        self._weights, self._rarity, self._mean = weights, rarity, mean

    @classmethod
    def open(cls, bundle: Path) -> "TextEncoder | None":
        """The encoder of a bundle's folder, memory-mapped; None where the bundle has none.

        Raises:
            BundleError: its files are missing or do not belong together.
        """
        folder = Path(bundle) / FOLDER
        if not folder.is_dir():
            return None
        try:
            weights, rarity, mean = (
                np.asarray(load_npy(folder / name)) for name in (WEIGHTS_FILE, RARITY_FILE, MEAN_FILE)
            )
        except UserError as broken:
            raise BundleError(f"the text encoder is not whole: {broken}") from None
        if weights.ndim != 2 or rarity.shape != weights.shape[:1] or mean.shape != weights.shape[1:]:
            raise BundleError(f"{folder} is damaged (its files differ in shape); export the bundle again")
        return cls(weights, rarity, mean)

    @property
    def width(self) -> int:
        """w, the width of a text vector."""
        return len(self._mean)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Texts to vectors (n, w) float32; a text without a letter, digit or sign is zeros, as everywhere."""
        vectors = np.zeros((len(texts), self.width), dtype=np.float32)
        for text, vector in zip(texts, vectors, strict=True):
            buckets, weights = weighted(text, self._rarity)
            if len(buckets):
                vector[:] = self._mean + weights @ self._weights[buckets]
        return vectors


def weighted(text: str, rarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The buckets of a text's n-grams, each once, and their weights: both (m,), the weights of length 1.

    A weight is (1 + log of how often the bucket occurs) * its rarity.
    """
    found, counts = np.unique(buckets_of(text, len(rarity)), return_counts=True)
    if not len(found):
        return found, np.zeros(0, dtype=np.float32)
    weights = ((1 + np.log(counts)) * rarity[found]).astype(np.float32)
    length = math.sqrt(float(weights @ weights))
    return found, weights / np.float32(length or 1)


def buckets_of(text: str, buckets: int) -> np.ndarray:
    """The bucket of every n-gram of a text, (m,) int64, repeated ones too."""
    return np.array(
        [crc32(gram.encode("utf-8", "replace")) % buckets for gram in _grams(text)], dtype=np.int64
    )


def _grams(text: str) -> list[str]:
    """N-grams of a text: upper and lower case and the widths of characters make no difference."""
    words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    grams = [f"w{word}" for word in words]
    grams += [f"p{first} {second}" for first, second in zip(words, words[1:], strict=False)]
    for word in words:
        if any(ord(character) >= _FIRST_DENSE for character in word):
            grams += [f"c{character}" for character in word]
            grams += [f"c{word[at : at + 2]}" for at in range(len(word) - 1)]
            continue
        marked = f"<{word}>"
        for length in _PIECES:
            grams += [f"c{marked[at : at + length]}" for at in range(len(marked) - length + 1)]
    return grams
