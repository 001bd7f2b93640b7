"""The figures of a trained classifier, each with the images that it was measured on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.classifier import Classifier
from models.manifest import Accuracy, Metrics
from training.calibration import calibration_error, fit_temperature, likelihood
from training.data import Split
from training.evaluation import accuracy, answers, confusion


@dataclass(frozen=True)
class Measurement:
    """Accuracies by split, and, on `measured_on`, the confusion matrix int64 (K, K) and the calibration.

    `measured_on` is `test`, else `validation` where there is no test split, else None: nothing could be measured.
    """

    predicted: Mapping[str, Tensor]  # class index int64 (N,)
    correct: Mapping[str, int]
    accuracies: Mapping[str, Accuracy]
    measured_on: str | None
    matrix: Tensor | None
    calibration: Mapping[str, Any] | None

    @property
    def metrics(self) -> Metrics:
        """As the manifest keeps them."""
        return Metrics(
            validation=self.accuracies.get("validation"),
            test=self.accuracies.get("test"),
            calibration_error=self.calibration["error_after"] if self.calibration else None,
        )

    def document(self, classes: Sequence[str]) -> dict[str, Any]:
        """As metrics.json tells them."""
        accuracies = {
            name: accuracy.model_dump(mode="json") | {"correct": self.correct[name]}
            for name, accuracy in self.accuracies.items()
        }
        told: dict[str, Any] = {
            "measured_on": self.measured_on,
            "accuracy": accuracies,
            "calibration": self.calibration,
        }
        if self.matrix is not None:
            counts = zip(classes, self.matrix.diagonal().tolist(), self.matrix.sum(1).tolist(), strict=True)
            told["per_class"] = {name: {"correct": correct, "n": n} for name, correct, n in counts}
            told["confusion"] = self.matrix.tolist()
        return told


def measure(classifier: Classifier, splits: Mapping[str, Split], device: torch.device) -> Measurement:
    """Fit the classifier's temperature on validation images, set it, then measure every split but `train`."""
    classifier.eval()
    logits = {
        told_as(name): answers(classifier.logits, split, device) for name, split in splits.items() if name != "train"
    }
    labels = {told_as(name): split.labels for name, split in splits.items()}
    if "validation" in logits:
        classifier.temperature.fill_(fit_temperature(logits["validation"], labels["validation"]))
    temperature = float(classifier.temperature)
    # As in Classifier.forward, so that an artifact's answers are these.
    predicted = {name: (scores / temperature).softmax(1).argmax(1) for name, scores in logits.items()}
    correct = {name: int((answer == labels[name]).sum()) for name, answer in predicted.items()}
    measured_on = next((name for name in ("test", "validation") if name in logits), None)
    return Measurement(
        predicted=predicted,
        correct=correct,
        accuracies={name: accuracy(right, len(labels[name])) for name, right in correct.items()},
        measured_on=measured_on,
        matrix=confusion(predicted[measured_on], labels[measured_on], logits[measured_on].size(1))
        if measured_on
        else None,
        calibration=calibrated(logits[measured_on], labels[measured_on], temperature) if measured_on else None,
    )


def told_as(split: str) -> str:
    return "validation" if split == "val" else split


def calibrated(logits: Tensor, labels: Tensor, temperature: float) -> dict[str, float]:
    """Calibration error (15 bins) and negative log-likelihood (nats an image) before and after the temperature."""
    return {
        "temperature": temperature,
        "error_before": calibration_error(logits.softmax(1), labels),
        "error_after": calibration_error((logits / temperature).softmax(1), labels),
        "likelihood_before": likelihood(logits, labels, 1.0),
        "likelihood_after": likelihood(logits, labels, temperature),
    }
