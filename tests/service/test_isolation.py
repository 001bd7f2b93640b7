"""What becomes of a batch that the engine cannot predict as it is."""

from dataclasses import replace
from pathlib import Path

import torch

from models import artifact, optimisation
from models.formats import FORMATS, MAX_PIXELS
from service.isolation import Decoded, Failure, Isolation
from service.metrics import Metrics
from service.transport import Item
from tests.pictures import noise


def test_the_cpu_tells_which_picture_is_damaged_where_the_device_could_not_decode_them(model: Path) -> None:
    engine = optimisation.prepare(artifact.load(model), torch.device("cpu"), max_batch_size=4)
    good, damaged = noise(1, (60, 50), "JPEG"), noise(2, (60, 50), "JPEG")
    damaged = damaged[: len(damaged) // 2] + bytes(300) + damaged[-2:]
    rows = engine.rows(3)
    images = []
    for row, body in zip(rows, (good, damaged, None), strict=True):
        encoded = memoryview(body) if body else None
        images.append(Decoded(Item(0, 1, 0, 0, 1, 0.0, 0.0), row, encoded, 0.0, 0.0))
    engine.decode(good, FORMATS, MAX_PIXELS, rows[2])
    isolation = Isolation(
        replace(engine, nvjpeg=True),  # it is told that its device decodes JPEGs, but there is none that can
        Metrics(engine.artifact.manifest.classes),
        batch_size=4,
        decode=lambda item, body, row: engine.decode(body, FORMATS, MAX_PIXELS, row),
    )
    first, second, third = isolation.results(images, 2)

    assert isinstance(second, Failure)
    assert "undecodable" == second.code
    assert first == third
    assert not isinstance(first, Failure)
