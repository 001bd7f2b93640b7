"""`python -m service.bulk`: the command, and what is known of its job in OUT."""

import argparse
import fcntl
import json
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from hashlib import sha256
from pathlib import Path
from time import monotonic
from typing import Any, NoReturn

from models import manifest as manifests
from models.errors import ArtifactError
from models.interrupt import interrupt_by
from models.manifest import Manifest
from service.bulk import on_ray, scoring
from service.bulk.errors import Mistake
from service.bulk.images import IMAGE_COLUMNS, Input, look, parquet
from service.bulk.rows import WRITERS, Row

PROGRAM = "python -m service.bulk"
HELP = f"""Score many images without a server: class, probability and whether it is unknown, or why not, a row for each.

  {PROGRAM} photos/ scores --model artifacts/model.pt
  {PROGRAM} list.txt scores --model artifacts/model.pt          # a path a line, from where the list is
  {PROGRAM} photos.parquet scores --model artifacts/model.pt    # of paths or of encoded images
  {PROGRAM} /shared/photos scores --model /shared/model.pt --ray    # by all nodes of a Ray cluster

The same command goes on where a job was stopped or killed: no row is lost, none is there twice. Images that cannot be
read or decoded are rows with an error. A folder stands for all visible pictures below it, links to folders left out.
Exit code 0: every image has a row; 2: that cannot be, or not now; 130: stopped."""
JOB, PART = "bulk.json", "part-{:06d}.{}"
DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


class Parser(argparse.ArgumentParser):
    """argparse that tells a mistake in one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise Mistake(f"{message}; see {PROGRAM} --help")


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
    parser.add_argument("--ray", action="store_true", help="on the Ray cluster that runs (RAY_ADDRESS), or a local one")
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

    interrupt_by(signal.SIGTERM, signal.SIGINT)
    started, tally = monotonic(), Counter[str]()
    first = done * order.rows
    style: dict[str, Any] = {"unit": " images", "dynamic_ncols": True, "disable": not sys.stderr.isatty()}
    coming = (on_ray if order.ray else scoring).scored(order, manifest, found, first)
    with closing(coming), tqdm(total=found.count, initial=first, **style) as bar:
        rows: list[Row] = []
        for batch in coming:
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


def tell(what: object) -> None:
    print(f"darkroom: {' '.join(str(what).split())}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
