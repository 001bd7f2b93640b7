"""What a model answers on a split, and the figures that follow, each with the images that it was measured on."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from models.classifier import Classifier
from models.manifest import Accuracy, Metrics, Unknown
from training.pixels import Split, in_order
from training.ranks import ALONE, Ranks
from training.unknown import judge, threshold_for

BATCH = 64  # images; bounds memory, not a choice of the recipe
Z = 1.959963984540054  # the normal distribution's 97.5 % quantile, for 95 % intervals
# Calibration as Guo et al. 2017, On Calibration of Modern Neural Networks, arXiv 1706.04599: one temperature, so that a
# probability of 0.9 is right nine times in ten.
BINS = 15
# Few validation images that are all classified right would ask for a temperature of zero, and none right for infinity.
LOWEST, HIGHEST = 0.25, 20.0
MISTAKES = 24  # that are shown
QUARTERS = 4
STEPS = 50  # halvings: the interval ends below float32's resolution


@dataclass(frozen=True)
class Figures:
    """Answers and confusion matrices by split; calibration and all that is told of classes are of `measured_on`.

    That is `test`, else `validation` where there is no test split, else None: nothing could be measured.
    """

    predicted: Mapping[str, Tensor]  # class index int64 (N,)
    matrices: Mapping[str, Tensor]  # int64 (K, K), see `confusion`
    measured_on: str | None = None
    calibration: Mapping[str, float] | None = None
    logits: Tensor | None = None  # float32 (N, K), before the temperature
    labels: Tensor | None = None  # int64 (N,)
    mistakes: "Sequence[Mistake]" = ()
    slices: Mapping[str, Mapping[str, Accuracy]] = field(default_factory=dict)
    views: Mapping[str, Accuracy] = field(default_factory=dict)  # of the mean over six views, where it was asked for
    unknown_threshold: float | None = None  # where there are validation images
    unknown: Unknown | None = None
    confidence: Mapping[str, Tensor] = field(default_factory=dict)  # of `predicted`, float32 (N,)

    @property
    def accuracies(self) -> dict[str, Accuracy]:
        return {name: accuracy(matrix) for name, matrix in self.matrices.items()}

    @property
    def metrics(self) -> Metrics:
        """As the manifest keeps them."""
        accuracies, error = self.accuracies, self.calibration["error_after"] if self.calibration else None
        return Metrics(
            validation=accuracies.get("validation"),
            test=accuracies.get("test"),
            calibration_error=error,
            unknown=self.unknown,
        )

    def document(self, classes: Sequence[str]) -> dict[str, Any]:
        """As metrics.json tells them."""
        accuracies = {
            name: accuracy.model_dump(mode="json") | {"correct": int(self.matrices[name].trace())}
            for name, accuracy in self.accuracies.items()
        }
        told = {
            "measured_on": self.measured_on,
            "accuracy": accuracies,
            "accuracy_6_views": {name: accuracy.model_dump(mode="json") for name, accuracy in self.views.items()},
            "calibration": self.calibration,
            "unknown": self.unknown and {"threshold": self.unknown_threshold} | self.unknown.model_dump(mode="json"),
        }
        if self.measured_on is None:
            return told
        matrix = self.matrices[self.measured_on]
        counts = zip(classes, matrix.diagonal().tolist(), matrix.sum(1).tolist(), strict=True)
        per_class = {name: {"correct": correct, "n": n} for name, correct, n in counts}
        slices = {
            name: {label: part.model_dump(mode="json") for label, part in parts.items()}
            for name, parts in self.slices.items()
        }
        return told | {"per_class": per_class, "confusion": matrix.tolist(), "slices": slices}


class Mistake(NamedTuple):
    """A wrong answer: the image uint8 (3, S, S), answer and label as class indices, and the answer's probability."""

    pixels: Tensor
    answer: int
    label: int
    confidence: float


def measure(
    classifier: Classifier,
    splits: Mapping[str, Split],
    device: torch.device,
    *,
    views: bool = False,
    coverage: float = 0.95,
    strangers: Mapping[str, Split] | None = None,
) -> Figures:
    """Fit the classifier's temperature on validation images, set it, then measure every split but `train`."""
    classifier.eval()
    measured = {"validation" if name == "val" else name: split for name, split in splits.items() if name != "train"}
    logits = {name: answers(classifier.logits, split, device) for name, split in measured.items()}
    if "validation" in measured:
        classifier.temperature.fill_(fit_temperature(logits["validation"], measured["validation"].labels))
    temperature = float(classifier.temperature)
    # As in Classifier.forward, so that an artifact's answers are these.
    highest = {name: (scores / temperature).softmax(1).max(1) for name, scores in logits.items()}
    predicted = {name: best.indices for name, best in highest.items()}
    confidence = {name: best.values for name, best in highest.items()}
    matrices = {
        name: confusion(predicted[name], split.labels, logits[name].size(1)) for name, split in measured.items()
    }
    on = next((name for name in ("test", "validation") if name in measured), None)
    if not on:
        return Figures(predicted, matrices, confidence=confidence)
    split, scores = measured[on], logits[on]
    right = predicted[on] == split.labels
    threshold, known = None, None
    if "validation" in measured:
        threshold = threshold_for(highest["validation"].values, coverage)
        foreign = {name: answers(classifier, part, device).amax(1) for name, part in (strangers or {}).items()}
        known = judge(threshold, coverage, highest[on].values, right, foreign)
    return Figures(
        predicted,
        matrices,
        on,
        calibration(scores, split.labels, temperature),
        scores,
        split.labels,
        surest_mistakes((scores / temperature).softmax(1), split),
        slices(split, right),
        {name: viewed(classifier.logits, part, device) for name, part in measured.items()} if views else {},
        threshold,
        known,
        confidence,
    )


def viewed(logits: Callable[[Tensor], Tensor], split: Split, device: torch.device) -> Accuracy:
    """The accuracy of the mean logits over six views."""
    predicted = answers(partial(six_views, logits), split, device).argmax(1)
    return share(int((predicted == split.labels).sum()), len(split.labels))


def six_views(model: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    """The mean of what `model` makes of images, as they are and mirrored, and of the same moved by a px either way.

    Those that are moved count half (Jordan 2024, arXiv 2404.00498, 3.5). uint8 (N, 3, S, S) to float32 (N, K).
    """
    reach = torch.arange(pixels.size(3), device=pixels.device)

    def both(images: Tensor) -> Tensor:
        return (model(images) + model(images.flip(3))) / 2

    def moved(by: int) -> Tensor:
        place = (reach + by).clamp(0, len(reach) - 1)
        return pixels[:, :, place][:, :, :, place]

    return both(pixels) / 2 + (both(moved(-1)) + both(moved(1))) / 4


def surest_mistakes(probabilities: Tensor, split: Split) -> list[Mistake]:
    """The `MISTAKES` wrong answers with the highest probability, of float32 (N, K)."""
    confidence, answer = probabilities.max(1)
    wrong = torch.nonzero(answer != split.labels).flatten()
    if not len(wrong):
        return []
    chosen = wrong[confidence[wrong].argsort(descending=True, stable=True)][:MISTAKES]
    pixels = torch.cat([pixels.cpu() for pixels, _ in split.batches(torch.split(chosen, BATCH))])
    told = zip(pixels, answer[chosen].tolist(), split.labels[chosen].tolist(), confidence[chosen].tolist(), strict=True)
    return [Mistake(*mistake) for mistake in told]


def slices(split: Split, right: Tensor) -> dict[str, dict[str, Accuracy]]:
    """The accuracy of each quarter of the images by brightness, and by contrast, in levels of 0 to 255."""
    values = torch.cat(
        [
            torch.stack([grey.mean((1, 2)), grey.std((1, 2))], 1)
            for pixels, _ in split.batches(in_order(len(split.labels), BATCH))
            for grey in [pixels.float().mean(1).cpu()]
        ]
    )  # (N, 2)
    found: dict[str, dict[str, Accuracy]] = {}
    for name, column in zip(("brightness", "contrast"), values.T, strict=True):
        parts = {ranged: right[part] for ranged, part in quarters(column).items()}
        found[name] = {ranged: share(int(part.sum()), len(part)) for ranged, part in parts.items()}
    return found


def quarters(values: Tensor) -> dict[str, Tensor]:
    """The indices int64 of each quarter of `values` float (N,), by its range; quarters of the same range are one."""
    found: dict[str, list[Tensor]] = {}
    for part in values.argsort(stable=True).chunk(QUARTERS):
        if len(part):
            found.setdefault(f"{values[part[0]]:.0f} to {values[part[-1]]:.0f}", []).append(part)
    return {ranged: torch.cat(parts) for ranged, parts in found.items()}


@torch.no_grad()
def answers(model: Callable[[Tensor], Tensor], split: Split, device: torch.device, ranks: Ranks = ALONE) -> Tensor:
    """What `model` makes of every image in order: float32 (N, K), on the CPU. Each of `ranks` asks for its share."""
    chosen = ranks.share(in_order(len(split.labels), BATCH))
    return torch.cat(ranks.gathered([model(pixels.to(device)).cpu() for pixels, _ in split.batches(chosen)]))


def confusion(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """How often each label (row) was answered with each class (column): int64 (K, K)."""
    return torch.bincount(labels * num_classes + predicted, minlength=num_classes**2).view(num_classes, num_classes)


def accuracy(matrix: Tensor) -> Accuracy:
    """The share that a confusion matrix has on its diagonal, with its 95 % interval."""
    return share(int(matrix.trace()), int(matrix.sum()))


def share(correct: int, n: int) -> Accuracy:
    """So many of `n`, with the 95 % interval."""
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


def reliability(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of float32 (N, K), over equal bins of confidence: how many answers, the share right, the mean confidence.

    Each float64 (BINS,); no number where a bin is empty.
    """
    confidence, predicted = probabilities.double().max(1)
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    sums = torch.zeros(3, BINS, dtype=torch.double)
    sums.index_add_(1, bins, torch.stack([torch.ones_like(confidence), (predicted == labels).double(), confidence]))
    return sums[0], sums[1] / sums[0], sums[2] / sums[0]


def calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """Expected calibration error of float32 (N, K): the mean gap between confidence and accuracy, over equal bins."""
    counts, right, confidence = reliability(probabilities, labels)
    return float((counts * (confidence - right).abs()).nansum() / len(labels))
