"""ONNX Runtime: histories to user vectors, and texts of new videos and comments to rows of the tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort

from lsvcr.serving.errors import BundleError

STEP_INPUTS = ("video", "video_mask", "comment", "comment_mask")
WATCHED_INPUT = "watched"
TOWER_OUTPUTS = ("projected", "entry", "shown")

_FATAL = 4
"""ONNX Runtime's log level: errors come as exceptions, warnings would go to a person who cannot act on them."""


class Steps(NamedTuple):
    """Histories of B users as the encoder reads them; masked steps are zeros."""

    video: np.ndarray
    """(B, V, d) float32."""
    video_mask: np.ndarray
    """(B, V) bool, True = real."""
    comment: np.ndarray
    """(B, C, d) float32."""
    comment_mask: np.ndarray
    """(B, C) bool."""


class Encoder:
    """The graph `encoder.onnx` of one part.

    Args:
        path: the file.
        with_watched: the graph reads the watched video's vector too (CommRank).
        threads: of one run.

    Raises:
        BundleError: no graph that this ONNX Runtime reads, or one with other inputs and outputs.
    """

    def __init__(self, path: Path, with_watched: bool, threads: int = 1) -> None:
        inputs = (*STEP_INPUTS, WATCHED_INPUT) if with_watched else STEP_INPUTS
        self._session = open_graph(path, inputs, ("user",), threads)

    def users(self, steps: Steps, watched: np.ndarray | None = None) -> np.ndarray:
        """Vectors of B users, (B, d) float32; `watched` (B, d) float32 for CommRank."""
        feed = dict(zip(STEP_INPUTS, steps, strict=True))
        if watched is not None:
            feed[WATCHED_INPUT] = watched
        users: np.ndarray = self._session.run(("user",), feed)[0]
        return users


class TowerRows(NamedTuple):
    """What new text vectors become, each (n, d) float32; the id embedding of a new video is zero."""

    projected: np.ndarray
    """T or C: `watched`, and of unit length the item."""
    entry: np.ndarray
    shown: np.ndarray


class Tower:
    """The graph `tower.onnx` of one part; arguments and errors as for `Encoder`."""

    def __init__(self, path: Path, threads: int = 1) -> None:
        self._session = open_graph(path, ("text",), TOWER_OUTPUTS, threads)

    def rows(self, texts: np.ndarray) -> TowerRows:
        """Text vectors (n, w) float32 to the rows of their tables."""
        return TowerRows(*self._session.run(TOWER_OUTPUTS, {"text": texts}))


def session_options(threads: int) -> Any:
    """Options of every session here: nodes one after another, each on `threads` threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _FATAL
    # A thread that spins between requests takes the core from those who answer the next one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def open_graph(path: Path, inputs: Sequence[str], outputs: Sequence[str], threads: int) -> Any:
    """A session with exactly these inputs and outputs; sequential, so that requests do not wait for each other.

    Raises:
        BundleError: see `Encoder`.
    """
    try:
        session = ort.InferenceSession(
            str(path), session_options(threads), providers=["CPUExecutionProvider"]
        )
    except (
        Exception
    ) as broken:  # ONNX Runtime has a class of its own for each kind, and no common one below this
        reason = " ".join(str(broken).split())[:300]
        raise BundleError(
            f"{path} cannot be read by onnxruntime {ort.__version__} ({reason}); export the bundle again, or install a "
            "newer onnxruntime if it was made with one"
        ) from broken
    found = [{one.name for one in side} for side in (session.get_inputs(), session.get_outputs())]
    if found != [set(inputs), set(outputs)]:
        raise BundleError(
            f"{path} reads {sorted(found[0])} and gives {sorted(found[1])}, not {sorted(inputs)} and "
            f"{sorted(outputs)}; export the bundle again"
        )
    return session
