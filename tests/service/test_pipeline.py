"""A worker's threads between both ends of the transport: who works, and what is predicted together."""

import asyncio
import ctypes
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from models import artifact, optimisation
from models.engine import Engine, Sharing
from models.limits import LARGE_AT_ONCE, LARGE_PIXELS, Turn
from service.batching import Pipeline
from service.channel import Channel
from service.metrics import Metrics
from service.settings import Settings
from tests.pictures import encode, noise
from tests.service.ends import SOON_S, Replies, connected, soon, submit

SMALL, LARGE = noise(1, (40, 30), "PNG"), encode(Image.new("RGB", (int(LARGE_PIXELS**0.5) + 1,) * 2))
FULL = 4


@pytest.fixture(scope="module")
def engine(model: Path) -> Engine:
    """Of batches of up to four."""
    prepared = optimisation.prepare(artifact.load(model), torch.device("cpu"), max_batch_size=FULL)
    return replace(prepared, batch_size=FULL)


@contextmanager
def fed(engine: Engine, cores: int = 2, **settings: Any) -> Iterator[tuple[Pipeline, Channel]]:
    """A pipeline that nobody has started, on so many cores, and the HTTP process's end."""
    with connected(capacity=100) as (transport, channel):
        transport.inlet.timeout = None
        made = Settings(model=engine.artifact.path, **settings, _cli_parse_args=[])  # type: ignore[call-arg]
        metrics = Metrics(engine.artifact.manifest.classes)
        metrics.cells = (ctypes.c_double * metrics.size)()
        yield Pipeline(replace(engine, sharing=Sharing(cores)), transport, made, metrics), channel


@contextmanager
def at_work(pipeline: Pipeline, channel: Channel) -> Iterator[None]:
    """Its threads work until the HTTP process closes its end."""
    for thread in pipeline.threads:
        thread.start()
    try:
        yield
    finally:
        channel.close()
        for thread in pipeline.threads:
            thread.join(SOON_S)
    assert not any(thread.is_alive() for thread in pipeline.threads)


async def each_alone(channel: Channel, *bodies: bytes) -> list[Replies]:
    """Send a message a body."""
    replies = []
    for body in bodies:
        replies.append(submit(channel, [body]))
        await asyncio.sleep(0)
    return replies


def test_small_pictures_are_answered_while_large_ones_wait_for_their_turn(engine: Engine) -> None:
    async def scenario() -> list[str]:
        with fed(engine) as (pipeline, channel), at_work(pipeline, channel), ExitStack() as turns:
            for _ in range(LARGE_AT_ONCE):
                turns.enter_context(Turn()).wait(LARGE_PIXELS + 1)
            large = await each_alone(channel, *[LARGE] * pipeline.engine.cores)
            small = await each_alone(channel, *[SMALL] * 3 * FULL)
            answers = await soon(*small)
            assert not any(each.done() for each in large)
            turns.close()
            answers += await soon(*large)
        return [answer.code for answer in answers]

    assert [""] * (3 * FULL + 2) == asyncio.run(scenario())


def test_before_a_pass_what_has_come_meanwhile_is_decoded_up_to_a_full_batch(engine: Engine) -> None:
    async def scenario() -> None:
        with fed(engine) as (pipeline, channel):
            await each_alone(channel, *[SMALL] * (2 * FULL - 1))
            pipeline.filling = SOON_S
            pipeline.decode_all(pipeline.next_items())
            pipeline.place.decode_seconds = SOON_S
            pipeline.fill()
            assert 1 == pipeline.decoded.qsize(), "one more would take longer than a pass"
            pipeline.place.decode_seconds = 0.0
            pipeline.fill()
            assert pipeline.decoded.qsize() == FULL == len(pipeline.next_batch())
            pipeline.fill()
            assert pipeline.decoded.qsize() == FULL - 1, "no more have come"

    asyncio.run(scenario())


def test_an_idle_model_that_waits_for_a_fuller_batch_gets_it_also_on_one_core(engine: Engine) -> None:
    async def scenario() -> set[float]:
        with (
            fed(engine, cores=1, max_delay_ms=1000, max_batch_size=FULL) as (pipeline, channel),
            at_work(pipeline, channel),
        ):
            first = await each_alone(channel, SMALL)
            while not pipeline.forming.locked() or not pipeline.decoded.empty():
                await asyncio.sleep(0)
            others = await each_alone(channel, *[SMALL] * (FULL - 1))
            return {answer.inference for answer in await soon(*first, *others)}

    assert 1 == len(asyncio.run(scenario())), "they were in one pass"
