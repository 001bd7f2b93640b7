"""The training loop, as the PyTorch tutorials teach it: forward, loss, zero_grad, backward, step."""

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, OneCycleLR

from models.classifier import Classifier
from training.errors import Diverged, TrainingError
from training.measurement import answers
from training.pixels import Split
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
    stopped: Callable[[], bool],
    progress: Any,
) -> Iterator[tuple[Epoch, bool]]:
    """Train for the recipe's epochs, or until `stopped`; an epoch that was cut short does not count.

    Gives each epoch, and whether it is the best so far, while the classifier is as it left it; `progress` is a bar.
    """
    classifier.to(device)
    criterion = nn.CrossEntropyLoss()
    optimizer = optimizer_of(recipe, classifier.parameters())
    schedule = schedule_of(recipe, optimizer, steps=recipe.epochs * math.ceil(len(train.labels) / recipe.batch_size))
    generator = torch.Generator().manual_seed(recipe.seed)  # of shuffling and augmentation
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
                return
        scores = evaluate(classifier, validation, device) if validation else None
        lr, seconds = optimizer.param_groups[0]["lr"], time.perf_counter() - started
        epoch = Epoch(number, total_loss / seen, correct / seen, scores, lr, seen, seconds)
        if better := epoch.better_than(best):
            best = epoch
        yield epoch, better


def evaluate(classifier: Classifier, split: Split, device: torch.device) -> tuple[float, float]:
    """Mean loss (nats) and accuracy."""
    classifier.eval()
    logits = answers(classifier.logits, split, device)
    loss = nn.functional.cross_entropy(logits, split.labels)
    return float(loss), float((logits.argmax(1) == split.labels).float().mean())


def augment(pixels: Tensor, flip: bool, shift: int, generator: torch.Generator) -> Tensor:
    """Mirror half of the images, then move each by up to `shift` px each way, edges repeated: uint8 (N, 3, S, S)."""
    n, size = pixels.size(0), pixels.size(3)
    if flip:
        mirrored = torch.rand(n, generator=generator) < 0.5
        pixels = torch.where(mirrored[:, None, None, None], pixels.flip(3), pixels)
    if shift:
        reach = torch.arange(size)
        rows, columns = (
            (reach + torch.randint(-shift, shift + 1, (n, 1), generator=generator)).clamp(0, size - 1) for _ in range(2)
        )  # each (N, S): where every pixel comes from
        pixels = pixels[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # (N, S, S, 3)
        pixels = pixels.permute(0, 3, 1, 2)
    return pixels


def optimizer_of(recipe: Recipe, parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
    lr, decay, momentum = recipe.lr, recipe.weight_decay, recipe.momentum
    if recipe.optimizer == "adam":
        return optim.Adam(parameters, lr, weight_decay=decay)
    return optim.SGD(parameters, lr, momentum, weight_decay=decay, nesterov=momentum > 0)


def schedule_of(recipe: Recipe, optimizer: optim.Optimizer, steps: int) -> LRScheduler:
    """The learning rate at each of the run's `steps`."""
    if recipe.schedule == "one-cycle":
        # One more, for the rate that is set after the last step and never used. Adam's beta1 cycles with the rate, as
        # torch has it by default; a momentum that was asked for stays.
        cycle = recipe.optimizer == "adam"
        return OneCycleLR(optimizer, max_lr=recipe.lr, total_steps=steps + 1, cycle_momentum=cycle)
    if recipe.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=steps)
    return LambdaLR(optimizer, lambda _step: 1.0)


def choose_device(name: str, seed: int = 0) -> torch.device:
    """The device that `--device` names, with fp32 arithmetic (no TF32), fixed algorithms and seeded generators."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name != "auto" and not present[name]:
        here = ", ".join(kind for kind, there in present.items() if there)
        raise TrainingError(f"--device {name}: there is none that torch can use here; here is {here}")
    # cuBLAS repeats itself only with a fixed workspace; read when CUDA starts (CUDA toolkit, cuBLAS, reproducibility).
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    torch.manual_seed(seed)
    return torch.device(next(kind for kind, there in present.items() if there) if name == "auto" else name)
