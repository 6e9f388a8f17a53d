"""Threads for what waits for a disk more than it computes, so that the event loop never does."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from lsvcr.serving.http.errors import ApiError, overloaded

T = TypeVar("T")

THREADS = 8
"""Threads of a pool; assumption."""


class Pool:
    """Does one kind of work, which has its threads and its limit to itself: what waits here holds up nothing else.

    Args:
        what: the work, in the plural, as errors name it.
        most: pieces of work under way, waiting ones included.
        seconds: what each may take.
    """

    def __init__(self, what: str, most: int, seconds: float) -> None:
        self._what, self._most, self._seconds = what, most, seconds
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix=what)
        self._under_way = 0

    async def do(self, work: Callable[..., T], *args: Any) -> T:
        """`work(*args)` in a thread.

        Raises:
            ApiError: 503 where too many wait for a thread, 504 where it takes too long (it is still done, later).
        """
        if self._under_way >= self._most:
            raise overloaded(f"too many {self._what} are under way")
        self._under_way += 1
        future = asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args))
        future.add_done_callback(self._done)
        done, _ = await asyncio.wait({future}, timeout=self._seconds)
        if not done:
            text = f"not done within {self._seconds:g} s (--request_timeout); look whether it is later"
            raise ApiError(504, "timeout", text)
        return future.result()

    def close(self) -> None:
        """Wait for what is under way, and end the threads."""
        self._threads.shutdown(wait=True)

    def _done(self, future: "asyncio.Future[Any]") -> None:
        self._under_way -= 1
        if not future.cancelled():
            future.exception()  # an error after a 504 has nobody else who takes it
