"""Messages, the arena and the board, without a server."""

import asyncio
import itertools
import pickle
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from multiprocessing import resource_sharer
from multiprocessing.reduction import ForkingPickler
from time import monotonic

from hypothesis import given, settings
from hypothesis import strategies as st

from service.transport import (
    HEADER_BYTES,
    MAX_CLASSES,
    MESSAGE_ANSWERS,
    MESSAGE_BODIES_BYTES,
    MESSAGE_BYTES,
    MESSAGE_IMAGES,
    Answer,
    Item,
    Transport,
)
from tests.service.ends import (
    ROOM,
    SOON_S,
    body,
    connected,
    done,
    opened,
    received,
    soon,
    submit,
    taken,
    transported,
)

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


def test_more_descriptors_than_the_socket_takes_wait_and_follow() -> None:
    async def scenario() -> list[Item]:
        with connected(capacity=5000) as (transport, channel):
            narrow(transport.requests[0][0])
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
    transport.inlet.timeout = 0
    try:
        while True:
            yield from transport.receive()
    except TimeoutError:
        transport.inlet.timeout = SOON_S


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


def test_the_answers_of_a_batch_are_one_message_of_a_large_one_a_few() -> None:
    batch = [Answer(uid, [(index, 0.5) for index in range(5)]) for uid in range(1, 2 * MESSAGE_ANSWERS + 2)]
    small, rest = batch[:MESSAGE_ANSWERS], batch[MESSAGE_ANSWERS:]
    with transported() as transport:
        transport.answer(0, small)
        assert [small] == list(messages(transport.answers[0][1]))
        transport.answer(0, batch)
        found = list(messages(transport.answers[0][1]))

    assert [small, rest[:MESSAGE_ANSWERS], rest[MESSAGE_ANSWERS:]] == found


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


def test_a_spawned_worker_reads_bodies_where_they_lie_and_cannot_change_them() -> None:
    async def scenario() -> list[Answer]:
        with connected(capacity=2) as (transport, channel):
            worker = pickle.loads(ForkingPickler.dumps(transport))
            worker.inlet.timeout = SOON_S
            try:
                request = submit(channel, [b"first", b"second!"])
                items = await taken(worker, 2)
                with worker.body(items[0]) as view:
                    assert (b"first", True) == (bytes(view), view.readonly)
                worker.answer(0, done(items))
                return await soon(request)
            finally:
                for end in (worker.inlet.end, worker.answers[0][0]):
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
                transport.cells(process)[:] = [-1.0 - process] * transport.counted
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
            counted = [[cell for cell in transport.cells(process) if cell != -1 - process] for process in range(4)]
            assert [[1, 104 + HEADER_BYTES]] * 2 + [[], []] == counted

    asyncio.run(scenario())
