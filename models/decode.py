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

What a body may cost is bounded before it costs: pixels and a JPEG's scans by its header, steps of Pillow's parsers by
`Steps`, memory by cutting first, by converting strips, and by decoding few large pictures at a time (`Turn`).
"""

import ctypes
import io
import re
import struct
import threading
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.WebPImagePlugin import WebPImageFile

from models.errors import ImageError, OversizedMetadata, TooManyPixels, Undecodable, UnsupportedFormat
from models.formats import FORMATS, MAX_PIXELS

JPEG_MAGIC, PNG_MAGIC = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
SEGMENT = struct.Struct(">HH")
START_OF_SCAN, APP1, FILL = 0xFFDA, 0xFFE1, 0xFFFF
FRAMES = (0xFFC0, 0xFFC1)  # whose only scan may hold all components; every other kind of JPEG has several
IGNORED = range(0xFFE2, 0xFFEE)  # APP2 to APP13: colour profiles, further pictures, editors' notes
SEGMENTS = 256  # before the first scan, fill bytes too; a profile or an embedded picture has one in 64 KiB
SCANS = 20  # of an image of as many pixels as are accepted, of smaller ones more; encoders make 10, of CMYK 18
OPEN_STEPS, LOAD_STEPS = 5_000, 400_000  # reads by which Pillow may get to the pixels, and through them
CHUNK = struct.Struct(">I4s")
CHUNKS = 20_000  # of a PNG; encoders that divide their data into 4 KiB have 2,560 in 10 MiB
CHANNELS = {2: 3, 4: 2, 6: 4}  # of a PNG by its colour type; one of all other types
PIXEL_BITS = 32  # of larger pixels in a PNG, and of interlaced ones, fewer are accepted: each takes more time
PROFILES = 8  # colour profiles in a PNG: each may expand to 1 MiB, and one is allowed
LARGE_PIXELS, LARGE_AT_ONCE = 4_000_000, 2  # each may take half a GiB
STRIP_PIXELS = 1 << 17  # converted at a time, in the processor's caches
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

Pixels = NDArray[np.uint8]
Segment = tuple[int, int, int]  # marker, start, end
# The C library's way to give freed memory back (glibc's).
trim = getattr(ctypes.CDLL(None), "malloc_trim", None)

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
    turn: "Turn | None" = None,
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


def decode_jpeg(
    body: bytes | memoryview,
    input_size: int,
    crop: float,
    max_pixels: int,
    *,
    whole: bool = True,
    turn: "Turn | None" = None,
) -> Pixels | None:
    """An ordinary JPEG's pixels, uint8 (H, W, 3); None where it is not one, or damaged."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(body)
        if colours not in JPEG_COLOURS:
            return None
        refuse_huge(width, height, max_pixels)
        found = segments(body)
        scale = jpeg_scale(min(width, height), input_size, crop)
        least = {"min_height": -(-height // scale), "min_width": -(-width // scale)} if scale > 1 else {}
        several = has_scans(body, found, width * height, max_pixels)
        if turn:
            turn.wait(width * height // (1 if several else scale * scale))
        pixels: Pixels = simplejpeg.decode_jpeg(body, **least)
        if not whole:
            pixels = trimmed(pixels)
        if any(marker == APP1 for marker, _, _ in found):  # which may say how it is turned, in EXIF or XMP
            with Image.open(io.BytesIO(lean(body, found, pixels=False)), formats=("JPEG",)) as image:
                return np.array(turned(Image.fromarray(pixels), image))
        return pixels
    # libjpeg's warnings too: Pillow knows which of them leave the picture whole.
    except (ValueError, OSError, IndexError, struct.error):
        return None


def segments(body: bytes | memoryview) -> list[Segment]:
    """A JPEG's segments up to and with the head of its first scan.

    Each is a marker and a length, big-endian uint16, and its content (ITU-T T.81, B.1.1.4).

    Raises:
        ValueError, struct.error: they do not follow each other as they should.
        OversizedMetadata: more of them than any picture needs.
    """
    found: list[Segment] = []
    marker, start, end = 0, 2, 2
    for _ in range(SEGMENTS):
        marker, length = SEGMENT.unpack_from(body, start)
        if marker == FILL:  # a byte that may stand before a marker
            start += 1
            continue
        if not 0xFFC0 <= marker < FILL or 0xFFD0 <= marker < START_OF_SCAN:
            raise ValueError("no segment where one must be")
        end = start + 2 + length  # a length counts itself, not the marker
        found.append((marker, start, end))
        if marker == START_OF_SCAN:
            return found
        start = end
    raise OversizedMetadata(f"The JPEG has more than {SEGMENTS} segments before its pixels.")


def lean(body: bytes | memoryview, found: list[Segment], *, pixels: bool) -> bytes:
    """A JPEG without segments that nobody reads here, over some of which Pillow is slow; without `pixels`, its head."""
    parts = [body[:2], *(body[start:end] for marker, start, end in found if marker not in IGNORED)]
    if pixels:
        parts.append(body[found[-1][2] :])
    return b"".join(parts)


def has_scans(body: bytes | memoryview, found: list[Segment], pixels: int, max_pixels: int) -> bool:
    """Whether a JPEG has several scans; each goes over all pixels, however few bytes it has.

    Raises:
        TooManyPixels: together they go over more than is accepted.
    """
    (*_, (_, start, end)) = found
    components = [body[frame + 9] for marker, frame, _ in found if marker in FRAMES]
    if components == [body[start + 4]]:
        return False
    scans = 1 + bytes(body[end:]).count(b"\xff\xda")
    if scans * pixels > SCANS * max_pixels:
        raise TooManyPixels(f"The JPEG goes over its {pixels} pixels in {scans} scans; that is more than is accepted.")
    return True


def decode_any(
    body: bytes | memoryview,
    input_size: int,
    crop: float,
    formats: tuple[str, ...],
    max_pixels: int,
    *,
    whole: bool = True,
    turn: "Turn | None" = None,
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
                turn.wait(width * height // (1 if several else scale * scale))
            picture = loaded(image, whole=whole)
        del image  # its memory is as large as the picture's
        return converted(picture)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise unsupported(bytes(body[:16]), formats) from None
    except Exception as error:  # damaged input makes Pillow's parsers raise OSError, SyntaxError, struct.error and more
        raise damaged(error) from None


def check_png(body: bytes, max_pixels: int) -> None:
    """What Pillow does not: bound the chunks, find the end, and compare the checksums of the pixels' data.

    Chunks are a length, big-endian uint32, a type, the content, and a CRC over type and content (PNG, 5.3).

    Raises:
        ValueError, struct.error: a chunk is cut off or damaged.
        ImageError: too many pixels, chunks or colour profiles.
    """
    kind, width, height, depth, colour, interlaced = struct.unpack_from(">4sIIBBxxB", body, 12)
    if kind != b"IHDR":
        raise ValueError("no header where it must be")
    bits = depth * CHANNELS.get(colour, 1)
    cost = max(PIXEL_BITS, bits + bits // 4 if interlaced else bits)
    what = f" of {bits} bits{', interlaced' if interlaced else ''}"
    refuse_huge(width, height, max_pixels * PIXEL_BITS // cost, what)
    view = memoryview(body)
    start, profiles = len(PNG_MAGIC), 0
    for _ in range(CHUNKS):
        length, kind = CHUNK.unpack_from(body, start)
        end = start + CHUNK.size + length
        if kind == b"IEND":
            return
        if kind == b"IDAT" and zlib.crc32(view[start + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise ValueError("a checksum that is not its data's")
        profiles += kind == b"iCCP"
        if profiles > PROFILES:
            break
        start = end + 4
    raise OversizedMetadata("The PNG has more chunks or colour profiles than are accepted.")


class Steps(io.BytesIO):
    """A body that may be read so many times: at every step Pillow's parsers read, and most of their steps are slow."""

    left = OPEN_STEPS

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise OversizedMetadata("The image is divided into more pieces than are accepted.")
        return super().read(size)


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


def middle(width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a picture without what `preprocess` never takes of it.

    The same is cut from both ends of the longer side, until the sides differ by one at most: so it is the same
    however the picture is turned, and the centred square of the rest is that of the whole.
    """
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, width - left, height - top


def trimmed(pixels: Pixels) -> Pixels:
    """The `middle` of uint8 (H, W, 3)."""
    left, top, right, bottom = middle(pixels.shape[1], pixels.shape[0])
    return pixels[top:bottom, left:right]


class Turn:
    """A place among the few large pictures that are decoded at once; taken when the header shows that it must be."""

    places = threading.BoundedSemaphore(LARGE_AT_ONCE)
    taken = False

    def __init__(self, resting: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        """`resting` is entered for as long as this waits for others."""
        self.resting = resting

    def wait(self, pixels: int) -> None:
        """Wait for a place, if so many pixels are to be decoded that it takes one."""
        if pixels > LARGE_PIXELS and not self.taken:
            with self.resting():
                self.places.acquire()
            self.taken = True

    def __enter__(self) -> "Turn":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free the place, and the memory: `models.engine` has the C library keep what is freed."""
        if self.taken:
            if trim:
                trim(0)
            self.places.release()


def refuse_huge(width: int, height: int, max_pixels: int, kind: str = "") -> None:
    """Compare the announced size with the limit for pixels of this kind, before anything is decoded."""
    if width * height > max_pixels:
        raise TooManyPixels(f"The image has {width} x {height} pixels{kind}; at most {max_pixels} are accepted.")


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
