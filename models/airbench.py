"""The networks of airbench, which learn CIFAR-10 faster than any others known (Jordan 2024, arXiv 2404.00498).

What makes them quick to train: a first convolution that whitens patches and is computed from the data, convolutions
that begin as the identity, batch normalisation without a scale, and a small head.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

PATCH = 2  # side of the patches that are whitened, px
EPSILON = 5e-4  # added to their variances


class Airbench(nn.Module):
    """Float images (N, 3, S, S), S >= 28, to logits (N, num_classes).

    Three groups of `depth` convolutions each, of `widths` channels, at a half, a quarter and an eighth of the size.
    """

    def __init__(self, num_classes: int = 10, widths: Sequence[int] = (64, 256, 256), depth: int = 2) -> None:
        super().__init__()
        whitened = 2 * 3 * PATCH**2
        self.whiten = nn.Conv2d(3, whitened, PATCH)
        self.whiten.weight.requires_grad_(False)
        channels = [whitened, *widths]
        self.groups = nn.Sequential(*[Group(channels[i], width, depth) for i, width in enumerate(widths)])
        self.head = nn.Linear(widths[-1], num_classes, bias=False)
        self.scale = 1 / 9  # of the logits

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of normalised images (N, 3, S, S)."""
        features = self.groups(functional.gelu(self.whiten(images)))
        logits: Tensor = self.head(functional.adaptive_max_pool2d(features, 1).flatten(1)) * self.scale
        return logits

    @torch.no_grad()
    def begin(self, batches: Iterable[Tensor]) -> None:
        """Set the first convolution so that patches of normalised images come out uncorrelated, of variance 1.

        The images come in `batches` float (N, 3, S, S), for their patches take many times their own memory. Its
        filters are the eigenvectors of the patches' covariance over the roots of their eigenvalues, each with both
        signs, for the activation keeps only one.
        """
        products, count = torch.zeros((3 * PATCH**2, 3 * PATCH**2), dtype=torch.double), 0
        for images in batches:
            windows = images.unfold(2, PATCH, 1).unfold(3, PATCH, 1)
            patches = windows.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2).double()
            products += (patches.T @ patches).cpu()
            count += len(patches)
        values, vectors = torch.linalg.eigh(products / count)
        filters = (vectors / (values + EPSILON).sqrt()).T.flip(0).reshape(-1, 3, PATCH, PATCH)
        self.whiten.weight.copy_(torch.cat([filters, -filters]))


class Group(nn.Module):
    """`depth` times convolve, normalise and GELU, with a halving within the first; from three on, with a residual."""

    def __init__(self, channels_in: int, channels_out: int, depth: int) -> None:
        super().__init__()
        halve = nn.MaxPool2d(2)
        self.first = nn.Sequential(
            convolution(channels_in, channels_out), halve, normalisation(channels_out), nn.GELU()
        )
        more: list[nn.Module] = []
        for _ in range(depth - 1):
            more += [nn.GELU(), convolution(channels_out, channels_out), normalisation(channels_out)]
        self.rest = nn.Sequential(*more[1:])
        self.residual = depth > 2

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels_in, S, S) to (N, channels_out, S // 2, S // 2)."""
        first = self.first(x)
        rest = self.rest(first)
        return functional.gelu(first + rest if self.residual else rest)


def convolution(channels_in: int, channels_out: int) -> nn.Conv2d:
    """A 3x3 convolution that begins as the identity on its first `channels_in` channels (Dirac initialisation)."""
    conv = nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1, bias=False)
    nn.init.dirac_(conv.weight[: min(channels_in, channels_out)].detach())
    return conv


def normalisation(channels: int) -> nn.BatchNorm2d:
    """Batch normalisation with quick statistics and without a scale."""
    norm = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4)
    norm.weight.requires_grad_(False)
    return norm
