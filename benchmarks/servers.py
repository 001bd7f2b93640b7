"""Server processes to measure: started in a session of their own, asked until they answer, ended by process id.

Servers that are compared are there at once, and only the one being measured is awake: a stopped process costs nothing.
"""

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks import closed
from benchmarks.errors import BenchmarkError

START_S = 240  # in bf16 without hardware for it, trying out what pays takes more than a minute
STOP_S = 15
WARM_S = 1
SETTLE_S = 120
LAST = 2000  # characters of a log that are told
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Contender:
    """How to start a server: its arguments and variables have {model}, {port}, {dtype}, {device} to be filled in.

    `takes` turns a JPEG into the body that it takes, of MIME type `kind`.
    """

    name: str
    arguments: Sequence[str]
    variables: Mapping[str, str] = field(default_factory=dict)
    python: str = sys.executable
    takes: Callable[[bytes], bytes] = bytes
    kind: str = "image/jpeg"


@dataclass(frozen=True)
class Server:
    """A server that answers; `reply` is what it answered first."""

    contender: Contender
    process: subprocess.Popen[bytes]
    url: str
    reply: bytes

    def load(self, jpeg: bytes, *, connections: int, seconds: float) -> closed.Closed:
        """Post a JPEG in a closed loop, then wait until the server is done with what was under way at the end.

        Raises:
            BenchmarkError: wrk failed, or the server does not answer any more.
        """
        body, kind = self.contender.takes(jpeg), self.contender.kind
        before = self.cpu_seconds()
        found = closed.run(self.url, body, connections=connections, seconds=seconds, content_type=kind)
        found = replace(found, server_cpu_s=self.cpu_seconds() - before)
        try:
            post(self.url, body, kind, SETTLE_S)
        except (OSError, http.client.HTTPException) as error:
            raise BenchmarkError(f"{self.contender.name} does not answer after its load: {error!r}") from None
        return found

    def signal(self, number: int) -> None:
        """Send a signal to all its processes.

        Raises:
            BenchmarkError: it has ended.
        """
        if self.process.poll() is not None:
            raise BenchmarkError(f"{self.contender.name} ended with exit code {self.process.returncode}")
        os.killpg(self.process.pid, number)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let a paused server run for a while."""
        self.signal(signal.SIGCONT)
        yield
        self.signal(signal.SIGSTOP)

    def metrics(self) -> dict[str, float]:
        """Its Prometheus metrics: values by name with labels, as they stand in the exposition."""
        with urllib.request.urlopen(self.url.replace("/predict", "/metrics"), timeout=10) as reply:
            lines = reply.read().decode().splitlines()
        samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def stats(self) -> dict[int, list[str]]:
        """Fields 3 to 52 of /proc/PID/stat (proc(5)) of all processes in the server's session, by process id."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has just ended
                fields = (folder / "stat").read_text().rpartition(") ")[2].split()
                if int(fields[3]) == self.process.pid and fields[0] != "Z":
                    found[int(folder.name)] = fields
        return found

    def cpu_seconds(self) -> float:
        """User and system time of all its processes; the kernel counts it in ticks of 10 ms."""
        return sum(int(fields[11]) + int(fields[12]) for fields in self.stats().values()) / TICKS_PER_S

    def idle_percent(self, seconds: float) -> float:
        """CPU of all its processes while nothing is asked, in percent of one core."""
        before, started = self.cpu_seconds(), time.monotonic()
        time.sleep(seconds)
        return 100 * (self.cpu_seconds() - before) / (time.monotonic() - started)

    def memory(self) -> list[tuple[str, float]]:
        """Kind and proportional set size, in MiB, of each of its processes, the main one first."""
        found = []
        for pid in sorted(self.stats()):
            with suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
                kib = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
                found.append((self.kind(pid, command), kib / 1024))
        return found

    def kind(self, pid: int, command: bytes) -> str:
        """What a process is to its server, as far as its command line tells."""
        if pid == self.process.pid:
            return "main"
        kinds = {b"spawn_main": "spawned", b"forkserver": "fork server", b"_tracker": "tracker", b"mosec": "mosec"}
        return next((kind for mark, kind in kinds.items() if mark in command), "forked")


@contextmanager
def running(
    contender: Contender, model: Path, jpeg: bytes, *, dtype: str = "fp32", device: str = "cpu"
) -> Iterator[Server]:
    """Start a server on a free port of 127.0.0.1, wait until it answers `jpeg` with 200, end it.

    Raises:
        BenchmarkError: it ended or did not answer in time; the message carries its last lines.
    """
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
    url = f"http://127.0.0.1:{port}/predict"
    known = {"model": model, "port": port, "dtype": dtype, "device": device}
    filled = [text.format(**known) for text in contender.arguments]
    variables = {name: text.format(**known) for name, text in contender.variables.items()}
    kept = {name: text for name, text in os.environ.items() if not name.startswith("DARKROOM_")}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            # If this process is killed, the server goes too; SIGTERM would wait for a paused one.
            ["setpriv", "--pdeathsig", "KILL", contender.python, *filled],
            env=kept | variables,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            reply = wait_for_answer(process, url, contender.takes(jpeg), contender.kind)
            if reply is None:
                log.seek(0)
                raise BenchmarkError(f"{contender.name} did not start: {log.read().decode()[-LAST:].strip()}")
            yield Server(contender, process, url, reply)
        finally:
            end(process)


@contextmanager
def paused(
    contender: Contender, model: Path, jpeg: bytes, *, dtype: str = "fp32", device: str = "cpu"
) -> Iterator[Server]:
    """Like `running`, warmed and paused: it runs in `Server.awake` only."""
    with running(contender, model, jpeg, dtype=dtype, device=device) as server:
        server.load(jpeg, connections=16, seconds=WARM_S)
        server.signal(signal.SIGSTOP)
        yield server


def wait_for_answer(process: subprocess.Popen[bytes], url: str, body: bytes, kind: str) -> bytes | None:
    """Post `body` until the answer is 200: the reply, or None if the server ended or `START_S` passed."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError, http.client.HTTPException):
            status, reply = post(url, body, kind, timeout=10)
            if status == HTTPStatus.OK:
                return reply
        time.sleep(0.05)
    return None


def post(url: str, body: bytes, kind: str, timeout: float) -> tuple[int, bytes]:
    """Status and body of one answer, over a connection of its own; seconds."""
    parts = urlsplit(url)
    with closing(http.client.HTTPConnection(parts.netloc, timeout=timeout)) as connection:
        connection.request("POST", parts.path, body, {"Content-Type": kind})
        response = connection.getresponse()
        return response.status, response.read()


def end(process: subprocess.Popen[bytes]) -> None:
    """Stop a server, paused or not, and whatever of its session is left."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGCONT)
        process.send_signal(signal.SIGINT)  # LitServe stops its children on SIGINT only
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
