"""What the hardware allows without HTTP: decode, forward, and both, by the service's own engine.

On a CPU one single-threaded process a core, kept to it; on a GPU one process that feeds it, and decoding on every core.
Each is `python -m benchmarks.bounds MODEL DTYPE DEVICE BATCH CORE`: it reads a body in hex and says "ready" when its
engine is warm, then answers each line "KIND SECONDS" by "images seconds cpu_seconds p50 p99", the last two of a
batch's seconds, weighted by time. It idles in between.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.errors import BenchmarkError

if TYPE_CHECKING:
    from models.engine import Engine

DECODE, FORWARD, BOTH = "decode", "forward", "decode+forward"
BATCH = 8  # on a CPU; forward passes of 1 and of 32 were slower an image, for SimpleCNN and for ResNet-18
GPU_BATCH = 32  # the service's own default
STOP_S = 10
Task = Callable[[], object]


@dataclass(frozen=True)
class Bound:
    """Images a second of all processes together, CPU seconds an image costs; a batch's by `in_time`, the slowest's."""

    images_per_s: float
    cpu_s: float
    p50_s: float
    p99_s: float


@dataclass(frozen=True)
class Bounder:
    """The warm processes; the first is the one with the GPU, if there is one."""

    processes: Sequence[subprocess.Popen[str]]
    device: str

    def measure(self, kind: str, seconds: float) -> Bound:
        """Let all at once do `kind` for about so many seconds: up to one batch more."""
        return ask(self.processes if kind == DECODE or self.device == "cpu" else self.processes[:1], kind, seconds)

    def alone(self, kind: str, seconds: float) -> Bound:
        """The same with one process, while the other cores have nothing to do."""
        return ask(self.processes[:1], kind, seconds)


def ask(processes: Sequence[subprocess.Popen[str]], kind: str, seconds: float) -> Bound:
    """Let some processes measure at the same time."""
    for process in processes:
        tell(process, f"{kind} {seconds}")
    found = [tuple(map(float, line(process).split())) for process in processes]
    images, walls, cpus, p50s, p99s = zip(*found, strict=True)
    rate = sum(count / wall for count, wall in zip(images, walls, strict=True))
    return Bound(rate, sum(cpus) / sum(images), max(p50s), max(p99s))


@contextmanager
def bounding(model: Path, body: bytes, *, dtype: str = "fp32", device: str = "cpu") -> Iterator[Bounder]:
    """Start the processes and wait until all are warm.

    Raises:
        BenchmarkError: a process ended before it was ready.
    """
    cores = list(map(str, sorted(os.sched_getaffinity(0))))
    places = [("cpu", dtype, str(BATCH), core) for core in cores]
    if device != "cpu":
        places[0] = (device, dtype, str(GPU_BATCH), "all")
        places[1:] = [("cpu", "fp32", "1", core) for core in cores[1:]]  # they only decode
    with ExitStack() as stack:
        processes = []
        for place, number_format, batch, core in places:
            arguments = [str(model), number_format, place, batch, core]
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "benchmarks.bounds", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)
            tell(process, body.hex())
        for process in processes:
            line(process)
        yield Bounder(processes, device)


def tell(process: subprocess.Popen[str], text: str) -> None:
    """Write a line to a process; that it has ended is found when its answer is read."""
    assert process.stdin is not None, "it was started with pipes"
    try:
        process.stdin.write(text + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass


def line(process: subprocess.Popen[str]) -> str:
    """The next line of a process."""
    assert process.stdout is not None, "it was started with pipes"
    text = process.stdout.readline()
    if not text:
        code = process.wait(STOP_S)
        raise BenchmarkError(f"a process of a bound ended with exit code {code}; its message is above")
    return text


def prepared(model: Path, dtype: str, device: str, batch: int) -> "Engine":
    """The service's own engine."""
    import torch  # the processes that only start this one do without

    from models import artifact, optimisation

    return optimisation.prepare(artifact.load(model), torch.device(device), dtype, batch)


def tasks(engine: "Engine", body: bytes) -> dict[str, Task]:
    """One batch's work of each kind."""
    from models.formats import FORMATS, MAX_PIXELS

    batch = engine.max_batch_size
    rows = list(engine.rows(batch))

    def decode() -> None:
        for row in rows:
            engine.decode(body, FORMATS, MAX_PIXELS, row)

    def both() -> None:
        decode()
        engine.predict(rows)

    return {DECODE: decode, FORWARD: lambda: engine.predict(rows), BOTH: both}


def measured(task: Task, seconds: float, threads: int) -> tuple[list[float], float, float]:
    """Repeat a task on so many threads for about so many seconds: the seconds of each, of all, of the process's CPU."""
    started, cpu = time.perf_counter(), time.process_time()
    took: list[float] = []

    def repeat() -> None:
        while (begun := time.perf_counter()) - started < seconds:
            task()
            took.append(time.perf_counter() - begun)

    with ThreadPoolExecutor(threads) as pool:
        for repeating in [pool.submit(repeat) for _ in range(threads)]:
            repeating.result()
    return took, time.perf_counter() - started, time.process_time() - cpu


def in_time(took: Sequence[float], share: float) -> float:
    """How long what is under way takes at most, in this share of all moments: what a request meets when it comes."""
    ordered, part = sorted(took), share * sum(took)
    return next(one for one, so_far in zip(ordered, accumulate(ordered), strict=True) if so_far >= part)


def main(arguments: Sequence[str]) -> None:
    """A bound's process; ends with its standard input."""
    model, dtype, device, batch, core = arguments
    if core != "all":
        os.sched_setaffinity(0, {int(core)})
    body = bytes.fromhex(sys.stdin.readline())
    engine = prepared(Path(model), dtype, device, int(batch))
    works = tasks(engine, body)
    for work in works.values():
        work()
    print("ready", flush=True)
    for text in sys.stdin:
        kind, seconds = text.split()
        took, wall, cpu = measured(works[kind], float(seconds), engine.passes if kind == FORWARD else 1)
        print(len(took) * int(batch), wall, cpu, in_time(took, 0.5), in_time(took, 0.99), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
