"""The artifact as a file: a zip archive whose comment is the SHA-256 of every byte before it.

Needs zipfile and hashlib alone, so that a damaged file is refused before torch is imported.
"""

import hashlib
import io
import os
import struct
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from models.errors import ArtifactError

HEX_LENGTH = 64  # a SHA-256 in hexadecimal digits
END_RECORD, END_RECORD_LENGTH = b"PK\x05\x06", 22  # end of central directory without comment (APPNOTE.TXT 4.3.16)
CHUNK = 1 << 20


def seal(archive: bytes) -> bytes:
    """The zip `archive` (without a comment) with its SHA-256 as comment."""
    assert archive[-END_RECORD_LENGTH:].startswith(END_RECORD), "a zip without comment ends in its end record"
    body = archive[:-2] + struct.pack("<H", HEX_LENGTH)
    return body + hashlib.sha256(body).hexdigest().encode()


def verify(path: Path) -> str:
    """Return the file's SHA-256 if it is the one that the file ends in.

    Raises:
        ArtifactError: the file is missing, no archive, truncated or altered.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - END_RECORD_LENGTH - HEX_LENGTH))
            end = file.read()
            file.seek(0)
            found = sha256(file, size - HEX_LENGTH)
    except FileNotFoundError:
        raise ArtifactError(
            path, "an artifact", "no such file; train one with: python -m training --out FILE"
        ) from None
    except OSError as error:
        raise ArtifactError(path, "an artifact", error.strerror or "an unreadable file") from None
    # Compared before zipfile parses anything: on damaged archives it raises many types.
    sealed, length = end[-HEX_LENGTH:].decode("ascii", "replace"), end[-HEX_LENGTH - 2 : -HEX_LENGTH]
    if not end.startswith(END_RECORD) or length != struct.pack("<H", HEX_LENGTH):
        raise ArtifactError(path, "an artifact that ends in its SHA-256", "none: truncated, foreign or re-saved")
    if sealed != found:
        raise ArtifactError(path, f"SHA-256 {sealed[:12]}...", f"{found[:12]}...: the file was damaged or altered")
    return found


def sha256(file: io.BufferedReader, size: int) -> str:
    """Hexadecimal SHA-256 of the next `size` bytes."""
    digest = hashlib.sha256()
    while size > 0 and (chunk := file.read(min(size, CHUNK))):
        digest.update(chunk)
        size -= len(chunk)
    return digest.hexdigest()


def read(path: Path | io.BytesIO, folder: str) -> dict[str, bytes]:
    """The members below `folder` (`extra`, `code`) by their name in it, whatever the archive's root is called."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: name.split("/", 2) for name in archive.namelist()}
        return {part[2]: archive.read(name) for name, part in parts.items() if len(part) == 3 and part[1] == folder}


def with_extra_files(saved: bytes, extra: Mapping[str, bytes]) -> bytes:
    """The archive that torch wrote, with `extra` files, without what names the author's machine.

    torch stores source locations in `*.debug_pkl`; they hold absolute paths and are not needed to run. Dates are
    fixed, so that equal content gives equal bytes.
    """
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved)) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        names = [name for name in source.namelist() if not name.endswith(".debug_pkl")]
        root = names[0].split("/")[0]
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), source.read(name))
        for name, content in extra.items():
            archive.writestr(zipfile.ZipInfo(f"{root}/extra/{name}"), content)
    return target.getvalue()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block ends well, and is removed when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
