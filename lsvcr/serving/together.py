"""Threads that want the same thing done at the same time share its cost."""

from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any, Generic, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


class _Waiting(Generic[Job]):
    """A job in the queue and, once it is done, what came of it."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.done = False
        self.result: Any = None


class Together(Generic[Job, Result]):
    """Does the jobs of several threads in batches, one batch at a time: the group commit of databases.

    A thread that comes while a batch is being done waits. When its turn comes it does everything that has gathered,
    or finds that another waiting thread has done its job already.
    """

    def __init__(self, work: Callable[[list[Job]], Sequence[Result | Exception]]) -> None:
        """
        Args:
            work: gets the jobs of a batch, oldest first, and returns a result for each; an exception among them is
                raised in the thread whose job it is. What `work` itself raises is raised in all of them.
        """
        self._work = work
        self._waiting: list[_Waiting[Job]] = []
        self._queue_lock = Lock()
        self.turn = Lock()
        """Held while a batch is done. Who takes it from outside keeps batches from beginning."""

    def do(self, job: Job) -> Result:
        """Have one job done and return its result, or raise what came of it."""
        mine = _Waiting(job)
        with self._queue_lock:
            self._waiting.append(mine)
        with self.turn:
            if not mine.done:
                with self._queue_lock:
                    batch, self._waiting = self._waiting, []
                self._do_batch(batch)
        if isinstance(mine.result, BaseException):
            raise mine.result
        result: Result = mine.result
        return result

    def _do_batch(self, batch: list[_Waiting[Job]]) -> None:
        try:
            results: Sequence[Any] = self._work([waiting.job for waiting in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{len(results)} results for {len(batch)} jobs")
        except BaseException as error:
            results = [error] * len(batch)
        for waiting, result in zip(batch, results, strict=True):
            waiting.result = result
            waiting.done = True
