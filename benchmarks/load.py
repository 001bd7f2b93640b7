"""An open-loop load tool: requests leave by a fixed schedule, whatever the server does.

python -m benchmarks.load --url http://127.0.0.1:8000/predict --rate 500 --seconds 10 --image photo.jpg --model model.pt

A latency counts from the time a request was scheduled for, never from when a connection was free to send it: a server
that stalls is charged for everybody who would have come meanwhile. Replies are kept as they came and checked after the
run, so that checking costs the server's cores nothing while it is measured.
"""

import asyncio
import errno
import gc
import json
import os
import random
import re
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import count, takewhile
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import uvloop

from benchmarks.alarm import Alarm
from benchmarks.command_line import Parser, positive, whole
from benchmarks.errors import BenchmarkError
from benchmarks.outcomes import REQUEST_ID, Expected, Outcome, Report, as_expected, report
from benchmarks.timeline import Mark
from models.errors import ArtifactError

GRACE_S = 10.0  # how long answers are waited for after the last request was due
RETRY_S = 0.25  # between tries to connect to a server that was there
CONNECTED_S = 1.0  # for connections that are still being made at the end
CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
LAST_ANSWER = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


@dataclass(frozen=True)
class Image:
    """A body to post, and the class index and probability that its answer must have, if they are known."""

    body: bytes
    expected: Expected | None = None
    kind: str = "application/octet-stream"
    group: str = ""


@dataclass(frozen=True)
class Act:
    """What is done to the server `at` seconds after the start; `does` blocks, and calls its argument as it does it."""

    at: float
    name: str
    does: Callable[[Callable[[], None]], None]


@dataclass(frozen=True)
class Course:
    """A schedule that is over: an outcome a request, in order, and when what was done.

    It started at `start` seconds of CLOCK_MONOTONIC.
    """

    outcomes: Sequence[Outcome]
    marks: Sequence[Mark] = ()
    start: float = 0.0

    @property
    def report(self) -> Report:
        return report(self.outcomes)


def schedule(rate: float, seconds: float, seed: int | None = None) -> list[float]:
    """When requests are due, in seconds from the start: evenly at `rate` a second, or by Poisson's law with a seed."""
    if seed is None:
        return [number / rate for number in range(int(rate * seconds))]
    chance, now = random.Random(seed), 0.0
    arrivals = (now := now + chance.expovariate(rate) for _ in count())
    return list(takewhile(lambda due: due < seconds, arrivals))


@dataclass
class Exchange:
    """One request's course; times in seconds of CLOCK_MONOTONIC."""

    due: float
    sent: float | None = None
    finished: float | None = None
    reply: bytes = b""
    waited: bool = False  # for a free connection
    unread: bool = False


class Connection(asyncio.Protocol):
    """A connection with at most one request under way."""

    def __init__(self, run: "Run", link: socket.socket) -> None:
        self.run = run
        self.link = link
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
            self.run.open -= 1
            if LAST_ANSWER.search(exchange.reply, 0, head + 2):
                self.transport.abort()
            else:
                self.run.free.append(self)
            self.run.send_due()

    def closed(self) -> bool:
        """Whether the server has closed it, which the event loop may not have told yet."""
        try:
            return not self.link.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def eof_received(self) -> None:
        """The server has closed it; if the request crossed that, its system sent a reset, which is told here alone."""
        if self.exchange is not None:
            told = self.link.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self.exchange.unread = told in (errno.EPIPE, errno.ECONNRESET)

    def connection_lost(self, error: Exception | None) -> None:
        self.run.alive.discard(self)
        if self in self.run.free:
            self.run.free.remove(self)
        if self.exchange is not None:
            self.run.open -= 1
            self.exchange.unread |= isinstance(error, ConnectionError)
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
            f"Content-Type: {image.kind}\r\nContent-Length: {len(image.body)}\r\nX-Request-ID: load-"
            for image in self.images
        ]

    async def connect(self, *, again: bool = False) -> None:
        """Open one connection; where that fails there is one less, or it is tried `again` while something is due."""
        while True:
            try:
                link = socket.socket()
                link.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_connect(link, self.address)
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await loop.create_connection(partial(Connection, self, link), sock=link)
                return
            except OSError:
                link.close()
                if not again or self.next == len(self.exchanges):
                    return
                await asyncio.sleep(random.uniform(0.5, 1.5) * RETRY_S)

    def replace(self) -> None:
        """Open another connection for one that was lost, while there is something to send or to wait for."""
        if self.open > 0 and not self.over.is_set():
            task = asyncio.ensure_future(self.connect(again=True))
            self.connecting.add(task)
            task.add_done_callback(self.settle)
        else:
            self.over.set()

    def settle(self, task: "asyncio.Task[None]") -> None:
        """There is another connection, or there is none to be had."""
        self.connecting.discard(task)
        if not self.connecting and not self.alive:
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
            connection = self.free.popleft()
            if connection.closed():
                continue
            number = self.due.popleft()
            exchange = connection.exchange = self.exchanges[number]
            which = number % len(self.images)
            exchange.sent = time.monotonic()
            connection.transport.write(f"{self.heads[which]}{number}\r\n\r\n".encode() + self.images[which].body)
        if self.open <= 0:
            self.over.set()


async def drive(
    url: str,
    images: Sequence[Image],
    times: Sequence[float],
    *,
    connections: int,
    grace: float = GRACE_S,
    acts: Sequence[Act] = (),
) -> Course:
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
    marks: list[Mark] = []
    doing = [asyncio.ensure_future(perform(act, start, marks)) for act in acts]
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
        if run.connecting:  # uvloop's own end may wait for ever for one that is still being made
            await asyncio.wait(run.connecting, timeout=CONNECTED_S)
        for connection in list(run.alive):
            connection.transport.abort()
    await asyncio.gather(*doing)
    judged = (judge(at, one, images[at % len(images)], start) for at, one in enumerate(run.exchanges))
    return Course(list(judged), marks, start)


async def perform(act: Act, start: float, marks: list[Mark]) -> None:
    """Do it in its time, on a thread of its own, and note when."""
    await asyncio.sleep(start + act.at - time.monotonic())
    await asyncio.to_thread(act.does, lambda: marks.append(Mark(time.monotonic() - start, act.name)))


def judge(number: int, exchange: Exchange, image: Image, start: float) -> Outcome:
    """Check what came back."""
    due, sent = exchange.due - start, None if exchange.sent is None else exchange.sent - start
    if exchange.finished is None:
        return Outcome(due, sent, waited=exchange.waited, unread=exchange.unread, group=image.group)
    status = int(exchange.reply[9:12])
    identity = REQUEST_ID.search(exchange.reply)
    return Outcome(
        due,
        sent,
        exchange.finished - start,
        status,
        wrong=status == 200 and image.expected is not None and not as_expected(exchange.reply, image.expected),
        misnamed=identity is None or identity[1] != f"load-{number}".encode(),
        waited=exchange.waited,
        group=image.group,
    )


def run(
    url: str, images: Sequence[Image], *, rate: float, seconds: float, seed: int | None = None, **how: Any
) -> Course:
    """Drive an even schedule, or one by Poisson's law with a seed, from a program without an event loop."""
    return drive_now(url, images, schedule(rate, seconds, seed) or [0.0], **how)


def drive_now(url: str, images: Sequence[Image], times: Sequence[float], **how: Any) -> Course:
    """`drive`, from a program without an event loop."""
    return uvloop.run(drive(url, images, times, **how))


def fault(text: str) -> Act:
    """What `--fault KILL:4711:5` asks for: a signal, to a process, after so many seconds."""
    name, pid, at = text.split(":")
    number, process = signal.Signals[f"SIG{name}"], int(pid)

    def strike(mark: Callable[[], None]) -> None:
        os.kill(process, number)
        mark()

    return Act(float(at), f"SIG{name}", strike)


def parser() -> Parser:
    """What the tool takes."""
    made = Parser("python -m benchmarks.load", description=(__doc__ or "").partition("\n\n")[0])
    add = made.add_argument
    add("--url", required=True, help="where to post, e.g. http://127.0.0.1:8000/predict")
    add("--rate", type=positive, nargs="+", required=True, help="requests a second; of several, one after the other")
    add("--seconds", type=positive, default=10, help="how long each (default 10)")
    add("--connections", type=whole, default=64, help="opened before the start (default 64)")
    add("--image", type=Path, nargs="+", required=True, help="files to post, in turn")
    add("--model", type=Path, help="check answers with this artifact, called directly")
    add("--seed", type=int, help="arrivals by Poisson's law with this seed; without, evenly spaced")
    add("--fault", type=fault, nargs="+", default=[], help="SIGNAL:PID:SECONDS, e.g. KILL:4711:5")
    add("--json", action="store_true", help="print the reports as JSON, one a line")
    add("--out", type=Path, help="folder for load.json, load.md and load.svg: time lines, latency by offered load")
    return made


def main(arguments: Sequence[str]) -> int:
    """The command line; exit code 1 where an answer is missing or not as expected."""
    try:
        given = parser().parse_args(arguments)
        bodies = [path.read_bytes() for path in given.image]
        images = [Image(body) for body in bodies]
        if given.model:
            from benchmarks.workloads import expected  # with torch, which a run without checks does not need

            images = [Image(body, expected(given.model, body)) for body in bodies]
        how = {"seconds": given.seconds, "connections": given.connections, "seed": given.seed, "acts": given.fault}
        found = [run(given.url, images, rate=rate, **how) for rate in given.rate]
        if given.out:
            from benchmarks import courses  # with matplotlib

            courses.write(given.out, given.rate, given.seconds, found)
    except (BenchmarkError, ArtifactError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    for course in found:
        told = asdict(course.report)
        print(json.dumps(told) if given.json else "\n".join(f"{name:14} {value}" for name, value in told.items()))
    return 0 if all(course.report.clean for course in found) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
