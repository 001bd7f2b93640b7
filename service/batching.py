"""The worker's pipeline: receive, decode, predict and answer overlap; batches form while the model works.

    receive (1 thread) -> decode (a pool; answers image errors) -> decoded -> predict (1 thread) -> answer

An idle model takes whatever is decoded, at once, up to `max_batch_size`. `max_delay_ms` lets it wait that long from the
first arrival for a fuller batch, never past the earliest deadline.
"""

import os
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from time import monotonic

import torch
from torch import Tensor

from models.engine import Engine
from models.errors import ImageError
from service import metrics
from service.errors import DeadlineExceeded, Internal, NonFinite
from service.logs import logger
from service.settings import Settings
from service.transport import Answer, Item, Transport


@dataclass(frozen=True)
class Decoded:
    """An item whose body became `pixels` uint8 (3, S, S); times in seconds of CLOCK_MONOTONIC."""

    item: Item
    pixels: Tensor
    started: float
    finished: float


class Pipeline:
    """One worker's threads and what passes between them."""

    def __init__(self, engine: Engine, transport: Transport, settings: Settings) -> None:
        """Look-ahead is bounded to two batches, so that other workers get their share of what waits."""
        self.engine = engine
        self.transport = transport
        self.settings = settings
        self.max_delay = settings.max_delay_ms / 1000
        self.room = threading.Semaphore(2 * settings.max_batch_size)
        self.decoded: deque[Decoded] = deque()
        self.changed = threading.Condition()
        self.ended = False

    def run(self) -> None:
        """Receive until the end; then let what is under way finish."""
        with ThreadPoolExecutor(1, "predict") as predicting:
            predicting.submit(self.predict_all).add_done_callback(end_on_bug)
            with ThreadPoolExecutor(len(os.sched_getaffinity(0)), "decode") as decoding:
                while True:
                    self.room.acquire()
                    item = self.transport.receive()
                    if item is None:
                        break
                    decoding.submit(self.decode, item).add_done_callback(end_on_bug)
            with self.changed:
                self.ended = True
                self.changed.notify()

    def decode(self, item: Item) -> None:
        """Turn a body into pixels, or answer why not."""
        started = monotonic()
        try:
            if started >= item.deadline:
                raise DeadlineExceeded("The request's deadline passed before its turn came.")
            formats, max_pixels = self.settings.accepted_formats, self.settings.max_pixels
            with self.transport.body(item) as body:
                pixels = self.engine.decode(body, formats, max_pixels)
        except (ImageError, DeadlineExceeded) as error:
            self.answer_error(item, error.code, str(error))
        except Exception:
            logger.exception("decoding failed", extra={"uid": item.uid})
            self.answer_error(item, Internal.code, "The image could not be processed.")
        else:
            with self.changed:
                self.decoded.append(Decoded(item, pixels, started, monotonic()))
                self.changed.notify()

    def answer_error(self, item: Item, code: str, detail: str) -> None:
        """An image that leaves the queue without reaching the model."""
        metrics.QUEUE_DEPTH.dec()
        self.room.release()
        self.transport.answer(item.process, [Answer(item.uid, [], code, detail)])

    def predict_all(self) -> None:
        """Predict batch after batch until the end."""
        while batch := self.next_batch():
            self.predict(batch)
            self.room.release(len(batch))

    def next_batch(self) -> list[Decoded]:
        """Wait for decoded images and take a batch of those that can still be answered in time; [] at the end."""
        with self.changed:
            while True:
                while not self.decoded and not self.ended:
                    self.changed.wait()
                self.wait_for_more()
                n = min(len(self.decoded), self.settings.max_batch_size)
                taken = [self.decoded.popleft() for _ in range(n)]
                now = monotonic()
                batch = [image for image in taken if now < image.item.deadline]
                for image in taken:
                    if now >= image.item.deadline:
                        self.answer_error(
                            image.item, DeadlineExceeded.code, "The request's deadline passed in the queue."
                        )
                if batch or (self.ended and not self.decoded):
                    return batch

    def wait_for_more(self) -> None:
        """Let an idle model wait for a fuller batch, if it was told to."""
        if not self.decoded or not self.max_delay:
            return
        full = self.decoded[0].finished + self.max_delay
        while len(self.decoded) < self.settings.max_batch_size and not self.ended:
            # Half of an image's time is kept for predicting and answering it.
            halves = (image.item.accepted / 2 + image.item.deadline / 2 for image in self.decoded)
            left = min(full, *halves) - monotonic()
            if left <= 0 or not self.changed.wait(left):
                return

    def predict(self, batch: Sequence[Decoded]) -> None:
        """Predict and answer one batch; an image that the model fails on does not touch its neighbours."""
        metrics.QUEUE_DEPTH.dec(len(batch))
        metrics.BATCH_SIZE.observe(len(batch))
        started = monotonic()
        probabilities = self.probabilities(torch.stack([image.pixels for image in batch]))
        inference = monotonic() - started
        answers = []
        for image, row in zip(batch, probabilities, strict=True):
            decode = image.finished - image.started
            queue = max(0.0, started - image.item.accepted - decode)
            metrics.STAGE_SECONDS.labels("queue").observe(queue)
            metrics.STAGE_SECONDS.labels("decode").observe(decode)
            metrics.STAGE_SECONDS.labels("inference").observe(inference)
            answers.append((image.item.process, self.answer(image.item, row, (queue, decode, inference))))
        for process, group in groupby(sorted(answers, key=lambda pair: pair[0]), key=lambda pair: pair[0]):
            self.transport.answer(process, [answer for _, answer in group])

    def probabilities(self, pixels: Tensor) -> list[Tensor | None]:
        """Rows of probabilities (K,) for uint8 (N, 3, S, S); None for an image that the model raises for."""
        try:
            return list(self.engine.predict(pixels))
        except Exception:  # whatever it is, it must not keep the neighbours' answers back
            if len(pixels) == 1:
                logger.exception("the model failed on an image")
                metrics.ISOLATED_FAILURES.inc()
                return [None]
        metrics.BATCH_SPLITS.inc()
        return [row for image in pixels for row in self.probabilities(image[None])]

    def answer(self, item: Item, row: Tensor | None, times: tuple[float, float, float]) -> Answer:
        """The answer to one predicted image, and its metrics."""
        if row is None:
            return Answer(item.uid, [], Internal.code, "The model failed on this image.")
        if not bool(row.isfinite().all()):
            metrics.NONFINITE.inc()
            return Answer(item.uid, [], NonFinite.code, "The model gave no finite probabilities for this image.")
        highest = row.topk(min(item.top_k, len(row)))
        predictions = list(zip(highest.indices.tolist(), highest.values.tolist(), strict=True))
        index, probability = predictions[0]
        metrics.IMAGES.inc()
        metrics.PREDICTIONS.labels(self.engine.artifact.manifest.classes[index]).inc()
        metrics.CONFIDENCE.observe(probability)
        return Answer(item.uid, predictions, "", "", *times)


def end_on_bug(future: Future[None]) -> None:
    """End the worker when one of its threads failed: half a pipeline would keep requests and their room for ever."""
    if error := future.exception():
        logger.critical("the worker failed", exc_info=error)
        os._exit(1)
