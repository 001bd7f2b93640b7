"""The embedded data set: the same bytes everywhere, balanced, disjoint."""

import hashlib
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from training import shapes10
from training.shapes10 import CLASSES, SPLITS, Labels, Pixels

SHA256 = {
    "train": "071ece54546bb90f2ee9d032c5b55787d2b7c19fc6c2ebf808c0e21beae5c2ed",
    "val": "1e506da5051f7b69d640f41c6c8b0df97c0862e50a4200fd87e6669617dbb792",
    "test": "1b5af68968fc4a3b76e7c2d0cad4a64cb0d64b4292909a46c57751b2255b67e1",
    "test-shift": "eb2638a39b62e023747c75ebbd7f5285a9e8f0e5d4b325248c2328b585e934cb",
}
LABELS_SHA256 = {
    "train": "f1320bf339bc1820c710eed17de7bb7c59bf66a24119b8c6b55273d2224c48c1",
    "val": "8ef7dad663e8ce292341c7bd84238f1062d70f367a8a819da03384beddef5c93",
    "test": "24683b633dabd90f2f99385448c051ce4cd979eb4051ac3707d91d894e64cdc6",
    "test-shift": "c9771b750806eab1d7bcf733c3599f10b8f00c55ed106b30fa0733892eef78eb",
}


@pytest.fixture(scope="module")
def rendered() -> dict[str, tuple[Pixels, Labels]]:
    return {split: shapes10.render(split) for split in SPLITS}


@pytest.mark.parametrize("split", SPLITS)
def test_every_split_has_its_pinned_bytes(rendered: dict[str, tuple[Pixels, Labels]], split: str) -> None:
    pixels, labels = rendered[split]

    assert SHA256[split] == hashlib.sha256(pixels.tobytes()).hexdigest()
    assert LABELS_SHA256[split] == hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest()


@pytest.mark.parametrize(("split", "count"), SPLITS.items())
def test_every_split_has_its_size_and_types(rendered: dict[str, tuple[Pixels, Labels]], split: str, count: int) -> None:
    pixels, labels = rendered[split]

    assert ((count, 3, 32, 32), np.uint8) == (pixels.shape, pixels.dtype.type)
    assert ((count,), np.int64) == (labels.shape, labels.dtype.type)


@pytest.mark.parametrize(("split", "count"), SPLITS.items())
def test_every_class_is_equally_frequent(rendered: dict[str, tuple[Pixels, Labels]], split: str, count: int) -> None:
    _, labels = rendered[split]

    assert [count // len(CLASSES)] * len(CLASSES) == np.bincount(labels).tolist()


def test_no_image_occurs_twice_in_or_between_splits(rendered: dict[str, tuple[Pixels, Labels]]) -> None:
    images = {image.tobytes() for pixels, _ in rendered.values() for image in pixels}

    assert sum(SPLITS.values()) == len(images)


def test_a_fresh_process_draws_the_same() -> None:
    script = "import hashlib; from training.shapes10 import render; print(hashlib.sha256(render('val')[0]).hexdigest())"
    root = Path(shapes10.__file__).parents[1]
    answer = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)

    assert SHA256["val"] == answer.stdout.strip()


def test_drawing_leaves_the_global_random_state_alone() -> None:
    np.random.seed(7)
    expected = np.random.randint(1 << 30)
    np.random.seed(7)
    shapes10.render("val")

    assert expected == np.random.randint(1 << 30)


def test_no_cosine_is_near_a_rounding_boundary() -> None:
    distances = [abs(1024 * math.cos(math.radians(degree)) % 1 - 0.5) for degree in range(360)]

    assert min(distances) > 1e-3


def test_every_stamp_has_an_empty_edge() -> None:
    stamps = shapes10.draw_stamps()
    inner = np.zeros_like(stamps)
    inner[:, 1:-1, 1:-1] = stamps[:, 1:-1, 1:-1]

    np.testing.assert_array_equal(stamps, inner)
    assert [64] * len(CLASSES) == inner.max((1, 2)).tolist()


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(KeyError, match="holiday"):
        shapes10.render("holiday")
