"""Small artifacts for tests, written by the real code."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from models import artifact
from models.architectures import ARCHITECTURES, classifier
from models.classifier import Classifier
from models.manifest import Architecture, Manifest

CLASSES = tuple(f"class-{index}" for index in range(10))


def sure(network: Classifier, factor: float = 30.0) -> Classifier:
    """An untrained classifier whose answers differ clearly between pictures: its last layer made larger."""
    last = [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    with torch.no_grad():
        last.weight *= factor
    return network


def always(index: int, classes: int = len(CLASSES)) -> Classifier:
    """A network that sees one class in everything."""
    network = classifier("simple_cnn", classes)
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(8.0 * nn.functional.one_hot(torch.tensor(index), classes))
    return network


def write(path: Path, network: str = "simple_cnn", model: Classifier | None = None, **known: Any) -> Manifest:
    """An artifact of a seeded, untrained `network` for ten classes, or of `model`; not proved, which takes long."""
    path.parent.mkdir(parents=True, exist_ok=True)
    manifest, _ = artifact.write(path, **made(network, model, known))
    return manifest


def save(path: Path, network: str = "simple_cnn", model: Classifier | None = None, **known: Any) -> Manifest:
    """The same, proved by a process of its own."""
    return artifact.save(path, **made(network, model, known))


def made(network: str, model: Classifier | None, known: dict[str, Any]) -> dict[str, Any]:
    """What such an artifact is of."""
    torch.manual_seed(0)
    known = {"name": "test", "classes": CLASSES} | known
    assert model is not None or network in ARCHITECTURES
    architecture = Architecture(name=network, arguments={"num_classes": len(known["classes"])})
    network_itself = model or sure(classifier(network, len(known["classes"])))
    return known | {"classifier": network_itself, "architecture": architecture}
