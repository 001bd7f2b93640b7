"""What a model answers on a split, and the figures that follow, each with the images that it was measured on."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from models.classifier import Classifier
from models.manifest import Accuracy, Metrics
from training.pixels import Split

BATCH = 64  # images; bounds memory, not a choice of the recipe
Z = 1.959963984540054  # the normal distribution's 97.5 % quantile, for 95 % intervals
# Calibration as Guo et al. 2017, On Calibration of Modern Neural Networks, arXiv 1706.04599: one temperature, so that a
# probability of 0.9 is right nine times in ten.
BINS = 15
# Few validation images that are all classified right would ask for a temperature of zero, and none right for infinity.
LOWEST, HIGHEST = 0.25, 20.0
STEPS = 50  # halvings: the interval ends below float32's resolution


@dataclass(frozen=True)
class Figures:
    """Answers and confusion matrices by split; calibration and all that is told of classes are of `measured_on`.

    That is `test`, else `validation` where there is no test split, else None: nothing could be measured.
    """

    predicted: Mapping[str, Tensor]  # class index int64 (N,)
    matrices: Mapping[str, Tensor]  # int64 (K, K), see `confusion`
    measured_on: str | None
    calibration: Mapping[str, float] | None

    @property
    def accuracies(self) -> dict[str, Accuracy]:
        return {name: accuracy(matrix) for name, matrix in self.matrices.items()}

    @property
    def metrics(self) -> Metrics:
        """As the manifest keeps them."""
        accuracies, error = self.accuracies, self.calibration["error_after"] if self.calibration else None
        return Metrics(validation=accuracies.get("validation"), test=accuracies.get("test"), calibration_error=error)

    def document(self, classes: Sequence[str]) -> dict[str, Any]:
        """As metrics.json tells them."""
        accuracies = {
            name: accuracy.model_dump(mode="json") | {"correct": int(self.matrices[name].trace())}
            for name, accuracy in self.accuracies.items()
        }
        told = {"measured_on": self.measured_on, "accuracy": accuracies, "calibration": self.calibration}
        if self.measured_on is None:
            return told
        matrix = self.matrices[self.measured_on]
        counts = zip(classes, matrix.diagonal().tolist(), matrix.sum(1).tolist(), strict=True)
        per_class = {name: {"correct": correct, "n": n} for name, correct, n in counts}
        return told | {"per_class": per_class, "confusion": matrix.tolist()}


def measure(classifier: Classifier, splits: Mapping[str, Split], device: torch.device) -> Figures:
    """Fit the classifier's temperature on validation images, set it, then measure every split but `train`."""
    classifier.eval()
    measured = {"validation" if name == "val" else name: split for name, split in splits.items() if name != "train"}
    logits = {name: answers(classifier.logits, split, device) for name, split in measured.items()}
    if "validation" in measured:
        classifier.temperature.fill_(fit_temperature(logits["validation"], measured["validation"].labels))
    temperature = float(classifier.temperature)
    # As in Classifier.forward, so that an artifact's answers are these.
    predicted = {name: (scores / temperature).softmax(1).argmax(1) for name, scores in logits.items()}
    matrices = {
        name: confusion(predicted[name], split.labels, logits[name].size(1)) for name, split in measured.items()
    }
    on = next((name for name in ("test", "validation") if name in measured), None)
    return Figures(predicted, matrices, on, calibration(logits[on], measured[on].labels, temperature) if on else None)


@torch.no_grad()
def answers(model: Callable[[Tensor], Tensor], split: Split, device: torch.device) -> Tensor:
    """What `model` makes of every image in order: float32 (N, K), on the CPU."""
    return torch.cat([model(pixels.to(device)).cpu() for pixels, _ in split.batches(BATCH)])


def confusion(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """How often each label (row) was answered with each class (column): int64 (K, K)."""
    return torch.bincount(labels * num_classes + predicted, minlength=num_classes**2).view(num_classes, num_classes)


def accuracy(matrix: Tensor) -> Accuracy:
    """The share that a confusion matrix has on its diagonal, with its 95 % interval."""
    correct, n = int(matrix.trace()), int(matrix.sum())
    return Accuracy(value=correct / n, n=n, interval=wilson(correct, n))


def wilson(correct: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927, JASA 22, 209-212)."""
    share, weight = correct / n, Z * Z / n
    centre = share + weight / 2
    reach = Z * math.sqrt(share * (1 - share) / n + weight / (4 * n))
    low, high = (centre - reach) / (1 + weight), (centre + reach) / (1 + weight)
    # At 0 and n right the interval ends exactly there; rounding may miss it by a bit.
    return (0.0 if correct == 0 else max(0.0, low), 1.0 if correct == n else min(1.0, high))


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


def calibration(logits: Tensor, labels: Tensor, temperature: float) -> dict[str, float]:
    """Calibration error and negative log-likelihood (nats an image) before and after the temperature."""
    return {
        "temperature": temperature,
        "error_before": calibration_error(logits.softmax(1), labels),
        "error_after": calibration_error((logits / temperature).softmax(1), labels),
        "likelihood_before": likelihood(logits, labels, 1.0),
        "likelihood_after": likelihood(logits, labels, temperature),
    }


def likelihood(logits: Tensor, labels: Tensor, temperature: float) -> float:
    """Mean negative log-likelihood, nats an image."""
    return float(functional.cross_entropy(logits.double() / temperature, labels))


def calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """Expected calibration error of float32 (N, K): the mean gap between confidence and accuracy, over equal bins."""
    confidence, predicted = probabilities.double().max(1)
    gap = confidence - (predicted == labels).double()
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    return float(torch.zeros(BINS, dtype=torch.double).index_add_(0, bins, gap).abs().sum() / len(labels))
