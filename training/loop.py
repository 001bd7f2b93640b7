"""The training loop, as the PyTorch tutorials teach it: forward, loss, zero_grad, backward, step."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn, optim
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, OneCycleLR

from models.classifier import Classifier
from training.augmentation import augment
from training.data import Split
from training.errors import Diverged
from training.evaluation import answers
from training.recipe import Recipe


@dataclass(frozen=True)
class Epoch:
    """What one pass gave: mean loss (nats) and accuracy while training, and on validation images if there are any."""

    number: int
    loss: float
    accuracy: float
    validation: tuple[float, float] | None  # loss and accuracy
    lr: float  # at its end
    images: int
    seconds: float  # with validation

    def better_than(self, other: "Epoch | None") -> bool:
        """Whether to keep this one: by validation accuracy, then by validation loss; without validation the later."""
        if other is None or self.validation is None or other.validation is None:
            return True
        (loss, accuracy), (other_loss, other_accuracy) = self.validation, other.validation
        return (accuracy, -loss) > (other_accuracy, -other_loss)


def fit(
    classifier: Classifier,
    train: Split,
    validation: Split | None,
    recipe: Recipe,
    device: torch.device,
    *,
    keep: Callable[[Epoch], None],
    tell: Callable[[Epoch], None],
    stopped: Callable[[], bool],
    progress: Any,
) -> list[Epoch]:
    """Train for the recipe's epochs, or until `stopped`; an epoch that was cut short does not count.

    `tell` is called after every epoch, and `keep` after one that is the best so far, while the classifier is as that
    epoch left it. `progress` is a bar that counts images.

    Raises:
        Diverged: the loss is no longer a number.
    """
    classifier.to(device)
    criterion = nn.CrossEntropyLoss()
    optimizer = optimizer_of(recipe, classifier.parameters())
    schedule = schedule_of(recipe, optimizer, steps=recipe.epochs * math.ceil(len(train.labels) / recipe.batch_size))
    generator = torch.Generator().manual_seed(recipe.seed)  # of shuffling and augmentation
    history: list[Epoch] = []
    best: Epoch | None = None
    for number in range(1, recipe.epochs + 1):
        started = time.perf_counter()
        seen, correct, total_loss = 0, 0, 0.0
        classifier.train()
        for pixels, labels in train.batches(recipe.batch_size, generator):
            pixels = augment(pixels, recipe.flip, recipe.shift, generator).to(device)
            labels = labels.to(device)

            logits = classifier.logits(pixels)
            loss = criterion(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

            if not math.isfinite(loss.item()):
                raise Diverged(f"the loss became {loss.item()} in epoch {number}; try a lower --lr than {recipe.lr:g}")
            seen += len(labels)
            correct += int((logits.argmax(1) == labels).sum())
            total_loss += loss.item() * len(labels)
            progress.set_description(f"epoch {number}/{recipe.epochs}", refresh=False)
            progress.set_postfix(loss=f"{total_loss / seen:.3f}", accuracy=f"{correct / seen:.1%}", refresh=False)
            progress.update(len(labels))
            if stopped():
                return history
        scores = evaluate(classifier, validation, device) if validation else None
        lr, seconds = optimizer.param_groups[0]["lr"], time.perf_counter() - started
        history.append(Epoch(number, total_loss / seen, correct / seen, scores, lr, seen, seconds))
        tell(history[-1])
        if history[-1].better_than(best):
            best = history[-1]
            keep(best)
        if stopped():
            break
    return history


def evaluate(classifier: Classifier, split: Split, device: torch.device) -> tuple[float, float]:
    """Mean loss (nats) and accuracy."""
    classifier.eval()
    logits = answers(classifier.logits, split, device)
    loss = nn.functional.cross_entropy(logits, split.labels)
    return float(loss), float((logits.argmax(1) == split.labels).float().mean())


def optimizer_of(recipe: Recipe, parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
    if recipe.optimizer == "adam":
        return optim.Adam(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
    nesterov = recipe.momentum > 0
    return optim.SGD(
        parameters, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, nesterov=nesterov
    )


def schedule_of(recipe: Recipe, optimizer: optim.Optimizer, steps: int) -> LRScheduler:
    """The learning rate at each of the run's `steps`."""
    if recipe.schedule == "one-cycle":
        # One more, for the rate that is set after the last step and never used.
        return OneCycleLR(optimizer, max_lr=recipe.lr, total_steps=steps + 1)
    if recipe.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=steps)
    return LambdaLR(optimizer, lambda _step: 1.0)
