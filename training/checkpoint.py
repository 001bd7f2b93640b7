"""The checkpoint of a run: the best epoch's network, readable by `torch.load(weights_only=True)`."""

from pathlib import Path

import torch

from models import archive
from models.classifier import Classifier
from training.loop import Epoch


def save(path: Path, classifier: Classifier, epoch: Epoch) -> None:
    """Write the network's state dict and the epoch's number, atomically."""
    with archive.replacing(path) as temporary:
        torch.save({"epoch": epoch.number, "network": classifier.network.state_dict()}, temporary)


def restore(path: Path, classifier: Classifier) -> int:
    """Load the network that was saved; the number of its epoch."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    classifier.network.load_state_dict(content["network"])
    return int(content["epoch"])
