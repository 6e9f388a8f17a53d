"""Changes wait for the disk, and nothing else waits for them; a bundle waits for the one that is being loaded."""

import asyncio
import json
import os
import shutil
import threading

import pytest

from lsvcr.serving import journal as journal_module
from lsvcr.serving.http import service as service_module
from lsvcr.serving.http.errors import ApiError
from lsvcr.serving.http.log import Log
from lsvcr.serving.http.service import Service, load
from lsvcr.settings import ServeSettings
from tests.serving.bundles import make_bundle

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


def test_a_bundle_that_comes_while_one_is_loaded_is_served_in_the_end(bundle, tmp_path, monkeypatch):
    loaded, free = threading.Event(), threading.Event()
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    opened = []

    def slow(*args):
        made = load(*args)
        opened.append(made)
        loaded.set()
        assert free.wait(60)
        return made

    async def main() -> None:
        service.start()
        first = asyncio.create_task(service.reopen())
        while not loaded.is_set():
            await asyncio.sleep(0.01)
        make_bundle(folder, n_videos=30)
        later = [asyncio.create_task(service.reopen()) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(ApiError) as refused:
            await service.exchange(str(bundle))
        assert refused.value.status == 409
        free.set()
        await asyncio.gather(first, *later)
        assert len(opened) == 2 and service.recommender is opened[1] and service.numbers()["videos"] == 30
        (folder / "manifest.json").write_text("{")
        with pytest.raises(ApiError):
            await service.reopen()
        await service.exchange(str(bundle))
        assert service.numbers()["videos"] == 40

    settings = ServeSettings(bundle=str(folder))
    with (tmp_path / "log").open("wb") as stream:
        service = Service(load(settings, str(folder), None), settings, Log("json", stream.fileno()))
        monkeypatch.setattr(service_module, "load", slow)
        try:
            asyncio.run(main())
        finally:
            service.close()
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line["level"] for line in lines] == ["info", "info", "error", "info"]
