"""What a model's images and answers are like, in bins: counted on validation images, and again where it serves.

    classes      the first prediction
    confidence   its probability
    brightness   the mean level of the pixels that the network sees, 0 to 255
    size         the side of a square of as many pixels as the encoded image has

How far two such counts are apart is told by the population stability index (Siddiqi 2006, Credit Risk Scorecards: below
0.1 no change, above 0.25 a large one). Imports nothing, so that every process may.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from math import log
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NAMES = ("classes", "confidence", "brightness", "size")
# Upper bounds of the bins; one bin more has what is above them.
CONFIDENCE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
BRIGHTNESS = tuple(float(level) for level in range(16, 256, 16))
SIZE = tuple(float(round(2 ** (quarter / 4))) for quarter in range(17, 54, 2))  # half octaves, with 32, 64, ... in them
ROWS = 16  # of an image, that its brightness is measured on, in 4 us for 32 px and 7 us for 224 px
SMOOTHING = 0.5  # of an image in every bin, so that an empty one has no infinite logarithm (Jeffreys' prior)
# Without any change the index is (1 / n + 1 / m) of a chi-square of bins - 1 (Yurdakul 2018, Statistical Properties of
# Population Stability Index). As long as it is no more than this in the mean, 0.25 is three deviations away.
NOISE = 0.1


def brightness(pixels: "NDArray[np.uint8]") -> float:
    """The mean level of every so many rows of uint8 (S, S, 3)."""
    step = max(1, len(pixels) // ROWS)
    rows = pixels[step // 2 :: step]
    return float(rows.sum(dtype="uint32")) / rows.size


def binned(values: Iterable[float], edges: Sequence[float]) -> tuple[int, ...]:
    """How many of `values` are in each bin."""
    counts = [0] * (len(edges) + 1)
    for value in values:
        counts[bisect_left(edges, value)] += 1
    return tuple(counts)


def drift(expected: Sequence[float], found: Sequence[float]) -> float | None:
    """The population stability index between counts over the same bins; None where chance alone could make it large."""
    used = [(a, b) for a, b in zip(expected, found, strict=True) if a or b]
    m, n = sum(expected), sum(found)
    if not m or not n or (len(used) - 1) * (1 / m + 1 / n) > NOISE:
        return None
    m, n = m + SMOOTHING * len(used), n + SMOOTHING * len(used)
    shares = [((a + SMOOTHING) / m, (b + SMOOTHING) / n) for a, b in used]
    return sum((q - p) * log(q / p) for p, q in shares)
