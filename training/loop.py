"""The training loop, as the PyTorch tutorials teach it: forward, loss, zero_grad, backward, step."""

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
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


@dataclass
class Place:
    """How far an epoch has come: its number, the batches that are done, and over their images the sums so far."""

    epoch: int = 1
    step: int = 0
    seen: int = 0
    correct: int = 0
    loss: float = 0.0


class Training:
    """What changes from step to step: weights, optimiser, schedule, and the place in the recipe.

    No random generator is among it: each epoch's order, and each step's augmentation and dropout, are drawn by one of
    their own (`chance`), so that a run goes on anywhere as if it had never stopped.
    """

    def __init__(self, classifier: Classifier, recipe: Recipe, device: torch.device, images: int) -> None:
        """A run over so many training `images`, at its start."""
        self.classifier, self.recipe, self.device = classifier.to(device), recipe, device
        self.optimizer = optimizer_of(recipe, classifier.parameters())
        steps = recipe.epochs * math.ceil(images / recipe.batch_size)
        self.schedule = schedule_of(recipe, self.optimizer, steps)
        self.place = Place()
        self.history: list[Epoch] = []
        self.kept = 0  # the number of the best epoch
        self.best: dict[str, Tensor] = {}  # the network's weights after it

    def state_dict(self) -> dict[str, Any]:
        """All of it, in tensors and plain values."""
        return {
            "classifier": self.classifier.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "place": asdict(self.place),
            "history": [asdict(epoch) for epoch in self.history],
            "kept": self.kept,
            "best": self.best,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.classifier.load_state_dict(state["classifier"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.place = Place(**state["place"])
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        self.kept, self.best = state["kept"], state["best"]


def chance(*key: int) -> torch.Generator:
    """A generator seeded by all of `key`: the recipe's seed, the epoch and, counted from 1, the step."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))


def fit(
    training: Training, train: Split, validation: Split | None, stopped: Callable[[], bool], progress: Any
) -> Iterator[Epoch]:
    """Train from where `training` is to the end of its recipe, or until `stopped` says so after a step.

    Gives each epoch as it ends; one that is cut short does not count. `progress` is a bar.
    """
    recipe, classifier, device = training.recipe, training.classifier, training.device
    criterion = nn.CrossEntropyLoss()
    while (at := training.place).epoch <= recipe.epochs:
        started = time.perf_counter()
        classifier.train()
        for pixels, labels in train.batches(recipe.batch_size, chance(recipe.seed, at.epoch), at.step):
            generator = chance(recipe.seed, at.epoch, at.step + 1)
            torch.manual_seed(generator.initial_seed())  # dropout
            pixels = augment(pixels, recipe.flip, recipe.shift, generator).to(device)
            labels = labels.to(device)

            logits = classifier.logits(pixels)
            loss = criterion(logits, labels)
            training.optimizer.zero_grad()
            loss.backward()
            training.optimizer.step()
            training.schedule.step()

            if not math.isfinite(loss.item()):
                told = f"the loss became {loss.item()} in epoch {at.epoch}"
                raise Diverged(f"{told}; try a lower --lr than {recipe.lr:g}")
            at.step += 1
            at.seen += len(labels)
            at.correct += int((logits.argmax(1) == labels).sum())
            at.loss += loss.item() * len(labels)
            progress.set_description(f"epoch {at.epoch}/{recipe.epochs}", refresh=False)
            progress.set_postfix(loss=f"{at.loss / at.seen:.3f}", accuracy=f"{at.correct / at.seen:.1%}", refresh=False)
            progress.update(len(labels))
            if stopped():
                return
        scores = evaluate(classifier, validation, device) if validation else None
        lr, seconds = training.optimizer.param_groups[0]["lr"], time.perf_counter() - started
        epoch = Epoch(at.epoch, at.loss / at.seen, at.correct / at.seen, scores, lr, at.seen, seconds)
        best = training.history[training.kept - 1] if training.kept else None
        training.history.append(epoch)
        training.place = Place(at.epoch + 1)
        if epoch.better_than(best):
            training.kept = epoch.number
            weights = classifier.network.state_dict()
            training.best = {name: value.detach().cpu().clone() for name, value in weights.items()}
        yield epoch


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
