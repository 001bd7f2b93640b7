"""An artifact that misbehaves for marked pictures, those of one plain colour; others get their usual answer."""

from enum import Enum
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.workloads import CLASSES, encode, seeded
from models import artifact
from models.architectures import ARCHITECTURES
from models.classifier import Classifier
from models.manifest import Architecture

SIZE = 64  # pixels of a marked picture's side


class Mark(Enum):
    """What the model does for a plain picture of this colour."""

    NONFINITE = (0, 0, 255)  # its answer is NaN
    RAISES = (0, 255, 0)
    CROWDED = (0, 255, 255)  # fails for more than four pictures at once, as if memory were short
    HANGS = (255, 0, 0)  # never ends
    MEMORY = (255, 0, 255)  # asks for more memory than there can be

    @property
    def body(self) -> bytes:
        """The picture as PNG."""
        return encode(Image.new("RGB", (SIZE, SIZE), self.value), "PNG")


class Marked(nn.Module):
    """A network for pixels normalised to -1..1 that looks out for marks first."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """float32 (N, 3, S, S) to logits (N, K)."""
        flat = x.flatten(2)
        first = flat[:, :, 0]
        plain = (flat.amax(2) - flat.amin(2)).amax(1) < 0.01
        plain = torch.logical_and(plain, first.abs().amin(1) > 0.99)
        high = (first > 0).int()
        colour = torch.where(plain, high[:, 0] * 4 + high[:, 1] * 2 + high[:, 2], torch.zeros_like(high[:, 0]))
        if bool((colour == 2).any()):
            raise RuntimeError("a marked picture")
        if x.size(0) > 4 and bool((colour == 3).any()):
            raise RuntimeError("out of memory: a crowd with a marked picture")
        while bool((colour == 4).any()):
            x = torch.sin(x)  # what changes nothing would be optimised away
        wanted = int((colour == 5).sum().item())
        if wanted > 0:
            x = x + torch.zeros([wanted << 50], device=x.device).sum()
        logits: Tensor = self.network(x)
        return torch.where((colour == 1).unsqueeze(1), torch.full_like(logits, float("nan")), logits)


def model_file(folder: Path, architecture: str = "simple_cnn") -> Path:
    """The artifact; made at most once a folder."""
    path = folder / f"marked_{architecture}.pt"
    if not path.is_file():
        usual, entry = seeded(architecture), ARCHITECTURES[architecture]
        model = Classifier(
            Marked(usual.network), input_size=usual.input_size, crop=entry.crop, mean=entry.mean, std=entry.std
        )
        known = Architecture(name=architecture, arguments={"num_classes": len(CLASSES)})
        artifact.save(path, model, name="marked", classes=CLASSES, architecture=known)
    return path
