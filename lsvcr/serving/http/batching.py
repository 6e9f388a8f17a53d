"""Requests that arrive together are scored together.

Worker threads compute; the event loop only collects. A request waits while all workers are busy, no longer; then all
that wait (up to `batch_size` queries) go in one run. NumPy and ONNX Runtime let go of the interpreter's lock, so the
loop answers other connections meanwhile, and a second worker encodes while the first one sorts.
"""

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from lsvcr.serving.http.errors import ApiError, ClientGone, overloaded

Run = Callable[[Sequence[tuple[Any, Sequence[Any]]]], list[Any]]
"""Takes (kind, queries) of some jobs, gives each one's results or an exception; in the worker thread."""


class Job:
    """Some queries of one request, which stay together, and the future of their answer."""

    __slots__ = ("deadline", "future", "gone", "kind", "queries")

    def __init__(
        self, kind: Any, queries: Sequence[Any], gone: Callable[[], bool], future: Any, deadline: float
    ) -> None:
        self.kind = kind
        self.queries = queries
        self.gone = gone
        self.future = future
        self.deadline = deadline


class Batcher:
    """The queue in front of the workers.

    Args:
        run: what computes; what it raises is the answer to all of its jobs.
        batch_size: queries of one run.
        capacity: queries that may wait.
        timeout: seconds after which a job that has no answer gets 504, running or not.
        wait: seconds that a first job waits for others while a worker is idle.
        measure: told the number of queries of every run.
        workers: runs at a time, each in a thread of its own.
    """

    def __init__(
        self,
        run: Run,
        batch_size: int,
        capacity: int,
        timeout: float,
        wait: float = 0.0,
        measure: Callable[[int], None] = lambda size: None,
        workers: int = 1,
    ) -> None:
        self._run = run
        self._batch_size = batch_size
        self._capacity = capacity
        self._timeout = timeout
        self._wait = wait
        self._measure = measure
        self._waiting: deque[Job] = deque()
        self._running: list[list[Job]] = []
        self._size = 0
        self._planned = False
        self._todo: queue.SimpleQueue[list[Job] | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._workers = workers
        for number in range(workers):
            threading.Thread(target=self._work, name=f"worker-{number}", daemon=True).start()

    @property
    def waiting(self) -> int:
        """Queries in the queue."""
        return self._size

    async def submit(
        self, kind: Any, queries: Sequence[Any], gone: Callable[[], bool] = lambda: False
    ) -> list[Any]:
        """The results of `queries`, in their order, once they had their turn.

        Args:
            kind: what is asked, and whom; the worker gets it as it is.
            queries: what it gets; more than `batch_size` are computed in several runs.
            gone: True as soon as nobody waits for the answer: what has not begun is dropped.

        Raises:
            ApiError: 503 where the queue is full, 504 where the time is over.
            ClientGone: the client left before the work began.
            Exception: what the worker made of these queries.
        """
        if self._size and self._size + len(queries) > self._capacity:
            raise overloaded(f"{self._size} queries are waiting already")
        deadline = time.monotonic() + self._timeout
        jobs = [
            Job(kind, queries[at : at + self._batch_size], gone, self._loop.create_future(), deadline)
            for at in range(0, len(queries), self._batch_size)
        ]
        self._waiting.extend(jobs)
        self._size += len(queries)
        self._plan()
        if len(jobs) == 1:
            return await jobs[0].future
        parts = await asyncio.gather(*(job.future for job in jobs))
        return [result for part in parts for result in part]

    def sweep(self) -> None:
        """Give 504 to what is too late and forget what nobody waits for; call it some times a second."""
        now = time.monotonic()
        for job in (*self._waiting, *(job for batch in self._running for job in batch)):
            if not job.future.done() and job.deadline < now:
                text = f"no answer within {self._timeout:g} s (--request_timeout); ask again, or for less at once"
                job.future.set_exception(ApiError(504, "timeout", text))
            elif job.gone() and not job.future.done():
                job.future.set_exception(ClientGone())
        if any(job.future.done() for job in self._waiting):
            self._waiting = deque(job for job in self._waiting if not job.future.done())
            self._size = sum(len(job.queries) for job in self._waiting)

    def close(self) -> None:
        """End the workers after what they have in hand; what still waits gets 503."""
        for job in self._waiting:
            if not job.future.done():
                job.future.set_exception(overloaded("the server is stopping"))
        self._waiting.clear()
        self._size = 0
        for _ in range(self._workers):
            self._todo.put(None)

    def _plan(self) -> None:
        """Start a run in the next turn of the loop, when all that arrived in this turn has been queued."""
        if self._planned or len(self._running) >= self._workers:
            return
        self._planned = True
        if self._wait and self._size < self._batch_size:
            self._loop.call_later(self._wait, self._start)
        else:
            self._loop.call_soon(self._start)

    def _start(self) -> None:
        self._planned = False
        batch: list[Job] = []
        size = 0
        while self._waiting and (not batch or size + len(self._waiting[0].queries) <= self._batch_size):
            job = self._waiting.popleft()
            self._size -= len(job.queries)
            if job.future.done():
                continue
            if job.gone():
                job.future.set_exception(ClientGone())
                continue
            batch.append(job)
            size += len(job.queries)
        if batch:
            self._running.append(batch)
            self._measure(size)
            self._todo.put(batch)
        if self._waiting:
            self._plan()

    def _work(self) -> None:
        while (batch := self._todo.get()) is not None:
            try:
                results = self._run([(job.kind, job.queries) for job in batch])
            except Exception as error:  # without a worker nobody would ever get an answer again
                results = [error] * len(batch)
            try:
                self._loop.call_soon_threadsafe(self._finish, batch, results)
            except RuntimeError:  # the loop has ended, and with it all who waited
                return
            # An idle worker keeps nothing: the bundle that it asked may have been exchanged.
            del batch, results

    def _finish(self, batch: list[Job], results: list[Any]) -> None:
        self._running = [running for running in self._running if running is not batch]
        if self._waiting:
            self._plan()
        for job, result in zip(batch, results, strict=True):
            if job.future.done():
                continue
            if isinstance(result, BaseException):
                job.future.set_exception(result)
            else:
                job.future.set_result(result)
