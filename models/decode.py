"""Bytes to RGB: the one decoder of training, evaluation and serving.

    mode of the file                          becomes RGB by
    1, L, P, YCbCr, CMYK, RGB                 Pillow's conversion
    LA, PA, RGBA, and any with transparency   composing over white
    I;16*, I (16-bit grey)                    value / 257, rounded

The picture is turned upright by its EXIF orientation; of several frames the first is taken. Colour profiles are not
applied. Of 16-bit colour (RGB, LA, RGBA) Pillow keeps the high byte, at most one level from value / 257.

An ordinary JPEG goes straight to libjpeg-turbo (`models.jpeg`), all else to Pillow. What a body may cost is bounded
before it costs (`models.limits`), memory here too: by cutting first, and by converting strips.
"""

import re

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.WebPImagePlugin import WebPImageFile

from models.errors import ImageError, OversizedMetadata, Undecodable, UnsupportedFormat
from models.formats import FORMATS, MAX_PIXELS
from models.framing import Pixels, middle, turned
from models.jpeg import JPEG_MAGIC, decode_jpeg, has_scans, jpeg_scale, lean, segments
from models.limits import LOAD_STEPS, PNG_MAGIC, Steps, Turn, check_png, refuse_huge

STRIP_PIXELS = 1 << 17  # converted at a time, in the processor's caches
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1", b"avif")

# `decode` compares the announced size with its own limit; Pillow's would warn or raise at another one.
Image.MAX_IMAGE_PIXELS = None


def decode(
    body: bytes | memoryview,
    *,
    input_size: int,
    crop: float = 1.0,
    formats: tuple[str, ...] = FORMATS,
    max_pixels: int = MAX_PIXELS,
) -> torch.Tensor:
    """Decode an encoded picture for a model of `input_size` and `crop`: uint8 (3, H, W), RGB; see `decode_rgb`."""
    pixels = decode_rgb(body, input_size, crop, formats, max_pixels)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def decode_rgb(
    body: bytes | memoryview,
    input_size: int,
    crop: float,
    formats: tuple[str, ...],
    max_pixels: int,
    *,
    whole: bool = True,
    turn: Turn | None = None,
) -> Pixels:
    """Decode an encoded picture for a model of `input_size` and `crop`: uint8 (H, W, 3), RGB.

    A JPEG is decoded at the smallest of 1/1, 1/2, 1/4, 1/8 that keeps the crop's side at 2 x `input_size` or more.
    Unless it is to be `whole`, only what `preprocess` may take of it is converted; see `middle`. With a `turn`, a
    large picture waits until few enough others are being decoded.

    Raises:
        ImageError: the subclass says why; the text is fit for the client.
    """
    pixels = None
    if "JPEG" in formats and body[:3] == JPEG_MAGIC:
        pixels = decode_jpeg(body, input_size, crop, max_pixels, whole=whole, turn=turn)
    if pixels is None:
        pixels = decode_any(body, input_size, crop, formats, max_pixels, whole=whole, turn=turn)
    return pixels


def decode_any(
    body: bytes | memoryview,
    input_size: int,
    crop: float,
    formats: tuple[str, ...],
    max_pixels: int,
    *,
    whole: bool = True,
    turn: Turn | None = None,
) -> Pixels:
    """Any accepted picture's pixels by Pillow: uint8 (H, W, 3)."""
    try:
        with opened(bytes(body), formats, max_pixels) as image:
            width, height = image.size
            refuse_huge(width, height, max_pixels)
            scale = jpeg_scale(min(width, height), input_size, crop) if image.format == "JPEG" else 1
            if scale > 1:
                image.draft(None, (width // scale, height // scale))
            several = image.format == "JPEG" and has_scans(body, segments(body), width * height, max_pixels)
            if turn:
                turn.wait(width * height, 1 if several else scale * scale)
            picture = loaded(image, whole=whole)
        del image  # its memory is as large as the picture's
        return converted(picture)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise unsupported(bytes(body[:16]), formats) from None
    except Exception as error:  # damaged input makes Pillow's parsers raise OSError, SyntaxError, struct.error and more
        raise damaged(error) from None


class WebP(WebPImageFile):
    """Pillow's, without two canvases of an animation beside the image's own memory."""

    def load_prepare(self) -> None:
        del self._decoder
        super().load_prepare()


def opened(body: bytes, formats: tuple[str, ...], max_pixels: int) -> ImageFile:
    """The picture as its header tells it, nothing decoded.

    Raises:
        ImageError, and what Pillow raises.
    """
    if "JPEG" in formats and body.startswith(JPEG_MAGIC):
        body, formats = lean(body, segments(body), pixels=True), ("JPEG",)
    if "PNG" in formats and body.startswith(PNG_MAGIC):
        check_png(body, max_pixels)
    if "WEBP" in formats and body[:4] == b"RIFF" and body[8:16] == b"WEBPVP8X" and len(body) >= 30:
        # Opening it takes memory for the canvas, which only this kind of header can announce as boundless.
        width, height = (1 + int.from_bytes(body[at : at + 3], "little") for at in (24, 27))
        refuse_huge(width, height, max_pixels)
    if "WEBP" in formats and body[:4] == b"RIFF" and body[8:12] == b"WEBP":
        return WebP(Steps(body))
    image = Image.open(Steps(body), formats=formats)
    assert isinstance(image, ImageFile), "Image.open gives readers of files"
    return image


def loaded(image: ImageFile, *, whole: bool) -> Image.Image:
    """The decoded picture, upright, cut to what is wanted of it; still in its own mode."""
    if isinstance(image.fp, Steps):
        image.fp.left = LOAD_STEPS
    image.load()
    wanted = middle(*image.size)
    # Image.crop copies what is already as wanted.
    return turned(image if whole or wanted == (0, 0, *image.size) else image.crop(wanted), image)


def converted(picture: Image.Image) -> Pixels:
    """The picture's pixels by the table above, uint8 (H, W, 3): strip by strip, as some ways take several copies."""
    width, height = picture.size
    pixels = np.empty((height, width, 3), np.uint8)
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        pixels[top:bottom] = np.asarray(to_rgb(picture.crop((0, top, width, bottom))))
    return pixels


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to mode RGB by the table above."""
    if image.mode.startswith("I"):
        values = np.asarray(image)
        grey = to_8_bit(values)
        grey[values == image.info.get("transparency", -1)] = 255  # PNG names one transparent grey
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("RGB")
    return image.convert("RGB")


def to_8_bit(values: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Scale uint16-ranged grey values (H, W) to uint8 by 1/257, rounded: 65,535 becomes 255."""
    scaled: NDArray[np.uint32] = (np.clip(values, 0, 65_535).astype(np.uint32) + 128) // 257
    return scaled.astype(np.uint8)


def damaged(error: Exception | None = None) -> ImageError:
    """What to tell the client of an accepted format that cannot be decoded."""
    # Pillow bounds decompressed text and profiles (PngImagePlugin.MAX_TEXT_CHUNK, _MEMORY) by ValueErrors so worded.
    if isinstance(error, ValueError) and re.search("too large|too much memory", str(error), re.IGNORECASE):
        return OversizedMetadata("The image's compressed metadata expands beyond the limit.")
    return Undecodable("The image is damaged or incomplete and cannot be decoded.")


def unsupported(head: bytes, formats: tuple[str, ...]) -> ImageError:
    """Tell a foreign format from an accepted one that is too damaged to be recognised."""
    accepted = ", ".join(formats)
    if head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS:
        return UnsupportedFormat(
            f"HEIC/HEIF and AVIF are not accepted; convert the photo to JPEG. Accepted: {accepted}."
        )
    magics = {"JPEG": JPEG_MAGIC, "PNG": PNG_MAGIC}
    if any(head.startswith(magic) for name, magic in magics.items() if name in formats):
        return damaged()
    if "WEBP" in formats and head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return damaged()
    return UnsupportedFormat(f"The body is not an image of an accepted format. Accepted: {accepted}.")
