"""The images of a bulk job: a folder's, a list's or a Parquet file's, in an order that stays."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

from models.formats import pictures_in
from service.bulk.errors import Mistake

SUFFIX = ".parquet"
IMAGE_COLUMNS = ("path", "bytes", "image")  # of a Parquet file, where none is named
Image = tuple[str, Path | bytes]  # what a row calls it, and where it is or what


@dataclass(frozen=True)
class Input:
    """Images in an order that stays; `since` gives those from a position on. `identity` is another where they are."""

    identity: str
    count: int
    since: Callable[[int], Iterator[Image]]


def look(given: Path, column: str | None) -> Input:
    """The images that IN means.

    Raises:
        Mistake: there are none.
    """
    if given.suffix == SUFFIX and given.is_file():
        return table(given, column)
    if given.is_dir():
        paths = pictures_in(given)
        names = [str(path.relative_to(given)) for path in paths]
    elif given.is_file():
        names = [line for line in given.read_text("utf-8-sig", "surrogateescape").split("\n") if line]
        paths = [given.parent / name for name in names]
    else:
        raise Mistake(f"{given}: no such folder or file")
    if not paths:
        raise Mistake(f"{given}: no images")
    identity = sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()
    return Input(identity, len(paths), lambda start: islice(zip(names, paths, strict=True), start, None))


def table(given: Path, column: str | None) -> Input:
    """The images in a Parquet file: encoded ones by their row's number, others by their paths from where the file is.

    Raises:
        Mistake: it has no such column, or is none.
    """
    pq, arrow = parquet()
    try:
        file = pq.ParquetFile(given)
    except arrow.ArrowException as error:
        raise Mistake(f"{given}: {str(error).splitlines()[0]}") from None
    there = file.schema_arrow.names
    name = column or next((name for name in IMAGE_COLUMNS if name in there), None)
    if name not in there:
        raise Mistake(f"{given}: no column {name or ' or '.join(IMAGE_COLUMNS)}; there are {', '.join(there)}")
    kind = str(file.schema_arrow.field(name).type)
    if not re.search("string|binary", kind) or re.match("struct|map|(large_|fixed_size_)?list", kind):
        raise Mistake(f"{given}: the column {name} holds {kind}, no paths or encoded images")
    if not file.metadata.num_rows:
        raise Mistake(f"{given}: no rows")

    def since(start: int) -> Iterator[Image]:
        try:
            yield from values(start)
        except (arrow.ArrowException, OSError) as error:
            raise Mistake(f"{given}: {str(error).splitlines()[0]}") from None

    def values(start: int) -> Iterator[Image]:
        number = 0
        with pq.ParquetFile(given, buffer_size=1 << 20, pre_buffer=False) as opened:  # else a whole row group is read
            for group in range(opened.num_row_groups):
                rows = opened.metadata.row_group(group).num_rows
                if number + rows > start:
                    for batch in opened.iter_batches(64, [group], [name]):
                        for value in batch.column(0).to_pylist():
                            if number >= start:
                                yield image(value, number)
                            number += 1
                else:
                    number += rows

    def image(value: str | bytes | None, number: int) -> Image:
        return (value, given.parent / value) if isinstance(value, str) else (str(number), value or b"")

    about = given.stat()
    return Input(f"{about.st_size} {about.st_mtime_ns} {name}", file.metadata.num_rows, since)


def parquet() -> tuple[Any, Any]:
    """pyarrow, where it is installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise Mistake("Parquet needs pyarrow: pip install 'darkroom[bulk]'") from None
    return pyarrow.parquet, pyarrow
