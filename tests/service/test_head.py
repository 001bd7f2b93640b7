"""What is not parsed again is what the parser would have taken, for the same request."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path

import httptools
import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from service import settings
from service.board import DRAINING, READY
from service.call import Endpoints, Shared
from service.head import Head, head_of
from service.journal import Journal
from service.keys import Keys
from service.predict import Predict
from service.protocol import Protocol
from service.room import Room
from service.transport import Answer, Transport
from tests.service.ends import MANIFEST, connected

FIELDS = (
    b"Host: a",
    b"Content-Type: image/jpeg",
    b"X-Request-ID: 1",
    b"X-Content-Length: 7",
    b"Accept: */*\r\nX-Empty:",
    b"content-length : 5",
    b"Transfer-Encoding: chunked",
    b"Content-Length: 3",
)
SOON_S = 60
LITTLE = 2048  # bytes between the ends of a connection, of which the kernel makes a few more
LENGTHS = (b"Content-Length: %d", b"content-length:%d", b"CONTENT-LENGTH: \t %d \t")


class Parsed:
    """All that httptools tells of some bytes: whole requests, or that it takes them for none."""

    def __init__(self, data: bytes) -> None:
        self.requests: list[tuple[bytes, list[tuple[bytes, bytes]], bytes]] = []
        self.url = self.body = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.whole = True
        try:
            httptools.HttpRequestParser(self).feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.whole = False

    def on_message_begin(self) -> None:
        self.whole, self.url, self.body, self.headers = False, b"", b"", []

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.whole = True
        self.requests.append((self.url, self.headers, self.body))


def request(fields: list[bytes], length: bytes, body: bytes) -> bytes:
    half = len(fields) // 2
    return b"\r\n".join([b"POST /predict HTTP/1.1", *fields[:half], length % len(body), *fields[half:], b"", body])


def learnt(data: bytes) -> Head | None:
    """The head of one whole request, as a connection learns it."""
    parsed = Parsed(data)
    return head_of(data, parsed.headers) if parsed.whole and len(parsed.requests) == 1 else None


@st.composite
def changed(draw: st.DrawFn, data: bytes) -> bytes:
    """The same with a piece cut out and another put in its place."""
    start = draw(st.integers(0, len(data)))
    end = draw(st.integers(start, min(len(data), start + 12)))
    pieces = st.sampled_from([b"", b"0", b"9", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b" ", b"-", b"+", b":", *FIELDS])
    return data[:start] + draw(pieces) + data[end:]


fields = st.lists(st.sampled_from(FIELDS[:5]), unique=True)
bodies = st.binary(max_size=300) | st.sampled_from([b"", b"\r\n", b"\r\n\r\n", b"Content-Length: 1\r\n\r\n"])


@given(fields, st.sampled_from(LENGTHS), bodies, bodies)
def test_another_body_under_the_same_head_is_found_whole(
    before: list[bytes], length: bytes, first: bytes, second: bytes
) -> None:
    head = learnt(request([b"Host: a", *before], length, first))

    assert head
    assert second == head.body(request([b"Host: a", *before], length, second))
    assert b"content-length" == Parsed(request([b"Host: a", *before], length, first)).headers[head.header][0]


@hypothesis.settings(max_examples=500)
@given(st.data(), st.lists(st.sampled_from(FIELDS)), st.sampled_from(LENGTHS), bodies, bodies)
def test_whatever_is_found_by_its_head_the_parser_takes_for_the_same(
    data: st.DataObject, before: list[bytes], length: bytes, first: bytes, second: bytes
) -> None:
    known = request(before, length, first)
    other = data.draw(changed(request(before, length, second)))
    head = learnt(known)
    body = head.body(other) if head else None

    if head and body is not None:
        parsed = Parsed(other)
        ((url, headers, its_body),) = parsed.requests
        assert parsed.whole
        assert body == its_body
        expected = Parsed(known).headers
        expected[head.header] = b"content-length", headers[head.header][1]
        assert (b"/predict", expected) == (url, headers)
        assert len(body) == int(headers[head.header][1])


def test_less_or_more_than_one_whole_request_is_left_to_the_parser() -> None:
    whole = request([b"X-After: ab"], LENGTHS[0], b"image")
    head = learnt(whole)

    assert head
    assert b"image" == head.body(whole)
    for other in (
        whole[:-1],
        whole + b"G",
        whole * 2,
        whole[:20],
        b"",
        whole.replace(b"5", b"+5"),
        whole.replace(b"5", b"05"),
        whole.replace(b"ab", b"ac"),
    ):
        assert head.body(other) is None
    assert head_of(whole * 2, Parsed(whole).headers) is None
    assert learnt(request([FIELDS[-2]], b"X-None: %d", b"0\r\n\r\n")) is None


def work(transport: Transport, images: int) -> None:
    """Answer so many images."""
    while images:
        for item in transport.receive():
            transport.answer(item.process, [Answer(item.uid, [(0, 1.0)])])
            images -= item.counted


async def nowhere(scope: object, receive: object, send: object) -> None:
    """An application that nobody asks."""


@asynccontextmanager
async def listening(model: Path) -> AsyncIterator[tuple[Transport, list[Protocol], tuple[str, int]]]:
    """The protocol on a port, without workers: the transport, every connection so far, the address."""
    with connected(capacity=4) as (transport, channel):
        transport.phase = READY
        made = settings.made(model=model)
        endpoint = Predict(Shared(MANIFEST, made, Keys(), Journal(channel.metrics, access_log=False), lambda: channel))
        endpoints = Endpoints({"/predict": endpoint}, endpoint.journal)
        config = Config(nowhere, log_config=None)
        config.load()
        protocol = partial(Protocol, app=nowhere, endpoints=endpoints, room=Room(4), app_state={})
        protocols: list[Protocol] = []

        def accept() -> Protocol:
            protocols.append(protocol(config=config, server_state=ServerState()))
            return protocols[-1]

        server = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0)
        with closing(server):
            yield transport, protocols, server.sockets[0].getsockname()


async def reply_from(reader: asyncio.StreamReader) -> bytes:
    """The next reply."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    assert length
    return head + await reader.readexactly(int(length[1]))


async def exchanged(model: Path, sent: Sequence[bytes]) -> list[bytes]:
    """The replies to requests on one connection, the last of which comes while the service stops."""
    async with listening(model) as (transport, _, address):
        working = asyncio.get_running_loop().run_in_executor(None, work, transport, len(sent) - 1)
        reader, writer = await asyncio.open_connection(*address)
        replies: list[bytes] = []
        for request in sent:
            if len(replies) == len(sent) - 1:
                transport.phase = DRAINING
            writer.write(request)
            replies.append(await reply_from(reader))
        await working
        assert b"" == await reader.read()
        writer.close()
        await writer.wait_closed()
    return replies


@asynccontextmanager
async def not_reading(model: Path, one: bytes) -> AsyncIterator[tuple[Transport, Protocol, socket.socket, int]]:
    """A client that sends a request again and again and does not read, until its replies stand.

    The transport, its connection, itself, and how many replies it is owed.
    """
    async with listening(model) as (transport, protocols, address):
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LITTLE)
            client.connect(address)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            while not protocols or protocols[0].guard is None:  # until it is connected
                await asyncio.sleep(0)
            (protocol,) = protocols
            protocol.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LITTLE)
            protocol.transport.set_write_buffer_limits(high=0)
            answered = 0
            while not protocol.flow.write_paused:
                await loop.sock_sendall(client, one)
                await loop.run_in_executor(None, work, transport, 1)
                answered += 1
                while protocol.server_state.total_requests < answered:
                    await asyncio.sleep(0)
            yield transport, protocol, client, answered


async def unread(model: Path, one: bytes) -> tuple[int, list[bytes]]:
    """Send a request once more where the replies stand, and then read.

    How many were answered before, and all replies; the last is to a request sent after that.
    """
    async with not_reading(model, one) as (transport, protocol, client, answered):
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, one)
        while protocol.held is None:
            await asyncio.sleep(0)
        working = loop.run_in_executor(None, work, transport, 2)
        reader, writer = await asyncio.open_connection(sock=client)
        replies = [await reply_from(reader) for _ in range(answered + 1)]
        writer.write(one)
        replies.append(await reply_from(reader))
        await working
        writer.close()
        await writer.wait_closed()
    return answered, replies


def test_a_head_that_comes_again_is_not_parsed_again(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []
    parse = HttpToolsProtocol.data_received

    def seen(self: HttpToolsProtocol, data: bytes) -> None:
        parsed.append(data)
        parse(self, data)

    monkeypatch.setattr(HttpToolsProtocol, "data_received", seen)
    one = [request([b"Host: a"], LENGTHS[0], b"image" * size) for size in (1, 1, 30, 300, 2)]
    other = [request([b"Host: b"], LENGTHS[0], b"image" * size) for size in (3, 4, 5)]
    replies = asyncio.run(exchanged(model, one + other))

    assert [one[0], other[0]] == parsed
    assert [200] * 7 + [503] == [int(reply[9:12]) for reply in replies]
    assert [False] * 7 + [True] == [b"\r\nconnection: close\r\n" in reply for reply in replies]


def test_under_a_head_that_was_taken_before_a_client_that_does_not_read_is_waited_for(model: Path) -> None:
    answered, replies = asyncio.run(
        asyncio.wait_for(unread(model, request([b"Host: a"], LENGTHS[0], b"image")), SOON_S)
    )

    assert answered > 1
    assert [200] * (answered + 2) == [int(reply[9:12]) for reply in replies]
