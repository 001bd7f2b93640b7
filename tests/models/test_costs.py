"""What one body may cost: at most 1.5 s of CPU and 512 MiB, whatever it holds; each measured in a fork of its own."""

import os
import time
from contextlib import suppress
from dataclasses import dataclass

import pytest
import torch

from models.classifier import Classifier
from models.decode import decode_rgb
from models.errors import ImageError
from models.formats import FORMATS, KNOWN_FORMATS, MAX_PIXELS
from tests import costly
from tests.pictures import noise
from tests.service import hostile

CPU_S = 1.5
MEMORY_MIB = 512
SLOWER = 3  # times as long as the plainest picture of so many pixels: what holds on a machine of any speed and load


@dataclass(frozen=True)
class Cost:
    """CPU seconds, growth of the most memory in MiB, and how it ended: ok, or the error's code."""

    seconds: float
    memory: float
    outcome: str


def peak() -> int:
    """Most memory that this process had, in KiB."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def outcome(body: bytes) -> str:
    """Decode and preprocess as the engine does, for a model of ImageNet's kind."""
    model = Classifier(torch.nn.Identity(), input_size=224, crop=0.875, mean=(0, 0, 0), std=(1, 1, 1))
    try:
        image = decode_rgb(body, 224, 0.875, KNOWN_FORMATS, MAX_PIXELS, whole=False)
    except ImageError as error:
        return error.code
    planes = torch.from_numpy(image).permute(2, 0, 1).contiguous()
    del image
    model.preprocess(planes)
    return "ok"


def cost(body: bytes) -> Cost:
    """Measured in a fork, whose peak begins at what it inherits."""
    torch.set_num_threads(1)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        before = peak()
        os.write(write, f"{outcome(body)} {(peak() - before) / 1024}".encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        told = pipe.read().split()
    _, status, used = os.wait4(child, 0)
    assert status == 0, f"the decoder died: {status}"
    return Cost(used.ru_utime + used.ru_stime, float(told[1]), told[0])


@pytest.fixture(scope="module")
def bound() -> float:
    """CPU seconds that may be taken here and now."""
    return max(CPU_S, SLOWER * cost(costly.png(costly.SIDE, costly.SIDE, 2, 8)).seconds)


@pytest.mark.slow
@pytest.mark.parametrize("name", costly.PIXELS)
def test_the_most_pixels_that_are_accepted_are_decoded_within_bounds(name: str, bound: float) -> None:
    found = cost(costly.PIXELS[name]())

    assert "ok" == found.outcome, found
    assert found.seconds <= bound
    assert found.memory <= MEMORY_MIB


@pytest.mark.slow
@pytest.mark.parametrize("name", costly.FLOODS)
def test_a_flood_of_pieces_is_refused_or_cheap(name: str, bound: float) -> None:
    body = costly.FLOODS[name]()
    found = cost(body)

    assert len(body) <= costly.LIMIT
    assert found.outcome in ("ok", "metadata", "undecodable", "too_many_pixels")
    assert found.seconds <= bound
    assert found.memory <= 100


def seconds(body: bytes) -> float:
    """CPU seconds until a body is decoded or refused, in this thread."""
    started = time.thread_time()
    with suppress(ImageError):
        decode_rgb(body, 224, 0.875, FORMATS, MAX_PIXELS, whole=False)
    return time.thread_time() - started


@pytest.mark.slow
def test_what_is_foreign_or_too_large_is_refused_within_100_ms() -> None:
    refused = hostile.foreign() | hostile.huge() | {"zeros": bytes(costly.LIMIT)}
    slow = {name: taken for name, body in refused.items() if (taken := seconds(body)) > 0.1}

    assert {} == slow


@pytest.mark.slow
@pytest.mark.parametrize("file_format", FORMATS)
def test_damage_is_found_within_the_time_of_a_good_decode(file_format: str) -> None:
    body = noise(0, (3000, 2000), file_format)
    cut = [body[: len(body) * share // 10] for share in (1, 5, 9)]
    torn = [body[: len(body) * share // 10] + bytes(99) + body[len(body) * share // 10 + 99 :] for share in (1, 5, 9)]
    good = min(seconds(body) for _ in range(3))

    assert max(map(seconds, cut + torn)) < max(0.1, SLOWER * good)
