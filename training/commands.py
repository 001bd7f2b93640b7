"""The three commands: what each puts together, in order."""

import json
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from models import artifact
from models.classifier import Classifier
from models.manifest import Architecture
from training import checkpoint, data, device, loop, report, sources, story, weights
from training.command_line import Evaluate, Export, Train
from training.data import Source, Split
from training.errors import Interrupted, TrainingError
from training.evaluation import BATCH, answers, confusion
from training.interrupt import Interrupt
from training.loop import Epoch
from training.measurement import measure
from training.progress import bar, say
from training.recipe import Recipe


def train(order: Train, recipe: Recipe) -> None:
    """Train a classifier and publish its artifact.

    Raises:
        TrainingError, ArtifactError: see there.
    """
    check_target(order.out)
    where = device.choose(recipe.device, recipe.seed)
    say(story.opening(order))
    source = sources.load(order).validated(recipe.val, recipe.seed)
    name = recipe.name or source.name
    run = order.run or Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    classifier = weights.build(recipe, len(source.classes))
    prepared = sources.prepare(source, classifier.input_size, classifier.crop, recipe.workers, run)
    say(story.plan(source, recipe, where))

    started = time.perf_counter()
    best = run / "checkpoints" / "best.pt"
    history = fit(classifier, prepared.splits, recipe, where, best)
    kept = checkpoint.restore(best, classifier)
    seconds = time.perf_counter() - started
    say(story.trained(history, kept, recipe, seconds))

    figures = measure(classifier, prepared.splits, where)
    say(story.figures(figures, source.classes))
    validation = prepared.splits.get("val")
    manifest = artifact.save(
        order.out,
        classifier,
        name=name,
        version=recipe.version,
        classes=source.classes,
        architecture=Architecture(name=recipe.arch, arguments={"num_classes": len(source.classes)}),
        validation=artifact.Validation(validation.batches(BATCH), figures.correct["validation"])
        if validation
        else None,
        device=str(where),
        recipe=recipe_told(recipe, source),
        data_fingerprint=prepared.fingerprint,
        metrics=figures.metrics,
    )
    document = {
        "artifact": {"name": manifest.name, "version": manifest.version, "digest": manifest.digest},
        "data": {"name": source.name, "fingerprint": prepared.fingerprint}
        | {"images": {name: len(images) for name, images in source.splits.items()}},
        "recipe": manifest.recipe,
        "device": story.device_told(where),
        "torch": manifest.torch,
        "seconds": seconds,
        "best_epoch": kept,
        "epochs": [asdict(epoch) for epoch in history],
    } | figures.document(source.classes)
    report.write(run / "reports", document, history, kept, figures, source.classes)
    sample = sources.write_sample(order.out.parent / "sample.png", source, figures.predicted)
    say(story.ending(order.out, run / "reports", manifest, sample))


def fit(
    classifier: Classifier, splits: Mapping[str, Split], recipe: Recipe, where: torch.device, best: Path
) -> list[Epoch]:
    """Train until the recipe or Ctrl-C ends it, keeping the best epoch in the file `best`.

    Raises:
        Interrupted: before the first epoch ended.
    """
    with Interrupt() as interrupt, bar(recipe.epochs * len(splits["train"].labels), "training") as progress:
        history = loop.fit(
            classifier,
            splits["train"],
            splits.get("val"),
            recipe,
            where,
            keep=lambda epoch: checkpoint.save(best, classifier, epoch),
            tell=lambda epoch: say(story.epoch(epoch, recipe.epochs)),
            stopped=lambda: interrupt.pressed,
            progress=progress,
        )
    if not history:
        raise Interrupted("stopped before the first epoch ended; nothing was written")
    return history


def evaluate(order: Evaluate) -> None:
    """Print an artifact's accuracy on a split.

    Raises:
        TrainingError: no such split, other classes, or unreadable pictures.
        ArtifactError: the artifact cannot be trusted.
    """
    where = device.choose(order.device)
    model = artifact.load(order.model, str(where))
    manifest, recipe = model.manifest, model.manifest.recipe or {}
    source = sources.load(order)
    if set(source.classes) != set(manifest.classes):
        raise TrainingError(story.other_classes(order.model, manifest.classes, source.classes))
    sizes = manifest.input_size, manifest.crop, order.workers, Path("runs")
    known = (
        None  # whether these are the images of the training run; it matters where no split tells which were trained on
    )
    if "val" not in source.splits and (order.split == "val" or "test" not in source.splits):
        known = sources.prepare(source, *sizes).fingerprint == manifest.data_fingerprint
        if known:  # draw the validation split as the training run drew it
            source = source.validated(recipe["val"], recipe["seed"])
    name = order.split or next(name for name in ("test", "val", "train") if name in source.splits)
    if name not in source.splits:
        raise TrainingError(f"--split {name}: {source.name} has {', '.join(source.splits)}")
    # An exported artifact may have its classes in another order than the folder.
    places = torch.tensor([manifest.classes.index(kind) for kind in source.classes])
    images = data.Images(source.splits[name].pictures, places[source.splits[name].labels])
    chosen = Source(source.name, manifest.classes, {name: images})
    split = sources.prepare(chosen, *sizes).splits[name]
    predicted = answers(model.module, split, where).argmax(1)
    matrix = confusion(predicted, split.labels, len(manifest.classes))
    say(story.evaluated(manifest, source, "all" if known is False and name == "train" else name, matrix))


def export(order: Export) -> None:
    """Make an artifact from existing weights.

    Raises:
        TrainingError: classes or weights do not fit.
        ArtifactError: the artifact does not answer as the network does.
    """
    check_target(order.out)
    classes = read_classes(order.classes)
    classifier = weights.untrained(order.arch, len(classes), order.input_size)
    state = weights.from_file(order.weights)
    if fresh := weights.load(classifier, state, order.arch, str(order.weights)):
        held = state[fresh[-1]].size(0)
        raise TrainingError(f"{order.weights} is for {held} classes, {order.classes} names {len(classes)}")
    manifest = artifact.save(
        order.out,
        classifier,
        name=order.name or order.arch,
        version=order.version,
        classes=classes,
        architecture=Architecture(name=order.arch, arguments={"num_classes": len(classes)}),
    )
    say(story.ending(order.out, None, manifest, None))


def read_classes(path: Path) -> tuple[str, ...]:
    """Class names in the order of the outputs, from a JSON list or one a line; empty lines do not count.

    Raises:
        TrainingError: the file is unreadable, or the names are too few or not unique.
    """
    try:
        text = path.read_text(encoding="utf-8")
        names = json.loads(text) if path.suffix == ".json" else [line.strip() for line in text.splitlines()]
    except OSError as error:
        raise TrainingError(f"--classes {path}: {error.strerror}") from None
    except ValueError:  # also of an encoding
        raise TrainingError(f"--classes {path}: not a JSON list, or not UTF-8 text") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TrainingError(f"--classes {path}: not a JSON list of names")
    classes = tuple(name for name in names if name)
    if len(classes) < 2:
        raise TrainingError(f"--classes {path}: {len(classes)} names; a classifier needs two or more")
    if twice := [name for name, count in Counter(classes).items() if count > 1]:
        raise TrainingError(
            f"--classes {path}: names must be unique; {', '.join(twice)} occur more than once: rename them"
        )
    return classes


def check_target(path: Path) -> None:
    """Refuse an artifact that could not be written, before anything takes time.

    Raises:
        TrainingError: it is a folder, or its folder cannot be written.
    """
    if path.is_dir():
        raise TrainingError(f"--out {path} is a folder; name a file in it")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise TrainingError(f"--out {path}: {parent} cannot be written")


def recipe_told(recipe: Recipe, source: Source) -> dict[str, Any]:
    """The recipe as the manifest keeps it; a path would name the author's machine, so weights go by their file name."""
    told = recipe.model_dump(mode="json") | {"data": source.name}
    return told | {"weights": recipe.weights and Path(recipe.weights).name}
