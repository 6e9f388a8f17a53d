"""Videos and comments that come, change and go while requests are answered.

A change is valid at once: when the call returns, it is in the journal on disk (see `journal`) and every later request
sees it whole. Requests never wait for a change. Changes wait for each other; those that wait are written together.
What a change does to rows: `draft`.

A journal serves any bundle whose text vectors are as wide. On another bundle than the one a change was made on:

- a put of an id that the bundle itself has is passed over: the bundle is newer;
- a put that kept the vectors of a bundle that had the id is passed over where this one has it not;
- removals stay;
- a comment waits for its video if that is not there.

What is passed over stays in the journal until its id is changed again, so going back to the earlier bundle brings it
back.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lsvcr.serving.bundle import Bundle
from lsvcr.serving.draft import State
from lsvcr.serving.errors import BadRequest, UnknownId
from lsvcr.serving.journal import Journal, Key, Memory, NotStored, Record
from lsvcr.serving.making import Asked, Making, Waiting
from lsvcr.serving.records import COMMENT, VIDEO, checked_id, checked_likes, checked_text
from lsvcr.serving.replay import Replay
from lsvcr.serving.snapshot import Snapshot
from lsvcr.serving.state_folder import refuse_inside
from lsvcr.serving.together import Together
from lsvcr.serving.towers import Towers
from lsvcr.serving.types import RawId
from lsvcr.utils.errors import UserError

_SPARE_ROWS = 1024
"""Rows of earlier changes that are kept besides twice as many as count, before all rows are made anew; assumption."""

Encode = Callable[[Sequence[str]], np.ndarray]
"""The bundle's text encoder: texts to vectors (n, w) float32."""

_logger = logging.getLogger(__name__)


class _HandedOver(Exception):
    """The journal belongs to another catalogue now."""


class Catalogue:
    """The writing side of a `Recommender`. All methods may be called from several threads.

    Args:
        bundle: what the catalogue begins with.
        publish: called with every new snapshot, the first included.
        journal: keeps the changes; those in it are made first. None = changes last as long as the process.
        encode: the bundle's text encoder, if it has one.
        threads: of one run of a tower.

    Raises:
        BundleError: a tower cannot be read.
        UserError: the journal holds text vectors of another width.
    """

    def __init__(
        self,
        bundle: Bundle,
        publish: Callable[[Snapshot], None],
        *,
        journal: Journal | None = None,
        encode: Encode | None = None,
        threads: int = 1,
    ) -> None:
        self._bundle, self._publish, self._encode = bundle, publish, encode
        self._towers = Towers(bundle, threads)
        self._journal: Journal | Memory = Memory()
        self._passed_over: set[Key] = set()
        self._waiting: Waiting = {}
        self._successor: Catalogue | None = None
        self._together = Together(self._make)
        self._state = State.of(bundle)
        self._take(Memory() if journal is None else journal)

    # What can be asked for

    def put_video(self, id: RawId, title: str, vector: Any = None) -> bool:
        """Add a video, or change one.

        Args:
            id: of the bundle's kind: a whole number (its digits will do) or a text.
            title: what is shown.
            vector: its text vector, w numbers. None = the text encoder's vector of the title if the bundle has an
                encoder and the title is another than before. Without an encoder the title alone changes and the
                vectors stay as they are; a video that is not there needs a vector then.

        A new vector replaces all that was known of the video: one of the bundle loses what its vectors had from its
        id, that is from who watched it, and is then a new video with a known text. Comments stay with it. A removed
        video counts as one that is not there; putting it again brings back the comments it had.

        Returns:
            True for a video that was not there.

        Raises:
            BadRequest: an id, title or vector that cannot be, or no vector where one is needed.
            NotStored: the journal could not be written. Nothing has changed.
        """

        def ask(one: Catalogue) -> Asked:
            return one._put(VIDEO, checked_id(one._bundle.videos, id), checked_text(title, "title"), vector)

        return self._have_made(ask)

    def remove_video(self, id: RawId) -> None:
        """Take a video and its comments away: they are not recommended, ranked or shown until it is put again.

        In the histories of users a video of the bundle still says what it said; any other one becomes unknown.

        Raises:
            UnknownId: no such video.
            BadRequest, NotStored: as `put_video`.
        """
        self._have_made(lambda one: Asked(VIDEO, checked_id(one._bundle.videos, id), gone=True))

    def put_comment(
        self, id: RawId, video: RawId, text: str, vector: Any = None, likes: int | None = None
    ) -> bool:
        """Add a comment to a video, or change one, which may move to another video.

        Args:
            id, text, vector: as for `put_video`.
            video: has to be there.
            likes: its place among the video's comments, of which the first counts in the histories of who watched the
                video; equally liked ones come in the order they were put. None = as before, or 0.

        Returns:
            True for a comment that was not there.

        Raises:
            UnknownId: no such video.
            BadRequest, NotStored: as `put_video`.
        """

        def ask(one: Catalogue) -> Asked:
            asked = one._put(
                COMMENT, checked_id(one._bundle.comments, id), checked_text(text, "text"), vector
            )
            return replace(asked, video=checked_id(one._bundle.videos, video), likes=checked_likes(likes))

        return self._have_made(ask)

    def remove_comment(self, id: RawId) -> None:
        """Take a comment away, also one that is out of sight with its video.

        Raises:
            UnknownId: no such comment.
            BadRequest, NotStored: as `put_video`.
        """
        self._have_made(lambda one: Asked(COMMENT, checked_id(one._bundle.comments, id), gone=True))

    def stats(self) -> dict[str, int]:
        """Numbers for a monitor.

        Returns:
            videos, comments: that are there. changed: ids that the journal knows of. passed_over: of these, changes
            that this bundle makes void. journal_lines, journal_bytes: its file, 0 without one.
        """
        snapshot, journal = self._state.snapshot, self._journal
        return {
            "videos": snapshot.videos.n_live,
            "comments": snapshot.comments.n_live,
            "changed": journal.live,
            "passed_over": len(self._passed_over),
            "journal_lines": journal.lines if journal.size else 0,
            "journal_bytes": journal.size,
        }

    def take_over(self, other: "Catalogue") -> None:
        """Get the journal of another bundle's catalogue, with all changes, before this one is asked in its place.

        Changes wait until it is done. From then on a change that still comes to `other` is made here, so that none is
        lost while requests go over from one bundle to the other; `other` itself answers as it did.

        Raises:
            UserError: the journal's vectors do not fit this bundle, or it lies inside; `other` goes on as before.
        """
        with other._together.turn, self._together.turn:
            if other._successor is not None:
                raise UserError("the journal has been handed over already")
            if isinstance(other._journal, Journal):
                refuse_inside(other._journal.path.parent, self._bundle.root)
            self._take(other._journal)
            other._successor = self
            other._publish = _nowhere  # whoever let go of its recommender lets go of all of it

    def close(self) -> None:
        """Close the journal, once changes that are being made are done. Later ones are refused as not stored."""
        with self._together.turn:
            if self._successor is None:
                self._journal.close()

    # How it is made

    def _put(self, kind: str, raw: RawId, text: str, vector: Any) -> Asked:
        if vector is not None:
            found = self._towers.vector(vector)
        elif self._encode is not None:
            found = self._towers.vector(self._encode([text])[0])
        else:
            return Asked(kind, raw, text=text)
        rows = self._towers.rows(found[None])[0]
        return Asked(kind, raw, text=text, vector=found, is_given=vector is not None, rows=rows)

    def _have_made(self, ask: Callable[["Catalogue"], Asked]) -> bool:
        one = self
        while True:
            while one._successor is not None:
                one = one._successor
            try:
                return one._together.do(ask(one))
            except _HandedOver:
                continue

    def _make(self, batch: list[Asked]) -> list[bool | Exception]:
        """Make changes in order and write them together; for each whether its id is new, or what is wrong with it."""
        if self._successor is not None:
            return [_HandedOver()] * len(batch)
        making = Making(self._bundle, self._towers, self._state, self._in_force, self._waiting)
        results: list[bool | Exception] = []
        for asked in batch:
            try:
                results.append(making.make(asked))
            except (BadRequest, UnknownId) as refused:
                results.append(refused)
        if not making.records:
            return results
        state = making.draft.finish()
        try:
            self._journal.append(list(making.records.values()))
        except NotStored as error:
            return [result if isinstance(result, Exception) else error for result in results]
        self._passed_over -= making.records.keys()
        for video in making.lost:
            self._waiting[video] = making.waiting_for(video)
        self._become(state)
        self._tidy()
        return results

    def _become(self, state: State) -> None:
        self._state = state
        self._publish(state.snapshot)

    def _tidy(self) -> None:
        """Leave behind what later changes made void. All changes are stored and seen already, whatever happens here."""
        try:
            self._journal.compact_if_long()
            snapshot = self._state.snapshot
            rows = len(snapshot.videos.added_ids) + len(snapshot.comments.added_ids)
            if rows > 2 * self._journal.live + _SPARE_ROWS:
                self._take(self._journal)
        except Exception:
            _logger.exception("the catalogue could not be tidied up; it goes on as it is")

    def _take(self, journal: Journal | Memory) -> None:
        """Begin with the bundle and make all changes of a journal."""
        replay = Replay(self._bundle, self._towers, journal)
        self._journal, self._passed_over, self._waiting = journal, replay.passed_over, replay.waiting
        self._become(replay.state)

    def _in_force(self, kind: str, raw: RawId) -> Record | None:
        """What the journal says of an id, unless this bundle passes it over."""
        return None if (kind, str(raw)) in self._passed_over else self._journal.get(kind, raw)


def _nowhere(snapshot: Snapshot) -> None:
    """Where the snapshots of a catalogue without a recommender go."""
