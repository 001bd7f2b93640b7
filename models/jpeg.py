"""JPEG read straight by libjpeg-turbo (simplejpeg): the library and settings that Pillow uses.

So the pixels are the same to the bit, in a twentieth of the time for small pictures and without holding Python's lock.
What it cannot take or refuses is Pillow's to decide; see `models.decode`.
"""

import io
import struct

import numpy as np
import simplejpeg
from PIL import Image

from models.errors import OversizedMetadata, TooManyPixels
from models.framing import Pixels, crop_side, trimmed, turned
from models.limits import Turn, refuse_huge

JPEG_MAGIC = b"\xff\xd8\xff"
SEGMENT = struct.Struct(">HH")
START_OF_SCAN, APP1, FILL = 0xFFDA, 0xFFE1, 0xFFFF
FRAMES = (0xFFC0, 0xFFC1)  # whose only scan may hold all components; every other kind of JPEG has several
IGNORED = range(0xFFE2, 0xFFEE)  # APP2 to APP13: colour profiles, further pictures, editors' notes
SEGMENTS = 256  # before the first scan, fill bytes too; a profile or an embedded picture has one in 64 KiB
SCANS = 20  # of an image of as many pixels as are accepted, of smaller ones more; encoders make 10, of CMYK 18
JPEG_COLOURS = ("YCbCr", "RGB", "Gray")

Segment = tuple[int, int, int]  # marker, start, end


def decode_jpeg(
    body: bytes | memoryview,
    input_size: int,
    crop: float,
    max_pixels: int,
    *,
    whole: bool = True,
    turn: Turn | None = None,
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
            turn.wait(width * height, 1 if several else scale * scale)
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


def jpeg_scale(shorter: int, input_size: int, crop: float) -> int:
    """The largest denominator of JPEG's scaled decoding that keeps the crop's side at 2 x `input_size` or more."""
    scales = (8, 4, 2)
    return next((scale for scale in scales if crop_side(-(-shorter // scale), crop) >= 2 * input_size), 1)
