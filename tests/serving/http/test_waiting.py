"""Changes wait for the disk, and nothing else waits for them."""

import asyncio
import os
import threading

import pytest

from lsvcr.serving import journal as journal_module
from lsvcr.serving.http.errors import ApiError
from lsvcr.serving.http.log import Log
from lsvcr.serving.http.service import Service, load
from lsvcr.settings import ServeSettings

VECTOR = [0.5] * 24
CHANGES = 12
"""More than there are threads for them."""


class HeldDisk:
    """Stands for `fsync`: does it once it may."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free, self.asked, self.real = threading.Event(), threading.Event(), os.fsync
        monkeypatch.setattr(journal_module.os, "fsync", self)

    def __call__(self, handle: int) -> None:
        self.asked.set()
        assert self.free.wait(60)
        self.real(handle)


@pytest.mark.parametrize("exchanging", [False, True])
def test_look_ups_do_not_wait_for_changes_that_wait_for_the_disk(bundle, tmp_path, monkeypatch, exchanging):
    async def main() -> None:
        service.start()
        changes = [
            asyncio.create_task(service.change("put_video", 9001 + number, "new", VECTOR))
            for number in range(CHANGES)
        ]
        while not disk.asked.is_set():
            await asyncio.sleep(0.01)
        if exchanging:
            # The bundle that comes has to wait for the change that is being written, as those behind it do.
            exchange = asyncio.create_task(service.exchange(str(bundle)))
            while service._settled.is_set():
                await asyncio.sleep(0.01)
        with pytest.raises(ApiError) as refused:
            await service.change("put_video", 9999, "one too many", VECTOR)
        assert refused.value.status == 503 and "too many changes" in refused.value.message
        found = await asyncio.gather(
            *(service.in_thread(service.recommender.video, 1007) for _ in range(CHANGES))
        )
        assert {video.id for video in found} == {1007}
        assert service.numbers()["videos"] == 40 and not any(change.done() for change in changes)
        disk.free.set()
        await asyncio.gather(*changes)
        if exchanging:
            await exchange
        assert service.numbers()["videos"] == 40 + CHANGES

    settings = ServeSettings(bundle=str(bundle), queue=CHANGES, request_timeout=60.0)
    with (tmp_path / "log").open("wb") as stream:
        service = Service(
            load(settings, str(bundle), str(tmp_path / "state")), settings, Log("json", stream.fileno())
        )
        disk = HeldDisk(monkeypatch)
        try:
            asyncio.run(main())
        finally:
            disk.free.set()
            service.close()
