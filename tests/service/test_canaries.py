"""Canaries, without a server."""

import asyncio
from time import monotonic
from typing import Any

from service.canaries import AFTER_S, LATEST_S, STALE_S
from service.metrics import QUEUE_DEPTH
from service.transport import CANARY, Answer
from tests.service.ends import SOON_S, connected, submit, taken


def facts(seconds: float) -> dict[str, Any]:
    """Of a worker whose pass takes so long, for any number of images."""
    return {"pass_seconds": seconds, "plan": {"curve": {"1": seconds}}}


def test_a_canary_asks_whether_images_are_predicted_and_is_counted_nowhere() -> None:
    async def scenario() -> None:
        with connected(capacity=1) as (transport, channel):
            (canary,) = await taken(transport, 1)
            assert CANARY == canary.top_k
            assert 0 == channel.images == channel.metrics.value(QUEUE_DEPTH)
            assert channel.canaries.answering()
            channel.canaries.answered_at -= STALE_S
            assert not channel.canaries.answering()

            transport.answer(0, [Answer(canary.uid, [], "internal", "the model failed on it")])
            (canary,) = await taken(transport, 1)
            assert not channel.canaries.answering()

            transport.answer(0, [Answer(canary.uid, [(0, 1.0)])])
            while not channel.canaries.answering():
                await asyncio.sleep(0)
            submit(channel, [b"x"])

    asyncio.run(asyncio.wait_for(scenario(), SOON_S))


def test_a_canary_that_a_worker_holds_does_not_hide_that_another_answers() -> None:
    async def scenario() -> None:
        with connected(capacity=1) as (transport, channel):
            transport.tell(0, facts(0.0))
            await taken(transport, 1)  # by one that has stopped since
            (canary,) = await taken(transport, 1)
            channel.canaries.answered_at -= STALE_S
            transport.answer(0, [Answer(canary.uid, [(0, 1.0)])])
            while not channel.canaries.answering():
                await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(scenario(), SOON_S))


def test_a_slow_models_canaries_come_later_but_the_second_soon_and_are_waited_for_as_much_longer() -> None:
    async def scenario() -> None:
        with connected(capacity=1) as (transport, channel):
            canaries = channel.canaries
            transport.tell(0, facts(0.05))
            while AFTER_S == canaries.after:
                await asyncio.sleep(0)
            assert 5 == canaries.after
            canaries.answered_at = monotonic() - 5
            assert canaries.answering(), "nobody has been asked yet"
            (first,) = await taken(transport, 1)
            transport.answer(0, [Answer(first.uid, [], "internal", "the model failed on it")])
            _, third = await taken(transport, 2)
            assert third.accepted - first.accepted < 5, "one after what failed, one after what who has stopped may hold"
            canaries.answered_at = monotonic() - 5 - STALE_S
            assert not canaries.answering()

            transport.tell(0, facts(60.0))
            while 5 == canaries.after:
                await asyncio.sleep(0)
            assert LATEST_S == canaries.after

    asyncio.run(asyncio.wait_for(scenario(), SOON_S))


def test_images_are_answered_where_a_worker_answers_another_process() -> None:
    async def scenario() -> tuple[bool, bool]:
        with connected(capacity=1) as (transport, channel):
            channel.canaries.answered_at -= STALE_S
            before = channel.canaries.answering()
            transport.answered(0)
            return before, channel.canaries.answering()

    assert (False, True) == asyncio.run(scenario())
