"""Encoded pictures for tests."""

import io

import numpy as np
from PIL import Image


def encode(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def noise(seed: int = 0, size: tuple[int, int] = (40, 30), file_format: str = "PNG") -> bytes:
    """A soft random picture, the same for the same seed."""
    field = np.random.RandomState(seed).randint(0, 256, (4, 4, 3)).astype(np.uint8)
    return encode(Image.fromarray(field).resize(size, Image.Resampling.BICUBIC), file_format)
