"""`Recommender`: a bundle that answers."""

import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lsvcr.schema import Task
from lsvcr.serving.answers import ServedPart, rank_rows, recommended_rows
from lsvcr.serving.bundle import Bundle, Users, open_bundle
from lsvcr.serving.catalogue import Catalogue
from lsvcr.serving.errors import BadRequest, BundleError, UnknownId
from lsvcr.serving.histories import Missing, Rows, id_list, resolve, stored_rows
from lsvcr.serving.ids import UNKNOWN
from lsvcr.serving.index import Found
from lsvcr.serving.journal import Journal
from lsvcr.serving.snapshot import Snapshot, Table
from lsvcr.serving.state_folder import refuse_inside
from lsvcr.serving.text_encoder import TextEncoder
from lsvcr.serving.types import (
    CommentHistory,
    CommentInfo,
    CommentQuery,
    Item,
    Query,
    Ranking,
    RawId,
    Recommendation,
    VideoInfo,
)

_BATCH = 128
"""Requests encoded in one run; more are taken in parts, so that memory does not grow with their number."""


class Recommender:
    """Answers requests from a bundle; `load` makes one. All ids are raw ones.

    Many threads may ask while one publishes the next snapshot: each request works on the snapshot that it began with.

    Args:
        bundle: an opened bundle.
        threads: of one run of the encoder.
        journal: changes of the catalogue so far, and where later ones are kept; None = they end with the process.

    Attributes:
        catalogue: puts and removes videos and comments.

    Raises:
        BundleError: a graph or the text encoder cannot be read.
        UserError: the journal does not fit the bundle.
    """

    def __init__(self, bundle: Bundle, threads: int = 1, journal: Journal | None = None) -> None:
        self.bundle = bundle
        self._parts = {task: ServedPart.load(files, threads) for task, files in bundle.parts.items()}
        self._snapshot: Snapshot
        encoder = TextEncoder.open(bundle.root)
        if encoder is not None and encoder.width != bundle.manifest["text_width"]:
            raise BundleError(
                f"{bundle.root} is damaged (its text encoder makes {encoder.width} numbers, its towers read "
                f"{bundle.manifest['text_width']}); export it again"
            )
        encode = None if encoder is None else encoder.encode
        self.catalogue = Catalogue(bundle, self.publish, journal=journal, encode=encode, threads=threads)

    @classmethod
    def load(
        cls,
        bundle: str | Path,
        *,
        state: str | Path | None = None,
        threads: int = 1,
        verify: bool = True,
    ) -> "Recommender":
        """Open a bundle and make it ready.

        Args:
            bundle: the folder that `lsvcr export` wrote.
            state: folder of the journal of changes (see `catalogue`), made if need be; None = changes end with the
                process. To go on with another bundle, load that without a state and have its catalogue take over
                (`Catalogue.take_over`).
            threads: of one run of the encoder; requests may come from several threads besides.
            verify: compare the sha256 of every file; without it only sizes are compared.

        Raises:
            BundleError: see `open_bundle`; or a graph cannot be read.
            UserError: another process uses the state folder, it lies inside the bundle, is damaged or does not fit the
                bundle.
        """
        opened = open_bundle(bundle, verify)
        if state is not None:
            refuse_inside(state, bundle)
        journal = None if state is None else Journal(state)
        try:
            return cls(opened, threads, journal)
        except BaseException:
            if journal is not None:
                journal.close()
            raise

    @property
    def manifest(self) -> dict[str, Any]:
        """The bundle's manifest."""
        return self.bundle.manifest

    @property
    def tasks(self) -> tuple[str, ...]:
        """What the bundle can do: `rec`, `comm_rank` or both."""
        return tuple(task.value for task in self._parts)

    @property
    def snapshot(self) -> Snapshot:
        """The catalogue that requests are answered from now."""
        return self._snapshot

    def publish(self, snapshot: Snapshot) -> None:
        """Answer later requests from `snapshot`, which was made from the current one (see `snapshot`)."""
        self._snapshot = snapshot

    def recommend(
        self,
        video_history: Sequence[RawId] = (),
        comment_history: CommentHistory = (),
        *,
        k: int = 10,
        exclude_seen: bool = True,
        exclude: Sequence[RawId] = (),
        candidates: Sequence[RawId] | None = None,
    ) -> Recommendation:
        """The videos for a user with these histories; arguments as in `Query`.

        Raises:
            BadRequest: a history, list or number of another form, or the bundle ranks comments only.
        """
        query = Query(
            video_history,
            comment_history,
            k=k,
            exclude_seen=exclude_seen,
            exclude=exclude,
            candidates=candidates,
        )
        return self.recommend_many([query])[0]

    def recommend_user(
        self,
        user: RawId,
        *,
        k: int = 10,
        exclude_seen: bool = True,
        exclude: Sequence[RawId] = (),
        candidates: Sequence[RawId] | None = None,
    ) -> Recommendation:
        """As `recommend`, for a user whose histories the bundle holds; `exclude_seen` leaves out all they liked or
        liked comments of.

        Raises:
            UnknownId: no such user.
            BadRequest: as `recommend`, or a bundle without users.
        """
        query = Query(user=user, k=k, exclude_seen=exclude_seen, exclude=exclude, candidates=candidates)
        return self.recommend_many([query])[0]

    def recommend_many(self, queries: Sequence[Query]) -> list[Recommendation]:
        """An answer for each query, in order: one run of the encoder and one product for `_BATCH` of them.

        Raises:
            BadRequest, UnknownId: one of the queries has no answer; see `recommend` and `recommend_user`.
        """
        snapshot, part = self._snapshot, self._part(Task.REC)
        answers: list[Recommendation] = []
        for start in range(0, len(queries), _BATCH):
            answers += self._recommend(snapshot, part, queries[start : start + _BATCH])
        return answers

    def rank_comments(
        self,
        video_history: Sequence[RawId],
        comment_history: CommentHistory,
        video: RawId,
        comments: Sequence[RawId] | None = None,
        k: int | None = None,
    ) -> Ranking:
        """The comments of `video`, or `comments`, best first for a user with these histories; see `CommentQuery`.

        Raises:
            UnknownId: no such video.
            BadRequest: as `recommend`.
        """
        query = CommentQuery(video, video_history, comment_history, comments=comments, k=k)
        return self.rank_comments_many([query])[0]

    def rank_comments_many(self, queries: Sequence[CommentQuery]) -> list[Ranking]:
        """An answer for each query, in order; errors as `rank_comments` and `recommend_user`."""
        snapshot, part = self._snapshot, self._part(Task.COMM_RANK)
        answers: list[Ranking] = []
        for start in range(0, len(queries), _BATCH):
            answers += self._rank(snapshot, part, queries[start : start + _BATCH])
        return answers

    def histories(self, user: RawId) -> tuple[list[RawId], list[dict[str, Any]]]:
        """Stored video history and comment history of a user, as `recommend` takes them; oldest first.

        Raises:
            UnknownId: no such user.
            BadRequest: a bundle without users.
        """
        snapshot = self._snapshot
        rows = stored_rows(snapshot, self._user_row(user))
        visits: list[dict[str, Any]] = []
        last = UNKNOWN
        for video, comment in zip(rows.event_videos.tolist(), rows.event_comments.tolist(), strict=True):
            if video != last:
                visits.append({"video": snapshot.videos.id(video), "comments": []})
            visits[-1]["comments"].append(snapshot.comments.id(comment))
            last = video
        return [snapshot.videos.id(row) for row in rows.videos.tolist()], visits

    def users(self, limit: int = 20, prefix: str = "") -> list[RawId]:
        """At most `limit` users whose id begins with `prefix`, a sample to choose from; [] without stored users."""
        stored = self.bundle.users
        return [] if stored is None else stored.ids.starting_with(prefix, limit)

    def title(self, video: RawId) -> str | None:
        """The title of a video; None for one that is not there."""
        videos = self._snapshot.videos
        row = int(videos.find_live([video])[0])
        return None if row == UNKNOWN else videos.text(row)

    def video(self, video: RawId, limit: int = 20) -> VideoInfo:
        """A video with its `limit` most liked comments.

        Raises:
            UnknownId: no such video.
        """
        snapshot = self._snapshot
        row = _live_row(snapshot.videos, video, "video")
        listed = snapshot.comments_of(row)
        first = listed[: max(0, limit)]
        shown = [
            CommentInfo(snapshot.comments.id(comment), snapshot.comments.text(comment), likes)
            for comment, likes in zip(first.tolist(), snapshot.likes(first).tolist(), strict=True)
        ]
        return VideoInfo(snapshot.videos.id(row), snapshot.videos.text(row), len(listed), shown)

    def _recommend(
        self, snapshot: Snapshot, part: ServedPart, queries: Sequence[Query]
    ) -> list[Recommendation]:
        notes = [Missing() for _ in queries]
        ks = [_checked_k(query.k) for query in queries]
        histories = self._histories(snapshot, queries, notes)
        without = [
            self._without(snapshot, query, rows, missing)
            for query, rows, missing in zip(queries, histories, notes, strict=True)
        ]
        chosen = [
            _chosen(snapshot.videos, query.candidates, "candidates", missing.videos)
            for query, missing in zip(queries, notes, strict=True)
        ]
        users = part.users(snapshot, histories, self._limits())
        found = recommended_rows(snapshot, part, users, ks, without, chosen)
        items = _items(snapshot.videos, found)
        return [Recommendation(own, missing.unknown()) for own, missing in zip(items, notes, strict=True)]

    def _rank(self, snapshot: Snapshot, part: ServedPart, queries: Sequence[CommentQuery]) -> list[Ranking]:
        notes = [Missing() for _ in queries]
        ks = [None if query.k is None else _checked_k(query.k) for query in queries]
        videos = [_live_row(snapshot.videos, query.video, "video") for query in queries]
        histories = self._histories(snapshot, queries, notes)
        users = part.users(snapshot, histories, self._limits(), snapshot.watched(np.array(videos)))
        found = []
        for query, k, video, user, missing in zip(queries, ks, videos, users, notes, strict=True):
            rows = _chosen(snapshot.comments, query.comments, "comments", missing.comments)
            rows = snapshot.comments_of(video) if rows is None else rows
            found.append(rank_rows(snapshot, part, user, rows, len(rows) if k is None else k))
        items = _items(snapshot.comments, found)
        return [
            Ranking(snapshot.videos.id(video), own, missing.unknown())
            for video, own, missing in zip(videos, items, notes, strict=True)
        ]

    def _part(self, task: Task) -> ServedPart:
        if task not in self._parts:
            does = " and ".join(other.label for other in self._parts)
            raise BadRequest(
                f"this bundle answers {does} only: export a {task.label} checkpoint into a bundle too"
            )
        return self._parts[task]

    def _limits(self) -> tuple[int, int]:
        return self.manifest["max_videos"], self.manifest["max_entries"]

    def _histories(
        self, snapshot: Snapshot, queries: Sequence[Query | CommentQuery], notes: Sequence[Missing]
    ) -> list[Rows]:
        """The histories that each query gives or its user has."""
        given = [(query.video_history, query.comment_history) for query in queries]
        rows = resolve(snapshot, given, notes)
        for query in queries:  # their histories are lists: that has been looked at
            if query.user is not None and (len(query.video_history) or len(query.comment_history)):
                raise BadRequest("give either a user or histories, not both")
        return [
            own if query.user is None else stored_rows(snapshot, self._user_row(query.user))
            for query, own in zip(queries, rows, strict=True)
        ]

    def _stored_users(self) -> Users:
        if self.bundle.users is None:
            raise BadRequest(
                "this bundle holds no users: send their histories, or export it with --with_users True"
            )
        return self.bundle.users

    def _user_row(self, user: RawId) -> int:
        row = int(self._stored_users().ids.find([user])[0])
        if row == UNKNOWN:
            raise UnknownId(f"no user {user!r} in this bundle")
        return row

    def _without(self, snapshot: Snapshot, query: Query, rows: Rows, missing: Missing) -> np.ndarray:
        """Rows that a query leaves out, besides hidden ones."""
        excluded = id_list(query.exclude, "exclude")
        if not isinstance(query.exclude_seen, bool):
            raise BadRequest(f"exclude_seen is true or false, not {reprlib.repr(query.exclude_seen)}")
        if query.exclude_seen and query.user is None and not excluded:
            return np.concatenate([rows.videos, rows.event_videos])
        parts = [missing.videos(excluded, snapshot.videos.find_live(excluded))]
        if query.exclude_seen:
            parts += [rows.videos, rows.event_videos]
            if query.user is not None:
                seen = self._stored_users().seen.row(self._user_row(query.user)).astype(np.int64)
                parts.append(snapshot.videos.current(seen))
        left_out = np.concatenate(parts)
        return left_out[left_out > 0]


def _checked_k(k: Any) -> int:
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise BadRequest(f"k is a whole number from 1 on, not {reprlib.repr(k)}")
    return int(k)


def _chosen(table: Table, ids: Sequence[RawId] | None, name: str, known: Any) -> np.ndarray | None:
    """Rows of a list of candidates, ascending and each once; None where there is no list."""
    if ids is None:
        return None
    listed = id_list(ids, name)
    rows: np.ndarray = np.unique(known(listed, table.find_live(listed)))
    return rows


def _live_row(table: Table, raw: RawId, what: str) -> int:
    row = int(table.find_live([raw])[0])
    if row == UNKNOWN:
        raise UnknownId(f"no {what} {raw!r} in this bundle")
    return row


def _items(table: Table, found: Sequence[Found]) -> list[list[Item]]:
    """What each answer shows of its rows; ids and texts of all are taken at once."""
    rows = np.concatenate([own for own, _ in found])
    shown = zip(table.ids(rows), table.texts(rows), strict=True)
    return [
        [Item(raw, score, text) for score, (raw, text) in zip(scores.tolist(), shown, strict=False)]
        for _, scores in found
    ]
