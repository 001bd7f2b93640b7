"""Every metric of the service, correct over all its processes (prometheus_client's multiprocess mode).

PROMETHEUS_MULTIPROC_DIR must be set before this module is imported: prometheus_client chooses its mode at import.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from models.errors import ImageError
from service.errors import AnyError, ClientDisconnect, Refused, Rejected, leaves

STAGES = ("receive", "queue", "decode", "inference", "respond")
# Geometric from 0.1 ms: an idle small model answers a stage in 0.1 ms, the longest deadline is 60 s.
STAGE_BUCKETS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
BATCH_BUCKETS = tuple(1 << power for power in range(11))
CONFIDENCE_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)

REQUESTS = Counter("darkroom_requests_total", "Requests answered", ["route", "status"])
REQUEST_SECONDS = Histogram(
    "darkroom_request_duration_seconds", "From request head to last byte of the reply", ["route"], buckets=STAGE_BUCKETS
)
STAGE_SECONDS = Histogram(
    "darkroom_stage_duration_seconds", "Time of an image in one stage", ["stage"], buckets=STAGE_BUCKETS
)
BATCH_SIZE = Histogram("darkroom_batch_size", "Images in one forward pass", buckets=BATCH_BUCKETS)
IMAGES = Counter("darkroom_images_total", "Images predicted")
IMAGES_REJECTED = Counter("darkroom_images_rejected_total", "Images and requests with unusable input", ["reason"])
REQUESTS_IN_FLIGHT = Gauge("darkroom_requests_in_flight", "Requests being answered", multiprocess_mode="livesum")
QUEUE_DEPTH = Gauge("darkroom_queue_depth", "Images accepted and not yet in a batch", multiprocess_mode="sum")
REFUSED = Counter("darkroom_refused_total", "Requests refused or out of time", ["reason"])
DISCONNECTS = Counter("darkroom_client_disconnects_total", "Clients that left before their answer")
BATCH_SPLITS = Counter("darkroom_batch_splits_total", "Batches split because the model failed on them")
ISOLATED_FAILURES = Counter("darkroom_isolated_failures_total", "Images that the model failed on alone")
NONFINITE = Counter("darkroom_nonfinite_total", "Images that the model answered with NaN or infinity")
MODEL_INFO = Gauge(
    "darkroom_model_info",
    "The model being served",
    ["name", "version", "digest", "device", "dtype"],
    multiprocess_mode="livemax",
)
PREDICTIONS = Counter("darkroom_predictions_total", "First predictions", ["class"])
CONFIDENCE = Histogram(
    "darkroom_prediction_confidence", "Probability of the first prediction", buckets=CONFIDENCE_BUCKETS
)


def announce_reasons() -> None:
    """Show every reason at zero from the first scrape on, so that rates are right from the first event."""
    for leaf in (*leaves(Rejected), *leaves(ImageError)):
        IMAGES_REJECTED.labels(leaf.code)
    for leaf in leaves(Refused):
        REFUSED.labels(leaf.code)
    for stage in STAGES:
        STAGE_SECONDS.labels(stage)


def count(error: AnyError) -> None:
    """Count what could not be answered, by its reason."""
    if isinstance(error, Rejected | ImageError):
        IMAGES_REJECTED.labels(error.code).inc()
    elif isinstance(error, Refused):
        REFUSED.labels(error.code).inc()
    if isinstance(error, ClientDisconnect):
        DISCONNECTS.inc()


def scrape() -> bytes:
    """The text exposition of all processes together; reads files, so not for the event loop."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
