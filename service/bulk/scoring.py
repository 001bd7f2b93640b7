"""Who scores a bulk job's batches: on a CPU a process a core, copies of one that has torch; on a GPU threads."""

import multiprocessing
import os
import signal
import threading
from argparse import Namespace
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from models import cores
from models.errors import ArtifactError, DeviceError, ImageError
from models.formats import FORMATS, MAX_PIXELS
from models.manifest import Manifest
from service.bulk.errors import Mistake
from service.bulk.images import Image, Input
from service.bulk.rows import Answer, Row, Rows, failed
from service.edition import Edition
from service.loading import load
from service.orphans import PARENT, end_with_nursery
from service.present import handles

if TYPE_CHECKING:
    from models.engine import Engine

AHEAD = 3  # batches for each process that are under way or done and not written
FAILED = "internal: the model failed on this image"


@contextmanager
def scoring(order: Namespace, manifest: Manifest) -> Iterator[tuple[Executor, int]]:
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
    try:
        yield pool, count
    finally:
        pool.shutdown(cancel_futures=True)


def scored(order: Namespace, manifest: Manifest, found: Input, first: int) -> Rows:
    """The rows of all images from `first` on, in order, by this machine."""
    images = islice(found.since(first), found.count - first)
    with scoring(order, manifest) as (pool, count):
        yield from ordered(pool, batches_of(images, order.max_batch_size), AHEAD * count)


def batches_of(images: Iterator[Image], most: int) -> Iterator[list[Image]]:
    """So many images at a time."""
    return iter(lambda: list(islice(images, most)), [])


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
    """A process of the pool begins."""
    end_with_nursery()
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
    edition, offered = Edition(task.model, task.manifest), task.device if task.device.startswith("cuda") else "cpu"
    try:
        return Scorer(load(edition, task.device, offered, task.dtype, task.batch_size, task.sharing))
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
