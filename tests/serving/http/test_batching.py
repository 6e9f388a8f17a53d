"""The queue in front of the worker."""

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest

from lsvcr.serving.http.batching import Batcher
from lsvcr.serving.http.errors import ApiError, ClientGone
from tests.serving.http.process import receive_all, request_bytes, wait_for

RECOMMEND = "/v1/recommend"


class Worker:
    """Doubles numbers; may be held, and fails at 13."""

    def __init__(self):
        self.runs = []
        self.free = threading.Event()
        self.free.set()

    def __call__(self, jobs):
        self.runs.append([list(queries) for _, queries in jobs])
        assert self.free.wait(10)
        return [
            ValueError("unlucky") if 13 in queries else [2 * query for query in queries]
            for _, queries in jobs
        ]


@asynccontextmanager
async def batcher(worker, size=4, capacity=100, timeout=10.0, wait=0.0):
    made = Batcher(worker, size, capacity, timeout, wait)
    try:
        yield made
    finally:
        worker.free.set()
        made.close()


def test_what_arrives_together_is_computed_together():
    async def main():
        worker = Worker()
        async with batcher(worker) as queue:
            answers = await asyncio.gather(*(queue.submit("x", [number]) for number in range(6)))
        assert answers == [[0], [2], [4], [6], [8], [10]]
        assert worker.runs == [[[0], [1], [2], [3]], [[4], [5]]]

    asyncio.run(main())


def test_what_arrives_while_the_worker_is_busy_goes_in_the_next_run():
    async def main():
        worker = Worker()
        worker.free.clear()
        async with batcher(worker) as queue:
            first = asyncio.create_task(queue.submit("x", [1]))
            await asyncio.sleep(0.05)
            later = [asyncio.create_task(queue.submit("x", [number])) for number in (2, 3)]
            await asyncio.sleep(0.05)
            assert queue.waiting == 2
            worker.free.set()
            assert await asyncio.gather(first, *later) == [[2], [4], [6]]
        assert worker.runs == [[[1]], [[2], [3]]]

    asyncio.run(main())


def test_a_large_request_is_computed_in_several_runs_in_order():
    async def main():
        worker = Worker()
        async with batcher(worker) as queue:
            assert await queue.submit("x", list(range(10))) == [2 * number for number in range(10)]
        assert [len(run[0]) for run in worker.runs] == [4, 4, 2]

    asyncio.run(main())


def test_an_idle_worker_waits_for_company_if_it_is_told_to():
    async def main():
        worker = Worker()
        async with batcher(worker, wait=0.2) as queue:
            first = asyncio.create_task(queue.submit("x", [1]))
            await asyncio.sleep(0.02)
            second = asyncio.create_task(queue.submit("x", [2]))
            assert await asyncio.gather(first, second) == [[2], [4]]
        assert worker.runs == [[[1], [2]]]

    asyncio.run(main())


def test_an_error_is_of_its_own_request_alone():
    async def main():
        worker = Worker()
        async with batcher(worker) as queue:
            answers = await asyncio.gather(
                *(queue.submit("x", [number]) for number in (1, 13, 2)), return_exceptions=True
            )
        assert answers[0] == [2] and isinstance(answers[1], ValueError) and answers[2] == [4]

    asyncio.run(main())


def test_two_workers_compute_at_the_same_time_and_the_rest_waits_together():
    async def main():
        worker = Worker()
        worker.free.clear()
        queue = Batcher(worker, 4, 100, 10.0, workers=2)
        tasks = []
        for number in range(5):
            tasks.append(asyncio.create_task(queue.submit("x", [number])))
            await asyncio.sleep(0.05)
        assert worker.runs == [[[0]], [[1]]] and queue.waiting == 3
        worker.free.set()
        assert await asyncio.gather(*tasks) == [[0], [2], [4], [6], [8]]
        assert worker.runs[2:] == [[[2], [3], [4]]]
        queue.close()

    asyncio.run(main())


def test_a_worker_that_raises_goes_on():
    async def main():
        calls = []

        def run(jobs):
            calls.append(jobs)
            if len(calls) == 1:
                raise MemoryError("for once")
            return [queries for _, queries in jobs]

        queue = Batcher(run, 4, 100, 10.0)
        with pytest.raises(MemoryError):
            await queue.submit("x", [1])
        assert await queue.submit("x", [2]) == [2]
        queue.close()

    asyncio.run(main())


def test_a_full_queue_refuses_and_a_late_answer_is_an_error():
    async def main():
        worker = Worker()
        worker.free.clear()
        async with batcher(worker, capacity=3, timeout=0.2) as queue:
            tasks = [asyncio.create_task(queue.submit("x", [number])) for number in range(3)]
            await asyncio.sleep(0.05)  # all three went into the first run
            tasks += [asyncio.create_task(queue.submit("x", [number])) for number in range(4)]
            await asyncio.sleep(0.05)
            with pytest.raises(ApiError) as full:
                await tasks[-1]
            assert full.value.status == 503 and (b"retry-after", b"1") in full.value.headers
            await asyncio.sleep(0.2)
            queue.sweep()
            assert queue.waiting == 0
            for task in tasks[:-1]:
                with pytest.raises(ApiError) as late:
                    await task
                assert late.value.status == 504
            worker.free.set()
            assert await queue.submit("x", [5]) == [10]
        assert len(worker.runs) == 2  # what was too late was not computed

    asyncio.run(main())


def test_who_has_left_is_not_computed_for():
    async def main():
        worker = Worker()
        worker.free.clear()
        left = []
        async with batcher(worker, size=1) as queue:
            first = asyncio.create_task(queue.submit("x", [1]))
            await asyncio.sleep(0.05)
            second = asyncio.create_task(queue.submit("x", [2], lambda: bool(left)))
            third = asyncio.create_task(queue.submit("x", [3], lambda: bool(left)))
            await asyncio.sleep(0.05)
            left.append(True)
            queue.sweep()
            assert queue.waiting == 0
            worker.free.set()
            assert await first == [2]
            for task in (second, third):
                with pytest.raises(ClientGone):
                    await task
        assert worker.runs == [[[1]]]

    asyncio.run(main())


def test_many_at_once_get_what_one_alone_gets(server):
    bodies = [
        {
            "video_history": [1007 + 7 * (number % 40)],
            "comment_history": [5 * (number % 50)],
            "k": 1 + number % 9,
        }
        for number in range(48)
    ]
    alone = [server.post(RECOMMEND, body).json for body in bodies]
    with ThreadPoolExecutor(24) as pool:
        together = list(pool.map(lambda body: server.post(RECOMMEND, body).json, bodies))
    for one, other in zip(alone, together, strict=True):
        assert [item["id"] for item in one["items"]] == [item["id"] for item in other["items"]]
        assert [i["score"] for i in one["items"]] == pytest.approx(
            [i["score"] for i in other["items"]], abs=1e-6
        )
    queries = server.metric("lsvcr_batch_queries_sum")
    assert queries == 96 and server.metric("lsvcr_batch_queries_count") <= 96


def test_a_bad_query_does_not_spoil_its_neighbours(server):
    """Unknown users fail in the worker, where their neighbours of the same run are computed too."""
    bodies = [{"user": 101 if number % 3 else 9} for number in range(30)]
    with ThreadPoolExecutor(15) as pool:
        statuses = list(pool.map(lambda body: server.post(RECOMMEND, body).status, bodies))
    assert statuses == [200 if number % 3 else 404 for number in range(30)]


def test_a_full_server_says_so_and_recovers(start):
    small = start("--queue", "4", "--batch_size", "1", "--access_log", "False")
    body = json.dumps({"requests": [{"k": 40}] * 4}).encode()
    connections = [small.raw() for _ in range(30)]
    for connection in connections:
        connection.sendall(request_bytes(RECOMMEND, body))
    heads = [connection.recv(1000) for connection in connections]
    statuses = [head.split(b" ")[1] for head in heads]
    assert set(statuses) == {b"200", b"503"}
    assert all(b"retry-after: 1" in head for head in heads if b" 503 " in head[:20])
    wait_for(lambda: small.post(RECOMMEND, {}).status == 200)
    assert small.metric("lsvcr_queue") == 0
    assert small.stop() == 0  # and every line is written
    refused = [line for line in small.events("request") if line["status"] == 503]
    assert len(refused) == statuses.count(b"503") and "waiting" in refused[0]["reason"]


def test_an_answer_that_comes_too_late_is_504_and_not_computed_further(start):
    """256 queries in runs of one take longer than the ten milliseconds allowed; three such requests, longer still."""
    hasty = start("--request_timeout", "0.01", "--batch_size", "1")
    body = json.dumps({"requests": [{"k": 40}] * 256}).encode()
    connections = [hasty.raw() for _ in range(3)]
    for connection in connections:
        connection.sendall(request_bytes(RECOMMEND, body, "Connection: close\r\n"))
    answers = [receive_all(connection) for connection in connections]
    assert b" 504 " in answers[-1].split(b"\r\n")[0] and b"--request_timeout" in answers[-1]
    assert hasty.metric("lsvcr_batch_queries_sum") < 3 * 256 and hasty.metric("lsvcr_queue") == 0
    wait_for(lambda: hasty.post(RECOMMEND, {}).status == 200)
    assert hasty.stop() == 0  # and every line is written
    [line, *_] = [line for line in hasty.events("request") if line["status"] == 504]
    assert "--request_timeout" in line["reason"] and line["id"]
