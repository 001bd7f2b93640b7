"""Small bodies that are much work: as many pixels as are accepted, in every way, and floods of small pieces."""

import struct
import zlib
from collections.abc import Callable

from PIL import Image

from tests.pictures import encode

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
SIDE = 6324  # 40 Mpx
LIMIT = 10 << 20  # bytes of a body
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of PNG's colour types
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))  # Adam7
PALETTE = bytes(range(256)) * 3


def chunk(kind: bytes, content: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def header(width: int, height: int, colour: int = 2, depth: int = 8, interlace: int = 0) -> bytes:
    """How a PNG begins."""
    return PNG_MAGIC + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))


def deflated(lines: list[tuple[bytes, int]]) -> bytes:
    """A zlib stream of lines and how often each comes; each is compressed once, so that this takes no time."""
    stream, check = bytearray(b"\x78\x01"), 1
    for line, times in lines:
        together = max(1, min(times, (1 << 20) // len(line)))
        for block, count in ((line * together, times // together), (line * (times % together), 1)):
            compress = zlib.compressobj(6, wbits=-15)
            piece = compress.compress(block) + compress.flush(zlib.Z_FULL_FLUSH)
            stream += piece * count
            for _ in range(count):
                check = zlib.adler32(block, check)
    return bytes(stream) + zlib.compressobj(wbits=-15).flush() + struct.pack(">I", check)


def png(width: int, height: int, colour: int, depth: int, *chunks: bytes, interlaced: bool = False) -> bytes:
    """A black PNG whose lines have the slowest filter (Paeth)."""

    def line(width: int) -> bytes:
        return b"\4" + bytes((width * CHANNELS[colour] * depth + 7) // 8)

    lines = [(line(width), height)]
    if interlaced:
        sizes = [(-((x - width) // dx), -((y - height) // dy)) for x, y, dx, dy in PASSES]
        lines = [(line(wide), high) for wide, high in sizes if wide > 0 and high > 0]
    palette = [chunk(b"PLTE", PALETTE)] if colour == 3 else []
    start = header(width, height, colour, depth, int(interlaced))
    return b"".join([start, *palette, *chunks, chunk(b"IDAT", deflated(lines)), chunk(b"IEND", b"")])


def flood(piece: bytes, small: bytes, at: int) -> bytes:
    """`small` with a piece as often as fits at this place."""
    return small[:at] + piece * ((LIMIT - len(small)) // len(piece)) + small[at:]


def scans(size: tuple[int, int], count: int) -> bytes:
    """A progressive JPEG with scans that go over all its blocks and say nothing."""
    body = encode(Image.new("RGB", size), "JPEG", progressive=True, subsampling=0)
    start = body.rindex(b"\xff\xda")
    tables = body.rindex(b"\xff\xc4", 0, start)
    return body[:-2] + body[tables:-2] * (count - body.count(b"\xff\xda")) + body[-2:]


def small_png() -> bytes:
    return encode(Image.new("RGB", (8, 8)))


def small_jpeg() -> bytes:
    return encode(Image.new("RGB", (8, 8)), "JPEG")


def oriented(file_format: str, size: tuple[int, int], **options: object) -> bytes:
    """A picture that is to be turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(Image.new("RGB", size, "teal"), file_format, exif=exif, **options)


TRANSPARENT = chunk(b"tRNS", bytes(range(256)))
BLACK_IS_TRANSPARENT = chunk(b"tRNS", bytes(2))
EXPANDING = zlib.compress(bytes((1 << 20) - 100))

PIXELS: dict[str, Callable[[], bytes]] = {
    "rgba": lambda: png(SIDE, SIDE * 4 // 5, 6, 8, interlaced=True),
    "rgba-16": lambda: png(SIDE, SIDE * 2 // 5, 6, 16, interlaced=True),
    "rgb-16": lambda: png(SIDE, SIDE // 2, 2, 16, interlaced=True),
    "grey-16-alpha": lambda: png(SIDE, SIDE * 4 // 5, 4, 16, interlaced=True),
    "grey-16-transparent": lambda: png(SIDE, SIDE, 0, 16, BLACK_IS_TRANSPARENT),
    "palette-transparent": lambda: png(SIDE, SIDE, 3, 8, TRANSPARENT),
    "thin-rgba": lambda: png(1, 39_000_000, 6, 8),
    "rgba-whole": lambda: png(SIDE, SIDE, 6, 8),
    "thin-rgba-16": lambda: png(1, 19_500_000, 6, 16),
    "turned": lambda: oriented("PNG", (SIDE, SIDE), compress_level=1),
    "webp": lambda: oriented("WEBP", (SIDE, SIDE), method=0, lossless=True, quality=0),
    "webp-wide": lambda: encode(Image.new("RGBA", (16_383, 2400), (1, 2, 3, 99)), "WEBP", method=0, quality=0),
    "jpeg-unscaled": lambda: oriented("JPEG", (65_000, 615), progressive=True, subsampling=0),
    "jpeg-cmyk": lambda: encode(Image.new("CMYK", (65_000, 615)), "JPEG", progressive=True),
    "jpeg-scans": lambda: scans((SIDE, SIDE), 20),
    "tiff": lambda: encode(Image.new("RGBA", (SIDE, SIDE)), "TIFF", compression="tiff_adobe_deflate"),
}
FLOODS: dict[str, Callable[[], bytes]] = {
    "png-text": lambda: flood(chunk(b"tEXt", b"a\0b"), small_png(), 33),
    "png-empty-data": lambda: flood(chunk(b"IDAT", b""), small_png(), 33),
    "png-chunks-after": lambda: flood(chunk(b"abCd", b""), small_png(), -12),
    "png-profiles": lambda: flood(chunk(b"iCCP", b"a\0\0" + EXPANDING), small_png(), 33),
    "png-expanding-text": lambda: flood(chunk(b"zTXt", b"a\0\0" + EXPANDING), small_png(), 33),
    "png-text-within-bounds": lambda: small_png()[:33] + chunk(b"zTXt", b"a\0\0" + EXPANDING) * 63 + small_png()[33:],
    "jpeg-comments": lambda: flood(b"\xff\xfe\0\2", small_jpeg(), 2),
    "jpeg-notes": lambda: flood(b"\xff\xed\0\x1aPhotoshop 3.0\x008BIM\0\0\0\0\0\0", small_jpeg(), 2),
    "jpeg-exif": lambda: flood(b"\xff\xe1\x01\0Exif\0\0" + bytes(248), small_jpeg(), 2),
    "jpeg-fill": lambda: flood(b"\xff", small_jpeg(), 2),
    "jpeg-scans": lambda: scans((SIDE, SIDE), 3000),
}


def riff(kind: bytes, content: bytes) -> bytes:
    """A WebP whose first chunk is this."""
    inside = b"WEBP" + kind + struct.pack("<I", len(content)) + content
    return b"RIFF" + struct.pack("<I", len(inside)) + inside


def canvas(width: int, height: int) -> bytes:
    """The head of an extended WebP that announces this size."""
    return riff(b"VP8X", bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little"))
