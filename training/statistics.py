"""What the validation images and their answers are like, so that the service can tell when others come."""

from collections.abc import Iterable, Iterator
from contextlib import suppress

import torch
from PIL import Image
from torch import Tensor

from models import statistics as bins
from models.manifest import Histogram, Statistics
from training.data import Images
from training.measurement import BATCH
from training.pixels import Split, in_order


def statistics(predicted: Tensor, confidence: Tensor, num_classes: int, split: Split, images: Images) -> Statistics:
    """Counts over the images of a `split`, which were `images`: class indices int64 (N,), confidence float32 (N,)."""
    return Statistics(
        classes=tuple(torch.bincount(predicted, minlength=num_classes).tolist()),
        confidence=histogram(confidence.tolist(), bins.CONFIDENCE),
        brightness=histogram(levels(split), bins.BRIGHTNESS),
        size=histogram(sides(images), bins.SIZE),
    )


def histogram(values: Iterable[float], edges: tuple[float, ...]) -> Histogram:
    return Histogram(edges=edges, counts=bins.binned(values, edges))


def levels(split: Split) -> Iterator[float]:
    """The brightness of every image."""
    for pixels, _ in split.batches(in_order(len(split.labels), BATCH)):
        for image in pixels.cpu().permute(0, 2, 3, 1).numpy():
            yield bins.brightness(image)


def sides(images: Images) -> Iterator[float]:
    """The side of a square of as many pixels as each picture has, by its header."""
    if isinstance(images.pictures, Tensor):
        count, _, height, width = images.pictures.shape
        yield from [(height * width) ** 0.5] * count
        return
    for path in images.pictures:
        # What cannot be read was left out by --skip-bad.
        with suppress(Exception), Image.open(path) as picture:
            yield (picture.width * picture.height) ** 0.5
