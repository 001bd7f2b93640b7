"""When the watch over the processes gives up; here they do nothing but live or end."""

import multiprocessing
import signal
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from time import monotonic, sleep

import pytest

from service.metrics import WORKER_RESTARTS, Metrics
from service.supervisor import PAUSES_S, Berth, Supervisor
from service.transport import FAILED, READY, Transport

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def living() -> Iterator[BaseProcess]:
    """A process that lives as long as the test."""
    process = SPAWN.Process(target=sleep, args=(600,))
    process.start()
    yield process
    process.kill()
    process.join()


@pytest.fixture
def received() -> Iterator[list[int]]:
    """The signals that a supervisor sends to its own process, which is this one."""
    numbers: list[int] = []
    usual = signal.signal(signal.SIGTERM, lambda number, _: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGTERM, usual)


@pytest.mark.parametrize("serving", [True, False], ids=["one serves", "none serves"])
def test_it_gives_up_on_workers_that_cannot_start_only_where_none_serves(
    living: BaseProcess, received: list[int], serving: bool
) -> None:
    metrics = Metrics(["a", "b"])
    transport = Transport(1, 2, 1 << 16, metrics.size)
    transport.connect()
    transport.phase = READY
    served, other = Berth(0, 0), Berth(1, 0)

    def launch(berth: Berth) -> None:
        """One that ends as soon as it has started."""
        berth.process = SPAWN.Process(target=int)
        berth.process.start()
        berth.process.join()

    supervisor = Supervisor(transport, metrics, [served, other] if serving else [other], [0], launch)
    supervisor.http = [living]
    if serving:
        served.process, served.serving_since = living, monotonic()
    for _ in range(2 * len(PAUSES_S) + 2):
        transport.beat(served.index)
        supervisor.next_start = 0.0  # no need to wait
        supervisor.look()

    for end in (*transport.requests, *transport.answers[0]):
        end.close()
    metrics.cells = transport.cells(transport.processes + other.index)
    assert metrics.value(WORKER_RESTARTS) > len(PAUSES_S)
    expected = (READY, []) if serving else (FAILED, [signal.SIGTERM])
    assert expected == (transport.phase, received)
