"""A worker's end of the requests: who of those that wait is woken, and when waiting ends."""

import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import SimpleQueue
from threading import Thread, get_native_id
from time import monotonic

import pytest

from service.inlet import Inlet
from service.transport import pair

SOON_S = 10
SIZE = 64


@contextmanager
def waited_at() -> Iterator[tuple[socket.socket, Inlet]]:
    """A sending end and the inlet of its other end."""
    with ExitStack() as open_ends:
        sender, receiver = map(open_ends.enter_context, pair())
        inlet = Inlet(receiver)
        inlet.timeout = SOON_S
        yield sender, inlet


def waiting(thread: Thread) -> None:
    """Return once a thread waits for an epoll."""
    deadline = monotonic() + SOON_S
    while "epoll" not in Path(f"/proc/self/task/{thread.native_id}/wchan").read_text():
        assert monotonic() < deadline


def test_what_comes_one_at_a_time_is_taken_by_those_that_came_last() -> None:
    taken: SimpleQueue[int] = SimpleQueue()

    def take(inlet: Inlet) -> None:
        while inlet.receive(SIZE):
            taken.put(get_native_id())

    with waited_at() as (sender, inlet):
        threads = [Thread(target=take, args=(inlet,)) for _ in range(8)]
        for thread in threads:
            thread.start()
            waiting(thread)
        takers = []
        for _ in range(40):
            sender.send(b"message")
            takers.append(taken.get(timeout=SOON_S))
            for thread in threads:
                waiting(thread)
        sender.close()
        for thread in threads:
            thread.join(SOON_S)

        assert not any(thread.is_alive() for thread in threads)
        # In turn each would have had five. It is two, mostly: another that was woken too, and found nothing, came last
        # then; where cores are short that changes.
        assert sum(sorted(Counter(takers).values())[-2:]) > 20, takers


def test_all_who_wait_take_of_what_comes_together_and_each_message_is_taken_once() -> None:
    taken: SimpleQueue[bytes] = SimpleQueue()
    with waited_at() as (sender, inlet):
        threads = [Thread(target=lambda: taken.put(inlet.receive(SIZE))) for _ in range(4)]
        for thread in threads:
            thread.start()
            waiting(thread)
        for number in range(4):
            sender.send(bytes([number]))

        assert [b"\0", b"\1", b"\2", b"\3"] == sorted(taken.get(timeout=SOON_S) for _ in threads)


def test_it_waits_no_longer_than_its_timeout() -> None:
    with waited_at() as (_, inlet):
        inlet.timeout = 0
        with pytest.raises(TimeoutError):
            inlet.receive(SIZE)
