"""Every metric of the service, correct over all its processes: cells of shared memory, summed up when scraped.

A process writes cells of its own in the transport's arena, so no lock is shared, a killed process leaves its counts
behind, and counting costs half a microsecond. prometheus_client writes the exposition.
"""

import ctypes
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from models import statistics
from models.errors import ImageError
from service.errors import AnyError, ClientDisconnect, Refused, Rejected, ServiceError, leaves

DISCONNECTED = 499  # nobody read the answer; nginx's convention
OTHER_ROUTE = "other"
V2_ROUTE, V2_INFER_ROUTE = "/v2", "/v2/infer"  # all of the Open Inference Protocol's but inference; that, of any model
MODELS_ROUTE = "/models"  # and all below
ROUTES = (
    *("/predict", "/feedback", "/health", "/readyz", "/livez", "/metrics", "/info", "/", "/page", "/docs"),
    *("/openapi.json", V2_ROUTE, V2_INFER_ROUTE, MODELS_ROUTE, OTHER_ROUTE),
)
STATUSES = sorted(
    {200, 202, DISCONNECTED, *[int(leaf.status) for base in (ServiceError, ImageError) for leaf in leaves(base)]}
)
REJECTIONS = tuple(leaf.code for base in (Rejected, ImageError) for leaf in leaves(base))
REFUSALS = tuple(leaf.code for leaf in leaves(Refused))
STAGES = ("receive", "queue", "decode", "inference", "respond")
# Geometric from 0.1 ms: an idle small model answers a stage in 0.1 ms, the longest deadline is 60 s.
STAGE_BUCKETS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
BATCH_BUCKETS = tuple(1 << power for power in range(11))


@dataclass(frozen=True)
class Family:
    """A metric with the closed sets of its labels' values; `seldom` ones are shown once they have counted something."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    values: tuple[tuple[str, ...], ...] = ((),)
    buckets: Sequence[float] = ()
    gauge: bool = False
    seldom: bool = False

    @property
    def width(self) -> int:
        """Cells for one set of label values: one, or in a histogram one a bucket, one above them and the sum."""
        return len(self.buckets) + 2 if self.buckets else 1


def each(values: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """The values of a single label."""
    return tuple((value,) for value in values)


REQUESTS = Family(
    "darkroom_requests_total",
    "Requests answered",
    ("route", "status"),
    tuple((route, str(status)) for route in ROUTES for status in STATUSES),
    seldom=True,
)
REQUEST_SECONDS = Family(
    "darkroom_request_duration_seconds",
    "From request head to last byte of the reply",
    ("route",),
    each(ROUTES),
    STAGE_BUCKETS,
    seldom=True,
)
ANSWER_SECONDS = Family(
    "darkroom_answer_duration_seconds",
    "From a whole body to its predictions, where there are some: our part of a request's time",
    ("route",),
    each(("/predict", V2_INFER_ROUTE)),
    STAGE_BUCKETS,
)
STAGE_SECONDS = Family(
    "darkroom_stage_duration_seconds", "Time of an image in one stage", ("stage",), each(STAGES), STAGE_BUCKETS
)
BATCH_SIZE = Family("darkroom_batch_size", "Images in one forward pass", buckets=BATCH_BUCKETS)
IMAGES = Family("darkroom_images_total", "Images predicted")
IMAGES_REJECTED = Family(
    "darkroom_images_rejected_total", "Images and requests with unusable input", ("reason",), each(REJECTIONS)
)
REQUESTS_IN_FLIGHT = Family("darkroom_requests_in_flight", "Requests being answered", gauge=True)
# HTTP processes tell what waits for an answer, workers subtract what is in a batch.
QUEUE_DEPTH = Family("darkroom_queue_depth", "Images accepted and not yet in a batch", gauge=True)
QUEUE_BYTES = Family("darkroom_queue_bytes", "Bytes of the bodies accepted and not yet answered", gauge=True)
REFUSED = Family("darkroom_refused_total", "Requests refused or out of time", ("reason",), each(REFUSALS))
DISCONNECTS = Family("darkroom_client_disconnects_total", "Clients that left before their answer")
BATCH_SPLITS = Family("darkroom_batch_splits_total", "Batches split because the model failed on them")
ISOLATED_FAILURES = Family("darkroom_isolated_failures_total", "Images that the model failed on alone")
WORKER_RESTARTS = Family("darkroom_worker_restarts_total", "Workers lost and started again")
NONFINITE = Family("darkroom_nonfinite_total", "Images that the model answered with NaN or infinity")
UNKNOWN = Family("darkroom_unknown_total", "Images whose first prediction is below the model's unknown threshold")
PREDICTIONS = Family("darkroom_predictions_total", "First predictions", ("class",), (), seldom=True)
AGREES, DIFFERS, FAILS, SKIPPED = "agrees", "differs", "fails", "skipped"
SHADOWED = Family(
    "darkroom_shadow_images_total",
    "Images also sent to the candidate version: whether its first prediction agrees, or why there is none",
    ("outcome",),
    each((AGREES, DIFFERS, FAILS, SKIPPED)),
)
SERVING, CANDIDATE = "serving", "candidate"
SHADOW_SECONDS = Family(
    "darkroom_shadow_duration_seconds",
    "Queue, decoding and inference of images that both versions answered",
    ("role",),
    each((SERVING, CANDIDATE)),
    STAGE_BUCKETS,
)
PROMOTED, FAILED = "promoted", "failed"
SWAPS = Family(
    "darkroom_swaps_total",
    "Versions that took over, and those that could not be used",
    ("outcome",),
    each((PROMOTED, FAILED)),
)
CONFIDENCE = Family(
    "darkroom_prediction_confidence", "Probability of the first prediction", buckets=statistics.CONFIDENCE
)
BRIGHTNESS = Family(
    "darkroom_image_brightness", "Mean level of an image's pixels, of one in each batch", buckets=statistics.BRIGHTNESS
)
SIZE = Family(
    "darkroom_image_side_pixels",
    "Side of a square of as many pixels as an image has, of one in each batch",
    buckets=statistics.SIZE,
)
DRIFT = Family(
    "darkroom_drift_psi",
    "Population stability index between validation images and the window",
    ("statistic",),
    each(statistics.NAMES),
    gauge=True,
    seldom=True,
)
FEEDBACK = Family("darkroom_feedback_total", "Predictions that somebody judged", ("outcome",), each(("right", "wrong")))
KEPT = Family(
    "darkroom_kept_images_total",
    "What became of images that were to be kept",
    ("outcome",),
    each(("written", "labelled", "dropped", "failed", "removed")),
)
KEPT_BYTES = Family("darkroom_kept_bytes", "Bytes of the images that are kept", gauge=True)
DRIFT_IMAGES = Family("darkroom_drift_images", "Images predicted within the window of drift", gauge=True)
MODEL_INFO = Family(
    "darkroom_model_info", "The model being served", ("name", "version", "digest", "device", "dtype"), gauge=True
)
COUNTED = (
    REQUESTS,
    REQUEST_SECONDS,
    ANSWER_SECONDS,
    STAGE_SECONDS,
    BATCH_SIZE,
    IMAGES,
    IMAGES_REJECTED,
    REQUESTS_IN_FLIGHT,
    QUEUE_DEPTH,
    QUEUE_BYTES,
    REFUSED,
    DISCONNECTS,
    BATCH_SPLITS,
    ISOLATED_FAILURES,
    NONFINITE,
    UNKNOWN,
    WORKER_RESTARTS,
    PREDICTIONS,
    CONFIDENCE,
    SHADOWED,
    SHADOW_SECONDS,
    SWAPS,
    BRIGHTNESS,
    SIZE,
    DRIFT,
    DRIFT_IMAGES,
    FEEDBACK,
    KEPT,
    KEPT_BYTES,
)
Cells = ctypes.Array[ctypes.c_double]


class Metrics:
    """One process's counts; `cells` are given to it when the process begins."""

    cells: Cells

    def __init__(self, classes: Sequence[str]) -> None:
        """Lay out the cells: the same in every process."""
        self.families = [
            replace(family, values=each(classes)) if family is PREDICTIONS else family for family in COUNTED
        ]
        # By a family's name and its labels' values: the first cell, and a histogram's sum.
        self.places: dict[str, dict[tuple[str, ...], tuple[int, int]]] = {}
        self.size = 0
        for family in self.families:
            places = self.places[family.name] = {}
            for values in family.values:
                places[values] = self.size, self.size + family.width - 1
                self.size += family.width
        self.lock = threading.Lock()  # between the threads of one process

    def add(self, family: Family, *values: str, n: float = 1) -> None:
        """Count `n` more, of a gauge also less."""
        at, _ = self.places[family.name][values]
        with self.lock:
            self.cells[at] += n

    def set(self, family: Family, value: float, *values: str) -> None:
        """Let this process's part of a gauge have this value."""
        at, _ = self.places[family.name][values]
        self.cells[at] = value

    def observe(self, family: Family, value: float, *values: str, n: int = 1) -> None:
        """Put `value` into a histogram `n` times."""
        at, total = self.places[family.name][values]
        bucket = at + bisect_left(family.buckets, value)
        with self.lock:
            self.cells[bucket] += n
            self.cells[total] += n * value

    def observe_each(self, family: Family, values: Sequence[float], *labels: str) -> None:
        """Put every one of `values` into a histogram."""
        at, total = self.places[family.name][labels]
        buckets = [at + bisect_left(family.buckets, value) for value in values]
        with self.lock:
            for bucket in buckets:
                self.cells[bucket] += 1
            self.cells[total] += sum(values)

    def value(self, family: Family, *values: str) -> float:
        """What this process has counted."""
        return self.cells[self.places[family.name][values][0]]

    def clear_gauges(self) -> None:
        """What a lost process had under way is under way no more."""
        for family in self.families:
            if family.gauge:
                for at, _ in self.places[family.name].values():
                    self.cells[at] = 0

    def reject(self, error: AnyError) -> None:
        """Count what could not be answered, by its reason."""
        if isinstance(error, Rejected | ImageError):
            self.add(IMAGES_REJECTED, error.code)
        elif isinstance(error, Refused):
            self.add(REFUSED, error.code)
        if isinstance(error, ClientDisconnect):
            self.add(DISCONNECTS)


class Counted(NamedTuple):
    """What was counted for a model: its name, the layout of its cells, and every process's.

    The name is empty, which to Prometheus is no label, for requests that no model answers.
    """

    model: str
    metrics: Metrics
    cells: Sequence[Cells]


class Scrape(Collector):
    """All processes together, as prometheus_client wants them; of several models each has its name as a label."""

    def __init__(
        self, counted: Sequence[Counted], models: Callable[[], Iterable[Sequence[str]]], *others: Collector
    ) -> None:
        """`models` gives the label values of `MODEL_INFO` for each version served."""
        self.counted = counted
        self.models = models
        self.others = others

    def text(self) -> bytes:
        """The text exposition."""
        return generate_latest(self.registry())

    def registry(self) -> CollectorRegistry:
        """A registry that holds this and the others."""
        registry = CollectorRegistry()
        for collector in (self, *self.others):
            registry.register(collector)
        return registry

    def describe(self) -> list[Metric]:
        """Nothing: registering must not collect."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Sum up the cells."""
        several = len(self.counted) > 1
        made = [new(family, named=several) for family in COUNTED]
        for model, metrics, cells in self.counted:
            sums = [sum(column) for column in zip(*cells, strict=True)]
            at = 0
            for family, one in zip(metrics.families, made, strict=True):
                for values in family.values:
                    found = sums[at : at + family.width]
                    at += family.width
                    if any(found) or (model and not family.seldom):
                        fill(one, family, (model, *values) if several else values, found)
        yield from made
        info = new(MODEL_INFO)
        for values in set(map(tuple, self.models())):
            fill(info, MODEL_INFO, values, [1.0])
        yield info


def new(family: Family, *, named: bool = False) -> Any:
    """An empty family of prometheus_client's, of models that are `named`."""
    kind = HistogramMetricFamily if family.buckets else GaugeMetricFamily if family.gauge else CounterMetricFamily
    return kind(family.name, family.help, labels=(("model",) if named else ()) + family.labels)


def fill(made: Any, family: Family, values: Sequence[str], cells: Sequence[float]) -> None:
    """Add one set of label values."""
    if family.buckets:
        bounds = [*map(floatToGoString, family.buckets), "+Inf"]
        made.add_metric(values, list(zip(bounds, accumulate(cells[:-1]), strict=True)), cells[-1])
    else:
        made.add_metric(values, cells[0])
