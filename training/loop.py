"""The training loop, as the PyTorch tutorials teach it: forward, loss, zero_grad, backward, step."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from models.airbench import Airbench
from models.architectures import head_of
from models.classifier import Classifier
from training.augmentation import augment, mix
from training.device import dtype_of
from training.errors import Diverged
from training.measurement import answers
from training.optimizer import average_of, optimizer_of, schedule_of
from training.pixels import Split, shuffled
from training.ranks import ALONE, Ranks
from training.recipe import Recipe

BEGUN_ON = 5000  # training images from which a network computes its first weights, where it does
BEGUN_AT_ONCE = 256


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


class Scores(nn.Module):
    """A classifier up to its logits, as the loss takes them."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits float32 (N, K) of uint8 (N, 3, S, S)."""
        return self.classifier.logits(pixels)


class Training:
    """What changes from step to step: weights and their average, optimiser, schedule, and the place in the recipe.

    No random generator is among it: each epoch's order, and each step's augmentation and dropout, are drawn by one of
    their own (`chance`), so that a run goes on anywhere as if it had never stopped.
    """

    def __init__(
        self, classifier: Classifier, recipe: Recipe, device: torch.device, train: Split, ranks: Ranks = ALONE
    ) -> None:
        """A run over the images of `train`, at its start, in each of `ranks`."""
        layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.classifier, self.recipe, self.device = classifier.to(device).to(memory_format=layout), recipe, device
        if not recipe.weights:
            begin(self.classifier, train, recipe.seed, device)
        self.ranks = ranks
        self.learning = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
        self.optimizer = optimizer_of(recipe, classifier.network)
        chosen = shuffled(len(train.labels), recipe.batch_size, chance(recipe.seed, 0))
        self.batches = len(ranks.parts(chosen))  # an epoch
        steps = recipe.epochs * math.ceil(self.batches / recipe.accumulate)
        self.schedule = schedule_of(recipe, self.optimizer, steps)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
        self.average = average_of(recipe, classifier) if recipe.ema else None
        self.place = Place()
        self.history: list[Epoch] = []
        self.kept = 0  # the number of the best epoch
        self.best: dict[str, Tensor] = {}  # the network's weights after it

    @property
    def judged(self) -> Classifier:
        """What is measured and kept: the average, where there is one."""
        return cast(Classifier, self.average.module) if self.average else self.classifier

    @property
    def patient(self) -> bool:
        """Whether there is hope for a better epoch."""
        return self.recipe.patience is None or len(self.history) - self.kept < self.recipe.patience

    @property
    def over(self) -> bool:
        """Whether the recipe came to its end."""
        return len(self.history) == self.recipe.epochs or not self.patient

    def state_dict(self) -> dict[str, Any]:
        """All of it, in tensors and plain values."""
        return {
            "classifier": self.classifier.state_dict(),
            "average": self.average and self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "place": asdict(self.place),
            "history": [asdict(epoch) for epoch in self.history],
            "kept": self.kept,
            "best": self.best,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.classifier.load_state_dict(state["classifier"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.place = Place(**state["place"])
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        self.kept, self.best = state["kept"], state["best"]

    def step(self) -> None:
        """Change the weights by the gradients, and the rate by the schedule."""
        if self.recipe.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.learning, self.recipe.clip_norm)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.scaler.get_scale() >= scale:  # else fp16 overflowed: no step was made
            self.schedule.step()
            if self.average:
                self.average.update_parameters(self.classifier)

    def freeze(self) -> None:
        """Let only the last layer learn in the epochs that are its own."""
        head = head_of(self.classifier.network)
        learning = set(self.learning)
        for name, parameter in self.classifier.network.named_parameters():
            alone = self.place.epoch <= self.recipe.head_epochs and not name.startswith(head)
            parameter.requires_grad_(parameter in learning and not alone)


def begin(classifier: Classifier, train: Split, seed: int, device: torch.device) -> None:
    """Let a network that computes weights from images before it learns do that."""
    if not isinstance(classifier.network, Airbench):
        return
    some = shuffled(len(train.labels), BEGUN_ON, chance(seed, 0))[0]
    mean, std = (tuple(values.flatten().tolist()) for values in (classifier.mean, classifier.std))
    # Without a network, a classifier's logits are the normalised pixels.
    plain = Classifier(nn.Identity(), input_size=classifier.input_size, crop=classifier.crop, mean=mean, std=std)
    normalise = plain.to(device).logits
    batches = train.batches(torch.split(some, BEGUN_AT_ONCE))
    classifier.network.begin(normalise(pixels.to(device)) for pixels, _ in batches)


def chance(*key: int) -> torch.Generator:
    """A generator seeded by all of `key`: the recipe's seed, the epoch and, counted from 1, the step."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))


def fit(
    training: Training, train: Split, validation: Split | None, stopped: Callable[[], bool], progress: Any
) -> Iterator[Epoch]:
    """Train from where `training` is to the end of its recipe, or until `stopped` says so after a step.

    Gives each epoch as it ends; one that is cut short does not count. `progress` is a bar.
    """
    recipe, device, ranks = training.recipe, training.device, training.ranks
    weights = class_weights(train.labels)
    criterion = nn.CrossEntropyLoss(
        weights.to(device) if recipe.balance == "loss" else None, label_smoothing=recipe.label_smoothing
    )
    drawn_by = weights[train.labels] if recipe.balance == "sampling" else None
    scores = Scores(training.classifier)
    if recipe.compile:
        scores.compile()
    while (at := training.place).epoch <= recipe.epochs and training.patient:
        started = time.perf_counter()
        chosen = shuffled(len(train.labels), recipe.batch_size, chance(recipe.seed, at.epoch), drawn_by)
        training.freeze()
        if not learn(training, ranks.together(scores), criterion, train, chosen, stopped, progress):
            return
        for judged in (training.classifier, training.average):
            ranks.alike(judged)
        figures = evaluate(training.judged, validation, device, ranks) if validation else None
        lr, seconds = training.optimizer.param_groups[0]["lr"], time.perf_counter() - started
        epoch = Epoch(at.epoch, at.loss / at.seen, at.correct / at.seen, figures, lr, at.seen, seconds)
        best = training.history[training.kept - 1] if training.kept else None
        training.history.append(epoch)
        training.place = Place(at.epoch + 1)
        if epoch.better_than(best):
            training.kept = epoch.number
            network = training.judged.network.state_dict()
            training.best = {name: value.detach().cpu().clone() for name, value in network.items()}
        yield epoch


def learn(
    training: Training,
    scores_of: nn.Module,
    criterion: nn.Module,
    train: Split,
    chosen: Sequence[Tensor],
    stopped: Callable[[], bool],
    progress: Any,
) -> bool:
    """Learn from the batches of indices that are `chosen` for this epoch; False where `stopped` ends it."""
    recipe, device, ranks, at = training.recipe, training.device, training.ranks, training.place
    dtype, classes = dtype_of(recipe.precision, device), len(torch.bincount(train.labels))
    parts = ranks.parts(chosen)
    for pixels, labels in train.batches(parts[at.step :]):
        generator = chance(recipe.seed, at.epoch, at.step + 1, *([] if ranks.first else [ranks.rank]))
        torch.manual_seed(generator.initial_seed())  # dropout
        labels = labels.to(device)
        pixels = augment(pixels.to(device), recipe, at.epoch, generator)
        pixels, targets = mix(pixels, labels, recipe, classes)

        training.classifier.train()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = scores_of(pixels)
        loss = criterion(logits, targets)
        # The mean over the whole batch, of which this may be a part, and over the batches that make one step.
        share = len(labels) * ranks.count / len(chosen[at.step])
        together = min(recipe.accumulate, len(parts) - at.step // recipe.accumulate * recipe.accumulate)
        training.scaler.scale(loss * (share / together)).backward()
        at.step += 1
        whole = at.step % recipe.accumulate == 0 or at.step == len(parts)
        if whole:
            training.step()

        right = int((logits.argmax(1) == labels).sum())
        lost, seen, correct = ranks.summed((loss.item() * len(labels), len(labels), right), device)
        if not math.isfinite(lost):
            told = f"the loss became {lost / seen} in epoch {at.epoch}"
            raise Diverged(f"{told}; try a lower --lr than {recipe.lr:g}")
        at.loss, at.seen, at.correct = at.loss + lost, at.seen + int(seen), at.correct + int(correct)
        progress.set_description(f"epoch {at.epoch}/{recipe.epochs}", refresh=False)
        progress.set_postfix(loss=f"{at.loss / at.seen:.3f}", accuracy=f"{at.correct / at.seen:.1%}", refresh=False)
        progress.update(int(seen))
        if whole and any(ranks.summed([stopped()], device)):  # in between gradients would be lost
            return False
    return True


def class_weights(labels: Tensor) -> Tensor:
    """For each class how much an image of it must count that all classes count alike: 1 where they are as frequent."""
    counts = torch.bincount(labels)
    return counts.sum() / (len(counts) * counts.float())


def evaluate(classifier: Classifier, split: Split, device: torch.device, ranks: Ranks = ALONE) -> tuple[float, float]:
    """Mean loss (nats) and accuracy; each image is asked for by one of `ranks`."""
    classifier.eval()
    logits = answers(classifier.logits, split, device, ranks)
    loss = nn.functional.cross_entropy(logits, split.labels)
    return float(loss), float((logits.argmax(1) == split.labels).float().mean())
