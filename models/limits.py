"""What a body may cost, bounded before it costs: pixels by its header, pieces by counting them, memory by waiting.

    refuse_huge   pixels that the header announces
    check_png     chunks and colour profiles of a PNG
    Steps         reads by Pillow's parsers
    Turn          large pictures at once

A JPEG's segments and scans are bounded where it is read, in `models.jpeg`.
"""

import ctypes
import io
import struct
import threading
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

from models.errors import OversizedMetadata, TooManyPixels

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
OPEN_STEPS, LOAD_STEPS = 5_000, 400_000  # reads by which Pillow may get to the pixels, and through them
CHUNK = struct.Struct(">I4s")
CHUNKS = 20_000  # of a PNG; encoders that divide their data into 4 KiB have 2,560 in 10 MiB
CHANNELS = {2: 3, 4: 2, 6: 4}  # of a PNG by its colour type; one of all other types
PIXEL_BITS = 32  # of larger pixels in a PNG, and of interlaced ones, fewer are accepted: each takes more time
PROFILES = 8  # colour profiles in a PNG: each may expand to 1 MiB, and one is allowed
LARGE_PIXELS, LARGE_AT_ONCE = 4_000_000, 2  # each may take half a GiB

# The C library's way to give freed memory back (glibc's).
trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


def refuse_huge(width: int, height: int, max_pixels: int, kind: str = "") -> None:
    """Compare the announced size with the limit for pixels of this kind, before anything is decoded."""
    if width * height > max_pixels:
        raise TooManyPixels(f"The image has {width} x {height} pixels{kind}; at most {max_pixels} are accepted.")


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


class Turn:
    """A place among the few large pictures that are decoded at once; taken when the header shows that it must be."""

    places = threading.BoundedSemaphore(LARGE_AT_ONCE)
    taken = False
    pixels = 0  # that the picture has

    def __init__(self, resting: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        """`resting` is entered once for a large picture, for as long as this waits for others."""
        self.resting = resting

    def wait(self, pixels: int, share: int = 1) -> None:
        """Wait for a place, if so many pixels, divided by `share`, are to be decoded that it takes one."""
        self.pixels = pixels
        if pixels // share > LARGE_PIXELS and not self.taken:
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
