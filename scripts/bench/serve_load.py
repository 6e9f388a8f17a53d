"""A load generator: HTTP/1.1 over kept connections, in a process of its own, for serve.py.

    python scripts/bench/serve_load.py --port 8000 --bodies bodies.jsonl --seconds 10 --connections 32 [--rate 1500]

Closed loop: each connection asks again as soon as it has its answer. With `--rate` requests are due at even intervals,
whatever becomes of those before them, and a latency counts from when its request was due, so that a server that stops
for a while cannot hide it; those never sent are errors. Prints one JSON object; `cpu_share` is the generator's own
share of one core: near 1 it, not the server, was measured.
"""

import argparse
import asyncio
import json
import re
import time
from collections import deque
from pathlib import Path

import uvloop

PATIENCE = 120.0
"""Seconds beyond the load's own after which a server that does not answer fails the run."""

LENGTH = re.compile(rb"content-length: *(\d+)", re.I)


class Load:
    """The requests still to be sent, and what became of those that were."""

    def __init__(self, requests: list[bytes], seconds: float, count: int, rate: float) -> None:
        self.requests, self.rate, self.count = requests, rate, count
        self.sent, self.latencies, self.errors = 0, [], 0
        self.start = time.perf_counter()
        self.end = self.start + seconds
        self.idle: deque[Connection] = deque()
        self.due: deque[float] = deque()
        self.open = 0
        self.done = asyncio.get_running_loop().create_future()

    def next(self) -> bytes | None:
        """The next request; None when time or count is used up."""
        if (self.count and self.sent >= self.count) or time.perf_counter() >= self.end:
            return None
        self.sent += 1
        return self.requests[self.sent % len(self.requests)]

    def free(self, connection: "Connection") -> None:
        """A connection that may ask again."""
        if not self.rate:
            self._ask(connection, time.perf_counter())
        elif self.due:
            self._ask(connection, self.due.popleft())
        elif time.perf_counter() >= self.end:
            connection.transport.close()
        else:
            self.idle.append(connection)

    async def keep_rate(self) -> None:
        """Requests at even intervals, to idle connections; without one they wait, and their latency counts."""
        number = 0
        while time.perf_counter() < self.end:
            number += 1
            due = self.start + number / self.rate
            if (pause := due - time.perf_counter()) > 0:
                await asyncio.sleep(pause)
            if self.idle:
                self._ask(self.idle.popleft(), due)
            else:
                self.due.append(due)
        while self.idle:
            self.idle.popleft().transport.close()

    def closed(self) -> None:
        """A connection has ended."""
        self.open -= 1
        if not self.open and not self.done.done():
            self.done.set_result(None)

    def _ask(self, connection: "Connection", due: float) -> None:
        request = self.next()
        if request is None:
            connection.transport.close()
            return
        connection.due = due
        connection.transport.write(request)


class Connection(asyncio.Protocol):
    """One request at a time over one connection."""

    transport: asyncio.Transport

    def __init__(self, load: Load) -> None:
        self.load, self.due, self.got, self.wanted = load, None, b"", 0

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Begin."""
        self.transport = transport
        self.load.open += 1
        self.load.free(self)

    def data_received(self, data: bytes) -> None:
        """A part of the answer."""
        self.got += data
        if not self.wanted:
            head = self.got.find(b"\r\n\r\n")
            if head < 0:
                return
            length = LENGTH.search(self.got, 0, head)
            self.wanted = head + 4 + (int(length.group(1)) if length else 0)
        if len(self.got) < self.wanted:
            return
        self.load.latencies.append(time.perf_counter() - self.due)
        self.load.errors += not self.got.startswith(b"HTTP/1.1 200")
        self.got, self.wanted, self.due = b"", 0, None
        self.load.free(self)

    def connection_lost(self, error: Exception | None) -> None:
        """The end; a request without its answer is an error."""
        self.load.errors += self.due is not None
        self.load.closed()


def requests_of(bodies: Path, path: str, host: str) -> list[bytes]:
    """Whole requests, one for each line of the file."""
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: "
    return [f"{head}{len(line)}\r\n\r\n".encode() + line for line in bodies.read_bytes().splitlines() if line]


def share(sorted_values: list[float], wanted: float) -> float:
    """The quantile of sorted values, in milliseconds; NaN without any."""
    if not sorted_values:
        return float("nan")
    return 1e3 * sorted_values[min(len(sorted_values) - 1, int(wanted * len(sorted_values)))]


async def run(options: argparse.Namespace) -> dict[str, float]:
    """One load, and its figures."""
    requests = requests_of(options.bodies, options.path, f"127.0.0.1:{options.port}")
    load = Load(requests, options.seconds, options.count, options.rate)
    loop = asyncio.get_running_loop()
    cpu = time.process_time()
    await asyncio.gather(
        *(
            loop.create_connection(lambda: Connection(load), "127.0.0.1", options.port)
            for _ in range(options.connections)
        )
    )
    if options.rate:
        await load.keep_rate()
    await asyncio.wait_for(load.done, options.seconds + PATIENCE)
    took = time.perf_counter() - load.start
    latencies = sorted(load.latencies)
    return {
        "requests": len(latencies),
        "errors": load.errors + len(load.due),
        "seconds": took,
        "rps": len(latencies) / took,
        "p50_ms": share(latencies, 0.5),
        "p99_ms": share(latencies, 0.99),
        "max_ms": share(latencies, 1.0),
        "cpu_share": (time.process_time() - cpu) / took,
    }


def main() -> None:
    """Send the load, print what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default="/v1/recommend")
    parser.add_argument("--bodies", type=Path, required=True, help="JSON bodies, one a line, sent in turns")
    parser.add_argument("--seconds", type=float, default=10.0, help="no new request after so long")
    parser.add_argument("--count", type=int, default=0, help="no more requests than these; 0 = any number")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second; 0 = closed loop")
    options = parser.parse_args()
    print(json.dumps(uvloop.run(run(options))))


if __name__ == "__main__":
    main()
