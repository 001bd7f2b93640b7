"""Small folders of real picture files, and one finished training run that several tests look at."""

import contextlib
import io
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from training.__main__ import main

Layout = Mapping[str, int]  # class folder, perhaps below a split's: how many pictures
PhotoFolder = Callable[..., Path]
# Quick, and still learns the colours below.
QUICK = ["--arch", "compact_cnn", "--input-size", "16", "--batch-size", "16", "--workers", "0", "--device", "cpu"]
COLOURS = {"blue": (40, 60, 200), "green": (50, 190, 60), "red": (200, 50, 40)}
SPLITS = {f"{split}/{kind}": n for split, n in (("train", 24), ("val", 10), ("test", 12)) for kind in COLOURS}


def paint(folder: Path, layout: Layout) -> Path:
    """Write noisy pictures in about the colour that their class names, alternately JPEG and PNG, of several sizes."""
    random = np.random.RandomState(len(layout))
    for place, count in layout.items():
        (folder / place).mkdir(parents=True)
        colour = np.array(COLOURS.get(place.split("/")[-1], (128, 128, 128)))
        for index in range(count):
            height, width = random.randint(17, 40, 2)
            pixels = np.clip(colour + random.normal(0, 60, (height, width, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / place / f"{index:03}.{('jpg', 'png')[index % 2]}")
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """On a busy machine two threads wait for each other longer than these small tensors take one."""
    torch.set_num_threads(1)


@pytest.fixture
def photos(tmp_path: Path) -> PhotoFolder:
    """Make a folder `photos` with the given pictures a class."""

    def make(layout: Layout | None = None) -> Path:
        return paint(tmp_path / "photos", layout or {"blue": 12, "green": 12, "red": 12})

    return make


@dataclass(frozen=True)
class Run:
    """What `train` left behind."""

    folder: Path
    photos: Path
    artifact: Path
    output: str

    @property
    def metrics(self) -> dict[str, Any]:
        """The run's metrics.json."""
        document: dict[str, Any] = json.loads((self.folder / "reports" / "metrics.json").read_text())
        return document


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run of `train` on a folder with train/, val/ and test/."""
    root = tmp_path_factory.mktemp("trained")
    photos = paint(root / "photos", SPLITS)
    shutil.copy(photos / "test" / "red" / "000.jpg", photos / "test" / "blue" / "000.jpg")  # a label that is wrong
    run, artifact = root / "run", root / "artifacts" / "model.pt"
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert main(["--data", str(photos), "--epochs", "4", "--out", str(artifact), "--run", str(run), *QUICK]) == 0
    return Run(run, photos, artifact, output.getvalue())
