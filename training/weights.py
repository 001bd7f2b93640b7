"""Classifiers and their weights: pretrained ones, from a file or torchvision's registry, and a run's checkpoint."""

import io
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from models import architectures, archive
from models.classifier import Classifier
from training.errors import TrainingError
from training.recipe import Recipe


def build(recipe: Recipe, num_classes: int) -> Classifier:
    """The recipe's classifier, with its pretrained weights if it names any."""
    classifier = untrained(recipe.arch, num_classes, recipe.input_size)
    if recipe.weights:
        path = Path(recipe.weights)
        is_file = path.suffix or path.exists()
        state = from_file(path) if is_file else from_registry(recipe.weights, recipe.arch)
        load(classifier, state, recipe.arch, recipe.weights)
    return classifier


def untrained(arch: str, num_classes: int, input_size: int | None) -> Classifier:
    try:
        return architectures.classifier(arch, num_classes, input_size=input_size)
    except ValueError as error:
        raise TrainingError(f"--arch: {error}") from None


def load(classifier: Classifier, state: Mapping[str, Tensor], arch: str, told: str) -> list[str]:
    """Load weights into the network; the names that were made for other classes and left fresh."""
    try:
        return architectures.load_pretrained(classifier.network, state)
    except ValueError as error:
        raise TrainingError(f"--weights {told} do not fit --arch {arch}: {error}") from None


def from_file(path: Path) -> Mapping[str, Tensor]:
    """A plain state dict, or the one of a run's checkpoint."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise TrainingError(f"--weights {path}: {error.strerror or error}") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError):
        raise TrainingError(f"--weights {path}: no file of weights (torch.save of a state dict)") from None
    if isinstance(content, dict) and isinstance(content.get("network"), dict):
        content = content["network"]
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise TrainingError(f"--weights {path}: no state dict; save one with torch.save(network.state_dict(), FILE)")
    return content


def from_registry(name: str, arch: str) -> Mapping[str, Tensor]:
    """Weights from torchvision; DEFAULT is the one that `models.architectures` names."""
    standard = architectures.ARCHITECTURES[arch].weights
    if standard is None:
        raise TrainingError(f"--weights {name}: no such file, and {arch} has no pretrained weights in torchvision")
    import torchvision  # takes seconds

    registry = torchvision.models.get_model_weights(arch)
    known = [entry.name for entry in registry]
    if name not in ("DEFAULT", *known):
        raise TrainingError(f"--weights {name}: no such file; torchvision has DEFAULT, {', '.join(known)} for {arch}")
    entry = torchvision.models.get_weight(standard) if name == "DEFAULT" else registry[name]
    try:
        return dict(entry.get_state_dict(progress=sys.stderr.isatty(), check_hash=True))
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong hash is a RuntimeError
        raise TrainingError(f"{entry.url} cannot be fetched ({error}); give the file by --weights FILE") from None


def save_checkpoint(path: Path, network: Mapping[str, Tensor], epoch: int) -> None:
    """Write the network's state dict and the epoch's number, atomically; `torch.load(weights_only=True)` reads it."""
    torch.save({"epoch": epoch, "network": dict(network)}, buffer := io.BytesIO())  # whose errors are no OSErrors
    with archive.replacing(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
