"""An open-loop load tool: requests leave by a fixed schedule, whatever the server does.

python -m benchmarks.load --url http://127.0.0.1:8000/predict --rate 500 --seconds 10 --image photo.jpg --model model.pt

A latency counts from the time a request was scheduled for, never from when a connection was free to send it: a server
that stalls is charged for everybody who would have come meanwhile. Replies are kept as they came and checked after the
run, so that checking costs the server's cores nothing while it is measured.
"""

import asyncio
import ctypes
import gc
import json
import os
import random
import re
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import count, takewhile
from math import ceil
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import uvloop

from benchmarks.command_line import Parser, positive, whole
from benchmarks.errors import BenchmarkError
from models.errors import ArtifactError

GRACE_S = 10.0  # how long answers are waited for after the last request was due
TOLERANCE = 1e-4  # between an answered probability and the expected one
CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
REQUEST_ID = re.compile(rb"\r\nx-request-id: *(\S+)", re.IGNORECASE)
TFD_TIMER_ABSTIME = 1  # <sys/timerfd.h>


@dataclass(frozen=True)
class Image:
    """A body to post, and the class index and probability that its answer must have, if they are known."""

    body: bytes
    expected: tuple[int, float] | None = None


@dataclass(frozen=True)
class Report:
    """What became of a schedule; latencies in milliseconds from the scheduled time, over all that was answered.

    lost = sent - answered; `wrong` are answers of status 200 other than expected, `misnamed` answers without their
    request's id. `late_ms` is the 99th percentile of how late this tool sent what had a free connection.
    """

    scheduled: int
    sent: int
    answered: int
    lost: int
    wrong: int
    misnamed: int
    statuses: dict[str, int]
    answers_per_s: float
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    late_ms: float

    @property
    def clean(self) -> bool:
        """Whether every request was sent and answered as expected."""
        return self.answered == self.scheduled == self.statuses.get("200", 0) and not self.wrong + self.misnamed


def schedule(rate: float, seconds: float, seed: int | None = None) -> list[float]:
    """When requests are due, in seconds from the start: evenly at `rate` a second, or by Poisson's law with a seed."""
    if seed is None:
        return [number / rate for number in range(int(rate * seconds))]
    chance, now = random.Random(seed), 0.0
    arrivals = (now := now + chance.expovariate(rate) for _ in count())
    return list(takewhile(lambda due: due < seconds, arrivals))


class Alarm:
    """A file descriptor that becomes readable at a time of CLOCK_MONOTONIC; event loops round theirs to 1 ms."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(None, use_errno=True)
        self.descriptor = self.library.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")

    def set(self, at: float) -> None:
        """Ring once at `at` seconds, at once where that has passed."""
        value = (ctypes.c_long * 4)(0, 0, int(at), int(at % 1 * 1e9))
        self.library.timerfd_settime(self.descriptor, TFD_TIMER_ABSTIME, value, None)


@dataclass
class Exchange:
    """One request's course; times in seconds of CLOCK_MONOTONIC."""

    due: float
    sent: float | None = None
    finished: float | None = None
    reply: bytes = b""
    waited: bool = False  # for a free connection


class Connection(asyncio.Protocol):
    """A connection with at most one request under way."""

    def __init__(self, run: "Run") -> None:
        self.run = run
        self.buffer = bytearray()
        self.exchange: Exchange | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own class, of no common base
        self.run.alive.add(self)
        self.run.free.append(self)
        self.run.send_due()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head = self.buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        length = CONTENT_LENGTH.search(self.buffer, 0, head)
        if length is None or self.exchange is None:
            self.transport.abort()  # nothing that this tool asked for or can read
        elif len(self.buffer) >= head + 4 + int(length[1]):
            exchange, self.exchange = self.exchange, None
            exchange.finished = time.monotonic()
            exchange.reply = bytes(self.buffer)
            self.buffer.clear()
            self.run.free.append(self)
            self.run.open -= 1
            self.run.send_due()

    def connection_lost(self, _: Exception | None) -> None:
        self.run.alive.discard(self)
        if self in self.run.free:
            self.run.free.remove(self)
        if self.exchange is not None:
            self.run.open -= 1
        self.run.replace()


@dataclass
class Run:
    """A schedule under way: what is due goes to free connections, oldest first."""

    address: tuple[str, int]
    path: str
    images: Sequence[Image]
    exchanges: list[Exchange]
    alive: set[Connection] = field(default_factory=set)
    free: deque[Connection] = field(default_factory=deque)
    due: deque[int] = field(default_factory=deque)
    next: int = 0
    open: int = 0  # requests not yet answered or lost
    connecting: set["asyncio.Task[None]"] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.open = len(self.exchanges)
        self.alarm = Alarm()
        self.over = asyncio.Event()
        self.heads = [
            f"POST {self.path} HTTP/1.1\r\nHost: {self.address[0]}:{self.address[1]}\r\n"
            f"Content-Type: application/octet-stream\r\nContent-Length: {len(image.body)}\r\nX-Request-ID: load-"
            for image in self.images
        ]

    async def connect(self) -> None:
        """Open one connection; where that fails there is one less."""
        with suppress(OSError):
            await asyncio.get_running_loop().create_connection(lambda: Connection(self), *self.address)

    def replace(self) -> None:
        """Open another connection for one that was lost, while there is something to send or to wait for."""
        if self.open > 0 and not self.over.is_set():
            task = asyncio.ensure_future(self.connect())
            self.connecting.add(task)
            task.add_done_callback(self.connecting.discard)
        else:
            self.over.set()

    def ring(self) -> None:
        """The alarm: something is due."""
        os.read(self.alarm.descriptor, 8)
        now = time.monotonic()
        while self.next < len(self.exchanges) and self.exchanges[self.next].due <= now:
            self.exchanges[self.next].waited = not self.free
            self.due.append(self.next)
            self.next += 1
        if self.next < len(self.exchanges):
            self.alarm.set(self.exchanges[self.next].due)
        self.send_due()

    def send_due(self) -> None:
        """Send what is due over what is free."""
        while self.due and self.free:
            connection, number = self.free.popleft(), self.due.popleft()
            exchange = connection.exchange = self.exchanges[number]
            which = number % len(self.images)
            exchange.sent = time.monotonic()
            connection.transport.write(f"{self.heads[which]}{number}\r\n\r\n".encode() + self.images[which].body)
        if self.open <= 0:
            self.over.set()


async def drive(
    url: str, images: Sequence[Image], times: Sequence[float], *, connections: int, grace: float = GRACE_S
) -> Report:
    """Send `images` in turn at `times`, seconds from the start, over so many connections opened before.

    Raises:
        OSError: no connection could be opened.
    """
    parts = urlsplit(url)
    assert parts.hostname, "a URL names its host"
    loop = asyncio.get_running_loop()
    run = Run((parts.hostname, parts.port or 80), parts.path or "/", images, [Exchange(due) for due in times])
    await asyncio.gather(*(run.connect() for _ in range(connections)))
    if not run.free:
        raise ConnectionRefusedError(f"nothing answers at {url}")
    gc.collect()
    gc.disable()
    start = time.monotonic() + 0.05
    for exchange in run.exchanges:
        exchange.due += start
    try:
        loop.add_reader(run.alarm.descriptor, run.ring)
        run.alarm.set(start)
        async with asyncio.timeout(times[-1] + grace):
            await run.over.wait()
    except TimeoutError:
        run.over.set()
    finally:
        gc.enable()
        loop.remove_reader(run.alarm.descriptor)
        os.close(run.alarm.descriptor)
        for connection in list(run.alive):
            connection.transport.abort()
    return report(run.exchanges, images)


def report(exchanges: Sequence[Exchange], images: Sequence[Image]) -> Report:
    """Count and check what came back."""
    statuses: Counter[str] = Counter()
    latencies, late, wrong, misnamed = [], [0.0], 0, 0
    for number, exchange in enumerate(exchanges):
        if exchange.sent is not None and not exchange.waited:
            late.append(exchange.sent - exchange.due)
        if exchange.finished is None:
            continue
        latencies.append(exchange.finished - exchange.due)
        status = exchange.reply[9:12].decode()
        statuses[status] += 1
        identity = REQUEST_ID.search(exchange.reply)
        misnamed += identity is None or identity[1] != f"load-{number}".encode()
        expected = images[number % len(images)].expected
        wrong += status == "200" and expected is not None and not as_expected(exchange.reply, expected)
    sent = sum(exchange.sent is not None for exchange in exchanges)
    seconds = max((e.finished for e in exchanges if e.finished), default=1.0) - min(e.due for e in exchanges)
    p50, p90, p99, p999 = (percentile(latencies, share) * 1000 for share in (0.5, 0.9, 0.99, 0.999))
    return Report(
        len(exchanges),
        sent,
        len(latencies),
        sent - len(latencies),
        wrong,
        misnamed,
        dict(sorted(statuses.items())),
        len(latencies) / seconds,
        1000 * sum(latencies) / max(1, len(latencies)),
        p50,
        p90,
        p99,
        p999,
        percentile(late, 0.99) * 1000,
    )


def as_expected(reply: bytes, expected: tuple[int, float]) -> bool:
    """Whether a reply's first prediction has this class index and this probability."""
    try:
        first = json.loads(reply.partition(b"\r\n\r\n")[2])["predictions"][0]
        return bool(first["index"] == expected[0] and abs(first["probability"] - expected[1]) <= TOLERANCE)
    except (ValueError, KeyError, IndexError, TypeError):
        return False


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that this share of all does not exceed (nearest rank); 0 where there is none."""
    return sorted(values)[max(0, ceil(share * len(values)) - 1)] if values else 0.0


def run(
    url: str, images: Sequence[Image], *, rate: float, seconds: float, connections: int, seed: int | None
) -> Report:
    """Drive a schedule from a program without an event loop."""
    times = schedule(rate, seconds, seed) or [0.0]
    return uvloop.run(drive(url, images, times, connections=connections))


def main(arguments: Sequence[str]) -> int:
    """The command line; exit code 1 where an answer is missing or not as expected."""
    parser = Parser("python -m benchmarks.load", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--url", required=True, help="where to post, e.g. http://127.0.0.1:8000/predict")
    parser.add_argument("--rate", type=positive, required=True, help="requests a second")
    parser.add_argument("--seconds", type=positive, default=10, help="how long (default 10)")
    parser.add_argument("--connections", type=whole, default=64, help="opened before the start (default 64)")
    parser.add_argument("--image", type=Path, nargs="+", required=True, help="files to post, in turn")
    parser.add_argument("--model", type=Path, help="check answers with this artifact, called directly")
    parser.add_argument("--seed", type=int, help="arrivals by Poisson's law with this seed; without, evenly spaced")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    try:
        given = parser.parse_args(arguments)
        bodies = [path.read_bytes() for path in given.image]
        images = [Image(body) for body in bodies]
        if given.model:
            from benchmarks.workloads import expected  # with torch, which a run without checks does not need

            images = [Image(body, expected(given.model, body)) for body in bodies]
        found = run(
            given.url, images, rate=given.rate, seconds=given.seconds, connections=given.connections, seed=given.seed
        )
    except (BenchmarkError, ArtifactError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    told = asdict(found)
    print(json.dumps(told) if given.json else "\n".join(f"{name:14} {value}" for name, value in told.items()))
    return 0 if found.clean else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
