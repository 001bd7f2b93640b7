"""What the pipeline takes for a hang, and what not."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from time import monotonic

import pytest
import torch
from PIL import Image

from models import artifact, optimisation
from models.formats import FORMATS, MAX_PIXELS
from models.limits import LARGE_AT_ONCE, LARGE_PIXELS, Turn
from service.batching import Decoded, Failure, Pipeline
from service.metrics import Metrics
from service.settings import Settings
from service.transport import Item, Transport
from tests.pictures import encode, noise

SOON_S = 10
SIDE = int(LARGE_PIXELS**0.5) + 1


@pytest.fixture
def pipeline(model: Path) -> Pipeline:
    """One that nobody has started, on the CPU."""
    prepared = optimisation.prepare(artifact.load(model), torch.device("cpu"), max_batch_size=4)
    settings = Settings(model=model, _cli_parse_args=[])  # type: ignore[call-arg]
    metrics = Metrics(prepared.artifact.manifest.classes)
    return Pipeline(prepared, Transport(1, 1, 1 << 20), settings, metrics)


def test_the_cpu_tells_which_picture_is_damaged_where_the_device_could_not_decode_them(pipeline: Pipeline) -> None:
    # This engine is told that its device decodes JPEGs, but there is none that can.
    pipeline.engine = replace(pipeline.engine, nvjpeg=True)
    good, damaged = noise(1, (60, 50), "JPEG"), noise(2, (60, 50), "JPEG")
    damaged = damaged[: len(damaged) // 2] + bytes(300) + damaged[-2:]
    rows = pipeline.engine.rows(3)
    images = []
    for row, body in zip(rows, (good, damaged, None), strict=True):
        encoded = memoryview(body) if body else None
        images.append(Decoded(Item(0, 1, 0, 0, 1, 0.0, 0.0), row, encoded, 0.0, 0.0))
    pipeline.engine.decode(good, FORMATS, MAX_PIXELS, rows[2])
    first, second, third = pipeline.results(images, 2)

    assert isinstance(second, Failure)
    assert "undecodable" == second.code
    assert first == third
    assert not isinstance(first, Failure)


def test_no_thread_hangs_that_waits_for_its_turn_with_a_large_picture(pipeline: Pipeline) -> None:
    large, row, begun = encode(Image.new("RGB", (SIDE, SIDE))), pipeline.engine.rows(1)[0], threading.Event()

    def decode() -> list[str]:
        """What is watched afterwards."""
        pipeline.busy()
        begun.set()
        pipeline.engine.decode(large, FORMATS, MAX_PIXELS, row, pipeline.resting)
        return list(pipeline.busy_since)

    turns = [Turn() for _ in range(LARGE_AT_ONCE)]
    for turn in turns:
        turn.wait(LARGE_PIXELS + 1)
    with ThreadPoolExecutor(1, "decoding") as pool:
        decoding = pool.submit(decode)
        begun.wait(SOON_S)
        deadline = monotonic() + SOON_S
        while pipeline.busy_since:
            assert monotonic() < deadline, "waiting counts as work"
        for turn in turns:
            with turn:
                pass

        assert ["decoding_0"] == decoding.result(SOON_S)
