"""What the pipeline takes for a hang, and what not."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic

import torch
from PIL import Image

from models import artifact, engine
from models.decode import LARGE_AT_ONCE, LARGE_PIXELS, Turn
from models.formats import FORMATS, MAX_PIXELS
from service.batching import Pipeline
from service.metrics import Metrics
from service.settings import Settings
from service.transport import Transport
from tests.pictures import encode

SOON_S = 10
SIDE = int(LARGE_PIXELS**0.5) + 1


def test_no_thread_hangs_that_waits_for_its_turn_with_a_large_picture(model: Path) -> None:
    prepared = engine.prepare(artifact.load(model), torch.device("cpu"), max_batch_size=4)
    settings = Settings(model=model, _cli_parse_args=[])  # type: ignore[call-arg]
    metrics = Metrics(prepared.artifact.manifest.classes)
    pipeline = Pipeline(prepared, Transport(1, 1, 1 << 20), settings, metrics)
    large, row, begun = encode(Image.new("RGB", (SIDE, SIDE))), prepared.rows(1)[0], threading.Event()

    def decode() -> list[str]:
        """What is watched afterwards."""
        pipeline.busy()
        begun.set()
        prepared.decode(large, FORMATS, MAX_PIXELS, row, pipeline.resting)
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
