"""Changes of a catalogue as records of its journal, and the checks of what they are made of.

    {"kind": "video", "id": 7, "bundle": "...", "text": "A title", "vector": "base64 of float32" or null}
    {"kind": "comment", "id": 9, "bundle": "...", "text": "...", "vector": ..., "video": 7, "likes": 3}
    {"kind": "video", "id": 7, "bundle": "...", "gone": true}

`bundle` is the id of the bundle that the change was made on; a vector of null stands for the bundle's own vectors.
"""

import base64
from typing import Any

import numpy as np

from lsvcr.serving.errors import BadRequest
from lsvcr.serving.ids import IdMap
from lsvcr.serving.journal import Record
from lsvcr.serving.types import RawId

VIDEO, COMMENT = "video", "comment"
"""Kinds of records."""

_MOST_LIKES = 2**31 - 1
_INT64 = range(-(2**63), 2**63)


def put_record(kind: str, raw: RawId, bundle: str, text: str, vector: np.ndarray | None) -> Record:
    """A video, or what a comment has in common with one; `vector` (w,) float32."""
    packed = None if vector is None else base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
    return {"kind": kind, "id": raw, "bundle": bundle, "text": text, "vector": packed}


def gone_record(kind: str, raw: RawId, bundle: str) -> Record:
    """A removal."""
    return {"kind": kind, "id": raw, "bundle": bundle, "gone": True}


def is_put(record: Record | None) -> bool:
    """False for a removal, or no record."""
    return record is not None and not record.get("gone", False)


def vector_of(record: Record) -> np.ndarray | None:
    """The text vector of a put, (w,) float32; None = the bundle's own vectors."""
    packed = record["vector"]
    return None if packed is None else np.frombuffer(base64.b64decode(packed), dtype="<f4")


def checked_id(ids: IdMap, raw: Any) -> RawId:
    """An id of the bundle's kind.

    Raises:
        BadRequest: another kind, no text that can be stored, or past 64 bits.
    """
    found = ids.normalise(raw)
    if ids.numbers:
        if not isinstance(found, int) or found not in _INT64:
            raise BadRequest(f"the ids of this bundle are whole numbers of 64 bits, not {raw!r}")
        return found
    return found


def checked_text(text: Any, name: str) -> str:
    """A text that can be stored.

    Raises:
        BadRequest: no text, or one with half a character.
    """
    if not isinstance(text, str):
        raise BadRequest(f"{name} is a text, not {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRequest(f"{name} has half of a surrogate pair, which is no character") from None
    return text


def checked_likes(likes: Any) -> int | None:
    """A number of likes, or None.

    Raises:
        BadRequest: no whole number from 0 to 2**31 - 1.
    """
    if likes is None:
        return None
    if isinstance(likes, bool) or not isinstance(likes, int | np.integer) or not 0 <= likes <= _MOST_LIKES:
        raise BadRequest(f"likes is a whole number from 0 to {_MOST_LIKES}, not {likes!r}")
    return int(likes)
