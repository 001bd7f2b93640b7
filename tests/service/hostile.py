"""Inputs that do harm where they can, by name: the bytes, and the status and code that they must be answered with."""

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
import zlib
from base64 import b64encode
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests import costly
from tests.costly import chunk, header, riff
from tests.pictures import encode, noise

PNG, JPEG, WEBP = (noise(7, (48, 40), kind) for kind in ("PNG", "JPEG", "WEBP"))
OK, FOREIGN, DAMAGED = (200, ""), (415, "unsupported_format"), (422, "undecodable")
HUGE, METADATA = (422, "too_many_pixels"), (422, "metadata")
END = chunk(b"IEND", b"")
DATA = chunk(b"IDAT", zlib.compress(bytes(25 * 8)))  # of 8 x 8 RGB


class Case(NamedTuple):
    """A body, its Content-Type, and the answer; the code of a success is empty."""

    body: bytes
    kind: str
    status: int
    code: str


def patched(body: bytes, at: int, content: bytes) -> bytes:
    """The body with other bytes at this place."""
    return body[:at] + content + body[at + len(content) :]


def frame(height: int, width: int, components: int = 3) -> bytes:
    """The JPEG with another announcement of its size."""
    at = JPEG.index(b"\xff\xc0")
    return patched(JPEG, at + 5, struct.pack(">HHB", height, width, components))


def animated(file_format: str) -> bytes:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "green", "blue")]
    return encode(frames[0], file_format, save_all=True, append_images=frames[1:])


def texts(count: int, length: int, packed: bool) -> bytes:
    info = PngInfo()
    for _ in range(count):
        info.add_text("note", "a" * length, zip=packed)
    return encode(Image.new("L", (8, 8)), pnginfo=info)


def archived(open_: type[zipfile.ZipFile] | None) -> bytes:
    """A zip or tar that holds a picture."""
    buffer = io.BytesIO()
    if open_:
        with open_(buffer, "w") as made:
            made.writestr("photo.png", PNG)
    else:
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            tar.addfile(tarfile.TarInfo("photo.png"), io.BytesIO())
    return buffer.getvalue()


class Bomb:
    """Runs a command where it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("1 / 0",)


def valid() -> dict[str, bytes]:
    """Odd, but pictures: 200."""
    grey = Image.linear_gradient("L").resize((30, 20))
    return {
        "1x1": encode(Image.new("RGB", (1, 1))),
        "1x3000": encode(Image.new("L", (1, 3000))),
        "3000x1": encode(Image.new("L", (3000, 1)), "JPEG"),
        "12-mpx-jpeg": encode(Image.new("RGB", (4000, 3000), "teal"), "JPEG"),
        "progressive": encode(grey.convert("RGB"), "JPEG", progressive=True),
        "interlaced": costly.png(9, 9, 2, 8, interlaced=True),
        "sixteen-bit-colour": costly.png(9, 9, 6, 16),
        "1-bit": encode(grey.convert("1")),
        "palette": encode(grey.convert("P")),
        "grey-alpha": encode(grey.convert("LA")),
        "transparent": encode(Image.new("RGBA", (9, 9), (255, 0, 0, 0))),
        "cmyk": encode(grey.convert("CMYK"), "JPEG"),
        "mpo": animated("MPO"),
        "animated-png": animated("PNG"),
        "animated-webp": animated("WEBP"),
        "png-and-more": PNG + b"junk" * 100,
        "jpeg-and-more": JPEG + b"junk" * 100,
        "webp-and-more": WEBP + b"junk" * 100,
        "broken-exif": encode(grey, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"),
        "broken-exif-jpeg": encode(grey, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff"),
        "broken-profile": PNG[:33] + chunk(b"iCCP", b"a\0\0no zlib") + PNG[33:],
        "broken-profile-jpeg": encode(grey, "JPEG", icc_profile=b"no profile"),
        "300-texts": texts(300, 10, packed=False),
        "30-scans": costly.scans((40, 30), 30),
        "half-the-rows": header(8, 8)
        + chunk(b"IDAT", zlib.compress(bytes(25 * 4)))
        + END,  # the rest is black: Pillow's
        "fill-bytes": JPEG[:2] + b"\xff" * 20 + JPEG[2:],
    }


def foreign() -> dict[str, bytes]:
    """No picture of an accepted format: 415, and nothing is run."""
    small = Image.new("P", (9, 9))
    made = {name: encode(small.convert("RGB"), name) for name in ("GIF", "BMP", "TIFF", "ICO", "PPM", "TGA", "PCX")}
    return made | {
        "text": b"hello",
        "byte": b"\0",
        "nothing-but-zeros": bytes(100_000),
        "utf-16": "hello".encode("utf-16"),
        "html": b"<!doctype html><img src=http://127.0.0.1/>",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
        "pdf": b"%PDF-1.7\n1 0 obj",
        "script": b"#!/bin/sh\nkill 1\n",
        "elf": b"\x7fELF\2\1\1" + bytes(100),
        "zip": archived(zipfile.ZipFile),
        "tar": archived(None),
        "gzip": gzip.compress(PNG),
        "pickle": pickle.dumps(Bomb()),
        "json": json.dumps({"image": ""}).encode(),
        "psd": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 9, 9, 8, 3),
        "jpeg-2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(50),
        "heic": b"\0\0\0\x18ftypheic\0\0\0\0heicmif1",
        "avif": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1",
        "wav": b"RIFF\x24\0\0\0WAVEfmt " + bytes(20),
        "truncated-gif": made["GIF"][:20],
        "huge-gif": b"GIF89a\xff\xff\xff\xff\0\0\0,",
        "huge-bmp": b"BM" + bytes(12) + struct.pack("<IiiHH", 40, 1 << 30, 1 << 30, 1, 24) + bytes(24),
        "half-a-magic": b"\x89PN",
        "jpeg-in-text": b"\n" + JPEG,
    }


def damaged() -> dict[str, bytes]:
    """Of an accepted format, and broken: 422."""
    start = header(8, 8)
    cuts = {
        f"{name}-cut-at-{share}": body[: max(16, int(len(body) * share / 100))]
        for name, body in (("png", PNG), ("jpeg", JPEG), ("webp", WEBP))
        for share in (1, 10, 50, 90)
    }
    scan = JPEG.index(b"\xff\xda")
    return cuts | {
        "png-magic": costly.PNG_MAGIC,
        "png-no-width": header(0, 8) + DATA + END,
        "png-no-height": header(8, 0) + DATA + END,
        "png-wrong-depth": header(8, 8, 2, 3) + DATA + END,
        "png-wrong-colour": header(8, 8, 5) + DATA + END,
        "png-header-checksum": patched(start, 29, b"\0\0\0\0") + DATA + END,
        "png-data-checksum": start + DATA[:-4] + bytes(4) + END,
        "png-endless-chunk": start + b"\x7f\xff\xff\xffIDAT",
        "png-negative-chunk": start + b"\xff\xff\xff\xffIDAT" + bytes(50),
        "png-no-data": start + END,
        "png-no-rows": start + chunk(b"IDAT", zlib.compress(b"")) + END,
        "png-no-end": start + DATA,
        "png-no-zlib": start + chunk(b"IDAT", b"\0" * 50) + END,
        "png-bad-filter": start + chunk(b"IDAT", zlib.compress(b"\x09" * (25 * 8))) + END,
        "png-junk-in-stream": start + chunk(b"IDAT", zlib.compress(bytes(200))[:6] + b"\xff" * 9) + END,
        "png-short-header": costly.PNG_MAGIC + chunk(b"IHDR", bytes(5)) + DATA + END,
        "png-junk": costly.PNG_MAGIC + b"junk" * 50,
        "jpeg-magic": b"\xff\xd8\xff",
        "jpeg-junk": b"\xff\xd8\xff\xe0" + b"junk" * 50,
        "jpeg-no-height": frame(0, 48),
        "jpeg-no-width": frame(40, 0),
        "jpeg-200-components": frame(40, 48, 200),
        "jpeg-no-components": frame(40, 48, 0),
        "jpeg-no-end": JPEG[:-2],
        "jpeg-no-scan": JPEG[:scan] + b"\xff\xd9",
        "jpeg-no-tables": JPEG[:2] + JPEG[JPEG.index(b"\xff\xc0") :],
        "jpeg-segment-of-0": JPEG[:2] + b"\xff\xe0\0\0" + JPEG[2:],
        "jpeg-junk-between": JPEG[:scan] + b"junk" + JPEG[scan:],
        "jpeg-start-again": JPEG[:2] * 2 + JPEG[2:],
        "webp-magic": b"RIFF\x10\0\0\0WEBPVP8 ",
        "webp-junk": riff(b"VP8 ", b"junk" * 50),
        "webp-lossless-junk": riff(b"VP8L", b"\x2f" + bytes(40)),
        "webp-unknown": riff(b"VP8Z", bytes(50)),
        "webp-of-nothing": costly.canvas(8, 8),
        "webp-size-lies": patched(WEBP, 4, struct.pack("<I", len(WEBP) // 2)),
    }


def huge() -> dict[str, bytes]:
    """More pixels than are accepted, by the header: 422."""
    bits = header(20_000, 2001, 0, 1)
    return {
        "png-header": header(60_000, 60_000) + DATA + END,
        "png-largest": header((1 << 31) - 1, (1 << 31) - 1) + DATA + END,
        "png-one-row-more": header(40_000_001, 1) + DATA + END,
        "png-real": bits + chunk(b"IDAT", costly.deflated([(bytes(2501), 2001)])) + END,
        "png-real-beyond-pillows": costly.png(20_000, 20_000, 0, 1),
        "jpeg-header": frame(65_500, 65_500),
        "webp-canvas": costly.canvas(1 << 24, 255),
        "jpeg-scans": costly.FLOODS["jpeg-scans"](),
    }


def metadata() -> dict[str, bytes]:
    """Metadata that expands, or too much of it: 422."""
    floods = ("png-text", "png-profiles", "png-chunks-after", "png-expanding-text", "jpeg-comments", "jpeg-fill")
    profile = zlib.compress(bytes(80 << 20))
    return {name: costly.FLOODS[name]() for name in floods} | {
        "text-80-mib": texts(1, 80 << 20, packed=True),
        "profile-80-mib": PNG[:33] + chunk(b"iCCP", b"a\0\0" + profile) + PNG[33:],
    }


def pictures() -> Iterator[tuple[str, bytes, int, str]]:
    """Every body that is sent as an image."""
    for make, answer in (
        (valid, OK),
        (foreign, FOREIGN),
        (damaged, DAMAGED),
        (huge, HUGE),
        (metadata, METADATA),
    ):
        for name, body in make().items():
            yield f"{make.__name__}/{name}", body, *answer


SEEDS = {
    "png": PNG,
    "jpeg": JPEG,
    "webp": WEBP,
    "progressive": encode(Image.linear_gradient("L").convert("RGB"), "JPEG", progressive=True),
    "palette": encode(Image.linear_gradient("L").resize((50, 40)).convert("P"), transparency=3),
    "lossless": encode(Image.radial_gradient("L").resize((50, 40)).convert("RGBA"), "WEBP", lossless=True),
}
BOUNDARY = "b"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
JSON = "application/json"


def part(content: bytes, disposition: str = 'form-data; name="file"; filename="a"', more: bytes = b"") -> bytes:
    """One part of a form."""
    head = f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n".encode("utf-8", "surrogateescape")
    return head + more + b"\r\n" + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--b--\r\n"


def texted(body: bytes) -> str:
    return b64encode(body).decode()


def requests() -> dict[str, Case]:
    """Bodies whose form is what is hostile."""
    file, field = part(PNG), part(b"x", 'form-data; name="note"')
    bad = (400, "bad_form")
    forms: dict[str, tuple[bytes, int, str]] = {
        "empty-body": (b"", 400, "empty"),
        "no-part": (form(), 400, "missing_file"),
        "wrong-field": (form(part(PNG, 'form-data; name="photo"')), 400, "missing_file"),
        "wrong-large-field": (form(part(bytes(9000), 'form-data; name="photo"')), *bad),
        "wrong-small-field": (form(field), 400, "missing_file"),
        "empty-file": (form(part(b"")), 400, "empty"),
        "text": (form(part(b"hello", 'form-data; name="file"')), *FOREIGN),
        "unterminated": (file, *bad),
        "cut": (file[:-10], *bad),
        "other-boundary": (form(file).replace(b"--b", b"--c"), *bad),
        "no-disposition": (form(b"--b\r\n\r\nx\r\n"), 400, "missing_file"),
        "broken-disposition": (form(part(b"x", 'form-data; name="file')), 400, "missing_file"),
        "broken-header": (form(b"--b\r\nno header\r\n\r\nx\r\n"), *bad),
        "no-name": (form(part(b"x", "form-data")), 400, "missing_file"),
        "8-fields": (form(*[field] * 8, file), *OK),
        "9-fields": (form(*[field] * 9, file), *bad),
        "5000-fields": (form(*[field] * 5000, file), *bad),
        "33-files": (form(*[file] * 33), 413, "too_many_images"),
        "5000-files": (form(*[part(b"x")] * 5000), 413, "too_many_images"),
        "large-field": (form(file, part(bytes(4097), 'form-data; name="note"')), *bad),
        "5000-part-headers": (form(part(PNG, more=b"X: y\r\n" * 5000)), *bad),
        "large-part-header": (form(part(PNG, more=b"X: " + b"y" * 100_000 + b"\r\n")), *bad),
        "preamble": (b"x" * (5 << 20) + b"\r\n" + form(file), *bad),
        "epilogue": (form(file) + b"x" * 100_000, *OK),
        "traversal": (form(part(PNG, 'form-data; name="file"; filename="../../../../tmp/hostile"')), *OK),
        "nul-in-name": (form(part(PNG, 'form-data; name="file"; filename="a\\0b"')), *OK),
        "coded-name": (form(part(PNG, "form-data; name=\"file\"; filename*=utf-8''%2e%2e%2fa")), *OK),
        "lines-like-boundaries": (form(part(b"\r\n--bX" * 20_000)), *bad),  # each costs the parser as much as 100 bytes
        "form-in-form": (form(part(form(file).replace(b"--b", b"--c"))), *FOREIGN),
    }
    jsons: dict[str, tuple[bytes, int, str]] = {
        "no-json": (b"{", 400, "bad_json"),
        "deep": (b"[" * 200_000, 400, "bad_json"),
        "deep-in-image": (b'{"image":' * 50_000, 400, "bad_json"),
        "long-number": (b'{"image": ' + b"9" * 100_000 + b"}", 400, "bad_json"),
        "not-a-number": (b'{"image": NaN}', 400, "bad_json"),
        "null": (b"null", 400, "bad_json"),
        "both": (b'{"image": "", "images": []}', 400, "bad_json"),
        "half-a-character": (b'{"image": "\\ud800"}', 400, "bad_json"),
        "no-utf-8": (b'{"image": "\xff\xfe"}', 400, "bad_json"),
        "nul": (b'{"image": "\\u0000"}', 400, "bad_json"),
        "address": (b'{"image": "http://127.0.0.1:9/a.png"}', 400, "bad_json"),
        "file": (b'{"image": "file:///etc/passwd"}', 400, "bad_json"),
        "33-images": (json.dumps({"images": ["AAAA"] * 33}).encode(), 413, "too_many_images"),
        "a-million-images": (b'{"images": [' + b'"",' * 1_000_000 + b'""]}', 413, "too_many_images"),
        "utf-16": (json.dumps({"image": texted(PNG)}).encode("utf-16"), *OK),
        "line-breaks": (json.dumps({"image": texted(PNG).replace("A", "A\n")}).encode(), *OK),
        "data-of-html": (json.dumps({"image": "data:text/html;base64," + texted(b"<html>")}).encode(), *FOREIGN),
    }
    typed = {
        "urlencoded": Case(b"file=x", "application/x-www-form-urlencoded", 415, "content_type"),
        "plain": Case(PNG, "text/plain", 415, "content_type"),
        "svg": Case(PNG, "image/svg+xml", *OK),  # what the bytes are decides
        "nonsense": Case(PNG, ";;=;\xff", *OK),
        "upper-case": Case(PNG, "IMAGE/PNG", *OK),
        "no-boundary": Case(form(file), "multipart/form-data", 400, "bad_form"),
        "long-boundary": Case(form(file), "multipart/form-data; boundary=" + "b" * 5000, 400, "bad_form"),
        "strange-boundary": Case(form(file), 'multipart/form-data; boundary="\\\\b\\""', 400, "bad_form"),
        "mixed": Case(form(file), "multipart/mixed; boundary=b", 415, "content_type"),
        "a-byte-too-many": Case(bytes(costly.LIMIT + 1), "", 413, "too_large"),
        "as-many-as-fit": Case(bytes(costly.LIMIT), "", *FOREIGN),
    }
    cases = {f"form/{name}": Case(body, FORM, status, code) for name, (body, status, code) in forms.items()}
    cases |= {f"json/{name}": Case(body, JSON, status, code) for name, (body, status, code) in jsons.items()}
    return cases | {f"type/{name}": case for name, case in typed.items()}


def battery() -> dict[str, Case]:
    """Everything, each picture raw and as a form."""
    cases = requests()
    for name, body, status, code in pictures():
        cases[f"raw/{name}"] = Case(body, "", status, code)
        if len(body) < costly.LIMIT - 200:
            cases[f"form/{name}"] = Case(form(part(body)), FORM, status, code)
    return cases


def lies() -> dict[str, Case]:
    """One picture of each class with the type of every other format: what the bytes are decides."""
    picked = {"png": (PNG, *OK), "jpeg": (JPEG, *OK), "webp": (WEBP, *OK), "gif": (foreign()["GIF"], *FOREIGN)}
    picked |= {"cut": (PNG[:90], *DAMAGED), "text": (b"hello", *FOREIGN), "huge": (huge()["png-header"], *HUGE)}
    return {
        f"{name} as {kind}": Case(body, f"image/{kind}", status, code)
        for name, (body, status, code) in picked.items()
        for kind in ("png", "jpeg", "webp", "gif", "tiff", "heic", "x-nonsense")
    }
