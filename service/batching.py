"""The worker's pipeline: receive, decode, predict and answer overlap; batches form while the model works.

    every thread:   receive -> decode each into a row (image errors are answered) -> has more come? decode that too, up
                    to a full batch -> is a pass free?
                       no: receive again       yes: predict what is decoded, answer, until nothing is left

All threads are alike, so an image that meets an idle model is decoded, predicted and answered by one thread, without a
handover; under load some threads decode while others predict. Of as many as a CPU has cores each goes its way to the
end (decision 26); the others stand by for those that decode large pictures. An idle model takes whatever has come, up
to the batch size that pays; `max_delay_ms` lets it wait that long from the first arrival for a full batch of
`max_batch_size`, never past the earliest deadline. A pass begins beside another too; where an image costs much less in
the next pass than in one of its own (decision 25), only with a full batch.
"""

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from math import sqrt
from queue import Empty, SimpleQueue
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from models.engine import Engine, sample
from models.errors import ImageError
from models.formats import KNOWN_FORMATS
from models.statistics import brightness
from service import speed
from service.errors import ClientDisconnect, DeadlineExceeded, Internal, NonFinite, NotReady
from service.logs import logger
from service.metrics import (
    BATCH_SIZE,
    BATCH_SPLITS,
    BRIGHTNESS,
    CONFIDENCE,
    IMAGES,
    ISOLATED_FAILURES,
    NONFINITE,
    PREDICTIONS,
    QUEUE_DEPTH,
    SIZE,
    STAGE_SECONDS,
    UNKNOWN,
    Metrics,
)
from service.settings import Settings
from service.steps import Steps
from service.transport import CANARY, Answer, Item, Transport

if TYPE_CHECKING:
    from service.tracing import Tracing

BEAT_S = 0.25
LONGEST_STEP_S = 5.0  # of decoding, 1.5 s at most, or a pass; beyond it a thread hangs
FROZEN_S = 1.0  # without a beat: no thread of this process ran, as when a container is paused
PASSES = 20  # how many passes of a slow model that must at least be

Ranking = list[tuple[int, float]]  # (class index, probability), highest first


class Decoded(NamedTuple):
    """An item whose pixels lie in `row`, uint8 (S, S, 3), or will, where the engine decodes `encoded` itself.

    Times in seconds of CLOCK_MONOTONIC.
    """

    item: Item
    row: Tensor
    encoded: memoryview | None
    started: float
    finished: float
    pixels: int = 0  # that it had before; zero where it came without a file


class ThisThread(threading.local):
    """What a thread of the pipeline knows of itself."""

    has_place = False
    decode_seconds = 0.0  # that its last image took


class Failure(NamedTuple):
    """Why an image has no predictions."""

    code: str
    detail: str


class Pipeline:
    """One worker's threads and what passes between them."""

    def __init__(
        self,
        engine: Engine,
        transport: Transport,
        settings: Settings,
        metrics: Metrics,
        tracing: "Tracing | None" = None,
    ) -> None:
        """Rows bound the look-ahead: a full batch for each pass under way and for one more."""
        self.engine, self.transport, self.metrics, self.tracing = engine, transport, metrics, tracing
        self.classes = engine.artifact.manifest.classes
        self.unknown_below = engine.artifact.manifest.unknown_below
        self.formats, self.max_pixels = settings.accepted_formats, settings.max_pixels
        self.max_delay = settings.max_delay_ms / 1000
        expected = speed.of(asdict(engine.plan), settings)
        self.batch_size = expected.batch_size
        if not expected.met:
            logger.warning("the objective cannot be met here", extra=expected.told()["objective"])
        self.under_way = 0  # passes
        self.taking = threading.Lock()
        # Passes that take every core leave none to HTTP and decoding; a GPU's next images cross the bus meanwhile.
        on_gpu = engine.device.type == "cuda"
        self.joining = engine.passes == engine.cores and not on_gpu and speed.joining_pays(engine.curve)
        self.forming = threading.Lock()  # held for one batch: passes that wait side by side would share what comes
        self.free_rows: SimpleQueue[Tensor] = SimpleQueue()
        self.decoded: SimpleQueue[Decoded] = SimpleQueue()
        self.give_back(engine.rows((engine.passes + 1) * settings.max_batch_size))
        self.worker = 0
        self.failing = False  # the model, on all that it had last
        self.steps = Steps()
        self.pass_seconds = self.time_pass()
        # More threads than cores would take these from each other; but where threads wait for a GPU or for a fuller
        # batch, all are at work.
        waiting = on_gpu or self.max_delay > 0
        self.places = threading.Semaphore(engine.cores + waiting * engine.passes)
        self.this_thread = ThisThread()
        self.filling = 0.0 if waiting else self.pass_seconds  # others decode beside a pass; no GPU waits for more
        self.threads = [
            threading.Thread(target=self.work, name=f"pipeline-{number}")
            for number in range(engine.passes + engine.cores)
        ]

    def time_pass(self) -> float:
        """How long a full batch takes, in seconds."""
        rows = sample(self.engine, self.batch_size)
        started = monotonic()
        self.engine.predict(rows)
        return monotonic() - started

    def facts(self, load_seconds: float) -> dict[str, Any]:
        """What the board tells of this worker, which was ready after so long."""
        engine, manifest = self.engine, self.engine.artifact.manifest
        facts = {"device": str(engine.device), "dtype": engine.dtype, "pass_seconds": self.pass_seconds}
        facts |= {"version": manifest.version, "digest": manifest.digest}
        return facts | {"load_seconds": load_seconds, "plan": asdict(engine.plan)}

    def run(self, worker: int) -> None:
        """Work as this worker until no more can come and all is answered."""
        self.worker = worker
        threading.Thread(target=self.beat, name="beat", daemon=True).start()
        for thread in self.threads:
            thread.start()
        for thread in self.threads:
            thread.join()

    def beat(self) -> None:
        """Show on the board that this process lives; end it when one of its threads hangs."""
        longest = self.patience
        now = awake_since = monotonic()
        while not self.steps.hang(now, awake_since, longest):
            self.transport.beat(self.worker)
            sleep(BEAT_S)
            before, now = now, monotonic()
            if now - before > FROZEN_S:
                awake_since = now
        logger.critical("the worker hangs", extra={"seconds": longest})
        os._exit(1)

    @property
    def patience(self) -> float:
        """How long a step may take, in seconds."""
        return max(LONGEST_STEP_S, PASSES * self.pass_seconds)

    @contextmanager
    def resting(self) -> Iterator[None]:
        """This thread has a large picture: one that stands by takes its place, and it waits for those that have such.

        They are watched themselves: its waiting is no step.
        """
        self.step_aside()
        self.steps.end()
        yield
        self.steps.begin()

    def work(self) -> None:
        """Receive, decode, predict; the end of one thread by a bug is the end of the worker."""
        try:
            while items := self.next_items():
                self.decode_all(items)
                self.fill()
                while self.predict_next():
                    self.fill()
            self.step_aside()
        except BaseException:
            # Half a pipeline would keep requests and their room for ever.
            logger.critical("the worker failed", exc_info=True)
            os._exit(1)

    def next_items(self) -> list[Item]:
        """Wait for a place, unless this thread has one, then for images; who had it may have left some decoded."""
        self.steps.end()
        if not self.this_thread.has_place:
            self.places.acquire()
            self.this_thread.has_place = True
            while self.predict_next():
                pass
            self.steps.end()
        return self.transport.receive()

    def step_aside(self) -> None:
        """Let another thread have this one's place."""
        if self.this_thread.has_place:
            self.this_thread.has_place = False
            self.places.release()

    def fill(self) -> None:
        """Decode what has come meanwhile, up to a full batch, for no longer than a pass takes.

        An image that takes as long as the one before is not begun where it would take longer.
        """
        this, until = self.this_thread, monotonic() + self.filling
        while this.has_place and self.decoded.qsize() < self.batch_size and monotonic() + this.decode_seconds < until:
            if not (items := self.transport.take()):
                break
            self.decode_all(items)

    def decode_all(self, items: Iterable[Item]) -> None:
        """Decode each; what has been decoded may hold all rows, and is predicted then."""
        for item in items:
            if self.free_rows.empty():
                while self.predict_next():
                    pass
                self.steps.end()  # others may hold them still
            self.decode(item)

    def decode(self, item: Item) -> None:
        """Turn a body into pixels, or answer why not."""
        row = self.free_rows.get()
        started = self.steps.begin()
        try:
            self.refuse_unwanted(item, started)
            formats = self.formats if item.top_k != CANARY else KNOWN_FORMATS
            body = self.transport.body(item)
            taken = not item.pixels and self.engine.takes(body, formats, self.max_pixels)
            pixels = 0
            if item.pixels:
                self.engine.place(body, row)
            elif not taken:
                pixels = self.engine.decode(body, formats, self.max_pixels, row, self.resting)
        except (ImageError, DeadlineExceeded, ClientDisconnect) as error:
            self.refuse(item, row, error.code, str(error))
        except Exception:
            logger.exception("decoding failed", extra={"uid": item.uid})
            self.refuse(item, row, Internal.code, "The image could not be processed.")
        else:
            finished = monotonic()
            self.this_thread.decode_seconds = finished - started
            self.decoded.put(Decoded(item, row, body if taken else None, started, finished, pixels))

    def refuse_unwanted(self, item: Item, now: float) -> None:
        """Nothing is done for nobody."""
        if now >= item.deadline:
            raise DeadlineExceeded("The request's deadline passed before its turn came.")
        if not self.transport.wanted(item):
            raise ClientDisconnect("The client left before its turn came.")

    def refuse(self, item: Item, row: Tensor, code: str, detail: str) -> None:
        """Answer an image that leaves the queue without reaching the model."""
        self.transport.answer(item.process, [Answer(item.uid, [], code, detail)])
        self.free_rows.put(row)
        if not self.failing:
            self.transport.answered(self.worker)

    def give_back(self, rows: Iterable[Tensor]) -> None:
        """Let the rows be decoded into again."""
        for row in rows:
            self.free_rows.put(row)

    def predict_next(self) -> bool:
        """Predict a batch, if images wait for it and a pass is free; whether that was so.

        Whoever finds none free leaves its images to those who have one: they look again after giving theirs back.
        """
        if self.decoded.empty() or not self.take_pass():
            return False
        if batch := self.next_batch():
            self.predict(batch)
        with self.taking:
            self.under_way -= 1
        return True

    def take_pass(self) -> bool:
        """Take a pass if one is free; beside another, where joining pays, only for a full batch."""
        least = self.batch_size if self.joining else 1
        with self.taking:
            if self.under_way == self.engine.passes or (self.under_way and self.decoded.qsize() < least):
                return False
            self.under_way += 1
            return True

    def next_batch(self) -> list[Decoded]:
        """What is decoded and can still be answered in time, up to a full batch.

        An idle model waits for more if it was told to, but keeps half of every image's time for answering it.
        """
        batch: list[Decoded] = []
        until = 0.0
        with self.forming, suppress(Empty):
            while len(batch) < self.batch_size:
                left = until - monotonic()
                image = self.decoded.get(left > 0, max(0.0, left))
                try:
                    self.refuse_unwanted(image.item, monotonic())
                except (DeadlineExceeded, ClientDisconnect) as error:
                    self.refuse(image.item, image.row, error.code, str(error))
                    continue
                batch.append(image)
                if self.max_delay and image.item.top_k != CANARY:  # which would take a place, and tell late
                    half = image.item.accepted / 2 + image.item.deadline / 2
                    until = min(half, until or image.finished + self.max_delay)
        return batch

    def predict(self, batch: Sequence[Decoded]) -> None:
        """Predict and answer one batch; an image that the model fails on does not touch its neighbours."""
        counted = [number for number, image in enumerate(batch) if image.item.counted]
        self.metrics.add(QUEUE_DEPTH, n=-len(counted))
        started = self.steps.begin()
        results = self.results(batch, max(1, *[image.item.top_k for image in batch]))
        inference = monotonic() - started
        self.failing = all(result in OF_THE_MODEL for result in results)
        if not self.failing:
            self.transport.answered(self.worker)
        if counted and not isinstance(results[counted[0]], Failure):
            self.look_at(batch[counted[0]])
        self.give_back(image.row for image in batch)
        decode = [image.finished - image.started for image in batch]
        queue = [started - image.item.accepted - time for image, time in zip(batch, decode, strict=True)]
        if counted:
            self.metrics.observe(BATCH_SIZE, len(counted))
            for stage, seconds in ("queue", queue), ("decode", decode), ("inference", [inference] * len(batch)):
                self.metrics.observe_each(STAGE_SECONDS, [seconds[number] for number in counted], stage)
            self.count([results[number] for number in counted])
        traces = [self.transport.trace(batch[number].item) for number in counted] if self.tracing else []
        answers: dict[int, list[Answer]] = {}
        for image, result, waited, decoding in zip(batch, results, queue, decode, strict=True):
            answers.setdefault(image.item.process, []).append(answer(image.item, result, waited, decoding, inference))
        self.metrics.add(QUEUE_DEPTH, n=len(counted))  # the answers take them off
        for process, together in answers.items():
            self.transport.answer(process, together)
        if self.tracing:
            self.tracing.batch(started, inference, traces)

    def look_at(self, image: Decoded) -> None:
        """Count what an image is like: one of each batch, which costs the others nothing."""
        if self.engine.nvjpeg:  # what a GPU decodes is not seen here, and the others alone would not be like all
            return
        self.metrics.observe(BRIGHTNESS, brightness(image.row.numpy()))
        if image.pixels:
            self.metrics.observe(SIZE, sqrt(image.pixels))

    def count(self, results: Sequence[Ranking | Failure]) -> None:
        """Count what was predicted, and how surely, and what was not."""
        first = [result[0] for result in results if not isinstance(result, Failure)]
        self.metrics.add(IMAGES, n=len(first))
        self.metrics.observe_each(CONFIDENCE, [probability for _, probability in first])
        self.metrics.add(UNKNOWN, n=sum(probability < self.unknown_below for _, probability in first))
        for index, _ in first:
            self.metrics.add(PREDICTIONS, self.classes[index])
        for result in results:
            if result == NOT_FINITE:
                self.metrics.add(NONFINITE)
            elif result in (FAILED, NO_MEMORY):
                self.metrics.add(ISOLATED_FAILURES)

    def results(self, images: Sequence[Decoded], top_k: int) -> list[Ranking | Failure]:
        """For each image its `top_k` predictions, highest first, or why there are none."""
        try:
            probabilities = self.engine.predict([image.encoded or image.row for image in images])
        except Exception as error:  # whatever it is, it must not keep the neighbours' answers back
            if any(image.encoded for image in images):
                return self.results_by_cpu(images, top_k)
            if len(images) == 1:
                logger.exception("the model failed on an image")
                return [NO_MEMORY if isinstance(error, MemoryError) else FAILED]
            return self.halves(images, top_k)
        highest = probabilities.topk(min(top_k, probabilities.size(1)))
        finite = probabilities.isfinite().all(1).tolist()
        rankings = zip(highest.indices.tolist(), highest.values.tolist(), finite, strict=True)
        return [list(zip(indices, values, strict=True)) if ok else NOT_FINITE for indices, values, ok in rankings]

    def results_by_cpu(self, images: Sequence[Decoded], top_k: int) -> list[Ranking | Failure]:
        """The same, where the engine could not decode one of them: the CPU decides which, and whether it is damaged."""
        results: list[Ranking | Failure] = [FAILED] * len(images)
        good: dict[int, Decoded] = {}
        for number, image in enumerate(images):
            try:
                if image.encoded:
                    self.engine.decode(image.encoded, self.formats, self.max_pixels, image.row, self.resting)
                good[number] = image._replace(encoded=None)
            except ImageError as error:
                results[number] = Failure(error.code, str(error))
        if good:
            for number, result in zip(good, self.results(list(good.values()), top_k), strict=True):
                results[number] = result
        return results

    def halves(self, images: Sequence[Decoded], top_k: int) -> list[Ranking | Failure]:
        """The same, in two passes; if it was the size that the model failed on, batches grow no larger any more."""
        self.metrics.add(BATCH_SPLITS)
        half = len(images) - len(images) // 2
        results = self.results(images[:half], top_k) + self.results(images[half:], top_k)
        failed = any(result in (FAILED, NO_MEMORY) for result in results)
        if half < self.batch_size and not failed:
            self.batch_size = half
            logger.warning("the model fails on larger batches", extra={"batch_size": half})
        return results


def answer(item: Item, result: Ranking | Failure, queue: float, decode: float, inference: float) -> Answer:
    """The answer to one image: the predictions that it asked for, or why there are none."""
    if isinstance(result, Failure):
        return Answer(item.uid, [], *result)
    return Answer(item.uid, result[: max(1, item.top_k)], "", "", queue, decode, inference)


FAILED = Failure(Internal.code, "The model failed on this image.")
NO_MEMORY = Failure(NotReady.code, "The model ran out of memory on this image; try again.")
NOT_FINITE = Failure(NonFinite.code, "The model gave no finite probabilities for this image.")
OF_THE_MODEL = (FAILED, NO_MEMORY, NOT_FINITE)
