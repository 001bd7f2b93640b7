"""Slots, answers and admission, without a server."""

import asyncio
import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.channel import Channel, Slots
from service.errors import AtCapacity, TooLarge, TooManyImages
from service.transport import Answer, Transport


@given(st.lists(st.one_of(st.integers(1, 400), st.none()), max_size=60))
def test_slots_never_overlap_and_all_room_comes_back(actions: list[int | None]) -> None:
    slots = Slots(100, 1100)
    held: list[tuple[int, int]] = []
    for action in actions:
        if action is None and held:
            slots.give(*held.pop(len(held) // 2))
        elif action is not None and (offset := slots.take(action)) is not None:
            held.append((offset, action))
        spans = sorted([*((start, start + length) for start, length in held), *slots.free])
        assert spans[0][0] == 100
        assert spans[-1][1] == 1100
        assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))
    for slot in held:
        slots.give(*slot)

    assert [(100, 1100)] == slots.free


def test_a_slot_that_does_not_fit_is_refused() -> None:
    slots = Slots(0, 10)

    assert [0, None, 6] == [slots.take(6), slots.take(5), slots.take(4)]


floats = st.floats(0, 1, width=32)
answers = st.builds(
    Answer,
    st.integers(0, 2**64 - 1),
    st.lists(st.tuples(st.integers(0, 2**32 - 1), floats), max_size=20),
    st.just(""),
    st.just(""),
    floats,
    floats,
    floats,
) | st.builds(Answer, st.integers(0, 2**64 - 1), st.just([]), st.sampled_from(["empty", "capacity"]), st.text())


@given(st.lists(answers, max_size=5))
def test_answers_survive_the_way(sent: list[Answer]) -> None:
    assert sent == list(Answer.unpack_all(b"".join(map(Answer.pack, sent))))


@contextmanager
def connected(capacity: int, capacity_bytes: int = 1 << 20) -> Iterator[tuple[Transport, Channel]]:
    """Both ends in one process."""
    transport = Transport(1, 1, capacity_bytes)
    transport.connect()
    channel = Channel(transport, 0, capacity)
    yield transport, channel
    if channel.sender.fileno() >= 0:
        channel.close()
    for end in (*transport.requests, *transport.answers[0]):
        end.close()


def test_bodies_reach_the_worker_and_answers_their_futures() -> None:
    async def scenario() -> list[Answer]:
        with connected(capacity=10) as (transport, channel):
            futures = channel.submit([b"first", b"second"], top_k=1, deadline=monotonic() + 10)
            items = [transport.receive(), transport.receive()]
            assert [b"first", b"second"] == [transport.body(item).tobytes() for item in items if item]
            transport.answer(0, [Answer(item.uid, [(index, 0.5)]) for index, item in enumerate(items) if item])
            found = await asyncio.gather(*futures)
            start = transport.board_bytes
            assert [(start, start + (1 << 20))] == channel.slots.free
            return found

    assert [[(0, 0.5)], [(1, 0.5)]] == [answer.predictions for answer in asyncio.run(scenario())]


def test_the_worker_sees_the_end_when_the_last_sender_has_closed() -> None:
    async def scenario() -> None:
        with connected(capacity=1) as (transport, channel):
            channel.close()
            assert transport.receive() is None

    asyncio.run(scenario())


def test_a_request_is_accepted_whole_or_not_at_all() -> None:
    async def scenario() -> None:
        with connected(capacity=3, capacity_bytes=1000) as (_, channel):
            channel.submit([b"x" * 500], 1, math.inf)
            free = list(channel.slots.free)
            with pytest.raises(AtCapacity, match="capacity is 3"):
                channel.submit([b"x"] * 3, 1, math.inf)
            with pytest.raises(AtCapacity, match="room"):
                channel.submit([b"x" * 300, b"y" * 300], 1, math.inf)
            assert free == channel.slots.free
            assert 2 == len(channel.submit([b"x"] * 2, 1, math.inf))

    asyncio.run(scenario())


def test_a_request_that_could_never_be_accepted_is_not_told_to_try_again() -> None:
    async def scenario() -> None:
        with connected(capacity=3, capacity_bytes=1000) as (_, channel):
            with pytest.raises(TooManyImages):
                channel.submit([b"x"] * 4, 1, math.inf)
            with pytest.raises(TooLarge):
                channel.submit([b"x" * 1001], 1, math.inf)

    asyncio.run(scenario())


def test_more_descriptors_than_the_socket_takes_wait_and_follow() -> None:
    async def scenario() -> None:
        with connected(capacity=20_000) as (transport, channel):
            channel.submit([b"x"] * 20_000, 1, math.inf)
            assert channel.backlog
            for received in range(20_000):
                assert transport.receive() is not None
                if not received % 100:
                    await asyncio.sleep(0)

    asyncio.run(scenario())


def test_a_lost_worker_fails_what_waits() -> None:
    async def scenario() -> Answer:
        with connected(capacity=5) as (transport, channel):
            (future,) = channel.submit([b"x"], 1, math.inf)
            transport.lost()
            answer = await future
            assert {} == channel.waiting
            return answer

    assert "not_ready" == asyncio.run(scenario()).code


def test_the_board_shows_a_phase_and_what_workers_tell() -> None:
    transport = Transport(1, 4, 1 << 20)
    transport.phase = 2
    transport.tell(3, {"device": "cpu"})

    assert (2, None, {"device": "cpu"}) == (transport.phase, transport.told(0), transport.told(3))
