"""Work that threads bring at the same time is done in batches, each job once, each answer to its own thread."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from lsvcr.serving.journal import Journal
from lsvcr.serving.together import Together


def test_each_thread_gets_its_own_answer_and_each_job_is_done_once():
    batches = []

    def work(jobs):
        batches.append(list(jobs))
        time.sleep(0.001)
        return [ValueError(job) if job % 5 == 0 else -job for job in jobs]

    together = Together(work)

    def ask(job):
        try:
            return together.do(job)
        except ValueError as error:
            return error.args[0]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(200)))
    assert answers == [job if job % 5 == 0 else -job for job in range(200)]
    assert sorted(sum(batches, [])) == list(range(200))
    assert max(map(len, batches)) > 1


def test_what_the_work_raises_comes_out_in_every_thread_of_the_batch_and_the_next_batch_works():
    failing = True

    def work(jobs):
        if failing:
            raise OSError("full")
        return jobs

    together = Together(work)
    raised = []

    def ask(job):
        try:
            together.do(job)
        except OSError as error:
            raised.append(str(error))

    with together.turn:
        threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        while len(together._waiting) < 4:
            time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert raised == ["full"] * 4
    failing = False
    assert together.do(9) == 9


def test_a_result_for_each_job_or_none_is_handed_out():
    with pytest.raises(RuntimeError, match="0 results for 1 jobs"):
        Together(lambda jobs: []).do(1)


def test_writers_share_one_fsync(tmp_path, monkeypatch):
    journal = Journal(tmp_path)
    syncs = []
    monkeypatch.setattr("lsvcr.serving.journal.os.fsync", syncs.append)

    def work(jobs):
        journal.append(jobs)
        return [None] * len(jobs)

    together = Together(work)
    with together.turn:  # as if a batch were being written
        threads = [threading.Thread(target=together.do, args=({"kind": "video", "id": n},)) for n in range(8)]
        for thread in threads:
            thread.start()
        while len(together._waiting) < 8:
            time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert len(syncs) == 1 and journal.lines == 8
    journal.close()
