"""Bytes to RGB: the one decoder of training, evaluation and serving.

    mode of the file                          becomes RGB by
    1, L, P, YCbCr, CMYK, RGB                 Pillow's conversion
    LA, PA, RGBA, and any with transparency   composing over white
    I;16*, I (16-bit grey)                    value / 257, rounded

The picture is turned upright by its EXIF orientation; of several frames the first is taken. Colour profiles are not
applied. Of 16-bit colour (RGB, LA, RGBA) Pillow keeps the high byte, at most one level from value / 257.

An ordinary JPEG goes straight to libjpeg-turbo (simplejpeg): the library and settings that Pillow uses, so the same
pixels to the bit, in a twentieth of the time for small pictures and without holding Python's lock. Whatever it cannot
take or refuses is Pillow's to decide.
"""

import io
import struct

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from models.errors import ImageError, OversizedMetadata, TooManyPixels, Undecodable, UnsupportedFormat
from models.formats import FORMATS, MAX_PIXELS

JPEG_MAGIC = b"\xff\xd8\xff"
SEGMENT = struct.Struct(">HH")
START_OF_SCAN, APP1 = 0xFFDA, 0xFFE1
JPEG_COLOURS = ("YCbCr", "RGB", "Gray")
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1", b"avif")
EXIF_ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

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
    body: bytes | memoryview, input_size: int, crop: float, formats: tuple[str, ...], max_pixels: int
) -> NDArray[np.uint8]:
    """Decode an encoded picture for a model of `input_size` and `crop`: uint8 (H, W, 3), RGB.

    A JPEG is decoded at the smallest of 1/1, 1/2, 1/4, 1/8 that keeps the crop's side at 2 x `input_size` or more.

    Raises:
        ImageError: the subclass says why; the text is fit for the client.
    """
    pixels = None
    if "JPEG" in formats and body[:3] == JPEG_MAGIC:
        pixels = decode_jpeg(body, input_size, crop, max_pixels)
    if pixels is None:
        pixels = decode_any(body, input_size, crop, formats, max_pixels)
    return pixels


def decode_jpeg(body: bytes | memoryview, input_size: int, crop: float, max_pixels: int) -> NDArray[np.uint8] | None:
    """An ordinary JPEG's pixels, uint8 (H, W, 3); None where it is not one, or damaged."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(body)
        if colours not in JPEG_COLOURS:
            return None
        refuse_huge(width, height, max_pixels)
        scale = jpeg_scale(min(width, height), input_size, crop)
        least = {"min_height": -(-height // scale), "min_width": -(-width // scale)} if scale > 1 else {}
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(body, **least)
        if has_metadata(body):
            with Image.open(io.BytesIO(body), formats=("JPEG",)) as image:
                return np.array(turned(Image.fromarray(pixels), image))
        return pixels
    # libjpeg's warnings too: Pillow knows which of them leave the picture whole.
    except (ValueError, OSError, IndexError, struct.error):
        return None


def has_metadata(body: bytes | memoryview) -> bool:
    """Whether a JPEG may say how it is turned, in EXIF or XMP: they have APP1 segments before the first scan.

    Segments are a marker and a length, big-endian uint16 (ITU-T T.81, B.1.1.4).

    Raises:
        ValueError, struct.error: the segments do not follow each other as they should.
    """
    at, marker, length = 2, 0, 0
    while marker != START_OF_SCAN:
        at += length
        marker, length = SEGMENT.unpack_from(body, at)
        length += 2  # a length counts itself, not the marker
        if marker == APP1:
            return True
        if not 0xFF00 < marker < 0xFFFF:  # fill bytes before a marker are allowed, and left to Pillow
            raise ValueError("no marker where one must be")
    return False


def decode_any(
    body: bytes | memoryview, input_size: int, crop: float, formats: tuple[str, ...], max_pixels: int
) -> NDArray[np.uint8]:
    """Any accepted picture's pixels by Pillow: uint8 (H, W, 3)."""
    try:
        with Image.open(io.BytesIO(body), formats=formats) as image:
            width, height = image.size
            refuse_huge(width, height, max_pixels)
            scale = jpeg_scale(min(width, height), input_size, crop)
            if scale > 1 and image.format in ("JPEG", "MPO"):
                image.draft(None, (width // scale, height // scale))
            image.load()
            return np.array(to_rgb(turned(image, image)))
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise unsupported(bytes(body[:16]), formats) from None
    except Exception as error:  # damaged input makes Pillow's parsers raise OSError, SyntaxError, struct.error and more
        raise damaged(error) from None


def refuse_huge(width: int, height: int, max_pixels: int) -> None:
    """Compare the announced size with the limit, before anything is decoded."""
    if width * height > max_pixels:
        raise TooManyPixels(f"The image has {width} x {height} pixels; at most {max_pixels} are accepted.")


def crop_side(shorter: int, crop: float) -> int:
    """Side of the centred square that `preprocess` cuts from an image with this `shorter` side, in pixels."""
    return max(1, round(crop * shorter))


def jpeg_scale(shorter: int, input_size: int, crop: float) -> int:
    """The largest denominator of JPEG's scaled decoding that keeps the crop's side at 2 x `input_size` or more."""
    scales = (8, 4, 2)
    return next((scale for scale in scales if crop_side(-(-shorter // scale), crop) >= 2 * input_size), 1)


def turned(picture: Image.Image, source: Image.Image) -> Image.Image:
    """Turn `picture` upright as the EXIF orientation of its `source` says; a damaged EXIF block is no orientation."""
    try:
        turn = TURNS.get(source.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # Pillow's EXIF parser raises many types, and metadata does not touch the pixels
        return picture
    return picture if turn is None else picture.transpose(turn)


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
    # Pillow bounds decompressed text and profiles (PngImagePlugin.MAX_TEXT_CHUNK) with a ValueError of this wording.
    if isinstance(error, ValueError) and "too large" in str(error).lower():
        return OversizedMetadata("The image's compressed metadata expands beyond the limit.")
    return Undecodable("The image is damaged or incomplete and cannot be decoded.")


def unsupported(head: bytes, formats: tuple[str, ...]) -> ImageError:
    """Tell a foreign format from an accepted one that is too damaged to be recognised."""
    accepted = ", ".join(formats)
    if head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS:
        return UnsupportedFormat(
            f"HEIC/HEIF and AVIF are not accepted; convert the photo to JPEG. Accepted: {accepted}."
        )
    magics = {"JPEG": JPEG_MAGIC, "PNG": b"\x89PNG\r\n\x1a\n"}
    if any(head.startswith(magic) for name, magic in magics.items() if name in formats):
        return damaged()
    if "WEBP" in formats and head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return damaged()
    return UnsupportedFormat(f"The body is not an image of an accepted format. Accepted: {accepted}.")
