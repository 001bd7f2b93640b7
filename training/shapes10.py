"""The embedded data set `shapes10`: ten kinds of drawn shapes, 32x32 RGB, with no download and no licence.

Synthetic demo data: a score on it says nothing about photos. A shape is lighter than its ground, upright to within 30
degrees, whole, and perhaps crossed by the occluder. `test-shift` differs from the other splits in hue, noise and
occlusion, so that one can watch a model get worse.

The bytes cannot drift between machines. Every random number is an integer from `numpy.random.RandomState`, whose stream
numpy has frozen (NEP 19), and everything after it is integer arithmetic that neither overflows nor rounds by itself:
fixed-point coordinates, integer shape tests, shifts. Floats occur once, in `COSINE`, where rounding takes away whatever
a libm may do to the last bit: no value lies within 1/1000 of a rounding boundary. Tests pin each split's SHA-256.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

CLASSES = ("circle", "ring", "triangle", "square", "pentagon", "star", "cross", "arrow", "crescent", "heart")
SPLITS = {"train": 5000, "val": 1000, "test": 2000, "test-shift": 2000}
SEED = 0
SIZE = 32  # pixels, each side

Bits = npt.NDArray[np.bool_]
Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Canvas = npt.NDArray[np.int16]  # (N, 3, 32, 32) grey levels, or (N, 32, 32) coverage from 0 to 64
Integers = npt.NDArray[np.int32]  # (N,) one parameter an image, or (N, 32, 32) positions
Uniform = Callable[[int, int], Integers]  # draws one integer an image, low <= value < high


class Look(NamedTuple):
    """What tells `test-shift` from the other splits; ranges are half open."""

    hue: tuple[int, int]  # degrees
    noise: tuple[int, int]  # peak, grey levels
    occluder: tuple[int, int]  # half the bar's width, 1/64 pixel


USUAL = Look(hue=(0, 230), noise=(8, 36), occluder=(16, 40))
SHIFTED = Look(hue=(230, 360), noise=(24, 72), occluder=(48, 96))

UNIT = 64  # fixed-point steps a pixel: lengths and positions are in 1/64 pixel
SIDE = SIZE * UNIT
CELLS = 64  # a stamp's side, at most 6 cells a pixel
FINE = 8  # shape tests a cell, each way
OPAQUE_BITS = 6  # coverage of a cell inside its shape: FINE * FINE = 1 << 6
BATCH = 250  # images drawn together: few enough for the processor's cache

COSINE = np.array([round(1024 * math.cos(math.radians(degree))) for degree in range(360)], np.int32)


def render(split: str) -> tuple[Pixels, Labels]:
    """Draw a split: pixels uint8 (N, 3, 32, 32) and labels int64 (N,), each class equally often, in random order."""
    count = SPLITS[split]
    random = np.random.RandomState([SEED, list(SPLITS).index(split)])
    look = SHIFTED if split == "test-shift" else USUAL
    labels = random.permutation(count).astype(np.int64) % len(CLASSES)
    stamps = draw_stamps()
    batches = [draw_images(random, look, stamps, labels[start : start + BATCH]) for start in range(0, count, BATCH)]
    return np.concatenate(batches), labels


def draw_images(random: np.random.RandomState, look: Look, stamps: Pixels, labels: Labels) -> Pixels:
    """Draw one image a label, from back to front: uint8 (N, 3, 32, 32)."""

    def uniform(low: int, high: int) -> Integers:
        return random.randint(low, high, len(labels), np.int32)

    contrast, middle = uniform(48, 160), uniform(90, 160)
    canvas = background(uniform, colour(uniform, look, middle - contrast // 2))
    for _ in range(2):  # distractors; half of them have no size
        kind, radius, turn = uniform(0, len(CLASSES)), uniform(-160, 160), uniform(0, 360)
        cover = stamp(stamps[kind], radius, turn, uniform(0, SIDE), uniform(0, SIDE))
        paint(canvas, cover, colour(uniform, look, uniform(40, 216)))

    radius, turn = uniform(SIDE * 35 // 200, SIDE * 90 // 200 + 1), uniform(-30, 31)
    x, y = (SIDE // 2 + (SIDE // 2 - radius) * uniform(-64, 65) // 64 for _ in "xy")
    paint(canvas, stamp(stamps[labels], radius, turn, x, y), colour(uniform, look, middle + contrast // 2))

    paint(canvas, bar(uniform, look), colour(uniform, look, uniform(40, 216)))
    blurred = uniform(0, 3) == 0
    canvas[blurred] = blur(canvas[blurred])
    return add_noise(random, canvas, uniform(*look.noise))


def colour(uniform: Uniform, look: Look, level: Integers) -> Canvas:
    """Colours (N, 3) around a grey level, with one of the look's hues and any saturation."""
    hue = uniform(*look.hue)[:, None] - np.array([0, 120, 240], np.int32)
    away = abs((hue + 180) % 360 - 180)  # degrees from the hue to each primary colour
    chroma = np.clip(120 - away, 0, 60) - 30
    return np.clip(level[:, None] + (chroma * uniform(0, 128)[:, None] >> 5), 0, 255).astype(np.int16)


def background(uniform: Uniform, colours: Canvas) -> Canvas:
    """Plain, a linear gradient or stripes, a third each: (N, 3, 32, 32) around the colours (N, 3)."""
    kind, strength, width = (draw[:, None, None] for draw in (uniform(0, 3), uniform(4, 20), uniform(128, 320)))
    centre = np.full(len(colours), SIDE // 2, np.int32)
    along, _ = turned(uniform(0, 360), centre, centre)
    gradient = along * strength >> 10
    stripes = (along // width % 2 * 2 - 1) * strength
    shade = gradient * (kind == 1) + stripes * (kind == 2)
    canvas: Canvas = colours[:, :, None, None] + shade[:, None].astype(np.int16)
    return canvas


def bar(uniform: Uniform, look: Look) -> Canvas:
    """Coverage (N, 32, 32) of an occluder: a bar without ends through any point of the image."""
    _, across = turned(uniform(0, 360), uniform(0, SIDE), uniform(0, SIDE))
    depth = uniform(*look.occluder)[:, None, None] - abs(across)
    cover: Canvas = np.clip(depth + UNIT // 2, 0, UNIT).astype(np.int16)
    return cover


def stamp(shapes: Pixels, radius: Integers, degrees: Integers, x: Integers, y: Integers) -> Canvas:
    """Coverage (N, 32, 32) of shapes (N, 64, 64), each turned about its centre (x, y); none where radius <= 0."""
    scale = ((CELLS // 2 << 12) // np.maximum(radius, 1))[:, None, None]
    cells = [(axis * scale >> 12) + CELLS // 2 for axis in turned(degrees, x, y)]
    column, row = (np.clip(cell, 0, CELLS - 1) for cell in cells)  # a stamp's edge is empty
    image = np.arange(len(shapes))[:, None, None]
    cover: Canvas = shapes[image, row, column].astype(np.int16) * (radius > 0)[:, None, None]
    return cover


def turned(degrees: Integers, x: Integers, y: Integers) -> tuple[Integers, Integers]:
    """Where each pixel lies on the two axes of a turned frame with its origin at (x, y): (N, 32, 32), in 1/64 pixel."""
    pixel = np.arange(SIZE, dtype=np.int32) * UNIT + UNIT // 2
    right, down = (pixel - x[:, None])[:, None, :], (pixel - y[:, None])[:, :, None]
    cos, sin = (COSINE[(degrees - quarter) % 360][:, None, None] for quarter in (0, 90))
    return right * cos + down * sin >> 10, down * cos - right * sin >> 10


def paint(canvas: Canvas, cover: Canvas, colours: Canvas) -> None:
    """Blend colours (N, 3) over the canvas, in place."""
    canvas += (colours[:, :, None, None] - canvas) * cover[:, None] >> OPAQUE_BITS


def blur(canvas: Canvas) -> Canvas:
    """Convolve with [1, 2, 1] / 4 both ways, the edges repeated."""
    padded = np.pad(canvas, ((0, 0), (0, 0), (1, 1), (1, 1)), "edge")
    rows = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    blurred: Canvas = rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:] >> 4
    return blurred


def add_noise(random: np.random.RandomState, canvas: Canvas, peak: Integers) -> Pixels:
    """Add triangular noise, the sum of two uniform ones, to each value: uint8 (N, 3, 32, 32)."""
    one, other = (random.randint(-64, 64, canvas.shape, np.int8) for _ in range(2))
    noise = (one + other) * peak.astype(np.int16)[:, None, None, None] >> 7
    return np.clip(canvas + noise, 0, 255).astype(np.uint8)


def draw_stamps() -> Pixels:
    """Every class upright, large, with an empty edge: coverage from 0 to 64, uint8 (10, 64, 64)."""
    fine = np.arange(1 - CELLS * FINE, CELLS * FINE, 2, dtype=np.int64)  # -511, -509, ..., 511
    x, y = fine[None, :], -fine[:, None]

    def disc(radius: int, right: int = 0) -> Bits:
        return (x - right) ** 2 + y**2 <= radius**2

    def box(half_width: int, low: int, high: int) -> Bits:
        return (abs(x) <= half_width) & (low <= y) & (y <= high)

    def sides(count: int, apothem: int, first: int = 270) -> Labels:
        """Of a regular polygon's sides, the first facing that many degrees: how many have a point on their inside."""
        facing = (first + 360 // count * side for side in range(count))
        tests = [x * COSINE[angle % 360] + y * COSINE[(angle - 90) % 360] <= apothem * 1024 for angle in facing]
        inside: Labels = np.sum(tests, axis=0, dtype=np.int64)
        return inside

    masks = {
        "circle": disc(420),
        "ring": disc(440) & ~disc(260),
        "triangle": sides(3, 240) == 3,
        "square": sides(4, 340) == 4,
        "pentagon": sides(5, 380) == 5,
        "star": sides(5, 150, first=90) >= 4,
        "cross": box(450, -140, 140) | box(140, -450, 450),
        "arrow": box(120, -450, 60) | ((y >= 0) & (abs(x) + y <= 460)),
        "crescent": disc(440) & ~disc(380, right=220),
        # The curve (x^2 + y^2 - 1)^3 = x^2 y^3, 360 steps a unit, moved up by 30; no term reaches 2^57.
        "heart": (x**2 + (y - 30) ** 2 - 360**2) ** 3 <= x**2 * (y - 30) ** 3 * 360,
    }
    tests = np.stack([masks[name] for name in CLASSES]).reshape(len(CLASSES), CELLS, FINE, CELLS, FINE)
    stamps: Pixels = tests.sum((2, 4), dtype=np.uint8)
    return stamps
