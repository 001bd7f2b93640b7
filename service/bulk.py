"""`python -m service.bulk IN OUT`: a row for each image of a folder, a list or a Parquet file; no server.

IN   ->  images, in order  ->  batches  ->  a process a core: read, decode, predict  ->  rows, in order  ->  OUT
OUT      bulk.json   what is scored, by which model; another job is refused
         part-000000.csv, part-000001.csv, ...   each whole or not there, so that a job that was killed goes on
"""

import argparse
import csv
import fcntl
import json
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from models import cores
from models import manifest as manifests
from models.archive import replacing
from models.errors import ArtifactError, DeviceError, ImageError
from models.formats import FORMATS, MAX_PIXELS, pictures_in
from models.manifest import Manifest
from service.orphans import PARENT, end_with_parent, parent_of
from service.present import handles

if TYPE_CHECKING:
    from models.engine import Engine

PROGRAM = "python -m service.bulk"
HELP = f"""Score many images without a server: class, probability and whether it is unknown, or why not, a row for each.

  {PROGRAM} photos/ scores --model artifacts/model.pt
  {PROGRAM} list.txt scores --model artifacts/model.pt          # a path a line, from where the list is
  {PROGRAM} photos.parquet scores --model artifacts/model.pt    # of paths or of encoded images

The same command goes on where a job was stopped or killed: no row is lost, none is there twice. Images that cannot be
read or decoded are rows with an error. A folder stands for all visible pictures below it, links to folders left out.
Exit code 0: every image has a row; 2: that cannot be, or not now; 130: stopped."""
JOB, PART, SUFFIX = "bulk.json", "part-{:06d}.{}", ".parquet"
COLUMNS = ("image", "class", "index", "probability", "unknown", "error", "digest")
IMAGE_COLUMNS = ("path", "bytes", "image")  # of a Parquet file, where none is named
DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
AHEAD = 3  # batches for each process that are under way or done and not written
FAILED = "internal: the model failed on this image"
Image = tuple[str, Path | bytes]  # what a row calls it, and where it is or what
Answer = tuple[str | None, int | None, float | None, bool | None, str | None]  # class ... error, as in COLUMNS
Row = tuple[str, str | None, int | None, float | None, bool | None, str | None]  # the image's name, and its answer


class Mistake(Exception):
    """Why nothing can be done; one line."""


class Parser(argparse.ArgumentParser):
    """argparse that tells a mistake in one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise Mistake(f"{message}; see {PROGRAM} --help")


@dataclass(frozen=True)
class Input:
    """Images in an order that stays; `since` gives those from a position on. `identity` is another where they are."""

    identity: str
    count: int
    since: Callable[[int], Iterator[Image]]


def main(arguments: Sequence[str]) -> int:
    """Run the command; the exit code."""
    try:
        order = parse(arguments)
        manifest = manifests.read(order.model)
        if order.format == "parquet":
            parquet()
        found = look(order.input, order.column)
        with alone(order.out, job(order, manifest, found)):
            return run(order, manifest, found)
    except (Mistake, ArtifactError) as error:
        tell(error)
    except BrokenProcessPool:
        tell("a process that scores was killed, perhaps for its memory; the same command goes on")
    except OSError as error:  # no space left, no permission
        tell(f"{error.filename or order.out}: {error.strerror or error}")
    except KeyboardInterrupt:
        tell("stopped; the same command goes on")
        return 130
    return 2


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """What to do."""
    parser = Parser(PROGRAM, None, HELP, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("input", type=Path, metavar="IN", help="a folder, a list of paths, or a Parquet file")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the rows, in parts")
    parser.add_argument("--model", type=Path, required=True, help="the artifact")
    parser.add_argument("--format", choices=WRITERS, default="csv", help="of the parts (default: %(default)s)")
    parser.add_argument("--rows", type=positive, default=1000, help="in a part (default: %(default)s)")
    parser.add_argument("--column", help=f"of a Parquet file (default: the first of {', '.join(IMAGE_COLUMNS)})")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N (default: %(default)s)")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16", "tf32"), default="fp32", help="of the network")
    parser.add_argument("--max-batch-size", type=positive, default=32, help="most images in one forward pass")
    order = parser.parse_args(arguments)
    if not DEVICE.fullmatch(order.device):
        raise Mistake(f"--device {order.device}: auto, cpu, cuda or cuda:N")
    return order


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


positive.__name__ = "whole number greater than zero"  # argparse names the type where it refuses a value


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
    if not re.search("string|binary", kind) or kind.startswith(("struct", "list")):
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


def job(order: argparse.Namespace, manifest: Manifest, found: Input) -> Mapping[str, Any]:
    """What makes rows what they are; rows of another job are not to be mixed with these."""
    model = sha256(manifest.model_dump_json().encode()).hexdigest()  # with its classes' names and its threshold
    made = {"input": str(order.input.resolve()), "images": found.count, "identity": found.identity, "model": model}
    return made | {"dtype": order.dtype, "format": order.format, "rows": order.rows}


@contextmanager
def alone(out: Path, wanted: Mapping[str, Any]) -> Iterator[None]:
    """Be the only process that writes to OUT, which has parts of this job or none.

    Raises:
        Mistake: it is not so.
    """
    out.mkdir(parents=True, exist_ok=True)
    if not (out / JOB).exists() and any(out.iterdir()):
        raise Mistake(f"{out}: it holds other files; name a new or an empty folder")
    with (out / JOB).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Mistake(f"{out}: another process is writing there") from None
        if any(out.glob("part-*")):
            file.seek(0)
            if differing := differences(file.read(), wanted):
                raise Mistake(f"{out}: it holds rows of another job ({differing}); name another folder")
        else:
            file.truncate(0)
            file.write(json.dumps(wanted, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        yield


def differences(text: str, wanted: Mapping[str, Any]) -> str:
    """In what the job in `bulk.json` is another, if it is."""
    try:
        known = dict(json.loads(text))
    except ValueError:
        return f"{JOB} is damaged"
    return ", ".join(name for name in wanted if known.get(name) != wanted[name])


def run(order: argparse.Namespace, manifest: Manifest, found: Input) -> int:
    """Score what has no row yet."""
    for left in order.out.glob(".part-*"):  # by a process that was killed
        left.unlink()
    parts = -(-found.count // order.rows)
    path = [order.out / PART.format(number, order.format) for number in range(parts)]
    done = next((number for number in range(parts) if not path[number].exists()), parts)
    if done < parts:
        counted = score(order, manifest, found, path, done)
        tell(counted)
    else:
        tell(f"all {found.count:,} images have their rows already")
    print(f"{order.out}: {found.count:,} rows in {parts} parts")
    return 0


def score(order: argparse.Namespace, manifest: Manifest, found: Input, path: Sequence[Path], done: int) -> str:
    """Write the parts after the first `done`; what came of it, for people."""
    from tqdm import tqdm

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started, tally = monotonic(), Counter[str]()
    first = done * order.rows
    style: dict[str, Any] = {"unit": " images", "dynamic_ncols": True, "disable": not sys.stderr.isatty()}
    images = found.since(first)
    batches = iter(lambda: list(islice(images, order.max_batch_size)), [])
    with scoring(order, manifest) as (pool, count), tqdm(total=found.count, initial=first, **style) as bar:
        rows: list[Row] = []
        for batch in ordered(pool, batches, AHEAD * count):
            bar.update(len(batch))
            tally.update("failed" if error else "unknown" if unknown else "known" for *_, unknown, error in batch)
            rows += batch
            while len(rows) >= order.rows or (rows and first + tally.total() == found.count):
                WRITERS[order.format](path[done], rows[: order.rows], manifest.digest)
                del rows[: order.rows]
                done += 1
    if done < len(path):
        raise Mistake(f"{order.input}: it has other images than when this job began")
    seconds = monotonic() - started
    told = ", ".join(f"{number:,} {what}" for what, number in sorted(tally.items()))
    return f"{tally.total():,} images in {seconds:.1f} s: {told}"


@contextmanager
def scoring(order: argparse.Namespace, manifest: Manifest) -> Iterator[tuple[Executor, int]]:
    """Who scores batches, and how many at once; on a CPU processes, of which Python runs one thread at a time."""
    on_cpu = order.device == "cpu" or (order.device == "auto" and not handles())
    count = cores.available() if on_cpu else cores.available() + 2
    sharing = count if on_cpu else 1
    device = "cpu" if on_cpu else order.device
    task = Task(order.model, manifest, device, order.dtype, order.max_batch_size, sharing)
    pool: Executor
    if on_cpu:
        os.environ[PARENT] = str(os.getpid())
        multiprocessing.set_forkserver_preload(["service.nursery"])
        pool = ProcessPoolExecutor(count, multiprocessing.get_context("forkserver"), begin, (task,))
    else:
        SCORER.append(scorer_of(task))
        pool = ThreadPoolExecutor(count)
    with pool:
        try:
            yield pool, count
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def ordered(pool: Executor, batches: Iterator[list[Image]], ahead: int) -> Iterator[list[Row]]:
    """The rows of batch after batch, in order, while so many later ones are under way."""
    waiting: deque[Future[list[Row]]] = deque()
    for batch in batches:
        waiting.append(pool.submit(score_batch, batch))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


class Task(NamedTuple):
    """What is done to every batch: the model that `manifest` tells of, on a device; so many `sharing` its cores."""

    model: Path
    manifest: Manifest
    device: str
    dtype: str
    batch_size: int
    sharing: int


# This process's one, if there is one.
TASK: list[Task] = []
SCORER: list["Scorer"] = []


def begin(task: Task) -> None:
    """A process of the pool begins; it ends with the nursery, and that with the first process."""
    nursery, main = os.getppid(), multiprocessing.parent_process()
    end_with_parent(nursery)
    if main is None or parent_of(nursery) != main.pid:  # it was lost before this process could ask to end with it
        os._exit(1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by which the pool ends it
    TASK.append(task)


def score_batch(images: Sequence[Image]) -> list[Row]:
    """A row for each of up to `batch_size` images; the first loads the model, so that it can tell what is wrong."""
    if not SCORER:
        SCORER.append(scorer_of(*TASK))
    return SCORER[0].score(images)


def scorer_of(task: Task) -> "Scorer":
    """The model, loaded and proved.

    Raises:
        Mistake: it or the device cannot be used.
    """
    from models import artifact, engine, optimisation

    try:
        chosen = engine.choose(task.device, task.device if task.device.startswith("cuda") else "cpu", task.dtype)
        loaded = artifact.load(task.model)
        if loaded.manifest != task.manifest:
            found = f"another since (digest {loaded.manifest.digest[:12]})"
            raise ArtifactError(task.model, f"the file that this job began with ({task.manifest.digest[:12]})", found)
        return Scorer(optimisation.prepare(loaded, chosen, task.dtype, task.batch_size, task.sharing))
    except (ArtifactError, DeviceError, RuntimeError, MemoryError) as error:
        raise Mistake(str(error).strip().rpartition("\n")[2]) from None


class Scorer:
    """Reads, decodes and predicts batches, on any thread."""

    def __init__(self, engine: "Engine") -> None:
        """Each thread gets room for the pixels of a batch."""
        self.engine, self.manifest = engine, engine.artifact.manifest
        self.room = threading.local()

    def score(self, images: Sequence[Image]) -> list[Row]:
        """A row for each of up to `max_batch_size` images."""
        if not hasattr(self.room, "rows"):
            self.room.rows = self.engine.rows(self.engine.max_batch_size)
        answers: list[Answer | None] = [None] * len(images)
        decoded = []
        for number, (_, where) in enumerate(images):
            try:
                body = where if isinstance(where, bytes) else where.read_bytes()
                self.engine.decode(body, FORMATS, MAX_PIXELS, self.room.rows[number])
                decoded.append(number)
            except ImageError as error:
                answers[number] = failed(f"{error.code}: {error}")
            except (OSError, ValueError, MemoryError) as error:
                answers[number] = failed(f"unreadable: {getattr(error, 'strerror', None) or error}")
        for number, answer in zip(decoded, self.answers([self.room.rows[number] for number in decoded]), strict=True):
            answers[number] = answer
        return [(name, *answer) for (name, _), answer in zip(images, answers, strict=True) if answer]

    def answers(self, rows: Sequence[Any]) -> list[Answer]:
        """What the model says of each; where it fails on several, each half alone."""
        if not rows:
            return []
        try:
            probabilities = self.engine.predict(rows)
        except (RuntimeError, MemoryError) as error:
            half = len(rows) // 2
            if half:
                return self.answers(rows[:half]) + self.answers(rows[half:])
            self.check(error)
            return [failed(FAILED)]
        best = probabilities.max(1)
        finite = probabilities.isfinite().all(1).tolist()
        return [
            self.answer(index, value) if ok else failed(FAILED)
            for index, value, ok in zip(best.indices.tolist(), best.values.tolist(), finite, strict=True)
        ]

    def check(self, error: Exception) -> None:
        """Whether it was the image that the model failed on: it must predict another one.

        Raises:
            Mistake: it predicts nothing any more.
        """
        from models.engine import sample

        try:
            self.engine.predict(sample(self.engine, 1))
        except (RuntimeError, MemoryError):
            raise Mistake(f"the model fails on every image: {error}; the same command goes on") from None

    def answer(self, index: int, probability: float) -> Answer:
        """The first prediction; nine digits tell every float32 from the others."""
        unknown = probability < self.manifest.unknown_below
        return self.manifest.classes[index], index, float(f"{probability:.9}"), unknown, None


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


def tell(what: object) -> None:
    print(f"darkroom: {' '.join(str(what).split())}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
