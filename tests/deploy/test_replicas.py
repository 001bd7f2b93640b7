"""Two replicas behind a real haproxy: one is killed, one is told to stop, under load."""

import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Semaphore

import pytest
import requests

from tests import artifacts, running
from tests.pictures import noise
from tests.running import Service, environment

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "haproxy" / "haproxy.cfg"
PATIENCE_S = 60
CONNECTIONS = 8
ENOUGH = 400  # answers before and after


@dataclass
class Balanced:
    """Two services, and where they are reached as one."""

    replicas: list[Service]
    url: str
    admin: Path

    def drain(self) -> None:
        """Tell haproxy to send the first replica nothing new, and wait until it has nothing."""
        assert "" == self.ask("set server replicas/a state drain").strip()
        deadline = time.monotonic() + PATIENCE_S
        while self.sessions():
            assert time.monotonic() < deadline

    def sessions(self) -> int:
        """How many requests the first replica has."""
        (line,) = [line for line in self.ask("show stat").splitlines() if line.startswith("replicas,a,")]
        return int(line.split(",")[4])  # scur

    def ask(self, command: str) -> str:
        """What haproxy answers on its administrators' socket."""
        with socket.socket(socket.AF_UNIX) as asked:
            asked.connect(str(self.admin))
            asked.sendall(command.encode() + b"\n")
            return b"".join(iter(lambda: asked.recv(65536), b"")).decode()

    def load(self, event: signal.Signals, *, drained: bool = False) -> Counter[str]:
        """What requests on several connections get while the first replica gets a signal: statuses and failures."""
        found: Counter[str] = Counter()
        bodies = [noise(seed, (200, 150), "JPEG") + bytes(60_000) for seed in range(4)]
        stop, answered = Event(), Semaphore(0)

        def ask(number: int) -> None:
            with requests.Session() as session:
                while not stop.is_set():
                    try:
                        reply = session.post(f"{self.url}/predict", data=bodies[number % 4], timeout=30)
                        found[str(reply.status_code)] += 1
                    except requests.RequestException as error:
                        found[type(error).__name__] += 1
                    answered.release()

        def enough() -> None:
            for _ in range(ENOUGH):
                assert answered.acquire(timeout=PATIENCE_S), found

        with ThreadPoolExecutor(CONNECTIONS) as pool:
            for number in range(CONNECTIONS):
                pool.submit(ask, number)
            enough()
            if drained:
                self.drain()
            self.replicas[0].process.send_signal(event)
            self.replicas[0].process.wait(PATIENCE_S)
            enough()
            stop.set()
        return found


@pytest.fixture
def admin() -> Iterator[Path]:
    """A socket's path short enough for haproxy (97 characters), wherever the checkout lies."""
    if shutil.which("haproxy") is None:
        pytest.skip("haproxy is not installed: make system")
    with TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder) / "admin"


@pytest.fixture
def balanced(tmp_path: Path, admin: Path) -> Iterator[Balanced]:
    artifacts.write(tmp_path / "model.pt")
    with ExitStack() as stack:
        replicas = [stack.enter_context(running.serving(tmp_path / "model.pt")) for _ in range(2)]
        with socket.create_server(("127.0.0.1", 0)) as held:
            address = f"127.0.0.1:{held.getsockname()[1]}"
        first, second = (replica.url.removeprefix("http://") for replica in replicas)
        variables = {"LISTEN": address, "ADMIN": str(admin), "REPLICA_A": first, "REPLICA_B": second}
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "haproxy", "-db", "-f", str(CONFIGURATION)],
            env=environment() | variables,
        )
        stack.enter_context(process)
        stack.callback(process.kill)
        deadline = time.monotonic() + PATIENCE_S
        while not reaches(address):
            assert time.monotonic() < deadline
        yield Balanced(replicas, f"http://{address}", admin)


def reaches(address: str) -> bool:
    try:
        return requests.get(f"http://{address}/readyz", timeout=5).ok
    except requests.ConnectionError:
        return False


@pytest.mark.slow
def test_nothing_is_lost_or_refused_when_a_replica_is_drained_and_stopped(balanced: Balanced) -> None:
    found = balanced.load(signal.SIGTERM, drained=True)

    assert {"200"} == found.keys()
    assert 0 == balanced.replicas[0].process.returncode


@pytest.mark.slow
def test_a_replica_that_is_stopped_without_a_word_refuses_some_and_loses_none(balanced: Balanced) -> None:
    found = balanced.load(signal.SIGTERM)

    assert found.keys() <= {"200", "503"}
    assert found["200"] >= ENOUGH
    assert 0 == balanced.replicas[0].process.returncode


@pytest.mark.slow
def test_a_killed_replica_loses_no_more_than_was_on_its_way(balanced: Balanced) -> None:
    found = balanced.load(signal.SIGKILL)

    assert found["200"] >= 2 * ENOUGH
    assert found.total() - found["200"] <= CONNECTIONS  # no more than were on their way


def test_haproxy_finds_nothing_in_its_configuration(admin: Path) -> None:
    variables = {
        "LISTEN": "127.0.0.1:8000",
        "ADMIN": str(admin),
        "REPLICA_A": "127.0.0.1:8001",
        "REPLICA_B": "127.0.0.1:8002",
    }
    command = ["haproxy", "-c", "-f", str(CONFIGURATION)]
    found = subprocess.run(command, env=environment() | variables, capture_output=True, text=True, check=False)

    assert found.returncode == 0, found.stderr
    assert "WARNING" not in found.stderr
