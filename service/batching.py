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
from typing import TYPE_CHECKING, Any

from torch import Tensor

from models.engine import Engine, sample
from models.errors import ImageError
from models.formats import KNOWN_FORMATS
from models.statistics import brightness
from service import speed
from service.errors import ClientDisconnect, DeadlineExceeded, Internal
from service.isolation import FAILED, NO_MEMORY, NOT_FINITE, OF_THE_MODEL, Decoded, Failure, Isolation, Ranking
from service.logs import logger
from service.metrics import (
    BATCH_SIZE,
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
from service.places import Place
from service.settings import Settings
from service.steps import Steps
from service.transport import CANARY, Answer, Item, Transport

if TYPE_CHECKING:
    from service.tracing import Tracing

BEAT_S = 0.25
LONGEST_STEP_S = 5.0  # of decoding, 1.5 s at most, or a pass; beyond it a thread hangs
FROZEN_S = 1.0  # without a beat: no thread of this process ran, as when a container is paused
PASSES = 20  # how many passes of a slow model that must at least be


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
        if not expected.met:
            logger.warning("the objective cannot be met here", extra=expected.told()["objective"])
        self.isolation = Isolation(engine, metrics, expected.batch_size, self.pixels_of)
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
        self.failing_since: float | None = None  # the model, on all that it has had
        self.steps = Steps()
        self.pass_seconds = self.time_pass()
        threads = engine.passes + engine.cores
        # More threads than cores would take these from each other; but where some wait for a GPU or for a fuller
        # batch, all are at work, and the others decode beside a pass.
        all_at_work = on_gpu or self.max_delay > 0
        self.place = Place(threading.Semaphore(threads if all_at_work else engine.cores))
        self.filling = 0.0 if all_at_work else self.pass_seconds
        self.threads = [threading.Thread(target=self.work, name=f"pipeline-{number}") for number in range(threads)]

    def time_pass(self) -> float:
        """How long a full batch takes, in seconds."""
        rows = sample(self.engine, self.isolation.batch_size)
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
        self.place.leave()
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
            self.place.leave()
        except BaseException:
            # Half a pipeline would keep requests and their room for ever.
            logger.critical("the worker failed", exc_info=True)
            os._exit(1)

    def next_items(self) -> list[Item]:
        """Wait for a place, unless this thread has one, then for images; who had it may have left some decoded."""
        self.steps.end()
        if self.place.take():
            self.predict_all()
        return self.transport.receive()

    def fill(self) -> None:
        """Decode what has come meanwhile, up to a full batch, for no longer than a pass takes.

        An image that takes as long as the one before is not begun where it would take longer.
        """
        place, until = self.place, monotonic() + self.filling
        while place.held and self.decoded.qsize() < self.isolation.batch_size:
            if monotonic() + place.decode_seconds >= until or not (items := self.transport.take()):
                break
            self.decode_all(items)

    def decode_all(self, items: Iterable[Item]) -> None:
        """Decode each; what has been decoded may hold all rows, and is predicted then."""
        for item in items:
            if self.free_rows.empty():
                self.predict_all()  # others may hold them still
            self.decode(item)

    def decode(self, item: Item) -> None:
        """Turn a body into pixels, or answer why not."""
        row = self.free_rows.get()
        started = self.steps.begin()
        try:
            self.refuse_unwanted(item, started)
            body = self.transport.body(item)
            taken = not item.pixels and self.engine.takes(body, self.formats_for(item), self.max_pixels)
            pixels = 0
            if item.pixels:
                self.engine.place(body, row)
            elif not taken:
                pixels = self.pixels_of(item, body, row)
        except (ImageError, DeadlineExceeded, ClientDisconnect) as error:
            self.refuse(item, row, error.code, str(error))
        except Exception:
            logger.exception("decoding failed", extra={"uid": item.uid})
            self.refuse(item, row, Internal.code, "The image could not be processed.")
        else:
            finished = monotonic()
            self.place.decode_seconds = finished - started
            self.decoded.put(Decoded(item, row, body if taken else None, started, finished, pixels))

    def formats_for(self, item: Item) -> tuple[str, ...]:
        """The formats that are accepted; of our own images any."""
        return self.formats if item.top_k != CANARY else KNOWN_FORMATS

    def pixels_of(self, item: Item, body: memoryview, row: Tensor) -> int:
        """Decode an item's body into a row; how many pixels the image has.

        Raises:
            ImageError: the subclass says why.
        """
        return self.engine.decode(body, self.formats_for(item), self.max_pixels, row, self.resting)

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
        if self.failing_since is None:
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

    def predict_all(self) -> None:
        """Predict batch after batch while there are images and a pass is free; the next step may be to wait."""
        while self.predict_next():
            pass
        self.steps.end()

    def take_pass(self) -> bool:
        """Take a pass if one is free; beside another, where joining pays, only for a full batch."""
        least = self.isolation.batch_size if self.joining else 1
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
            while len(batch) < self.isolation.batch_size:
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
        results = self.isolation.results(batch, max(1, *[image.item.top_k for image in batch]))
        inference = monotonic() - started
        self.judge(results)
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

    def judge(self, results: Sequence[Ranking | Failure]) -> None:
        """Tell the board that images are answered; a worker whose model fails on everything for long is ended.

        A GPU answers nothing any more once an access was illegal; only another process can use it again.
        """
        now = monotonic()
        if not all(result in OF_THE_MODEL for result in results):
            self.failing_since = None
            self.transport.answered(self.worker)
        elif self.failing_since is None:
            self.failing_since = now
        elif now - self.failing_since > self.patience:
            if not self.isolation.works():
                logger.critical("the model fails on everything", extra={"seconds": now - self.failing_since})
                os._exit(1)
            self.failing_since = now  # it only got what it fails on

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


def answer(item: Item, result: Ranking | Failure, queue: float, decode: float, inference: float) -> Answer:
    """The answer to one image: the predictions that it asked for, or why there are none."""
    if isinstance(result, Failure):
        return Answer(item.uid, [], *result)
    return Answer(item.uid, result[: max(1, item.top_k)], "", "", queue, decode, inference)
