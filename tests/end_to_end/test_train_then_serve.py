"""The whole path: a model trained by the real command, served by the real service, answers as the trainer measured."""

import base64
import csv
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from numpy.typing import NDArray
from PIL import Image
from torchvision.datasets import CIFAR10
from torchvision.models import SqueezeNet1_0_Weights

from models import manifest
from tests.pictures import encode
from tests.running import Service, predictions, serving
from training import shapes10

pytestmark = pytest.mark.slow
TOGETHER = 25  # images in one request


@dataclass
class Trained:
    """An artifact and the report of its training."""

    model: Path
    report: dict[str, Any]

    def correct(self, split: str) -> int:
        """How many images of a split the trainer's model got right."""
        return int(self.report["accuracy"][split]["correct"])


def train(folder: Path, *flags: str) -> Trained:
    """`python -m training` with its files in `folder`."""
    model, run = folder / "model.pt", folder / "run"
    command = [sys.executable, "-m", "training", *flags, "--out", str(model), "--run", str(run)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return Trained(model, json.loads((run / "reports" / "metrics.json").read_text()))


def served(service: Service, bodies: Sequence[bytes]) -> list[int]:
    """The class indices answered for all bodies, 32 in flight; anything but 200 fails."""
    replies = service.post_together(bodies)
    assert {200} == {reply.status_code for reply in replies}
    return [int(predictions(reply)[0]["index"]) for reply in replies]


def served_together(service: Service, bodies: Sequence[bytes]) -> list[int]:
    """The same, `TOGETHER` images a request."""
    encoded = [base64.b64encode(body).decode() for body in bodies]
    groups = [encoded[start : start + TOGETHER] for start in range(0, len(encoded), TOGETHER)]
    with ThreadPoolExecutor(8) as pool:
        replies = list(
            pool.map(
                lambda images: requests.post(f"{service.url}/predict", json={"images": images}, timeout=60), groups
            )
        )
    assert {200} == {reply.status_code for reply in replies}
    return [int(result["predictions"][0]["index"]) for reply in replies for result in reply.json()["results"]]


def as_png(images: NDArray[Any]) -> list[bytes]:
    """PNG files of uint8 (N, H, W, 3)."""
    return [encode(Image.fromarray(image)) for image in images]


def test_all_shapes10_test_images_over_http_give_the_trainers_accuracy(tmp_path: Path) -> None:
    trained = train(tmp_path, "--data", "shapes10", "--recipe", "demo")
    images, labels = shapes10.render("test")
    with serving(trained.model) as service:
        found = served(service, as_png(images.transpose(0, 2, 3, 1)))
        mean_batch = len(found) / service.sample("darkroom_batch_size_count")
        sample = service.post((tmp_path / "sample.png").read_bytes())

    assert trained.correct("test") == sum(index == label for index, label in zip(found, labels, strict=True))
    assert trained.correct("test") >= 0.94 * len(labels)
    assert mean_batch > 1
    assert predictions(sample)[0]["class"] in shapes10.CLASSES


def test_cifar10_test_images_over_http_give_the_trainers_accuracy(tmp_path: Path, test_data: Path) -> None:
    subprocess.run([sys.executable, str(test_data / "unpack_cifar10.py"), str(tmp_path)], check=True)
    flags = [
        "--data",
        "cifar10",
        "--data-dir",
        str(tmp_path),
        "--recipe",
        "tutorial",
        "--epochs",
        "1",
        "--batch-size",
        "128",
    ]
    trained = train(tmp_path, *flags)
    test = CIFAR10(tmp_path, train=False)
    with serving(trained.model) as service:
        found = served_together(service, as_png(test.data))

    assert trained.correct("test") == sum(index == label for index, label in zip(found, test.targets, strict=True))
    assert trained.correct("test") > 4000


def test_a_real_folder_is_fine_tuned_and_served(tmp_path: Path, test_data: Path) -> None:
    weights = next((test_data / "weights").glob("*.pth"))
    flags = ["--arch", "squeezenet1_0", "--weights", str(weights), "--epochs", "1", "--input-size", "128"]
    trained = train(tmp_path, "--data", str(test_data / "hymenoptera"), "--recipe", "finetune", *flags)
    files = sorted((test_data / "hymenoptera" / "val").glob("*/*.jpg"))
    classes = manifest.read(trained.model).classes
    with serving(trained.model) as service:
        found = served(service, [file.read_bytes() for file in files])

    assert ("ants", "bees") == classes
    assert trained.correct("validation") == sum(
        classes[index] == file.parent.name for index, file in zip(found, files, strict=True)
    )


def test_real_photos_are_classified_by_exported_imagenet_weights(tmp_path: Path, test_data: Path) -> None:
    weights = next((test_data / "weights").glob("*.pth"))
    (tmp_path / "classes.txt").write_text("\n".join(SqueezeNet1_0_Weights.IMAGENET1K_V1.meta["categories"]))
    flags = ["--weights", str(weights), "--classes", str(tmp_path / "classes.txt"), "--out", str(tmp_path / "model.pt")]
    subprocess.run([sys.executable, "-m", "training", "export", "--arch", "squeezenet1_0", *flags], check=True)
    photos = list(csv.DictReader(io.StringIO((test_data / "photos" / "labels.csv").read_text())))
    with serving(tmp_path / "model.pt") as service:
        found = served(service, [(test_data / "photos" / photo["file"]).read_bytes() for photo in photos])

    right = sum(index == int(photo["imagenet_index"]) for index, photo in zip(found, photos, strict=True))
    assert right >= 0.5 * len(photos)
