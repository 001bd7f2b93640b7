"""Calibration: one temperature, so that a probability of 0.9 is right nine times in ten.

Guo et al. 2017, On Calibration of Modern Neural Networks, arXiv 1706.04599.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

BINS = 15  # as Guo et al.
# Few validation images that are all classified right would ask for a temperature of zero, and none right for infinity.
LOWEST, HIGHEST = 0.25, 20.0
STEPS = 50  # halvings: the interval ends below float32's resolution


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature at which logits float32 (N, K) have the least negative log-likelihood; never worse than 1.

    The likelihood is convex in 1 / temperature, so the zero of its slope is found by halving.
    """
    scores = logits.double()
    target = scores.gather(1, labels[:, None]).squeeze(1)

    def slope(inverse: float) -> float:
        """Of the mean negative log-likelihood: expected score minus the label's."""
        return float(((scores * inverse).softmax(1).mul(scores).sum(1) - target).mean())

    low, high = 1 / HIGHEST, 1 / LOWEST
    for _ in range(STEPS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    temperature = float(torch.tensor(1 / math.sqrt(low * high)))  # as float32 will store it
    return temperature if likelihood(logits, labels, temperature) <= likelihood(logits, labels, 1.0) else 1.0


def likelihood(logits: Tensor, labels: Tensor, temperature: float) -> float:
    """Mean negative log-likelihood, nats an image."""
    return float(functional.cross_entropy(logits.double() / temperature, labels))


def calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """Expected calibration error of float32 (N, K): the mean gap between confidence and accuracy, over equal bins."""
    confidence, predicted = probabilities.double().max(1)
    gap = confidence - (predicted == labels).double()
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    return float(torch.zeros(BINS, dtype=torch.double).index_add_(0, bins, gap).abs().sum() / len(labels))
