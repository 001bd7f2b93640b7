"""Slots, answers and admission, without a server."""

import asyncio
import itertools
import math
import os
import pickle
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import resource_sharer
from multiprocessing.reduction import ForkingPickler
from time import monotonic

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.channel import STALE_AFTER_S, Channel, Pace, Slots
from service.errors import AtCapacity, DeadlineExceeded, NotReady, Overloaded, TooLarge, TooManyImages
from service.metrics import QUEUE_DEPTH, Metrics, Scrape
from service.transport import (
    CANARY,
    CLAIMED,
    CLAIMER,
    HEADER_BYTES,
    MAX_CLASSES,
    MESSAGE_BODIES_BYTES,
    MESSAGE_BYTES,
    MESSAGE_IMAGES,
    WORD_BYTES,
    Answer,
    Item,
    Transport,
)

ROOM = 1 << 20
SOON_S = 10  # what is waited for at most
Replies = asyncio.Future[Sequence[Answer]]


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
) | st.builds(
    Answer,
    st.integers(0, 2**64 - 1),
    st.just([]),
    st.sampled_from(["empty", "capacity"]),
    st.text(),
    floats,
    floats,
    floats,
)


@given(st.lists(answers, max_size=5))
def test_answers_survive_the_way(sent: list[Answer]) -> None:
    assert sent == list(Answer.unpack_all(b"".join(map(Answer.pack, sent))))


@contextmanager
def transported(processes: int = 1, workers: int = 1, room: int = ROOM) -> Iterator[Transport]:
    """All ends in one process; a worker's waits are bounded."""
    transport = Transport(processes, workers, room, Metrics(()).size)
    transport.connect()
    transport.requests[1].settimeout(SOON_S)
    try:
        yield transport
    finally:
        for end in (*transport.requests, *itertools.chain(*transport.answers)):
            end.close()


def counting(transport: Transport, process: int) -> Metrics:
    """The metrics of one process, in its cells."""
    metrics = Metrics(())
    metrics.cells = transport.cells(process)
    return metrics


@contextmanager
def opened(transport: Transport, process: int = 0, capacity: int = 10) -> Iterator[Channel]:
    """An HTTP process's channel; the processes of a test share one sending end, which the first closes."""
    channel = Channel(transport, process, capacity, counting(transport, process))
    try:
        yield channel
    finally:
        if channel.sender.fileno() >= 0:
            channel.close()


@contextmanager
def connected(capacity: int, room: int = ROOM) -> Iterator[tuple[Transport, Channel]]:
    """One HTTP process and one worker."""
    with transported(room=room) as transport, opened(transport, 0, capacity) as channel:
        yield transport, channel


async def received(transport: Transport, images: int) -> list[list[Item]]:
    """The next messages with so many images, received beside the event loop as a worker would."""
    messages: list[list[Item]] = []
    while sum(map(len, messages)) < images:
        messages.append(await asyncio.to_thread(transport.receive))
        assert messages[-1], "no sender is left"
    return messages


async def taken(transport: Transport, images: int) -> list[Item]:
    """The next images."""
    return list(itertools.chain(*await received(transport, images)))


def submit(channel: Channel, bodies: Sequence[bytes], top_k: int = 1, deadline: float = math.inf) -> Replies:
    """Send a request's bodies; what comes of it."""
    future: Replies = asyncio.get_running_loop().create_future()
    channel.submit(bodies, top_k, deadline, future.set_result, future.set_exception)
    return future


async def soon(*requests: Replies) -> list[Answer]:
    """The answers of all images of the requests, in order."""
    return list(itertools.chain(*await asyncio.wait_for(asyncio.gather(*requests), SOON_S)))


def body(transport: Transport, item: Item) -> bytes:
    """What lies in the item's slot."""
    start = item.offset + HEADER_BYTES
    return transport.arena[start : start + item.length]


def done(items: Iterable[Item]) -> list[Answer]:
    """An answer to each that names its length as its class."""
    return [Answer(item.uid, [(item.length, 0.5)]) for item in items]


def test_bodies_reach_the_worker_and_answers_their_futures() -> None:
    async def scenario() -> list[Answer]:
        with connected(capacity=10) as (transport, channel):
            deadline = monotonic() + 10
            request = submit(channel, [b"first", b"second!"], top_k=3, deadline=deadline)
            items = await taken(transport, 2)
            assert [b"first", b"second!"] == [body(transport, item) for item in items]
            assert {(0, 3, deadline)} == {(item.process, item.top_k, item.deadline) for item in items}
            assert all(deadline - 10 <= item.accepted <= monotonic() for item in items)
            transport.answer(0, done(reversed(items)))
            return await soon(request)

    assert [[(5, 0.5)], [(7, 0.5)]] == [answer.predictions for answer in asyncio.run(scenario())]


def test_an_error_reaches_its_future_with_its_text_and_times() -> None:
    async def scenario() -> list[Answer]:
        with connected(capacity=1) as (transport, channel):
            request = submit(channel, [b"x"])
            (item,) = await taken(transport, 1)
            transport.answer(0, [Answer(item.uid, [], "undecodable", "Größe ≠ 0", 0.25, 0.5, 1.0)])
            return await soon(request)

    assert ("undecodable", "Größe ≠ 0", 0.25, 0.5, 1.0) == asyncio.run(scenario())[0][2:]


def test_small_bodies_that_come_together_travel_together() -> None:
    async def scenario() -> list[list[Item]]:
        with connected(capacity=100) as (transport, channel):
            for _ in range(4):
                submit(channel, [b"small"] * 5)
            return await received(transport, 20)

    messages = asyncio.run(scenario())
    assert len(messages) < 20
    assert max(map(len, messages)) <= MESSAGE_IMAGES


@given(st.lists(st.sampled_from([1, 100, 10_000, MESSAGE_BODIES_BYTES, MESSAGE_BODIES_BYTES + 1]), min_size=1))
@settings(max_examples=20)
def test_a_message_is_small_and_a_large_body_travels_alone_and_all_arrive_in_order(lengths: list[int]) -> None:
    async def scenario() -> list[list[Item]]:
        with connected(capacity=100, room=100 * MESSAGE_BODIES_BYTES) as (transport, channel):
            submit(channel, [b"x" * length for length in lengths])
            return await received(transport, len(lengths))

    messages = asyncio.run(scenario())
    assert lengths == [item.length for items in messages for item in items]
    for items in messages:
        assert len(items) == 1 or sum(item.length for item in items) <= MESSAGE_BODIES_BYTES
        assert len(items) <= MESSAGE_IMAGES


def test_the_worker_sees_the_end_when_the_last_sender_has_closed() -> None:
    async def scenario() -> None:
        with connected(capacity=1) as (transport, channel):
            submit(channel, [b"x"])
            await taken(transport, 1)
            channel.close()
            assert [] == transport.receive()

    asyncio.run(scenario())


def test_a_request_is_accepted_whole_or_not_at_all() -> None:
    async def scenario() -> None:
        with connected(capacity=3, room=1000 + 3 * HEADER_BYTES) as (transport, channel):
            first = submit(channel, [b"x" * 496])
            with pytest.raises(AtCapacity, match="capacity is 3"):
                submit(channel, [b"x"] * 3)
            with pytest.raises(AtCapacity, match="room"):
                submit(channel, [b"x" * 300, b"y" * 300])
            second = submit(channel, [b"x" * 496, b"x"])
            transport.answer(0, done(await taken(transport, 3)))
            await soon(first, second)

            submit(channel, [b"x" * (1000 + 2 * HEADER_BYTES)])

    asyncio.run(scenario())


def test_a_request_that_could_never_be_accepted_is_not_told_to_try_again() -> None:
    async def scenario() -> None:
        with connected(capacity=3, room=1000) as (_, channel):
            with pytest.raises(TooManyImages):
                submit(channel, [b"x"] * 4)
            with pytest.raises(TooLarge):
                submit(channel, [b"x" * 1001])

    asyncio.run(scenario())


def test_what_nobody_waits_for_keeps_its_place_until_the_worker_has_answered() -> None:
    async def scenario() -> None:
        with connected(capacity=1) as (transport, channel):
            pending = channel.submit([b"left"], 1, math.inf, unexpected, unexpected)
            pending.forget()
            with pytest.raises(AtCapacity):
                submit(channel, [b"next"])
            (item,) = await taken(transport, 1)
            assert b"left" == body(transport, item)
            transport.answer(0, done([item]))
            while True:  # until the answer has come
                try:
                    request = submit(channel, [b"next"])
                    break
                except AtCapacity:
                    await asyncio.sleep(0)
            transport.answer(0, done(await taken(transport, 1)))
            await soon(request)

    asyncio.run(asyncio.wait_for(scenario(), SOON_S))


def test_what_is_accepted_is_counted_as_waiting() -> None:
    async def scenario() -> bytes:
        with connected(capacity=9) as (transport, channel):
            submit(channel, [b"x"] * 5)
            with pytest.raises(AtCapacity):
                submit(channel, [b"x"] * 5)
            return Scrape(Metrics(()), transport.all_cells(), lambda: []).text()

    assert b"\ndarkroom_queue_depth 5.0\n" in asyncio.run(scenario())


def test_more_descriptors_than_the_socket_takes_wait_and_follow() -> None:
    async def scenario() -> list[Item]:
        with connected(capacity=5000) as (transport, channel):
            narrow(transport.requests[0])
            submit(channel, [b"x"] * 2000)
            submit(channel, [b"x"] * 3000)
            await asyncio.sleep(0)
            at_once = list(everything(transport))
            assert len(at_once) < 5000, "the socket was meant to be full"
            return at_once + await taken(transport, 5000 - len(at_once))

    uids = [item.uid for item in asyncio.run(scenario())]
    assert 5000 == len(uids)
    assert sorted(set(uids)) == uids


def narrow(end: socket.socket) -> None:
    """Let a socket hold as little as the kernel allows."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)


def everything(transport: Transport) -> Iterator[Item]:
    """The images that the socket holds now."""
    end = transport.requests[1]
    end.setblocking(False)
    try:
        while True:
            yield from transport.receive()
    except BlockingIOError:
        end.settimeout(SOON_S)


def test_a_full_socket_is_waited_for_by_whoever_answers_and_no_answer_is_lost() -> None:
    predictions = [(index, 1.0) for index in range(100)]

    async def scenario() -> list[Answer]:
        with connected(capacity=1000) as (transport, channel):
            narrow(transport.answers[0][0])
            request = submit(channel, [b"x"] * 1000)
            items = await taken(transport, 1000)

            def answer() -> None:
                for item in items:
                    transport.answer(0, [Answer(item.uid, predictions)])

            found, _ = await asyncio.gather(soon(request), asyncio.to_thread(answer))
            return found

    found = asyncio.run(scenario())
    assert 1000 == len(found)
    assert all(predictions == answer.predictions for answer in found)


def test_the_answers_of_a_batch_are_one_message() -> None:
    batch = [Answer(uid, [(index, 0.5) for index in range(5)]) for uid in range(1, 33)]
    with transported() as transport:
        transport.answer(0, batch)

        assert [batch] == list(messages(transport.answers[0][1]))


def test_answers_that_are_too_many_for_a_message_are_divided() -> None:
    batch = [Answer(uid, [(index, 0.5) for index in range(1000)]) for uid in range(1, 50)]
    with transported() as transport:
        transport.answer(0, batch)
        found = list(messages(transport.answers[0][1]))

    assert len(found) > 1
    assert batch == list(itertools.chain(*found))


def messages(end: socket.socket) -> Iterator[list[Answer]]:
    """The messages that have come, none cut off."""
    end.setblocking(False)
    try:
        while message := end.recv(2 * MESSAGE_BYTES):
            assert len(message) <= MESSAGE_BYTES
            yield list(Answer.unpack_all(message))
    except BlockingIOError:
        return


def test_the_longest_answer_fits_a_message() -> None:
    assert len(Answer(1, [(index, 0.5) for index in range(MAX_CLASSES)]).pack()) <= MESSAGE_BYTES


def test_an_answer_that_nobody_waits_for_is_passed_over() -> None:
    async def scenario() -> list[Answer]:
        with connected(capacity=1) as (transport, channel):
            transport.answer(0, [Answer(999, [(0, 1.0)])])
            request = submit(channel, [b"x"])
            transport.answer(0, done(await taken(transport, 1)))
            return await soon(request)

    assert [(1, 0.5)] == asyncio.run(scenario())[0].predictions


def test_several_http_processes_share_the_workers_and_get_their_own_answers() -> None:
    async def scenario() -> list[list[Answer]]:
        with transported(processes=3) as transport, ExitStack() as open_channels:
            channels = [open_channels.enter_context(opened(transport, process)) for process in range(3)]
            requests = [submit(channel, [b"x" * (1 + i)] * 2) for i, channel in enumerate(channels)]
            items = await taken(transport, 6)
            assert [[b"x" * (1 + item.process)] for item in items] == [[body(transport, item)] for item in items]
            for process in range(3):
                transport.answer(process, done(item for item in items if item.process == process))
            return [await soon(request) for request in requests]

    found = asyncio.run(scenario())
    assert [[1, 1], [2, 2], [3, 3]] == [[answer.predictions[0][0] for answer in answered] for answered in found]


def test_http_processes_share_capacity_and_room_equally() -> None:
    async def scenario() -> None:
        with (
            transported(processes=2, room=1000) as transport,
            opened(transport, process=1, capacity=5) as channel,
        ):
            with pytest.raises(TooManyImages, match="capacity is 2"):
                submit(channel, [b"x"] * 3)
            with pytest.raises(TooLarge, match="capacity of 496 bytes"):
                submit(channel, [b"x" * 473])

    asyncio.run(scenario())


def test_a_service_that_gives_up_fails_all_that_waits_in_every_process() -> None:
    async def scenario() -> list[Sequence[Answer] | BaseException]:
        with transported(processes=2) as transport, ExitStack() as open_channels:
            channels = [open_channels.enter_context(opened(transport, process)) for process in range(2)]
            requests = [submit(channel, [b"x"] * images) for channel in channels for images in (1, 4)]
            await taken(transport, 3)
            transport.give_up("no worker")
            found = await asyncio.wait_for(asyncio.gather(*requests, return_exceptions=True), SOON_S)
            for channel in channels:
                channel.submit([b"y"] * 5, 1, math.inf, unexpected, unexpected)  # there is room again
            return found

    assert [NotReady] * 4 == [type(failed) for failed in asyncio.run(scenario())]


def test_what_a_lost_worker_had_is_sent_again_once_and_what_another_has_is_left_to_it() -> None:
    async def scenario() -> list[Answer]:
        with connected(capacity=10) as (transport, channel):
            requests = [submit(channel, [name]) for name in (b"lost", b"living", b"on its way")]
            first, second, _ = await taken(transport, 3)
            unclaim(transport, first)
            transport.words[second.offset // WORD_BYTES + CLAIMER] = 1
            transport.claim(first)
            transport.lost(os.getpid())
            again = await taken(transport, 2)
            assert [b"lost", b"on its way"] == [body(transport, item) for item in again]
            assert not {first.uid, second.uid} & {item.uid for item in again}

            transport.lost(os.getpid())
            transport.answer(0, done([first, second]))  # the first's is an echo of what was lost
            return await soon(*requests)

    answers = asyncio.run(scenario())
    assert ["not_ready", "", "not_ready"] == [answer.code for answer in answers]
    assert [(6, 0.5)] == answers[1].predictions


def unclaim(transport: Transport, item: Item) -> None:
    """As if it had not reached a worker yet."""
    transport.words[item.offset // WORD_BYTES + CLAIMED] = 0


def test_news_that_a_process_cannot_take_at_once_reach_it_later() -> None:
    async def scenario() -> list[Answer]:
        with connected(capacity=10) as (transport, channel):
            request = submit(channel, [b"lost"])
            await taken(transport, 1)
            sender = transport.answers[0][0]
            with suppress(BlockingIOError):
                while True:
                    sender.send(Answer(1 << 40, []).pack(), socket.MSG_DONTWAIT)
            transport.lost(os.getpid())
            again = asyncio.create_task(taken(transport, 1))
            while not again.done():
                transport.deliver()  # as the supervisor does at every look
                await asyncio.sleep(0)
            transport.answer(0, done(again.result()))
            return await soon(request)

    assert [[(4, 0.5)]] == [answer.predictions for answer in asyncio.run(asyncio.wait_for(scenario(), SOON_S))]


def test_what_no_worker_had_is_sent_again_however_often_workers_are_lost() -> None:
    async def scenario() -> list[Answer]:
        with connected(capacity=10) as (transport, channel):
            request = submit(channel, [b"patient"])
            for _ in range(3):
                (item,) = await taken(transport, 1)
                unclaim(transport, item)
                transport.lost(os.getpid())
            transport.answer(0, done(await taken(transport, 1)))
            return await soon(request)

    assert [(7, 0.5)] == asyncio.run(scenario())[0].predictions


def test_what_the_client_no_longer_waits_for_is_not_taken_and_its_room_comes_back() -> None:
    async def scenario() -> None:
        with connected(capacity=1) as (transport, channel):
            pending = channel.submit([b"left"], 1, math.inf, unexpected, unexpected)
            channel.cancel(pending)
            receiving = asyncio.create_task(asyncio.to_thread(transport.receive))
            while channel.images:
                await asyncio.sleep(0)
            submit(channel, [b"next"])
            assert [b"next"] == [body(transport, item) for item in await receiving]

    asyncio.run(asyncio.wait_for(scenario(), SOON_S))


def test_what_a_worker_has_taken_is_not_wanted_any_more_once_its_client_has_left() -> None:
    async def scenario() -> tuple[bool, bool]:
        with connected(capacity=1) as (transport, channel):
            pending = channel.submit([b"left"], 1, math.inf, unexpected, unexpected)
            (item,) = await taken(transport, 1)
            before = transport.wanted(item)
            channel.cancel(pending)
            return before, transport.wanted(item)

    assert (True, False) == asyncio.run(scenario())


def test_a_request_that_would_be_late_is_refused_at_the_door_and_told_when_to_come_back() -> None:
    async def scenario() -> None:
        with connected(capacity=100) as (transport, channel):
            channel.pace.worked, channel.pace.served = 1.0, 10.0  # as measured: ten images a second
            waiting = [submit(channel, [b"x"] * 9), submit(channel, [b"x"] * 20, deadline=monotonic() + SOON_S)]
            with pytest.raises(Overloaded, match=r"29 images are waiting; an answer would take 3\.0 s") as late:
                submit(channel, [b"x"], deadline=monotonic() + 0.5)
            with pytest.raises(AtCapacity) as full:
                submit(channel, [b"x"] * 72)
            assert ["3", "3"] == [error.value.headers["retry-after"] for error in (late, full)]
            transport.answer(0, done(await taken(transport, 29)))
            await soon(*waiting)
            submit(channel, [b"x"], deadline=monotonic() + 0.5)  # nothing waits, so it is tried

    asyncio.run(scenario())


def test_the_pace_follows_what_is_answered_and_learns_nothing_from_silence() -> None:
    pace = Pace()
    assert 0 == pace.wait(1000)
    for images, seconds in ((10, 1.0), (10, 1.0), (10, 100.0)):
        pace.since = monotonic() - seconds
        pace.learn(images, outage=50)

    assert 9.9 < pace.wait(100) < 10.1


def test_a_canary_asks_whether_images_are_predicted_and_is_counted_nowhere() -> None:
    async def scenario() -> None:
        with connected(capacity=1) as (transport, channel):
            (canary,) = await taken(transport, 1)
            assert CANARY == canary.top_k
            assert 0 == channel.images == channel.metrics.value(QUEUE_DEPTH)
            assert channel.answering()
            channel.answered_at -= STALE_AFTER_S
            assert not channel.answering()

            transport.answer(0, [Answer(canary.uid, [], "internal", "the model failed on it")])
            (canary,) = await taken(transport, 1)
            assert not channel.answering()

            transport.answer(0, [Answer(canary.uid, [(0, 1.0)])])
            while not channel.answering():
                await asyncio.sleep(0)
            submit(channel, [b"x"])

    asyncio.run(asyncio.wait_for(scenario(), SOON_S))


def test_a_canary_that_a_worker_holds_does_not_hide_that_another_answers() -> None:
    async def scenario() -> None:
        with connected(capacity=1) as (transport, channel):
            transport.tell(0, {"pass_seconds": 0.0})
            await taken(transport, 1)  # by one that has stopped since
            (canary,) = await taken(transport, 1)
            channel.answered_at -= STALE_AFTER_S
            transport.answer(0, [Answer(canary.uid, [(0, 1.0)])])
            while not channel.answering():
                await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(scenario(), SOON_S))


def test_images_are_answered_where_a_worker_answers_another_process() -> None:
    async def scenario() -> tuple[bool, bool]:
        with connected(capacity=1) as (transport, channel):
            channel.answered_at -= STALE_AFTER_S
            before = channel.answering()
            transport.answered(0)
            return before, channel.answering()

    assert (False, True) == asyncio.run(scenario())


def test_what_is_late_fails_and_never_reaches_the_model_and_what_is_not_is_answered() -> None:
    async def scenario() -> list[Answer]:
        with connected(capacity=10) as (transport, channel):
            now = monotonic()
            in_time = submit(channel, [b"in time"], deadline=now + SOON_S)
            late = [submit(channel, [b"late"] * 2, deadline=now + after) for after in (0.05, 0.01, 0.02)]
            for request in late:
                with pytest.raises(DeadlineExceeded):
                    await asyncio.wait_for(request, SOON_S)
            assert now + 0.05 <= monotonic()
            transport.answer(0, done(await taken(transport, 1)))
            return await soon(in_time)

    assert [[(7, 0.5)]] == [answer.predictions for answer in asyncio.run(scenario())]


def test_a_request_of_several_images_is_answered_once_when_the_last_has_come() -> None:
    async def scenario() -> list[int]:
        with connected(capacity=10) as (transport, channel):
            request = submit(channel, [b"x", b"xx", b"xxx"])
            for item in reversed(await taken(transport, 3)):
                assert not request.done()
                transport.answer(0, done([item]))
                other = submit(channel, [b"other"])
                transport.answer(0, done(await taken(transport, 1)))
                await soon(other)  # what was sent before it has come too
            return [answer.predictions[0][0] for answer in request.result()]

    assert [1, 2, 3] == asyncio.run(scenario())


def unexpected(outcome: object) -> None:
    """Nobody waits for this."""
    raise AssertionError(f"{outcome} came to somebody who does not wait")


def test_a_spawned_worker_reads_bodies_where_they_lie_and_cannot_change_them() -> None:
    async def scenario() -> list[Answer]:
        with connected(capacity=2) as (transport, channel):
            worker = pickle.loads(ForkingPickler.dumps(transport))
            worker.requests[1].settimeout(SOON_S)
            try:
                request = submit(channel, [b"first", b"second!"])
                items = await taken(worker, 2)
                with worker.body(items[0]) as view:
                    assert (b"first", True) == (bytes(view), view.readonly)
                worker.answer(0, done(items))
                return await soon(request)
            finally:
                for end in (worker.requests[1], worker.answers[0][0]):
                    end.close()
                resource_sharer.stop()

    assert [5, 7] == [answer.predictions[0][0] for answer in asyncio.run(scenario())]


def test_the_board_shows_a_phase_and_what_workers_tell() -> None:
    transport = Transport(1, 4, ROOM)
    transport.phase = 2
    transport.tell(3, {"device": "cpu"})

    assert (2, None, {"device": "cpu"}) == (transport.phase, transport.told(0), transport.told(3))


def test_board_cells_and_bodies_do_not_touch_each_other() -> None:
    async def scenario() -> None:
        with (
            transported(processes=2, workers=2, room=2 * (104 + HEADER_BYTES)) as transport,
            ExitStack() as open_channels,
        ):
            for process in range(4):
                transport.cells(process)[:] = [process + 1.0] * transport.counted
            transport.phase = 1
            for worker in range(2):
                transport.tell(worker, {"device": "d" * 1900})
            for process in range(2):
                submit(open_channels.enter_context(opened(transport, process)), [b"\xff" * 100])
            items = await taken(transport, 2)

            assert [b"\xff" * 100] * 2 == [body(transport, item) for item in items]
            assert [{"device": "d" * 1900}] * 2 == [transport.told(worker) for worker in range(2)]
            assert 1 == transport.phase
            # Each HTTP process has counted its image and its bytes as waiting; the workers nothing.
            left = [sum(transport.cells(process)) - (process + 1) * transport.counted for process in range(4)]
            assert [1 + 104 + HEADER_BYTES] * 2 + [0, 0] == left

    asyncio.run(scenario())
