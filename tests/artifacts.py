"""Small artifacts for tests, saved by the real code."""

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


def save(path: Path, network: str = "simple_cnn", model: Classifier | None = None, **known: Any) -> Manifest:
    """An artifact of a seeded, untrained `network` for ten classes, or of `model`."""
    torch.manual_seed(0)
    known = {"name": "test", "classes": CLASSES} | known
    made = model or sure(classifier(network, len(known["classes"])))
    assert model is not None or network in ARCHITECTURES
    architecture = Architecture(name=network, arguments={"num_classes": len(known["classes"])})
    return artifact.save(path, made, architecture=architecture, **known)
