"""The rows of a bulk job, and how they are written."""

import csv
import json
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path

from models.archive import replacing
from service.bulk.images import parquet

COLUMNS = ("image", "class", "index", "probability", "unknown", "error", "digest")
Answer = tuple[str | None, int | None, float | None, bool | None, str | None]  # class ... error, as in COLUMNS
Row = tuple[str, str | None, int | None, float | None, bool | None, str | None]  # the image's name, and its answer
Rows = Generator[list[Row], None, None]  # as they come, in order


def failed(error: str) -> Answer:
    """No prediction."""
    return None, None, None, None, error


def write_csv(path: Path, rows: Sequence[Row], digest: str) -> None:
    """A part, whole or not at all; names of files that are no UTF-8 are written as the bytes that they are."""
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv.writer(file)  # lines end in CR LF (RFC 4180), so that a name with either is quoted
        writer.writerow(COLUMNS)
        for *told, unknown, error in rows:
            writer.writerow((*told, "" if unknown is None else json.dumps(unknown), error, digest))


def write_parquet(path: Path, rows: Sequence[Row], digest: str) -> None:
    """The same, but for what is no UTF-8 in names: it is replaced."""
    pq, arrow = parquet()
    kinds = {"index": arrow.int64(), "probability": arrow.float32(), "unknown": arrow.bool_()}
    schema = arrow.schema([(name, kinds.get(name, arrow.string())) for name in COLUMNS])
    told = [(image.encode("utf-8", "surrogateescape").decode("utf-8", "replace"), *rest) for image, *rest in rows]
    columns = [*zip(*told, strict=True), [digest] * len(rows)]
    with replacing(path) as temporary:
        pq.write_table(arrow.table([list(column) for column in columns], schema=schema), temporary)


WRITERS: Mapping[str, Callable[[Path, Sequence[Row], str], None]] = {"csv": write_csv, "parquet": write_parquet}
