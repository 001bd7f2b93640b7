"""How fast training's batches of a folder's pictures come, beside the work that they take: decoding, and resizing.

All with one process a core, over the same files in the same order, in turn. The bounds run without a loader: each
process reads, decodes and perhaps resizes its share and throws the pixels away. One thread a process, as in a loader.
"""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn

from benchmarks import plots
from benchmarks.errors import BenchmarkError
from benchmarks.plan import Plan, Row
from benchmarks.results import Table, distinct, number, spread, values
from models.classifier import Classifier
from models.decode import decode
from training.data import Images
from training.pixels import Decoded, in_order

PICTURES = 4000  # of hymenoptera's, again and again: seconds enough that the loader's start counts little
QUICK = 64
INPUT_SIZE = 224
BATCH = 32
PREPARER = Classifier(nn.Identity(), input_size=INPUT_SIZE, crop=1.0, mean=(0, 0, 0), std=(1, 1, 1))
DECODE, RESIZE, BATCHES = "decode", "decode and resize", "training batches"


def measure(plan: Plan) -> list[Row]:
    """A row a way and round.

    Raises:
        BenchmarkError: there are no pictures.
    """
    assert plan.data, "the command line asks for it"
    files = sorted((plan.data / "hymenoptera").rglob("*.jpg"))
    if not files:
        raise BenchmarkError(f"{plan.data} has no hymenoptera/ with pictures")
    chosen = list(islice(cycle(files), QUICK if plan.quick else PICTURES))
    ways: dict[str, Callable[[list[Path]], object]] = {
        DECODE: lambda paths: shared_out(decoded, paths),
        RESIZE: lambda paths: shared_out(resized, paths),
        BATCHES: batches,
    }
    rows: list[Row] = []
    for at in plan.numbers():
        for way, run in ways.items():
            begun = time.perf_counter()
            run(chosen)
            rate = len(chosen) / (time.perf_counter() - begun)
            plan.say(f"round {at + 1}, {way}: {number(rate)} images/s")
            rows.append({"way": way, "round": at, "images_per_s": rate})
    return rows


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0))


def shared_out(task: Callable[[Path], None], paths: Sequence[Path]) -> None:
    """Do a task for every path, a process a core."""
    context = get_context("fork")
    with ProcessPoolExecutor(cores(), context, torch.set_num_threads, (1,)) as pool:
        list(pool.map(task, paths, chunksize=BATCH))


def decoded(path: Path) -> None:
    """Read and decode one picture."""
    decode(path.read_bytes(), input_size=INPUT_SIZE)


def resized(path: Path) -> None:
    """Read, decode, cut and resize one picture."""
    PREPARER.preprocess(decode(path.read_bytes(), input_size=INPUT_SIZE))


def batches(paths: Sequence[Path]) -> None:
    """An epoch's batches as training gets them."""
    images = Images(paths, torch.zeros(len(paths), dtype=torch.int64))
    for _ in Decoded(images, PREPARER, cores()).batches(in_order(len(paths), BATCH)):
        pass


def tables(rows: Sequence[Row]) -> list[Table]:
    """Every way's speed, and the batches' as a share of it, round by round."""
    ours = values(rows, "images_per_s", way=BATCHES)
    cells = []
    for way in distinct(rows, "way"):
        rates = values(rows, "images_per_s", way=way)
        shares = [mine / other for mine, other in zip(ours, rates, strict=True)]
        cells.append([way, spread(rates), spread(shares)])
    return [Table(f"Photos to {INPUT_SIZE} px", ("", "images/s", "batches' share of it"), cells)]


def figure(rows: Sequence[Row]) -> Figure:
    """Images a second, a bar a way."""
    drawn, (axes,) = plots.panels(1, width=6, height=2.2)
    ways = distinct(rows, "way")
    plots.bars(axes, {way: values(rows, "images_per_s", way=way) for way in ways}, plots.COLOURS[: len(ways)], number)
    axes.set(xlabel="images a second")
    return drawn
