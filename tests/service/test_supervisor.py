"""What the watch over the processes does about them; here they do nothing but live or end."""

import multiprocessing
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic, sleep

import pytest

from service.board import FAILED, READY
from service.crew import Berth, Crew
from service.edition import Edition
from service.keeper import HANG_S, LOADING_S, PAUSES_S, STABLE_S, Keeper
from service.metrics import WORKER_RESTARTS, Metrics
from service.orphans import await_end
from service.supervisor import Supervisor
from service.transport import Transport
from tests.running import running_still
from tests.service.ends import MANIFEST, disconnect

CLASSES = ("a", "b")
LEADERLESS = """
import ctypes, os, sys, threading

def go_on():
    sys.stdin.read()
    os._exit(0)

threading.Thread(target=go_on).start()
ctypes.CDLL(None).pthread_exit(None)
"""
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
def transport() -> Iterator[Transport]:
    """For one HTTP process and two workers, of a service that is ready."""
    made = Transport(1, 2, 1 << 16, Metrics(CLASSES).size)
    made.connect()
    made.phase = READY
    yield made
    disconnect(made)


@pytest.fixture
def received() -> Iterator[list[int]]:
    """The signals that a supervisor sends to its own process, which is this one."""
    numbers: list[int] = []
    usual = signal.signal(signal.SIGTERM, lambda number, _: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGTERM, usual)


def watching(
    transport: Transport, berths: Sequence[Berth], http: BaseProcess, launch: Callable[[Berth], None]
) -> Supervisor:
    """Over a service that is ready."""
    crew = Crew(0, berths, [0])
    crew.begin(Edition(Path("model.pt"), MANIFEST))
    supervisor = Supervisor([Keeper("test", transport, Metrics(CLASSES), [crew], lambda _, berth: launch(berth))])
    supervisor.http = [http]
    return supervisor


def restarts(supervisor: Supervisor, berth: Berth) -> float:
    """How many workers of the berth were lost."""
    (keeper,) = supervisor.keepers
    transport, metrics = keeper.transport, keeper.metrics
    metrics.cells = transport.cells(transport.processes + berth.index)
    return metrics.value(WORKER_RESTARTS)


def test_a_replacement_that_does_not_load_is_ended_and_another_started(
    living: BaseProcess, transport: Transport
) -> None:
    berth = Berth(0, 0)

    def launch(berth: Berth) -> None:
        """One that never says that it has loaded."""
        berth.process = SPAWN.Process(target=sleep, args=(600,))
        berth.process.start()
        berth.started = monotonic()

    supervisor = watching(transport, [berth], living, launch)
    supervisor.look()
    first = berth.process
    assert first
    supervisor.look()
    assert first.is_alive()

    berth.started -= LOADING_S
    supervisor.awake_since -= LOADING_S
    supervisor.look()
    first.join()
    supervisor.look()

    assert 1 == restarts(supervisor, berth)
    assert berth.process
    assert berth.process is not first
    berth.process.kill()
    berth.process.join()


@pytest.mark.parametrize(("seconds", "failures"), [(0.0, 2), (LOADING_S, 1)], ids=["soon", "after a long time"])
def test_a_spare_that_is_lost_long_after_it_had_loaded_did_not_fail_to_start(
    living: BaseProcess, transport: Transport, seconds: float, failures: int
) -> None:
    spare = Berth(0, 0)
    supervisor = watching(transport, [spare], living, lambda _: None)
    supervisor.keepers[0].crews[0].failures = 1
    spare.process = SPAWN.Process(target=int)
    spare.process.start()
    spare.process.join()
    spare.started = monotonic() - seconds
    transport.beat(spare.index)
    supervisor.look()

    assert failures == supervisor.keepers[0].crews[0].failures


def test_a_spare_that_dies_just_before_it_is_to_take_over_is_passed_over(
    living: BaseProcess, transport: Transport, received: list[int]
) -> None:
    dying, spare = Berth(0, 0), Berth(1, 0)
    supervisor = watching(transport, [dying, spare], living, lambda _: None)
    ends = [multiprocessing.Pipe(duplex=False) for _ in range(2)]
    for berth, (_, gate) in zip((dying, spare), ends, strict=True):
        berth.process, berth.gate = living, gate
        transport.beat(berth.index)
    ends[0][0].close()  # as the kernel does, before it tells that the process is no more
    supervisor.look_safely()

    assert (READY, []) == (transport.phase, received)
    assert (None, b"serve") == (dying.serving_since, ends[1][0].recv_bytes())
    assert spare.serving_since


@pytest.mark.parametrize("serving", [True, False], ids=["one serves", "none serves"])
def test_it_gives_up_on_workers_that_cannot_start_only_where_none_serves(
    living: BaseProcess, transport: Transport, received: list[int], serving: bool
) -> None:
    served, other = Berth(0, 0), Berth(1, 0)

    def launch(berth: Berth) -> None:
        """One that ends as soon as it has started."""
        berth.process = SPAWN.Process(target=int)
        berth.process.start()
        berth.process.join()

    supervisor = watching(transport, [served, other] if serving else [other], living, launch)
    if serving:
        served.process, served.serving_since = living, monotonic()
    for _ in range(2 * len(PAUSES_S) + 2):
        transport.beat(served.index)
        supervisor.keepers[0].crews[0].next_start = 0.0  # no need to wait
        supervisor.look_safely()

    assert restarts(supervisor, other) > len(PAUSES_S)
    expected = (READY, []) if serving else (FAILED, [signal.SIGTERM])
    assert expected == (transport.phase, received)


def test_a_candidate_whose_workers_are_lost_again_and_again_is_dismissed_and_the_service_goes_on(
    living: BaseProcess, transport: Transport, received: list[int]
) -> None:
    served, tried = Berth(0, 0), Berth(2, 0)

    def launch(_: Crew, berth: Berth) -> None:
        """One that ends after it has served for a little while."""
        berth.process = SPAWN.Process(target=int)
        berth.process.start()
        berth.process.join()
        berth.serving_since = monotonic() - STABLE_S - 1

    crews = [Crew(0, [served], [0]), Crew(1, [tried], [0])]
    for crew in crews:
        crew.begin(Edition(Path("model.pt"), MANIFEST))
        crew.prove({}, 1.0)
    supervisor = Supervisor([Keeper("test", transport, Metrics(CLASSES), crews, launch)])
    supervisor.http = [living]
    served.process = living
    transport.open(1, to=True)
    transport.divide(0, 0.5)
    for _ in range(2 * len(PAUSES_S) + 4):
        transport.beat(served.index)
        served.serving_since = monotonic()
        crews[1].next_start = 0.0
        supervisor.look()

    assert (None, "a worker ended with exit code 0") == (crews[1].edition, crews[1].trouble)
    assert (False, 0.0, READY, []) == (transport.opened(1), transport.share, transport.phase, received)


class Undying(SPAWN.Process):  # type: ignore[name-defined, misc]
    """A process that a kill does not end at once, as one that waits for a disk."""

    def kill(self) -> None:
        pass


def test_a_worker_that_a_kill_does_not_end_keeps_nobody_from_stopping_the_service(
    living: BaseProcess, transport: Transport
) -> None:
    berth = Berth(0, 0)
    supervisor = watching(transport, [berth], living, lambda _: None)
    stuck = Undying(target=sleep, args=(600,))
    stuck.start()
    berth.process, berth.serving_since = stuck, monotonic() - HANG_S
    supervisor.awake_since -= HANG_S
    try:
        looking = threading.Thread(target=supervisor.look_safely, daemon=True)
        closing = threading.Thread(target=supervisor.close, daemon=True)
        for thread in (looking, closing):
            thread.start()
            thread.join(10)

        assert not looking.is_alive()
        assert not closing.is_alive()
        assert stuck.is_alive()
    finally:
        stuck.terminate()
        stuck.join()


def test_a_process_has_ended_only_when_its_last_thread_has() -> None:
    with subprocess.Popen([sys.executable, "-c", LEADERLESS], stdin=subprocess.PIPE) as process:
        assert process.stdin
        while running_still(process.pid):  # its first thread
            assert process.poll() is None
        started = monotonic()
        await_end(process.pid, 0.1)
        waited, before = monotonic() - started, process.poll()
        process.stdin.close()
        await_end(process.pid, 60)

        assert (None, 0) == (before, process.poll())
        assert 0.1 <= waited
        assert monotonic() - started < 30
        await_end(process.pid, 10)  # it is no more
