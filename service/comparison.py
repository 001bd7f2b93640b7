"""What the version that answers and the one that is only compared made of the same images."""

from collections.abc import Sequence

from service.metrics import AGREES, CANDIDATE, DIFFERS, FAILS, SERVING, SHADOW_SECONDS, SHADOWED, Metrics
from service.transport import Answer


def compare(metrics: Metrics, served: Sequence[Answer], shadow: Sequence[Answer]) -> None:
    """Count where their first predictions agree, and how long both took: queue, decoding and inference, seconds."""
    for one, other in zip(served, shadow, strict=True):
        if not one.predictions:
            continue  # it was no image, or nobody waited for its answer
        metrics.add(SHADOWED, outcome(one, other))
        if other.predictions:
            for role, answer in (SERVING, one), (CANDIDATE, other):
                metrics.observe(SHADOW_SECONDS, answer.queue + answer.decode + answer.inference, role)


def outcome(served: Answer, shadow: Answer) -> str:
    """How the candidate's answer compares."""
    if not shadow.predictions:
        return FAILS
    return AGREES if served.predictions[0][0] == shadow.predictions[0][0] else DIFFERS
