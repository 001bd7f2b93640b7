"""Goldens: pictures stored in the artifact with the answers they must give.

They are drawn here by a fixed generator, never taken from anybody's data.
"""

import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from models.classifier import Classifier
from models.decode import decode

FILE = "goldens.pt"
MARGIN = 0.2  # wanted between the two highest probabilities, so that rounding cannot change the answer
TRIES = 8  # drawings a kind before the best so far is taken
SEED = 20_26
JPEG_LEVELS = 3  # how far two correct JPEG decoders may differ, in levels of 255
# Height and width in crops' sides. A PNG's pixels must come out exactly anywhere: at 1 nothing is resized; at 2 every
# weight is a fraction with a small denominator, and sums stay clear of ties by far more than float32's error.
KINDS = [
    ("PNG", 1.0, 1.0),
    ("PNG", 2.0, 2.0),
    ("PNG", 1.0, 2.5),
    ("PNG", 3.2, 2.0),
    ("JPEG", 1.3, 1.9),
    ("JPEG", 3.1, 2.3),
    ("JPEG", 0.6, 1.7),
    ("JPEG", 5.0, 4.3),
]


@dataclass(frozen=True)
class Goldens:
    """`encoded` files, their `pixels` uint8 (N, 3, S, S) after decoding and preprocessing, `probabilities` (N, K)."""

    encoded: list[bytes]
    pixels: Tensor
    probabilities: Tensor

    def to_bytes(self) -> bytes:
        """As one file that `torch.load(weights_only=True)` reads."""
        encoded = [torch.frombuffer(bytearray(body), dtype=torch.uint8) for body in self.encoded]
        buffer = io.BytesIO()
        torch.save({"encoded": encoded, "pixels": self.pixels, "probabilities": self.probabilities}, buffer)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Goldens":
        """The reverse of `to_bytes`."""
        stored = torch.load(io.BytesIO(content), weights_only=True)
        return cls([body.numpy().tobytes() for body in stored["encoded"]], stored["pixels"], stored["probabilities"])


def make(classifier: Classifier) -> Goldens:
    """Draw one golden a kind, preferring drawings that `classifier` (on the CPU) is sure of."""
    random = np.random.RandomState(SEED)
    chosen = [surest(classifier, random, *kind) for kind in KINDS]
    pixels = torch.stack([to_pixels(body, classifier) for body in chosen])
    with torch.no_grad():
        return Goldens(chosen, pixels, classifier(pixels))


def surest(
    classifier: Classifier, random: np.random.RandomState, file_format: str, height: float, width: float
) -> bytes:
    """The first drawing with a top-1 margin of `MARGIN`, else the best of `TRIES`."""
    side = classifier.input_size / classifier.crop
    best, best_margin = b"", -1.0
    for _ in range(TRIES):
        body = encode(draw(random, round(height * side), round(width * side)), file_format)
        with torch.no_grad():
            first, second = classifier(to_pixels(body, classifier)[None])[0].topk(2).values.tolist()
        if not best or first - second > best_margin:
            best, best_margin = body, first - second
        if best_margin >= MARGIN:
            break
    return best


def to_pixels(body: bytes, classifier: Classifier) -> Tensor:
    """Decode and preprocess as the service does: uint8 (3, S, S)."""
    return classifier.preprocess(decode(body, input_size=classifier.input_size, crop=classifier.crop))


def draw(random: np.random.RandomState, height: int, width: int) -> Image.Image:
    """A soft colour field with a few ellipses and boxes on it."""
    field = Image.fromarray(random.randint(0, 256, (3, 3, 3)).astype(np.uint8))
    image = field.resize((width, height), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    for shape in (pen.ellipse, pen.rectangle, pen.ellipse):
        x, y = random.randint(0, width), random.randint(0, height)
        reach_x, reach_y = random.randint(1, width // 2 + 2), random.randint(1, height // 2 + 2)
        shape((x - reach_x, y - reach_y, x + reach_x, y + reach_y), fill=tuple(random.randint(0, 256, 3).tolist()))
    return image


def encode(image: Image.Image, file_format: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format)
    return buffer.getvalue()
