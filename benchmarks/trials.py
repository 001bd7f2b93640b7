"""One load on one server while something is done to it: what every scenario of the fault campaign is made of."""

import http.client
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks import courses, load, processes, servers
from benchmarks.contenders import DARKROOM
from benchmarks.errors import BenchmarkError
from benchmarks.load import Act, Course, Image
from benchmarks.outcomes import Expected
from benchmarks.plan import Plan, Row
from benchmarks.servers import Contender, Server

WATCH_S = 0.1  # between two looks at /health
LONG_S = 30.0  # the deadline that both servers have by themselves
MOST = 2048  # connections
QUIET_S, QUIET_SHARE, SETTLE_S = 0.5, 0.15, 60.0  # a server has settled when it takes less of a core than this
METRICS = {
    "restarts": "darkroom_worker_restarts_total",
    "splits": "darkroom_batch_splits_total",
    "isolated failures": "darkroom_isolated_failures_total",
    "nonfinite": "darkroom_nonfinite_total",
}


@dataclass
class Ground:
    """A contender with a model and its images: started when first needed, and again once it has ended or fallen ill.

    `timeout_s` is after how long it gives up on a request, `rate` its capacity in requests a second, once known. Its
    answers are held against the artifact's own; those of LitServe against its first one, to a request alone.
    """

    plan: Plan
    contender: Contender
    model: Path
    body: bytes
    expected: Expected
    timeout_s: float
    rate: float = 0.0
    stack: ExitStack = field(default_factory=ExitStack)
    running: Server | None = None

    @property
    def name(self) -> str:
        return self.contender.name

    @property
    def ours(self) -> bool:
        return self.name.startswith(DARKROOM.name)

    @property
    def images(self) -> list[Image]:
        return [self.image(self.body, "good", self.expected)]

    def image(self, body: bytes, group: str, expected: Expected | None = None) -> Image:
        """A body as this contender takes it."""
        return Image(self.contender.takes(body), expected, self.contender.kind, group)

    def server(self) -> Server:
        """The running server, if it is well, or else a new one."""
        if self.running is None or not settled(self.running, self.images[0], within_s=20.0):
            self.close()
            self.running = self.stack.enter_context(self.fresh())
        return self.running

    @contextmanager
    def fresh(self, *flags: str) -> Iterator[Server]:
        """Another server, with more flags."""
        contender = replace(self.contender, arguments=[*self.contender.arguments, *flags])
        with servers.running(contender, self.model, self.body, device=self.plan.device) as server:
            server.load(self.body, connections=16, seconds=servers.WARM_S)
            if not self.ours:  # decodes in a way of its own
                told = json.loads(server.reply)
                self.expected = (told["index"], told["probability"])
            yield server

    def close(self) -> None:
        self.stack.close()
        self.running = None

    def trial(
        self,
        server: Server,
        name: str,
        *,
        rate: float,
        seconds: float,
        acts: Sequence[Act] = (),
        images: Sequence[Image] = (),
    ) -> Row:
        """A row for a load with faults: its course, what /health told meanwhile, whether the server lives."""
        course, row = self.loaded(server, load.schedule(rate, seconds) or [0.0], acts=acts, images=images)
        row |= {"scenario": name, "server": self.name, "rate": rate}
        self.plan.say(f"{self.name} {name}: {courses.by_status(row)}, {row['lost']} lost, {row['wrong']} wrong")
        return row | {"groups": {group: of_group(course, group) for group in ("good", "bad")}}

    def loaded(
        self, server: Server, times: Sequence[float], *, acts: Sequence[Act] = (), images: Sequence[Image] = ()
    ) -> tuple[Course, Row]:
        """What became of a schedule, and its row."""
        rate = len(times) / max(1.0, times[-1])
        connections = max(64, min(MOST, int(rate * (self.timeout_s + 1))))
        before = counters(server)
        with watching(server) as watch:
            course = load.drive_now(
                server.url,
                images or self.images,
                times,
                connections=connections,
                grace=self.timeout_s + 2,
                acts=acts,
            )
        after = counters(server)
        row = courses.row(course) | {"counters": {name: after[name] - before[name] for name in after if name in before}}
        row["health"] = [(at - course.start, status) for at, status in watch.changes]
        if watch.ended is not None:
            row |= {"exit_code": server.process.returncode, "ended_s": watch.ended - course.start}
            row |= left(server)
        return course, row


def left(server: Server) -> Row:
    """What is still there of a server a second after it has ended."""
    deadline = time.monotonic() + 1
    while server.stats() and time.monotonic() < deadline:
        time.sleep(WATCH_S)
    parts = urlsplit(server.url)
    with socket.socket() as tried:
        tried.settimeout(1)
        taken = tried.connect_ex((str(parts.hostname), parts.port or 80)) == 0
    return {"orphans": len(server.stats()), "port_held": taken}


def of_group(course: Course, group: str) -> Row:
    """How the images of a group fared."""
    here = [outcome for outcome in course.outcomes if outcome.group == group]
    statuses = {str(status) for outcome in here if (status := outcome.status)}
    return {
        "requests": len(here),
        "right": sum(outcome.right for outcome in here),
        "lost": sum(outcome.lost for outcome in here),
        "statuses": {status: sum(str(o.status) == status for o in here) for status in sorted(statuses)},
    }


def counters(server: Server) -> dict[str, float]:
    """What the service counts of faults; nothing of a server that does not tell."""
    with suppress(OSError, http.client.HTTPException, ValueError):
        told = server.metrics()
        return {name: told[metric] for name, metric in METRICS.items() if metric in told}
    return {}


def settled(server: Server, image: Image, within_s: float = SETTLE_S) -> bool:
    """Wait until a server answers with 200 and has nothing left to do; whether it came to that in time."""
    deadline, answered = time.monotonic() + within_s, False
    while time.monotonic() < deadline and server.process.poll() is None:
        with suppress(OSError, http.client.HTTPException):
            answered = servers.post(server.url, image.body, image.kind, timeout=within_s)[0] == 200
        if server.idle_percent(QUIET_S) <= 100 * QUIET_SHARE and answered:
            return True
    return False


@dataclass
class Watch:
    """What was seen of a server: changes of /health's status (0: no answer), when it ended; in CLOCK_MONOTONIC."""

    changes: list[tuple[float, int]] = field(default_factory=list)
    ended: float | None = None


@contextmanager
def watching(server: Server) -> Iterator[Watch]:
    """Look at a server every tenth of a second meanwhile."""
    watch, over = Watch(), threading.Event()

    def look() -> None:
        while not over.wait(WATCH_S):
            status = health(server)
            if not watch.changes or watch.changes[-1][1] != status:
                watch.changes.append((time.monotonic(), status))
            if watch.ended is None and server.process.poll() is not None:
                watch.ended = time.monotonic()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield watch
    finally:
        over.set()
        thread.join()


def health(server: Server) -> int:
    """The status of /health, 0 without an answer within a second."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=1)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def strike(server: Server, at: float, number: int, choose: Callable[[Server], int], whom: str) -> Act:
    """Send a signal to a process that is chosen then."""

    def does(mark: Callable[[], None]) -> None:
        os.kill(choose(server), number)
        mark()

    return Act(at, f"{signal.Signals(number).name} {whom}", does)


def pause(server: Server, at: float, seconds: float) -> list[Act]:
    """Stop the worker, and let it go on later, if it is still there."""
    stopped: list[int] = []

    def stop(mark: Callable[[], None]) -> None:
        stopped.append(processes.busy_worker(server))
        os.kill(stopped[0], signal.SIGSTOP)
        mark()

    def go_on(mark: Callable[[], None]) -> None:
        if stopped and stopped[0] in server.stats():
            os.kill(stopped[0], signal.SIGCONT)
            mark()

    return [Act(at, "SIGSTOP worker", stop), Act(at + seconds, "SIGCONT", go_on)]


def poison(server: Server, at: float, image: Image, told: list[str], timeout_s: float, times: int) -> Act:
    """Post one more image, so many times; `told` gets a sentence about each answer."""

    def does(mark: Callable[[], None]) -> None:
        mark()
        for _ in range(times):
            started = time.monotonic()
            try:
                answer = str(servers.post(server.url, image.body, image.kind, timeout_s + 2)[0])
            except (OSError, http.client.HTTPException):
                answer = "no answer"
            told.append(f"the marked request: {answer} after {time.monotonic() - started:.1f} s")

    return Act(at, "marked picture", does)


def first(pids: Sequence[int], kind: str) -> int:
    """One process of a kind.

    Raises:
        BenchmarkError: there is none.
    """
    if not pids:
        raise BenchmarkError(f"there is no {kind} process")
    return pids[0]
