"""A connection's guard: it ends what a client keeps waiting for, and nothing else."""

import asyncio
import socket
from pathlib import Path
from time import monotonic

from service.protocol import LINGER_S
from service.transport import Answer
from tests.service.test_head import LENGTHS, SOON_S, listening, not_reading, reply_from, request, work

ONE = request([b"Host: a"], LENGTHS[0], b"image")


async def pipelined(model: Path) -> list[bytes]:
    """The replies to two requests at once, where the guard looks, late, as soon as the first has been answered."""
    async with listening(model) as (transport, protocols, address):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(ONE + ONE)
        while not (protocols and protocols[0].pipeline and protocols[0].call):
            await asyncio.sleep(0)
        (protocol,) = protocols
        assert protocol.call
        protocol.call.answered([Answer(1, [(0, 1.0)])])
        protocol.due = 0.0
        protocol.look()
        working = asyncio.get_running_loop().run_in_executor(None, work, transport, 2)
        replies = [await reply_from(reader) for _ in range(2)]
        await working
        writer.close()
        await writer.wait_closed()
    return replies


async def ended_unread(model: Path) -> tuple[int, list[bytes]]:
    """How many replies there should be, and those there are, to a client that sends no more and reads only then."""
    async with not_reading(model, ONE) as (transport, protocol, client, answered):
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, ONE)
        client.shutdown(socket.SHUT_WR)
        while not protocol.ended:
            await asyncio.sleep(0)
        assert protocol.due > monotonic() + LINGER_S, "it has as long to read as any other"
        working = loop.run_in_executor(None, work, transport, 1)
        reader, writer = await asyncio.open_connection(sock=client)
        replies = [await reply_from(reader) for _ in range(answered + 1)]
        await working
        writer.close()
        await writer.wait_closed()
    return answered + 1, replies


def test_a_request_that_follows_at_once_is_answered_also_where_the_guard_looks_between_them(model: Path) -> None:
    replies = asyncio.run(asyncio.wait_for(pipelined(model), SOON_S))

    assert [200, 200] == [int(reply[9:12]) for reply in replies]


def test_a_client_that_sends_no_more_may_take_its_time_to_read(model: Path) -> None:
    asked, replies = asyncio.run(asyncio.wait_for(ended_unread(model), SOON_S))

    assert [200] * asked == [int(reply[9:12]) for reply in replies]
    assert b"connection: close" in replies[-1]
