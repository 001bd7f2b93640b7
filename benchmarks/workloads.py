"""What is sent and what answers it: a seeded, untrained artifact and the JPEG that is posted to it."""

import base64
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from benchmarks.errors import BenchmarkError
from models import artifact
from models.architectures import ARCHITECTURES, classifier
from models.classifier import Classifier
from models.decode import decode
from models.manifest import Architecture

CLASSES = tuple(f"class-{index}" for index in range(10))
PHOTO = (500, 375)  # width and height of most hymenoptera photos, in pixels
SHARPER = 30.0  # factor on an untrained last layer, so that answers differ clearly between pictures
SMALL = "32x32 JPEG (synthetic)"


@dataclass(frozen=True)
class Workload:
    """A model file and the body posted to it; `picture` says what that is."""

    name: str
    model: Path
    body: bytes
    picture: str
    connections: Sequence[int] = (1, 16, 64, 256)

    @property
    def title(self) -> str:
        """Name, model and picture in words."""
        return f"{self.name}: {self.model.stem}, {self.picture}"


def prepare(folder: Path, names: Sequence[str]) -> list[Workload]:
    """Make the named workloads; model files go to `folder`.

    A is SimpleCNN with a 32x32 JPEG, A100k the same picture in 100 kB, B ResNet-18 with a photo. Any other name is an
    architecture, with the photo.
    """
    small = jpeg(32, 32)
    made = []
    for name in names:
        if name.startswith("A"):
            workload = Workload(name, model_file(folder, "simple_cnn"), small, SMALL)
        else:
            body, picture = photo()
            workload = Workload(name, model_file(folder, "resnet18" if name == "B" else name), body, picture)
        if name == "A100k":
            padded = small + bytes(100_000 - len(small))
            workload = replace(workload, body=padded, picture=f"{SMALL} and zeros to 100 kB", connections=(32,))
        made.append(workload)
    return made


def model_file(folder: Path, architecture: str) -> Path:
    """An artifact of a seeded, untrained network; made at most once a folder.

    Raises:
        BenchmarkError: there is no such architecture.
    """
    if architecture not in ARCHITECTURES:
        raise BenchmarkError(f"unknown workload {architecture!r}: A, A100k, B, or one of {', '.join(ARCHITECTURES)}")
    path = folder / f"{architecture}.pt"
    if not path.is_file():
        save(path, architecture)
    return path


def versions(folder: Path, architecture: str) -> list[str]:
    """Two versions of a network, which answer differently; their names, which are their files'."""
    for seed, name in enumerate(("one", "two")):
        save(folder / f"{name}.pt", architecture, seed, version=name)
    return ["one", "two"]


def save(path: Path, architecture: str, seed: int = 0, **known: Any) -> None:
    """An artifact of a seeded, untrained network."""
    built = Architecture(name=architecture, arguments={"num_classes": len(CLASSES)})
    model = seeded(architecture, seed)
    artifact.save(path, model, name=architecture, classes=CLASSES, architecture=built, **known)


def seeded(architecture: str, seed: int = 0) -> Classifier:
    """An untrained classifier, the same every time."""
    torch.manual_seed(seed)
    network = classifier(architecture, len(CLASSES))
    last = [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    with torch.no_grad():
        last.weight *= SHARPER
    return network


def photo() -> tuple[bytes, str]:
    """A 500x375 JPEG and what it is: the first of TEST_DATA/hymenoptera of that size, or else synthetic."""
    folder = Path(os.environ.get("TEST_DATA", "")) / "hymenoptera"
    for path in sorted(folder.rglob("*.jpg")):
        with Image.open(path) as image:
            if image.size == PHOTO and image.mode == "RGB":
                return path.read_bytes(), f"500x375 JPEG (photo {path.name})"
    return jpeg(*PHOTO), "500x375 JPEG (synthetic)"


def jpeg(width: int, height: int, seed: int = 0) -> bytes:
    """A seeded picture of soft colours with some grain; size in pixels."""
    random = np.random.RandomState(seed)
    field = Image.fromarray(random.randint(0, 256, (8, 8, 3)).astype(np.uint8))
    soft = np.asarray(field.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    grain = random.randint(-12, 13, (height, width, 1), dtype=np.int16)
    return encode(Image.fromarray(np.clip(soft + grain, 0, 255).astype(np.uint8)), "JPEG", quality=85)


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def json_body(body: bytes) -> bytes:
    """The body as JSON with base64, for servers that take no other."""
    return json.dumps({"image": base64.b64encode(body).decode()}).encode()


def expected(model: Path, body: bytes) -> tuple[int, float]:
    """Class index and probability that the artifact gives when it is called directly, on the CPU in fp32."""
    loaded = artifact.load(model)
    image = decode(body, input_size=loaded.manifest.input_size, crop=loaded.manifest.crop)
    with torch.no_grad():
        probabilities = loaded.module(loaded.module.preprocess(image)[None])[0]
    index = int(probabilities.argmax())
    return index, float(probabilities[index])
