"""A real service in real processes, for tests."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import requests
from prometheus_client.parser import text_string_to_metric_families

from service.orphans import parent_of

START_S = 90
# Before a command that is to be refused what may not be read; root may read all.
UNPRIVILEGED = [] if os.geteuid() else ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
STOP_S = 30


@dataclass
class Service:
    """A running service; `stderr` is the file that it logs to."""

    process: subprocess.Popen[str]
    url: str
    banner: str
    stderr: Path

    def post(self, body: bytes, path: str = "/predict", **headers: str) -> requests.Response:
        """POST a raw body."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return requests.post(self.url + path, data=body, headers=named, timeout=60)

    def post_together(self, bodies: Sequence[bytes], in_flight: int = 32) -> list[requests.Response]:
        """POST many raw bodies over `in_flight` connections; replies in order."""
        with ThreadPoolExecutor(in_flight) as pool:
            return list(pool.map(self.post, bodies))

    def get(self, path: str) -> requests.Response:
        return requests.get(self.url + path, timeout=60)

    def sample(self, name: str, /, **labels: str) -> float:
        """One sample of `/metrics`; zero where it is not there yet."""
        for family in text_string_to_metric_families(self.get("/metrics").text):
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return float(sample.value)
        return 0.0

    def children(self) -> list[int]:
        """Process ids below the main process."""
        found = [self.process.pid]
        for parent in found:
            for thread in Path(f"/proc/{parent}/task").glob("*/children"):
                with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                    found.extend(map(int, thread.read_text().split()))
        return found[1:]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal to the main process and wait for its exit code."""
        self.process.send_signal(number)
        return self.process.wait(STOP_S)


def workers_among(children: list[int]) -> list[int]:
    """The worker processes, loaded or not: copies of one that is the main process's own."""
    nursery = [pid for pid in children if b"forkserver" in command_of(pid)]
    return [pid for pid in nursery if parent_of(pid) in nursery]


def gone(processes: list[int]) -> bool:
    """Whether all have ended, within a second: multiprocessing's tracker ends just after the main process."""
    deadline = monotonic() + 1
    while monotonic() < deadline:
        if not any(map(running_still, processes)):
            return True
    return False


def running_still(pid: int) -> bool:
    """Whether a process exists and is no zombie that nobody has waited for yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def halt(pid: int) -> None:
    """Stop a process and see that it stands: the kernel tells one thread, and that the others once it runs."""
    os.kill(pid, signal.SIGSTOP)
    deadline = monotonic() + STOP_S
    while set(thread_states(pid)) != {"T"}:
        assert monotonic() < deadline


def thread_states(pid: int) -> Iterator[str]:
    """The state of each thread, a letter; empty of one that has just ended."""
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            yield stat.read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            yield ""


@contextmanager
def halted(pid: int) -> Iterator[None]:
    """A process that stands still for a moment."""
    try:
        halt(pid)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def command_of(pid: int) -> bytes:
    """A process's command line; empty when it is no more."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def environment() -> dict[str, str]:
    """This process's environment without settings of the service."""
    return {name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")}


@contextmanager
def serving(model: Path, *flags: str, **variables: str) -> Iterator[Service]:
    """`python -m service --model model --port 0 ...`, ready; killed at the end if it still runs."""
    # A test run that is killed must not leave services behind.
    command = ["setpriv", "--pdeathsig", "TERM", sys.executable, "-m", "service", "--model", str(model), "--port", "0"]
    with tempfile.NamedTemporaryFile("w", suffix=".log") as log:
        process = subprocess.Popen(
            [*command, *flags],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment() | variables,
            start_new_session=True,
        )
        try:
            yield Service(process, *announced(process, Path(log.name)), Path(log.name))
        finally:
            end(process)


def end(process: subprocess.Popen[str]) -> None:
    """Stop a service that may have stopped already."""
    with process:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def announced(process: subprocess.Popen[str], stderr: Path) -> tuple[str, str]:
    """URL and banner, once the service says that it serves."""
    assert process.stdout is not None
    lines = [process.stdout.readline(), process.stdout.readline()]
    if not lines[1]:
        raise AssertionError(f"the service did not start: {stderr.read_text()}")
    return lines[0].split(" at ")[1].split()[0], "".join(lines)


def run(*flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`python -m service` with flags that should stop it at once."""
    command = [sys.executable, "-m", "service", *flags]
    env = environment() | {"PYTHONPATH": str(Path.cwd())} | variables
    return subprocess.run(command, capture_output=True, text=True, timeout=START_S, env=env, check=False)


def predictions(reply: requests.Response) -> list[dict[str, Any]]:
    """The predictions of a reply that has them."""
    assert reply.status_code == 200, reply.text
    found: list[dict[str, Any]] = reply.json()["predictions"]
    return found
