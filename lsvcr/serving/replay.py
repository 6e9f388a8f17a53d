"""The changes that a journal holds, made again on a bundle: the one they were made on, or another."""

from collections.abc import Iterable, Sequence
from itertools import islice

from lsvcr.serving.bundle import Bundle
from lsvcr.serving.draft import Draft, NewComment, NewVideo, Rows, State
from lsvcr.serving.errors import BadRequest
from lsvcr.serving.ids import UNKNOWN, IdMap
from lsvcr.serving.journal import Journal, Key, Memory, Record, key_of
from lsvcr.serving.making import Waiting
from lsvcr.serving.records import COMMENT, VIDEO, is_put, vector_of
from lsvcr.serving.towers import Towers, stacked
from lsvcr.serving.types import RawId
from lsvcr.utils.errors import UserError

_AT_ONCE = 1024
"""Records whose vectors go through the towers together."""


class Replay:
    """A bundle with all changes of a journal; the rules are in `catalogue`.

    Attributes:
        state: the result.
        passed_over: changes that this bundle makes void.
        waiting: comments whose video is not there.

    Raises:
        UserError: the text vectors of the journal do not fit the bundle.
    """

    def __init__(self, bundle: Bundle, towers: Towers, journal: Journal | Memory) -> None:
        self._bundle, self._towers = bundle, towers
        self._draft = Draft(State.of(bundle))
        self.passed_over: set[Key] = set()
        self.waiting: Waiting = {}
        for kind in (VIDEO, COMMENT):  # comments need their videos, wherever these stand in the journal
            self._make_all(kind, (record for record in journal.records() if record["kind"] == kind))
        self.state = self._draft.finish()

    def _make_all(self, kind: str, records: Iterable[Record]) -> None:
        left = iter(records)
        while some := list(islice(left, _AT_ONCE)):
            self._make(kind, some)

    def _make(self, kind: str, records: Sequence[Record]) -> None:
        ids = self._bundle.videos if kind == VIDEO else self._bundle.comments
        own = [_own_id(ids, record["id"]) for record in records]
        known = [raw for raw in own if raw is not None]
        in_bundle = {raw for raw, row in zip(known, ids.find(known).tolist(), strict=True) if row != UNKNOWN}
        self._look_up(kind, known, records)
        puts: list[tuple[Record, RawId]] = []
        for record, raw in zip(records, own, strict=True):
            if raw is None or (is_put(record) and not self._counts(record, raw in in_bundle)):
                self.passed_over.add(key_of(record))
            elif is_put(record):
                puts.append((record, raw))
            elif kind == COMMENT:
                self._draft.remove_comment(raw)
            elif self._draft.has_video(raw):
                self._draft.remove_video(raw)
        for (record, raw), rows in zip(puts, self._rows([record for record, _ in puts]), strict=True):
            if kind == VIDEO:
                self._draft.put_video(NewVideo(raw, record["text"], rows))
            else:
                self._put_comment(record, raw, rows)

    def _look_up(self, kind: str, known: Sequence[RawId], records: Sequence[Record]) -> None:
        if kind == VIDEO:
            self._draft.look_up(known)
            return
        videos = {_own_id(self._bundle.videos, record["video"]) for record in records if is_put(record)}
        self._draft.look_up([video for video in videos if video is not None], known)

    def _put_comment(self, record: Record, raw: RawId, rows: Rows | None) -> None:
        video = _own_id(self._bundle.videos, record["video"])
        if video is None or not self._draft.has_row(video):
            self._draft.remove_comment(raw)
            self.waiting.setdefault(str(record["video"]), {})[raw] = None
            return
        self._draft.put_comment(NewComment(raw, video, record["text"], record["likes"], rows))

    def _counts(self, record: Record, in_bundle: bool) -> bool:
        """False for a put that the bundle is newer than, or whose vectors were those of another bundle."""
        if in_bundle:
            return bool(record["bundle"] == self._bundle.id)
        return record["vector"] is not None

    def _rows(self, puts: Sequence[Record]) -> list[Rows | None]:
        """The rows of each put; None = the bundle's own."""
        found: list[Rows | None] = [None] * len(puts)
        vectors = [vector_of(record) for record in puts]
        places = [place for place, vector in enumerate(vectors) if vector is not None]
        given = [vector for vector in vectors if vector is not None]
        refusals = {self._towers.refusal(len(vector)) for vector in given} - {None}
        try:
            if refusals:
                raise BadRequest(refusals.pop())
            made = self._towers.rows(stacked(given, self._towers.width)) if given else []
        except BadRequest as misfit:
            raise UserError(
                f"the changes in the state folder do not fit {self._bundle.root}: {misfit}; serve a bundle with the "
                "text vectors they were made for, or give another state folder"
            ) from None
        for place, rows in zip(places, made, strict=True):
            found[place] = rows
        return found


def _own_id(ids: IdMap, raw: RawId) -> RawId | None:
    """The id in a bundle's kind; None for one that it cannot have, or that would be known by another name."""
    found = ids.normalise(raw)
    fits = str(found) == str(raw) and (not ids.numbers or isinstance(found, int))
    return found if fits else None
