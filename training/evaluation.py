"""Evaluation: what a model answers on a split, and how right it is."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from models.manifest import Accuracy
from training.data import Split

BATCH = 64  # images; bounds memory, not a choice of the recipe
Z = 1.959963984540054  # the normal distribution's 97.5 % quantile, for 95 % intervals


@torch.no_grad()
def answers(model: Callable[[Tensor], Tensor], split: Split, device: torch.device) -> Tensor:
    """What `model` makes of every image in order: float32 (N, K), on the CPU."""
    return torch.cat([model(pixels.to(device)).cpu() for pixels, _ in split.batches(BATCH)])


def accuracy(correct: int, n: int) -> Accuracy:
    """The share of `n` classified right, with its 95 % interval."""
    return Accuracy(value=correct / n, n=n, interval=wilson(correct, n))


def wilson(correct: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927, JASA 22, 209-212)."""
    share, weight = correct / n, Z * Z / n
    centre = share + weight / 2
    reach = Z * math.sqrt(share * (1 - share) / n + weight / (4 * n))
    low, high = (centre - reach) / (1 + weight), (centre + reach) / (1 + weight)
    # At 0 and n right the interval ends exactly there; rounding may miss it by a bit.
    return (0.0 if correct == 0 else max(0.0, low), 1.0 if correct == n else min(1.0, high))


def confusion(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """How often each label (row) was answered with each class (column): int64 (K, K)."""
    return torch.bincount(labels * num_classes + predicted, minlength=num_classes**2).view(num_classes, num_classes)
