"""Admission, deadlines, retries and canaries, without a server."""

import asyncio
import math
import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from time import monotonic

import pytest

from service.board import WORD_BYTES
from service.errors import AtCapacity, DeadlineExceeded, NotReady, Overloaded, TooLarge, TooManyImages
from service.metrics import QUEUE_DEPTH, Counted, Metrics, Scrape
from service.transport import (
    CLAIMED,
    CLAIMER,
    HEADER_BYTES,
    MESSAGE_ANSWERS,
    MESSAGE_BYTES,
    MESSAGE_IMAGES,
    REQUEST,
    Answer,
    Item,
    Transport,
)
from tests.service.ends import (
    SOON_S,
    body,
    connected,
    done,
    opened,
    soon,
    submit,
    taken,
    transported,
)


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


def test_between_the_answers_of_a_large_batch_the_event_loop_turns_to_what_else_has_come() -> None:
    async def scenario() -> None:
        images = 8 * MESSAGE_ANSWERS
        with connected(capacity=images) as (transport, channel):
            requests = [submit(channel, [b"x"]) for _ in range(images)]
            items = await taken(transport, images)
            ours, theirs = socket.socketpair()
            answered_before: list[int] = []

            def come() -> None:
                ours.recv(1)
                answered_before.append(sum(request.done() for request in requests))

            asyncio.get_running_loop().add_reader(ours, come)
            requests[0].add_done_callback(lambda _: theirs.send(b"what the first answer's client asks next"))
            transport.answer(0, done(items))
            await soon(*requests)
            asyncio.get_running_loop().remove_reader(ours)
            ours.close()
            theirs.close()

            assert answered_before
            assert answered_before[0] < images / 2

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
            await asyncio.sleep(0)  # the turn of the event loop ends, and what came in it is sent
            return Scrape([Counted("test", Metrics(()), transport.all_cells())], lambda: []).text()

    assert b"\ndarkroom_queue_depth 5.0\n" in asyncio.run(scenario())


def test_what_waits_is_counted_also_while_the_workers_take_nothing_more() -> None:
    async def scenario() -> None:
        with connected(capacity=100_000, room=100_000 * (HEADER_BYTES + 8)) as (_, channel):
            while not channel.outlets[0].blocked:
                submit(channel, [b"x"])
                await asyncio.sleep(0)
            submit(channel, [b"x"] * 9)
            while channel.metrics.value(QUEUE_DEPTH) != channel.images:
                await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(scenario(), SOON_S))


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


def test_descriptors_that_fill_a_message_leave_at_once() -> None:
    async def scenario() -> bytes:
        with connected(capacity=MESSAGE_IMAGES) as (transport, channel):
            transport.inlet.end.setblocking(False)
            submit(channel, [b"x"] * (MESSAGE_IMAGES - 1))
            with pytest.raises(BlockingIOError):
                transport.inlet.end.recv(MESSAGE_BYTES)
            submit(channel, [b"x"])
            return transport.inlet.end.recv(MESSAGE_BYTES)

    assert MESSAGE_IMAGES * REQUEST.size == len(asyncio.run(scenario()))


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
