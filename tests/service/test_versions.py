"""Two versions on the two sides of a transport: which one a request belongs to, and what becomes of it. No server."""

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import pytest

from service.channel import Channel
from service.errors import NotFound, NotReady
from service.pending import Pending
from service.transport import Transport
from tests.service.ends import MANIFEST, connected, done, listen, taken


def unexpected(outcome: object) -> None:
    raise AssertionError(outcome)


def two_versions(transport: Transport, share: float = 1.0) -> None:
    """A candidate on the other side, which gets a share of the requests."""
    transport.publish(1, MANIFEST.model_copy(update={"version": "2"}).model_dump_json().encode())
    transport.open(1, to=True)
    transport.divide(0, share)


def versions_of(transport: Transport, *pendings: Pending) -> list[str]:
    return [pending.version.manifest.version for pending in pendings]


def ask(channel: Channel, bodies: Sequence[bytes], answers: list[object]) -> Pending:
    """A request whose outcome goes to `answers`."""
    return channel.submit(bodies, 1, math.inf, answers.append, answers.append)


def test_requests_are_divided_evenly_and_each_belongs_to_one_version() -> None:
    async def scenario() -> list[str]:
        with connected(capacity=100) as (transport, channel):
            two_versions(transport, 0.25)
            pendings = [ask(channel, [b"x", b"y"], []) for _ in range(8)]
            assert [12, 4] == [transport.waiting(side) for side in range(2)]
            return versions_of(transport, *pendings)

    assert ["1", "1", "1", "2"] * 2 == asyncio.run(scenario())


def test_what_waits_for_a_side_that_nobody_works_on_any_more_goes_to_the_other() -> None:
    async def scenario() -> None:
        with connected(capacity=100) as (transport, channel):
            two_versions(transport)
            whole: list[Any] = []
            begun: list[Any] = []
            moved = ask(channel, [b"a", b"bb"], whole)
            half = ask(channel, [b"ccc", b"dddd"], begun)
            await asyncio.sleep(0)
            listen(transport, 1)
            items = await taken(transport, 4)
            transport.answer(0, done(items[2:3]))
            while half.missing == 2:
                await asyncio.sleep(0)
            transport.open(1, to=False)
            transport.divide(0)
            transport.abandon(1)
            listen(transport, 0)
            again = await taken(transport, 2)
            transport.answer(0, done(again))
            while not whole:
                await asyncio.sleep(0)

            assert ["1", "2"] == versions_of(transport, moved, half)
            assert [1, 2] == [answer.predictions[0][0] for answer in whole[0]]
            assert [NotReady] == [type(outcome) for outcome in begun]
            assert [0, 0] == [transport.waiting(side) for side in range(2)]
            assert 0 == channel.images

    asyncio.run(scenario())


def test_a_version_that_is_asked_for_by_name_is_not_replaced_by_another() -> None:
    async def scenario() -> None:
        with connected(capacity=100) as (transport, channel):
            two_versions(transport, 0.0)
            named = channel.versions.named("2")
            assert named
            refused: list[Any] = []
            waiting = channel.submit([b"x"], 1, math.inf, unexpected, refused.append, version=named)
            transport.open(1, to=False)
            transport.abandon(1)
            while not refused:
                await asyncio.sleep(0)
            assert [NotReady] == [type(error) for error in refused]
            assert ["2"] == versions_of(transport, waiting)
            assert channel.versions.named("2") is None
            with pytest.raises(NotFound, match="no version 2 any more"):
                channel.submit([b"x"], 1, math.inf, unexpected, unexpected, version=named)
            assert [0, 0] == [transport.waiting(side) for side in range(2)]

    asyncio.run(scenario())


def test_a_side_that_has_another_version_meanwhile_keeps_what_is_sent_to_that() -> None:
    async def scenario() -> None:
        with connected(capacity=100) as (transport, channel):
            two_versions(transport)
            transport.abandon(1)  # version 2, as it was
            transport.publish(1, MANIFEST.model_copy(update={"version": "3"}).model_dump_json().encode())
            answers: list[Any] = []
            pending = ask(channel, [b"x"], answers)
            listen(transport, 1)
            transport.answer(0, done(await taken(transport, 1)))
            while not answers:
                await asyncio.sleep(0)
            assert ["3"] == versions_of(transport, pending)

    asyncio.run(scenario())
