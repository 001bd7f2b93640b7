"""What becomes of a batch that the engine cannot predict as it is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models import artifact, optimisation
from models.formats import FORMATS, MAX_PIXELS
from service.isolation import Decoded, Failure, Isolation
from service.metrics import Metrics
from service.transport import Item
from tests.pictures import noise


def broken(module: Any) -> Callable[[Tensor], Tensor]:
    """Fails on everything."""

    def fail(pixels: Tensor) -> Tensor:
        raise RuntimeError("an illegal memory access was encountered")

    return fail


def lost(module: Any) -> Callable[[Tensor], Tensor]:
    """Its weights are no numbers any more."""
    return lambda pixels: module(pixels) * float("nan")


@pytest.mark.parametrize(("change", "works"), [(lambda module: module, True), (broken, False), (lost, False)])
def test_whether_the_model_still_works_is_asked_by_an_image_of_our_own(
    model: Path, change: Callable[[Any], Callable[[Tensor], Tensor]], works: bool
) -> None:
    engine = optimisation.prepare(artifact.load(model), torch.device("cpu"), max_batch_size=1)
    changed = replace(engine, module=change(engine.module))

    assert works == Isolation(changed, Metrics(engine.artifact.manifest.classes), 1, no_decoder).works()


def no_decoder(item: Item, body: memoryview, row: Tensor) -> int:
    """What nobody asks for here."""
    raise AssertionError


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
