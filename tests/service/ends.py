"""Both ends of the transport in one process, for tests."""

import asyncio
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

from models.manifest import Architecture, Manifest
from service.channel import Channel
from service.inlet import Inlet
from service.metrics import Metrics
from service.transport import (
    HEADER_BYTES,
    Answer,
    Item,
    Transport,
)

ROOM = 1 << 20
MANIFEST = Manifest(
    name="test",
    version="1",
    classes=("a", "b"),
    input_size=32,
    crop=1.0,
    architecture=Architecture(name="simple_cnn", arguments={}),
    temperature=1.0,
    digest="0" * 64,
    torch={},
    created=datetime(2026, 1, 1, tzinfo=UTC),
)
SOON_S = 10  # what is waited for at most
Replies = asyncio.Future[Sequence[Answer]]


@contextmanager
def transported(processes: int = 1, workers: int = 1, room: int = ROOM) -> Iterator[Transport]:
    """All ends in one process; a worker's waits are bounded."""
    transport = Transport(processes, workers, room, Metrics(()).size)
    transport.connect()
    transport.publish(0, MANIFEST.model_dump_json().encode())
    listen(transport, 0)
    try:
        yield transport
    finally:
        disconnect(transport)


def listen(transport: Transport, side: int) -> None:
    """Receive as a worker of this side, and no longer than is waited for at most."""
    transport.inlet = Inlet(transport.requests[side][1])
    transport.inlet.timeout = SOON_S


def disconnect(transport: Transport) -> None:
    """Close all ends."""
    for end in itertools.chain(*transport.requests, *transport.answers, transport.orders):
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
        if channel.outlets[0].sender.fileno() >= 0:
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
