"""The one table of architectures. A new entry is tested by existing: the tests run over the table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from models.airbench import Airbench
from models.classifier import Classifier
from models.compact_cnn import CompactCNN
from models.simple_cnn import SimpleCNN, simple_cnn_sequential

Triple = tuple[float, float, float]
HALF: Triple = (0.5, 0.5, 0.5)
# Channel means and deviations of ImageNet's training images, as torchvision's weights expect them.
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Architecture:
    """How to build a network and what its pictures look like.

    `build(num_classes=K, **arguments)` gives an nn.Module from float32 (N, 3, S, S) to logits (N, K); S is
    `input_size`, or any from `smallest` on where that is set. `weights` names torchvision's pretrained weights.
    """

    build: Callable[..., nn.Module]
    input_size: int
    smallest: int | None = None
    crop: float = 1.0
    mean: Triple = HALF
    std: Triple = HALF
    weights: str | None = None


def backbone(name: str, weights: str) -> Architecture:
    """A torchvision network of the ImageNet family, 224 px."""
    return Architecture(partial(from_torchvision, name), 224, 32, 0.875, IMAGENET_MEAN, IMAGENET_STD, weights)


def from_torchvision(name: str, **arguments: Any) -> nn.Module:
    import torchvision  # takes three times as long as torch itself; most runs need none of it

    network: nn.Module = torchvision.models.get_model(name, **arguments)
    return network


ARCHITECTURES: Mapping[str, Architecture] = {
    "simple_cnn": Architecture(SimpleCNN, 32),
    "simple_cnn_sequential": Architecture(simple_cnn_sequential, 32),
    "compact_cnn": Architecture(CompactCNN, 32, 16),
    "airbench93": Architecture(partial(Airbench, widths=(64, 128, 128)), 32, 28),
    "airbench94": Architecture(partial(Airbench, widths=(64, 256, 256)), 32, 28),
    "airbench95": Architecture(partial(Airbench, widths=(128, 384, 384)), 32, 28),
    "airbench96": Architecture(partial(Airbench, widths=(128, 384, 512), depth=3), 32, 28),
    "resnet18": backbone("resnet18", "ResNet18_Weights.IMAGENET1K_V1"),
    "resnet50": backbone("resnet50", "ResNet50_Weights.IMAGENET1K_V2"),
    "efficientnet_b0": backbone("efficientnet_b0", "EfficientNet_B0_Weights.IMAGENET1K_V1"),
    "mobilenet_v3_small": backbone("mobilenet_v3_small", "MobileNet_V3_Small_Weights.IMAGENET1K_V1"),
    "squeezenet1_0": backbone("squeezenet1_0", "SqueezeNet1_0_Weights.IMAGENET1K_V1"),
    "convnext_tiny": backbone("convnext_tiny", "ConvNeXt_Tiny_Weights.IMAGENET1K_V1"),
}


def classifier(name: str, num_classes: int, *, input_size: int | None = None, **arguments: Any) -> Classifier:
    """A freshly initialised Classifier for `num_classes` classes.

    Raises:
        ValueError: no such architecture, or it cannot take this input size.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {name!r}; known: {', '.join(ARCHITECTURES)}")
    entry = ARCHITECTURES[name]
    size = input_size or entry.input_size
    if size != entry.input_size and (entry.smallest is None or size < entry.smallest):
        takes = f"{entry.smallest} px or more" if entry.smallest else f"{entry.input_size} px only"
        raise ValueError(f"{name} takes pictures of {takes}, not {size} px")
    network = entry.build(num_classes=num_classes, **arguments)
    return Classifier(network, input_size=size, crop=entry.crop, mean=entry.mean, std=entry.std)


def head_of(network: nn.Module) -> str:
    """How the names of the last layer's parameters begin, which alone knows the classes."""
    return list(network.state_dict())[-1].rpartition(".")[0] + "."


def load_pretrained(network: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Load pretrained `weights` into `network`; a head made for other classes keeps its fresh initialisation.

    Returns the names that were left fresh: none, or those of the last layer.

    Raises:
        ValueError: the weights are not of this architecture.
    """
    own = network.state_dict()
    head = head_of(network)
    fresh = [key for key, value in own.items() if key in weights and weights[key].shape != value.shape]
    strange = sorted(own.keys() ^ weights.keys()) + [key for key in fresh if not key.startswith(head)]
    if strange:
        raise ValueError(
            f"the weights are of another architecture: {len(strange)} names or shapes differ, e.g. {strange[0]}"
        )
    network.load_state_dict({key: own[key] if key in fresh else value for key, value in weights.items()})
    return fresh
