"""A cheap text encoder that knows nothing of what was planted, and a reader that knows all the phrases."""

import re
import zlib
from collections.abc import Sequence

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import svds

from lsvcr.data.simulation.lexicon import Lexicon
from lsvcr.data.store import Dataset

BINS = 1 << 15
_WORD = re.compile(r"[a-z0-9']+|[\u4e00-\u9fff]")


def _counts(texts: Sequence[str]) -> sparse.csr_matrix:
    """(n, BINS) 0/1: hashed words, Chinese characters and pairs of them."""
    rows, columns = [], []
    for row, text in enumerate(texts):
        words = _WORD.findall(text.lower())
        if any(word >= "\u4e00" for word in words):
            words += [first + second for first, second in zip(words, words[1:], strict=False)]
        grams = {zlib.crc32(word.encode()) % BINS for word in words}
        rows += [row] * len(grams)
        columns += grams
    return sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), (len(texts), BINS))


def _unit_rows(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    norms = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    return sparse.diags(1.0 / np.where(norms == 0, 1.0, norms)) @ matrix


def video_of_comment(dataset: Dataset) -> np.ndarray:
    """(n_comments,) zero-based video of each comment."""
    table = dataset.video_comments
    video = np.empty(dataset.n_comments, dtype=np.int64)
    video[np.asarray(table.items) - 1] = np.repeat(
        np.arange(dataset.n_videos), np.diff(table.offsets)[1 : dataset.n_videos + 1]
    )
    return video


def text_vectors(dataset: Dataset, width: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Latent semantic analysis: hashed TF-IDF of a video's title and comments, truncated SVD, texts folded in.

    Returns:
        (n_videos + 1, width) and (n_comments + 1, width) float32, rows of unit length, row 0 zeros.
    """
    titles = _counts(dataset.titles().take(range(1, dataset.n_videos + 1)))
    contents = _counts(dataset.contents().take(range(1, dataset.n_comments + 1)))
    video = video_of_comment(dataset)
    belongs = sparse.csr_matrix(
        (np.ones(len(video)), (video, np.arange(len(video)))), (titles.shape[0], len(video))
    )
    documents = 2 * titles + belongs @ contents
    documents.data = np.log1p(documents.data)
    frequency = np.asarray((documents > 0).sum(axis=0)).ravel()
    weight = sparse.diags(np.log((1 + titles.shape[0]) / (1 + frequency)) * (frequency > 1))
    documents = _unit_rows(documents @ weight).tocsr()
    _, strength, words = svds(documents, k=width, v0=np.ones(min(documents.shape)))
    vectors = []
    for counts in (titles, contents):
        folded = (_unit_rows(counts @ weight) @ words.T) * np.sqrt(strength)
        folded /= np.maximum(np.linalg.norm(folded, axis=1, keepdims=True), 1e-9)
        vectors.append(np.concatenate([np.zeros((1, width)), folded]).astype(np.float32))
    return vectors[0], vectors[1]


class PlantedReader:
    """Reads topic and tone from a text by the longest phrases and words it knows."""

    def __init__(self, lexicon: Lexicon) -> None:
        self._topics = [
            sorted({*topic.words, *topic.acts, *topic.hints}, key=len, reverse=True)
            for topic in lexicon.topics
        ]
        self._titles = [
            self._patterns([*bank["titles"], *bank["tags"]])
            for bank in (lexicon.tones[name] for name in lexicon.tone_names)
        ]
        self._comments = [self._patterns(lexicon.tones[name]["comments"]) for name in lexicon.tone_names]
        misleading = [
            *lexicon.phrases["mislead_before"],
            *lexicon.phrases["mislead_after"],
            *lexicon.phrases["second"],
        ]
        self._asides = self._patterns(misleading)

    @staticmethod
    def _patterns(phrases: Sequence[str]) -> list[re.Pattern[str]]:
        """A phrase with anything short in its slots."""
        joined = []
        for phrase in phrases:
            pieces = re.split(r"\{\w+\}", phrase.lower().strip())
            joined.append(re.compile(".{1,40}?".join(re.escape(piece) for piece in pieces)))
        return sorted(joined, key=lambda pattern: len(pattern.pattern), reverse=True)

    def tone(self, text: str, *, comment: bool) -> int:
        """The tone of the longest phrase that fits, -1 for none."""
        text, best, tone = text.lower(), 0, -1
        for number, patterns in enumerate(self._comments if comment else self._titles):
            fitting = next((p for p in patterns if p.search(text)), None)
            if fitting is not None and len(fitting.pattern) > best:
                best, tone = len(fitting.pattern), number
        return tone

    def topic(self, text: str) -> int:
        """The topic with the longest known words once asides are cut out, -1 for none."""
        text = text.lower()
        for aside in self._asides:
            text = aside.sub(" ", text, count=1) if aside.pattern != ".{1,40}?" else text
        found = [max((len(word) for word in words if word in text), default=0) for words in self._topics]
        best = int(np.argmax(found))
        return best if found[best] else -1
