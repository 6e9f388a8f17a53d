"""What the routes share: the recommender that answers now, its worker, and the exchange of one for another."""

import asyncio
import gc
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pydantic import TypeAdapter

from lsvcr.serving.http.batching import Batcher
from lsvcr.serving.http.errors import ApiError
from lsvcr.serving.http.log import Log
from lsvcr.serving.http.metrics import Metrics
from lsvcr.serving.http.pool import Pool
from lsvcr.serving.journal import NotStored
from lsvcr.serving.runtime import Recommender
from lsvcr.serving.types import CommentQuery, Query, Ranking, Recommendation
from lsvcr.settings import ServeSettings
from lsvcr.utils.errors import UserError

T = TypeVar("T")

_TO_JSON: dict[type, Callable[[Any], bytes]] = {
    kind: TypeAdapter(kind).dump_json for kind in (Recommendation, Ranking)
}
"""These know the fields of answers, and do not look for them in each."""

Ask = Callable[[list[Any]], Sequence[Any]]
"""`recommend_many` or `rank_comments_many` of a recommender: a request keeps the one it began with."""


def load(settings: ServeSettings, path: str, state: str | None) -> Recommender:
    """The recommender of a bundle under these settings; `state` as in `Recommender.load`.

    Raises:
        BundleError: it cannot be served.
        UserError: the state folder cannot be used.
    """
    return Recommender.load(path, state=state, threads=settings.threads, verify=settings.verify)


class Service:
    """One server's recommender. Made before the loop runs; `start` is called in it.

    Attributes:
        recommender: answers; exchanged as a whole, so who takes it once works on one bundle to the end.
        path: the bundle folder it came from.
        draining: True from the moment that the server is asked to stop.
    """

    def __init__(self, recommender: Recommender, settings: ServeSettings, log: Log) -> None:
        self.recommender = recommender
        self.path = settings.bundle
        self.settings = settings
        self.log = log
        self.metrics = Metrics(self.numbers, settings.processes > 1)
        self.draining = False
        self.batcher: Batcher
        self._look_ups, self._changes = (
            Pool(what, settings.queue, settings.request_timeout) for what in ("look-ups", "changes")
        )
        self._exchange = asyncio.Lock()
        self._reopening = False  # waits for its turn
        self._settled = asyncio.Event()
        self._settled.set()

    def start(self) -> None:
        """Start the worker; call it in the event loop."""
        settings = self.settings
        self.batcher = Batcher(
            self.answer,
            settings.batch_size,
            settings.queue,
            settings.request_timeout,
            settings.batch_wait_ms / 1000,
            self.metrics.batch,
            settings.workers,
        )
        self.metrics.gauge("lsvcr_queue", "Queries that wait", lambda: self.batcher.waiting)

    def close(self) -> None:
        """End the worker and the journal."""
        self.batcher.close()
        self._look_ups.close()
        self._changes.close()
        self.recommender.catalogue.close()

    def answer(self, jobs: Sequence[tuple[Ask, Sequence[Any]]]) -> list[Any]:
        """Answers to the queries of some jobs; runs in a worker thread.

        Args:
            jobs: whom to ask, and queries, of each; those who ask the same are asked together.

        Returns:
            For each job the answers as JSON bytes, or the exception that its queries caused.
        """
        results: list[Any] = [None] * len(jobs)
        for ask in dict.fromkeys(job[0] for job in jobs):
            places = [place for place, job in enumerate(jobs) if job[0] == ask]
            try:
                answers = self._ask(ask, [query for at in places for query in jobs[at][1]])
            except Exception as error:
                if len(places) == 1:
                    results[places[0]] = error
                else:  # one of them is to blame: each alone, so that the others get their answers
                    for place in places:
                        results[place] = self.answer([jobs[place]])[0]
                continue
            first = 0
            for place in places:
                last = first + len(jobs[place][1])
                results[place] = answers[first:last]
                first = last
        return results

    def _ask(self, ask: Ask, queries: list[Any]) -> list[bytes]:
        answers = ask(queries)
        videos = sum(len(answer.unknown.videos) for answer in answers)
        comments = sum(len(answer.unknown.comments) for answer in answers)
        if videos or comments:
            self.metrics.unknown(videos, comments)
        return [_TO_JSON[type(answer)](answer) for answer in answers]

    async def recommend(self, queries: list[Query], gone: Callable[[], bool]) -> list[bytes]:
        """Answers to `queries` as JSON."""
        return await self.batcher.submit(self.recommender.recommend_many, queries, gone)

    async def rank(self, queries: list[CommentQuery], gone: Callable[[], bool]) -> list[bytes]:
        """Answers to `queries` as JSON."""
        return await self.batcher.submit(self.recommender.rank_comments_many, queries, gone)

    async def in_thread(self, work: Callable[..., T], *args: Any) -> T:
        """`work(*args)`, a look-up, in a thread of ours; errors as `Pool.do`."""
        return await self._look_ups.do(work, *args)

    def numbers(self) -> dict[str, Any]:
        """Numbers of the catalogue as it is now."""
        users = self.recommender.bundle.users
        return {**self.recommender.catalogue.stats(), "users": 0 if users is None else len(users.ids) - 1}

    async def change(self, name: str, *args: Any) -> None:
        """Call a method of the catalogue in a thread; when this returns, the change is kept and seen.

        Raises:
            ApiError: 507 where it could not be stored, or as `Pool.do`.
            BadRequest, UnknownId: the change makes no sense.
        """
        try:
            await self._changes.do(getattr(self.recommender.catalogue, name), *args)
        except NotStored as error:
            raise ApiError(507, "not_stored", str(error)) from error
        # A bundle that takes over at this moment has the change already, but is not yet asked.
        await self._settled.wait()

    async def exchange(self, path: str) -> None:
        """Serve the bundle at `path` from now on; no request is dropped, and none sees parts of both.

        Raises:
            ApiError: 409 while another exchange is under way, 422 for a bundle that cannot be served: the old one
                goes on.
        """
        if self._exchange.locked() or self._reopening:
            raise ApiError(409, "busy", "another bundle is being loaded; try again when it is there")
        async with self._exchange:
            await self._told(path)

    async def reopen(self) -> None:
        """Serve what lies at the path that the server was started with, once no other exchange is under way.

        Asking again while one waits is asking once: it opens what is there when its turn comes.

        Raises:
            ApiError: as `exchange`, but for the 409. The log has it too.
        """
        if self._reopening:
            return
        self._reopening = True
        async with self._exchange:
            self._reopening = False
            await self._told(self.settings.bundle)

    async def _told(self, path: str) -> None:
        """Exchange, and tell the log and the metrics what came of it."""
        try:
            await self._exchange_to(path)
        except Exception as error:
            self.metrics.swaps.labels("refused").inc()
            self.log.event("error", "bundle", path=path, reason=str(error) or repr(error))
            if isinstance(error, UserError):
                raise ApiError(422, "bad_bundle", str(error)) from None
            raise
        self.metrics.swaps.labels("done").inc()
        self.log.event("info", "bundle", path=path)

    async def _exchange_to(self, path: str) -> None:
        # Whatever happens here, changes and requests go on: with the old bundle to the end, then with the new one.
        loop = asyncio.get_running_loop()
        new = await loop.run_in_executor(None, load, self.settings, path, None)
        self._settled.clear()
        try:
            await loop.run_in_executor(None, new.catalogue.take_over, self.recommender.catalogue)
            self.recommender, self.path = new, path
        finally:
            self._settled.set()
        # The old bundle is garbage in a cycle, once the last request that began with it has its answer.
        loop.call_later(self.settings.request_timeout, gc.collect)
