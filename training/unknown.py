"""When not to believe a classifier: the confidence below which an image is called unknown, and how well that works.

The threshold is the one that keeps a stated share of validation images; what it is good for is measured on images of
nothing that the classifier knows (Hendrycks and Gimpel 2017, arXiv 1610.02136: maximum probability as the score).
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from models.classifier import Classifier
from models.decode import decode
from models.errors import ImageError
from models.formats import pictures_in
from models.manifest import Strangers, Unknown
from training import shapes10
from training.errors import TrainingError
from training.pixels import InMemory
from training.terminal import say

FEWEST, MOST = 100, 500  # strangers of a kind; between, as many as there are validation images


def threshold_for(confidence: Tensor, coverage: float) -> float:
    """The highest threshold that leaves at least a share `coverage` of images with this confidence (N,) known."""
    refused = math.floor((1 - coverage) * len(confidence))
    return float(confidence.sort().values[refused])


def judge(
    threshold: float, coverage: float, confidence: Tensor, right: Tensor, strangers: Mapping[str, Tensor]
) -> Unknown:
    """What the threshold does to images (N,), answered `right` bool (N,) or not, and to strangers' confidence."""
    known = confidence >= threshold
    return Unknown(
        coverage=coverage,
        known=float(known.float().mean()),
        accuracy=float(right[known].float().mean()) if bool(known.any()) else None,
        strangers={
            name: Strangers(
                n=len(scores), refused=float((scores < threshold).float().mean()), auroc=auroc(confidence, scores)
            )
            for name, scores in strangers.items()
        },
    )


def auroc(confidence: Tensor, strangers: Tensor) -> float:
    """How often an image is answered more surely than a stranger, ties half: the area under the ROC curve."""
    sorted_strangers = strangers.sort().values
    below, up_to = (torch.searchsorted(sorted_strangers, confidence, right=right) for right in (False, True))
    return float((below + up_to).double().mean() / (2 * len(strangers)))


def strangers(classifier: Classifier, data: str, folder: Path | None, validated: int) -> dict[str, InMemory]:
    """Pictures of nothing in the data set `data`, which has `validated` validation images: `folder`'s, else drawn ones.

    Raises:
        TrainingError: the folder holds none that can be read.
    """
    if folder:
        found = {folder.name: read(classifier, folder)}
    else:
        count = min(MOST, max(FEWEST, validated))
        found = {"noise": noise(classifier.input_size, count)}
        if data != "shapes10":
            shapes = torch.from_numpy(shapes10.render("test")[0][:count])
            found["shapes10"] = torch.stack([classifier.preprocess(shape) for shape in shapes])
    return {name: InMemory(pixels, torch.zeros(len(pixels), dtype=torch.int64)) for name, pixels in found.items()}


def noise(size: int, count: int) -> Tensor:
    """Coloured noise of every grain, from single pixels to halves of the picture: uint8 (count, 3, size, size)."""
    generator = torch.Generator().manual_seed(0)
    grains = [2**power for power in range(1, max(2, size.bit_length()))]
    drawn = []
    for number in range(count):
        cells = min(size, grains[number % len(grains)])
        coarse = torch.rand(1, 3, cells, cells, generator=generator) * 255
        drawn.append(functional.interpolate(coarse, (size, size), mode="bilinear", align_corners=False))
    return torch.cat(drawn).round().to(torch.uint8)


def read(classifier: Classifier, folder: Path) -> Tensor:
    """Every picture below `folder` that can be decoded: uint8 (N, 3, S, S)."""
    size, crop = classifier.input_size, classifier.crop
    pixels, unreadable = [], 0
    for path in pictures_in(folder):
        try:
            pixels.append(classifier.preprocess(decode(path.read_bytes(), input_size=size, crop=crop)))
        except (OSError, ImageError):
            unreadable += 1
    if unreadable:
        say(f"warning   {unreadable} pictures of --unlike {folder} cannot be read and are left out")
    if not pixels:
        raise TrainingError(f"--unlike {folder}: no pictures there; name a folder of pictures of none of the classes")
    return torch.stack(pixels)
