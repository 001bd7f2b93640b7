"""`darkroom predict`: files and folders in, a row for each image out, in their order."""

import argparse
import csv
import io
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO

from tqdm import tqdm

from darkroom.client import CONCURRENCY, TIMEOUT_S, UNEXPECTED, UNREACHABLE, Answer, Client, PredictionError
from models.archive import replacing
from models.formats import pictures_in
from models.interrupt import interrupt_by

PROGRAM = "darkroom predict"
HELP = f"""Ask a running service for the class of each image; a folder stands for all pictures below it.

  {PROGRAM} photo.jpg
  {PROGRAM} holiday/ scans/ --out answers.csv
  {PROGRAM} holiday/ --format jsonl | jq 'select(.unknown)'

An image that is refused gets a row with the reason, and the others go on. Exit code 0: all were answered; 1: some were
not; 2: nothing can be answered, for the command line, the address or the key is wrong or the service is not ready."""
Row = Mapping[str, Any]
COLUMNS = ("file", "class", "index", "probability", "unknown", "error")
# What the next image would be told, too.
HOPELESS = (UNREACHABLE, UNEXPECTED, "unauthorized", "not_ready", "draining")
ADVICE = {UNREACHABLE: " with --url", "unauthorized": " Here it comes from --key-file FILE."}


class Mistake(Exception):
    """What ends the command at once; one line."""


class Parser(argparse.ArgumentParser):
    """argparse that tells a mistake in one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise Mistake(f"{message}; see {PROGRAM} --help")


def main(arguments: Sequence[str]) -> int:
    """Run the command; the exit code."""
    interrupt_by(signal.SIGTERM, signal.SIGINT)
    try:
        failed = run(parse(arguments))
        sys.stdout.flush()
    except Mistake as mistake:
        tell(mistake)
        return 2
    except BrokenPipeError:  # who read the output has gone, as `| head` does; what is left of it goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE
    except OSError as error:  # no space left, no permission: the system's own words name the file
        tell(error)
        return 2
    except KeyboardInterrupt:
        tell("stopped")
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(130)  # not after the threads that wait for the service
    if failed:
        tell(f"{failed.total()} failed: {', '.join(f'{number} {code}' for code, number in failed.most_common())}")
    return 1 if failed else 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """What to do, or SystemExit where help was asked for and printed."""
    parser = Parser(PROGRAM, None, HELP, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("paths", nargs="+", type=Path, metavar="FILE|FOLDER")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the service (default: %(default)s)")
    parser.add_argument("--model", metavar="NAME", help="the model, where the service has several")
    parser.add_argument("--key-file", type=Path, help="file whose first line is a key of that service")
    parser.add_argument("--format", choices=WRITERS, help="of the rows (default: by the name of --out, else csv)")
    parser.add_argument("--out", type=Path, help="file for the rows, whole or not at all (default: standard output)")
    parser.add_argument(
        "--concurrency", type=whole, default=CONCURRENCY, help="images asked for at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--timeout",
        type=positive,
        default=TIMEOUT_S,
        help="seconds for one image with all attempts (default: %(default)g)",
    )
    return parser.parse_args(arguments)


def run(order: argparse.Namespace) -> Counter[str]:
    """Ask for every image and write its row; how many failed, by code."""
    files = list(found(order.paths))
    failed: Counter[str] = Counter()
    try:
        key = first_line(order.key_file) if order.key_file else None
        client = Client(order.url, model=order.model, key=key, timeout=order.timeout, concurrency=order.concurrency)
    except ValueError as error:
        raise Mistake(error) from None
    kind = order.format or (order.out and order.out.suffix[1:].lower())
    with client, target(order.out) as file:
        WRITERS.get(kind, write_csv)(rows(client, files, failed, quiet(order)), file)
    return failed


def rows(client: Client, files: Sequence[Path], failed: Counter[str], quiet: bool) -> Iterator[Row]:
    """A row for each file, and failures counted in `failed`.

    Raises:
        Mistake: no image would be answered.
    """
    answers = client.predict_many(files, top_k=1)
    style: dict[str, Any] = {"unit": " images", "leave": False, "dynamic_ncols": True, "disable": quiet}
    for file, answer in tqdm(zip(files, answers, strict=True), total=len(files), **style):
        if isinstance(answer, PredictionError):
            if answer.code in HOPELESS:
                raise Mistake(answer.detail + ADVICE.get(answer.code, ""))
            failed[answer.code] += 1
        yield row(file, answer)


def row(file: Path, answer: Answer | PredictionError) -> Row:
    if isinstance(answer, PredictionError):
        return dict.fromkeys(COLUMNS) | {"file": str(file), "error": str(answer)}
    best = answer.best
    cells = (str(file), best.name, best.index, best.probability, answer.unknown, None)
    return dict(zip(COLUMNS, cells, strict=True))


def found(paths: Iterable[Path]) -> Iterator[Path]:
    """Files as they are given, and all pictures of folders.

    Raises:
        Mistake: there is none.
    """
    for path in paths:
        if not path.exists():
            raise Mistake(f"{path}: no such file or folder")
        pictures = pictures_in(path) if path.is_dir() else [path]
        if not pictures:
            raise Mistake(f"{path}: no pictures in this folder")
        yield from pictures


def first_line(path: Path) -> str:
    """The key in a file, as the service's own file of keys has them: blank lines and those with # are skipped."""
    lines = [line.strip() for line in path.read_text("latin-1").splitlines()]
    if not (keys := [line for line in lines if line and not line.startswith("#")]):
        raise Mistake(f"--key-file {path}: no key")
    return keys[0]


def quiet(order: argparse.Namespace) -> bool:
    """Whether a bar would be in the way: rows on the same terminal tell how far it is."""
    return not sys.stderr.isatty() or (order.out is None and sys.stdout.isatty())


@contextmanager
def target(out: Path | None) -> Iterator[TextIO]:
    """Where rows go. Names of files that are no UTF-8 are written as the bytes that they are."""
    if out is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
        yield sys.stdout
        return
    if out.exists() and not out.is_file():  # a device or a pipe
        with out.open("w", encoding="utf-8", errors="surrogateescape") as file:
            yield file
        return
    with replacing(out) as temporary, temporary.open("w", encoding="utf-8", errors="surrogateescape") as file:
        yield file


def write_csv(rows: Iterable[Row], file: TextIO) -> None:
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    for number, row in enumerate(rows):
        if not number:
            writer.writeheader()
        writer.writerow({**row, "unknown": "" if row["unknown"] is None else json.dumps(row["unknown"])})


def write_jsonl(rows: Iterable[Row], file: TextIO) -> None:
    for row in rows:
        file.write(f"{json.dumps(row)}\n")


def write_json(rows: Iterable[Row], file: TextIO) -> None:
    """One array, a row a line."""
    before = "[\n"
    for row in rows:
        file.write(f"{before}{json.dumps(row)}")
        before = ",\n"
    file.write("\n]\n")


WRITERS: Mapping[str, Callable[[Iterable[Row], TextIO], None]] = {
    "csv": write_csv,
    "json": write_json,
    "jsonl": write_jsonl,
}


def whole(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 1024:
        raise ValueError
    return value


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value <= 86_400:
        raise ValueError
    return value


# argparse names the type where it refuses a value.
whole.__name__, positive.__name__ = "number from 1 to 1024", "number of seconds"


def tell(what: object) -> None:
    print(f"{PROGRAM}: {' '.join(str(what).split())}", file=sys.stderr, flush=True)
