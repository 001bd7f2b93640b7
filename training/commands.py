"""The three commands: what each puts together, in order."""

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import torch

from models import archive, artifact
from models.classifier import Classifier
from models.errors import ArtifactError
from models.manifest import Architecture
from training import cifar10, data, loop, report, shapes10, weights
from training.command_line import Data, Evaluate, Export, Train
from training.data import Images, Source
from training.errors import TrainingError
from training.loop import Epoch
from training.measurement import BATCH, answers, confusion, measure
from training.pixels import Prepared, prepare
from training.recipe import Recipe
from training.terminal import bar, interruptible, say


def train(order: Train) -> None:
    """Train a classifier and publish its artifact; KeyboardInterrupt before the first epoch ended, nothing written."""
    check_target(order.out)
    if order.run is not None and (order.run.exists() and not order.run.is_dir()):
        raise TrainingError(f"--run {order.run} is a file; name a folder")
    where = loop.choose_device(order.device, order.seed)
    say(report.SHAPES10 if order.data == "shapes10" else f"reading {order.data}")
    source = load(order).validated(order.val, order.seed)
    name = order.name or source.name
    run = order.run or Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    classifier = weights.build(order, len(source.classes))
    prepared = prepare(source, classifier.input_size, classifier.crop, order.workers, run)
    say(report.plan(source, order, where))

    started = time.perf_counter()
    history, kept = fit(classifier, prepared, order, where, run / "checkpoints" / "best.pt")
    seconds = time.perf_counter() - started
    say(report.trained(history, kept, order, seconds))

    figures = measure(classifier, prepared.splits, where)
    say(report.measured(figures, source.classes))
    recipe = order.model_dump(mode="json", include=set(Recipe.model_fields)) | {
        "data": source.name,
        "weights": order.weights and Path(order.weights).name,  # a path would name the author's machine
    }
    proof = None
    if validation := prepared.splits.get("val"):
        proof = artifact.Validation(validation.batches(BATCH), int(figures.matrices["validation"].trace()))
    manifest = artifact.save(
        order.out,
        classifier,
        name=name,
        version=order.version,
        classes=source.classes,
        architecture=Architecture(name=order.arch, arguments={"num_classes": len(source.classes)}),
        validation=proof,
        device=str(where),
        recipe=recipe,
        data_fingerprint=prepared.fingerprint,
        metrics=figures.metrics,
    )
    sizes = {name: len(images) for name, images in source.splits.items()}
    document = {
        "artifact": {"name": manifest.name, "version": manifest.version, "digest": manifest.digest},
        "data": {"name": source.name, "fingerprint": prepared.fingerprint, "images": sizes},
        "recipe": recipe,
        "device": report.device_told(where),
        "torch": manifest.torch,
        "seconds": seconds,
        "best_epoch": kept,
        "epochs": [asdict(epoch) for epoch in history],
    } | figures.document(source.classes)
    report.write(run / "reports", document, history, figures, source.classes)
    more = [f"reports   {run / 'reports'}/"]
    if order.data == "shapes10" and report.write_sample(sample := order.out.parent / "sample.png", source, figures):
        more.append(f"sample    {sample}")
    say(report.published(order.out, manifest, *more))


def fit(
    classifier: Classifier, prepared: Prepared, recipe: Recipe, where: torch.device, best: Path
) -> tuple[list[Epoch], int]:
    """Train until the recipe or Ctrl-C ends it: all epochs, and the number of the one kept, in the file `best`."""
    train, validation = prepared.splits["train"], prepared.splits.get("val")
    history, kept = list[Epoch](), 0
    with interruptible() as stopped, bar(recipe.epochs * len(train.labels), "training") as progress:
        for epoch, better in loop.fit(classifier, train, validation, recipe, where, stopped, progress):
            history.append(epoch)
            say(report.epoch(epoch, recipe.epochs))
            if better:
                kept = epoch.number
                weights.save_checkpoint(best, classifier, kept)
    if not history:
        raise KeyboardInterrupt
    classifier.network.load_state_dict(weights.from_file(best))
    return history, kept


def evaluate(order: Evaluate) -> None:
    """Print an artifact's accuracy on a split."""
    where = loop.choose_device(order.device)
    model = artifact.load(order.model, str(where))
    manifest, recipe = model.manifest, model.manifest.recipe or {}
    source = load(order)
    check_classes(order.model, set(manifest.classes), set(source.classes))
    sizes = manifest.input_size, manifest.crop, order.workers, Path("runs")
    unseen = False
    if "val" not in source.splits and (order.split == "val" or "test" not in source.splits):
        # Only if these are the images of the training run is it known which of them were trained on.
        unseen = prepare(source, *sizes).fingerprint != manifest.data_fingerprint
        source = source if unseen else source.validated(recipe["val"], recipe["seed"])
    name = order.split or next(name for name in ("test", "val", "train") if name in source.splits)
    if name not in source.splits:
        raise TrainingError(f"--split {name}: {source.name} has {', '.join(source.splits)}")
    # An exported artifact may have its classes in another order than the folder.
    places = torch.tensor([manifest.classes.index(kind) for kind in source.classes])
    images = Images(source.splits[name].pictures, places[source.splits[name].labels])
    split = prepare(Source(source.name, manifest.classes, {name: images}), *sizes).splits[name]
    matrix = confusion(answers(model.module, split, where).argmax(1), split.labels, len(manifest.classes))
    say(report.evaluated(manifest, source, "all" if unseen and name == "train" else name, matrix))


def export(order: Export) -> None:
    """Make an artifact from existing weights."""
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
    say(report.published(order.out, manifest))


def load(order: Data) -> Source:
    """The data set that `--data` names, as it comes."""
    if order.data == "shapes10":
        drawn = {split: map(torch.from_numpy, shapes10.render(split)) for split in shapes10.SPLITS}
        return Source("shapes10", shapes10.CLASSES, {split: Images(*arrays) for split, arrays in drawn.items()})
    if order.data == "cifar10":
        return cifar10.load(order.data_dir.expanduser(), order.data_url)
    return data.read_folder(Path(order.data).expanduser())


def check_target(path: Path) -> None:
    """Refuse an artifact that could not be written, before anything takes time."""
    if path.is_dir():
        raise TrainingError(f"--out {path} is a folder; name a file in it")
    if path.exists():
        try:
            archive.verify(path)
        except ArtifactError:
            raise TrainingError(f"--out {path} exists and is no artifact; remove it or name another file") from None
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise TrainingError(f"--out {path}: {parent} cannot be written")


def check_classes(model: Path, expected: set[str], found: set[str]) -> None:
    """Refuse data of other classes than the model's."""
    differing = (("lacks", sorted(expected - found)), ("adds", sorted(found - expected)))
    told = [f"{what} {', '.join(names[: data.LISTED])} ({len(names)})" for what, names in differing if names]
    if told:
        raise TrainingError(f"the data's classes are not those of {model}: it {' and '.join(told)}")


def read_classes(path: Path) -> tuple[str, ...]:
    """Class names in the order of the outputs, from a JSON list or one a line; empty lines do not count."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = json.loads(text) if path.suffix == ".json" else [line.strip() for line in text.splitlines()]
    except OSError as error:
        raise TrainingError(f"--classes {path}: {error.strerror}") from None
    except ValueError:  # also of an encoding
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TrainingError(f"--classes {path}: not a JSON list of names, or not UTF-8 text")
    classes = tuple(name for name in names if name)
    if len(classes) < 2:
        raise TrainingError(f"--classes {path}: {len(classes)} names; a classifier needs two or more")
    if twice := sorted({name for name in classes if classes.count(name) > 1}):
        raise TrainingError(f"--classes {path}: names must be unique; {', '.join(twice)} occur more than once")
    return classes
