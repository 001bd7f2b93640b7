"""One picture in every way that it can be stored."""

import zlib
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.framing import EXIF_ORIENTATION, TURNS
from tests.costly import PASSES, chunk, header
from tests.pictures import encode

UNDO = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}  # every other turn undoes itself
END = chunk(b"IEND", b"")


def filtered(lines: Iterable[NDArray[np.generic]]) -> bytes:
    """The lines of a PNG, unfiltered, in a chunk."""
    return chunk(b"IDAT", zlib.compress(b"".join(b"\0" + line.tobytes() for line in lines), 1))


def interlaced(image: Image.Image) -> bytes:
    """An RGB picture as a PNG in Adam7's seven passes, which Pillow does not write."""
    pixels = np.asarray(image)
    passes = [pixels[y::dy, x::dx] for x, y, dx, dy in PASSES]
    lines = [line for part in passes if part.size for line in part]
    return header(*image.size, interlace=1) + filtered(lines) + END


def deep(image: Image.Image) -> bytes:
    """An RGB picture as a PNG of 16 bits a channel, which Pillow does not write."""
    return header(*image.size, depth=16) + filtered((np.asarray(image).astype(np.uint16) * 257).astype(">u2")) + END


def turned(image: Image.Image, orientation: int, file_format: str, **options: object) -> bytes:
    """Stored turned, with the orientation that turns it back."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    turn = UNDO.get(orientation, TURNS.get(orientation))
    stored = image if turn is None else image.transpose(turn)
    return encode(stored, file_format, exif=exif.tobytes(), **options)


def encodings(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    """By name: an RGB picture in every way that keeps its colours, or nearly."""
    yield "png", encode(image)
    yield "interlaced", interlaced(image)
    yield "16-bit colour", deep(image)
    yield "opaque", encode(image.convert("RGBA"))
    yield "opaque webp", encode(image.convert("RGBA"), "WEBP", lossless=True, method=0)
    yield "webp", encode(image, "WEBP", lossless=True, method=0)
    yield "jpeg", encode(image, "JPEG", quality=95)
    yield "progressive", encode(image, "JPEG", quality=95, progressive=True)
    yield "cmyk", encode(image.convert("CMYK"), "JPEG", quality=95)
    for orientation in range(1, 9):
        yield f"png turned by {orientation}", turned(image, orientation, "PNG", compress_level=1)
        yield f"jpeg turned by {orientation}", turned(image, orientation, "JPEG", quality=95)
        yield f"webp turned by {orientation}", turned(image, orientation, "WEBP", lossless=True, method=0)


def of_few_colours(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    """A palette picture, as one and as its colours."""
    yield "png", encode(image.convert("RGB"))
    yield "palette", encode(image)
    yield "palette and opaque", encode(image, transparency=bytes([255] * 256))
    yield "interlaced", interlaced(image.convert("RGB"))


def of_grey(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    """A grey picture of 8 bits, and of 16."""
    pixels = np.asarray(image)
    yield "png", encode(image)
    yield "16-bit", encode(Image.fromarray(pixels.astype(np.uint16) * 257))
    yield "grey and opaque", encode(image.convert("LA"))
    yield "as colours", encode(image.convert("RGB"))
    yield "jpeg", encode(image, "JPEG", quality=95)
