"""Changes of a catalogue as they are asked for, made one after the other on a draft."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from lsvcr.serving.bundle import Bundle
from lsvcr.serving.draft import Draft, NewComment, NewVideo, Rows, State
from lsvcr.serving.errors import BadRequest, UnknownId
from lsvcr.serving.ids import IdMap
from lsvcr.serving.journal import Key, Record, key_of
from lsvcr.serving.records import COMMENT, VIDEO, gone_record, is_put, put_record, vector_of
from lsvcr.serving.texts import TextTable
from lsvcr.serving.towers import Towers
from lsvcr.serving.types import RawId

Waiting = dict[str, dict[RawId, None]]
"""Comments by the video, as text, that they belong to and that is not there. Some may have come elsewhere since."""


@dataclass(frozen=True)
class Asked:
    """A change as it was asked for, checked as far as one can without looking at the catalogue.

    Attributes:
        vector: (w,) float32, given or the text encoder's; None without either.
        is_given: the vector came with the change.
        rows: what the towers made of the vector.
    """

    kind: str
    id: RawId
    gone: bool = False
    text: str = ""
    vector: np.ndarray | None = None
    is_given: bool = False
    rows: Rows | None = None
    video: RawId = 0
    likes: int | None = None


class Making:
    """A batch of changes being made on a draft.

    Args:
        state: what they are made to.
        in_force: what the journal says of a kind and id, as far as it counts on this bundle.
        waiting: comments that a video brings back.

    Attributes:
        records: what the journal will say of the ids changed.
        lost: comments that wait for their video from now on.
    """

    def __init__(
        self,
        bundle: Bundle,
        towers: Towers,
        state: State,
        in_force: Callable[[str, RawId], Record | None],
        waiting: Mapping[str, dict[RawId, None]],
    ) -> None:
        self._bundle, self._towers, self._in_force, self._waiting = bundle, towers, in_force, waiting
        self.draft = Draft(state)
        self.records: dict[Key, Record] = {}
        self.lost: Waiting = {}

    def make(self, asked: Asked) -> bool:
        """Make a change; True if it put an id that was not there.

        Raises:
            BadRequest, UnknownId: it cannot be made; nothing of it is.
        """
        if asked.kind == VIDEO:
            return self._remove_video(asked) if asked.gone else self._put_video(asked)
        return self._remove_comment(asked) if asked.gone else self._put_comment(asked)

    def waiting_for(self, video: str) -> dict[RawId, None]:
        """Comments that wait for a video, in the order that equally liked ones are shown in."""
        lost = self.lost.get(video, {})
        earlier = self._waiting.get(video, {})
        return {**{raw: None for raw in earlier if raw not in lost}, **lost}

    def _put_video(self, asked: Asked) -> bool:
        is_new = not self.draft.has_video(asked.id)
        vector, rows = self._vectors(asked, is_new, self._bundle.videos, self._bundle.titles)
        self.draft.put_video(NewVideo(asked.id, asked.text, rows))
        self._note(put_record(VIDEO, asked.id, self._bundle.id, asked.text, vector))
        if is_new:
            self._revive(asked.id)
        return is_new

    def _put_comment(self, asked: Asked) -> bool:
        if not self.draft.has_video(asked.video):
            raise UnknownId(f"no video {asked.video!r} in this catalogue: put it before its comments")
        is_new = not self.draft.has_comment(asked.id)
        vector, rows = self._vectors(asked, is_new, self._bundle.comments, self._bundle.texts)
        likes = self._likes(asked, is_new)
        self.draft.put_comment(NewComment(asked.id, asked.video, asked.text, likes, rows))
        record = put_record(COMMENT, asked.id, self._bundle.id, asked.text, vector)
        self._note({**record, "video": asked.video, "likes": likes})
        return is_new

    def _remove_video(self, asked: Asked) -> bool:
        if not self.draft.has_video(asked.id):
            raise UnknownId(f"no video {asked.id!r} in this catalogue")
        lost = self.draft.remove_video(asked.id)
        earlier = self.lost.get(str(asked.id), {})
        self.lost[str(asked.id)] = {
            **{raw: None for raw in earlier if raw not in lost},
            **dict.fromkeys(lost),
        }
        self._note(gone_record(VIDEO, asked.id, self._bundle.id))
        return False

    def _remove_comment(self, asked: Asked) -> bool:
        # One that waits for its video is not in the draft.
        if not self.draft.has_comment(asked.id) and not is_put(self._record(COMMENT, asked.id)):
            raise UnknownId(f"no comment {asked.id!r} in this catalogue")
        self.draft.remove_comment(asked.id)
        self._note(gone_record(COMMENT, asked.id, self._bundle.id))
        return False

    def _note(self, record: Record) -> None:
        key = key_of(record)
        self.records.pop(
            key, None
        )  # of two changes of an id in one batch the later is all that has to be kept
        self.records[key] = record

    def _record(self, kind: str, raw: RawId) -> Record | None:
        return self.records.get((kind, str(raw))) or self._in_force(kind, raw)

    def _vectors(
        self, asked: Asked, is_new: bool, ids: IdMap, texts: TextTable
    ) -> tuple[np.ndarray | None, Rows | None]:
        """The text vector (w,) to note and the rows to use; None for both = the bundle's own vectors."""
        if asked.is_given:
            return asked.vector, asked.rows
        if is_new:
            if asked.vector is None:
                raise BadRequest(
                    self._towers.refusal(self._towers.width)
                    or f"{asked.kind} {asked.id!r} is new, and this bundle has no text encoder: send its text vector "
                    f"({self._towers.width} numbers), or export the bundle with --text_encoder True"
                )
            return asked.vector, asked.rows
        record = self._record(asked.kind, asked.id)
        if asked.vector is not None:
            before = record["text"] if record else texts[int(ids.find([asked.id])[0])]
            if asked.text != before:
                return asked.vector, asked.rows
        vector = vector_of(record) if record else None
        return vector, None if vector is None else self._towers.rows(vector[None])[0]

    def _likes(self, asked: Asked, is_new: bool) -> int:
        if asked.likes is not None:
            return asked.likes
        if is_new:
            return 0
        record = self._record(COMMENT, asked.id)
        if record:
            return int(record["likes"])
        return int(self._bundle.likes[int(self._bundle.comments.find([asked.id])[0])])

    def _revive(self, video: RawId) -> None:
        """Put the comments again that waited for a video."""
        for raw in self.waiting_for(str(video)):
            record = self._record(COMMENT, raw)
            if (
                record
                and is_put(record)
                and str(record["video"]) == str(video)
                and not self.draft.has_comment(raw)
            ):
                vector = vector_of(record)
                rows = None if vector is None else self._towers.rows(vector[None])[0]
                self.draft.put_comment(NewComment(raw, video, record["text"], record["likes"], rows))
