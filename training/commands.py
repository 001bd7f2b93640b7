"""The commands: what each puts together, in order."""

import csv
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from models import archive, artifact
from models import manifest as manifests
from models.errors import ArtifactError
from models.manifest import Architecture
from training import checkpoint, comparison, folder, inspection, log, loop, report, shapes10, weights
from training.command_line import PROGRAM, Check, Compare, Data, Evaluate, Export, Resume, Train
from training.data import Images, Source
from training.device import choose_device
from training.errors import TrainingError
from training.findings import KINDS, Finding
from training.measurement import BATCH, answers, confusion, measure, viewed
from training.pixels import Prepared, Split, in_order, prepare
from training.ranks import joined
from training.recipe import Recipe
from training.statistics import statistics
from training.terminal import bar, interruptible, say
from training.unknown import strangers


def train(order: Train, saved: Mapping[str, Any] | None = None) -> bool:
    """Train a classifier, from the start or from what a checkpoint `saved`, and publish its artifact.

    Whether its recipe came to its end. KeyboardInterrupt before the first epoch ended, nothing written. After SIGTERM
    there is a checkpoint, no artifact; after Ctrl-C an artifact of the best epoch so far. Where torchrun started
    several processes, they do it together.
    """
    check_target(order.out)
    if order.run is not None and order.run.exists() and not order.run.is_dir():
        raise TrainingError(f"--run {order.run} is a file; name a folder")
    if order.unlike is not None and not order.unlike.is_dir():
        raise TrainingError(f"--unlike {order.unlike}: no such folder; name one of pictures of none of the classes")
    log.check(order.log)
    where = choose_device(order.device, order.seed)
    say(report.SHAPES10 if order.data == "shapes10" else f"reading {order.data}")
    source = load(order).validated(order.val, order.seed)
    name = order.name or source.name
    with ExitStack() as stack:
        ranks = stack.enter_context(joined(where))
        run = ranks.agreed(order.run or Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
        if not ranks.first:  # what it writes, the first writes too
            run = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"
        if not saved and (run / "checkpoints" / checkpoint.LAST).exists():
            again = f"{PROGRAM} resume {run}"
            raise TrainingError(f"--run {run} holds a run: name another folder, or go on with it: {again}")
        order = order.model_copy(update={"run": run, "name": name})
        stack.enter_context(checkpoint.alone(run))
        classifier = weights.build(order, len(source.classes))
        prepared = prepare(source, classifier.input_size, classifier.crop, order.workers, run, order.skip_bad)
        prepared = prepared.on(where)
        # Before the first epoch: a folder without pictures should not cost a training.
        validated = len(prepared.splits["val"].labels) if "val" in prepared.splits else 0
        strange = strangers(classifier, source.name, order.unlike, validated) if ranks.first else {}
        say(report.plan(source.name, len(source.classes), prepared, order, where, ranks))
        training = loop.Training(classifier, order, where, prepared.splits["train"], ranks)
        if saved:
            if saved["data"] != prepared.fingerprint:
                raise TrainingError(f"the pictures of {order.data} are not those that the run in {run} began with")
            if saved.get("validation", prepared.validation) != prepared.validation:
                told = "are divided otherwise than when the run began: files have other names, or some are gone"
                raise TrainingError(f"the pictures of {order.data} {told}; put them back to go on with {run}")
            training.load_state_dict(saved["training"])
            say(report.resumed(training.place))
        if not fit(training, prepared, order):
            say(report.suspended(training, run))
        elif ranks.first:
            publish(training, prepared, source, order, strange)
    return training.over


def train_seeds(order: Train) -> None:
    """Train once for each of several seeds, tell mean and spread, and publish the best on validation images."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise TrainingError(f"--seeds {order.seeds}: not under torchrun, which is for one run; start it without")
    check_target(order.out)
    run = order.run or Path("runs") / f"{order.name or Path(order.data).name}-{time.strftime('%Y%m%d-%H%M%S')}"
    parts = [
        order.model_copy(update={"seed": seed, "run": folder, "out": folder / "model.pt", "seeds": 1})
        for seed in range(order.seed, order.seed + order.seeds)
        for folder in [run / f"seed-{seed}"]
    ]
    for part in parts:
        say(f"\nseed {part.seed}")
        if not train(part):
            say(f"\nstopped at seed {part.seed} of {order.seeds} seeds; {order.out} is not written")
            return
    documents = [comparison.read(run / f"seed-{part.seed}") for part in parts]
    say(report.spread(documents))
    best = max(zip(documents, parts, strict=True), key=lambda pair: comparison.rank(pair[0]))[1]
    with archive.replacing(order.out) as temporary:
        shutil.copyfile(best.out, temporary)
    say(report.published(order.out, manifests.read(order.out), f"          that of seed {best.seed}"))


def resume(order: Resume) -> None:
    """Go on with a run that was stopped or killed, as it would have."""
    saved = checkpoint.load(order.run / "checkpoints")
    train(Train(**saved["order"]).model_copy(update={"run": order.run}), saved)


def fit(training: loop.Training, prepared: Prepared, order: Train) -> bool:
    """Train until the recipe or a signal ends it, and bring the best weights back; False where all is to be left so."""
    assert order.run
    folder = order.run / "checkpoints"
    checkpoints = checkpoint.Checkpoints(folder)
    writer = log.Log(order.run, order.log == "tensorboard")
    train, validation = prepared.splits["train"], prepared.splits.get("val")
    images = order.epochs * len(train.labels)
    done = (training.place.epoch - 1) * len(train.labels) + training.place.seen
    given = order.model_dump(mode="json", exclude={"recipe", "run"}, exclude_unset=True)

    def save() -> None:
        data = {"data": prepared.fingerprint, "validation": prepared.validation}
        checkpoints.save({"order": given, "training": training.state_dict()} | data)

    with interruptible() as asked, bar(images, "training", initial=done) as progress:

        def stopped() -> bool:
            if checkpoints.due(mid_epoch=True):
                save()
            return asked() is not None

        if training.kept:  # what a killed run wrote after its last checkpoint is not known here
            weights.save_checkpoint(folder / "best.pt", training.best, training.kept)
        for epoch in loop.fit(training, train, validation, stopped, progress):
            say(report.epoch(epoch, order.epochs))
            writer.write(training.history)
            if epoch.number == training.kept:
                weights.save_checkpoint(folder / "best.pt", training.best, training.kept)
            if checkpoints.due(mid_epoch=False):
                save()
        ended, left = training.ranks.summed(
            (asked() == signal.SIGTERM, asked() == signal.SIGINT), training.device
        )  # as one was told, all are
        if training.history or ended:
            save()
    if ended:
        return False
    if left and not training.history:
        raise KeyboardInterrupt
    training.classifier.network.load_state_dict(training.best)
    return True


def publish(
    training: loop.Training, prepared: Prepared, source: Source, order: Train, strange: Mapping[str, Split]
) -> None:
    """Measure the classifier, write its artifact and the run's reports; `strange` are pictures of no class of its."""
    assert order.run
    assert order.name
    run, name, where, history, kept = order.run, order.name, training.device, training.history, training.kept
    classifier = training.classifier
    seconds = sum(epoch.seconds for epoch in history)
    say(report.trained(history, kept, order, seconds))

    figures = measure(
        classifier,
        prepared.splits,
        where,
        views=order.views,
        coverage=order.coverage,
        strangers=strange,
    )
    say(report.measured(figures, source.classes))
    recipe = order.model_dump(mode="json", include=set(Recipe.model_fields)) | {
        "data": source.name,
        "validation": prepared.validation,
        "weights": order.weights and Path(order.weights).name,  # a path would name the author's machine
    }
    proof, likeness = None, None
    if validation := prepared.splits.get("val"):
        proof = artifact.Validation(
            validation.batches(in_order(len(validation.labels), BATCH)), int(figures.matrices["validation"].trace())
        )
        predicted, confidence = figures.predicted["validation"], figures.confidence["validation"]
        likeness = statistics(predicted, confidence, len(source.classes), validation, source.splits["val"])
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
        unknown_threshold=figures.unknown_threshold,
        validation_statistics=likeness,
    )
    sizes = {name: len(split.labels) for name, split in prepared.splits.items()}
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


def evaluate(order: Evaluate) -> None:
    """Print an artifact's accuracy on a split."""
    where = choose_device(order.device)
    model = artifact.load(order.model, str(where))
    manifest, recipe = model.manifest, model.manifest.recipe or {}
    source = load(order)
    check_classes(order.model, set(manifest.classes), set(source.classes))
    sizes = manifest.input_size, manifest.crop, order.workers, Path("runs")
    unseen = False
    if "val" not in source.splits and (order.split == "val" or "test" not in source.splits):
        # Only if these are the images of the training run is it known which of them were trained on, and only if they
        # are divided as then: names and files that were left out decide how.
        unseen = prepare(source, *sizes).fingerprint != manifest.data_fingerprint
        if not unseen:
            again = source.validated(recipe["val"], recipe["seed"])
            drawn = {name: images for name, images in again.splits.items() if name == "val"}
            found = prepare(Source(again.name, again.classes, drawn), *sizes).validation
            unseen = found != recipe.get("validation", found)
            source = source if unseen else again
    name = order.split or next(name for name in ("test", "val", "train") if name in source.splits)
    if name not in source.splits:
        raise TrainingError(f"--split {name}: {source.name} has {', '.join(source.splits)}")
    # An exported artifact may have its classes in another order than the folder.
    places = torch.tensor([manifest.classes.index(kind) for kind in source.classes])
    images = Images(source.splits[name].pictures, places[source.splits[name].labels])
    split = prepare(Source(source.name, manifest.classes, {name: images}), *sizes).splits[name]
    matrix = confusion(answers(model.module, split, where).argmax(1), split.labels, len(manifest.classes))
    views = viewed(model.module.logits, split, where) if order.views else None
    say(report.evaluated(manifest, source, "all" if unseen and name == "train" else name, matrix, views))


def check(order: Check) -> bool:
    """Tell what is wrong with a folder of pictures; whether that is more than notes."""
    layout = folder.survey(order.folder.expanduser())
    facts = inspection.inspect(layout, order.workers or min(8, os.cpu_count() or 1))
    findings = [*layout.findings, *(finding for fact in facts for finding in fact.findings), *inspection.compare(facts)]
    findings.sort(key=lambda finding: list(KINDS).index(finding.kind))
    say(report.checked(layout, findings))
    if order.list:
        write_list(order.list, findings)
    return any(finding.level != "note" for finding in findings)


def compare(order: Compare) -> None:
    """Print what differs between two runs."""
    runs = order.first, order.second
    say(comparison.told((runs[0].name, runs[1].name), *map(comparison.read, runs)))


def write_list(path: Path, findings: Sequence[Finding]) -> None:
    """Every finding as a line of CSV."""
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("level", "kind", "where", "detail"))
        rows.writerows((finding.level, *finding) for finding in findings)


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
        from training import cifar10  # by torchvision, which takes seconds to import

        return cifar10.load(order.data_dir.expanduser(), order.data_url)
    return folder.read_folder(Path(order.data).expanduser())


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
    try:
        with tempfile.TemporaryFile(dir=parent):  # what is permitted is not always possible
            pass
    except OSError as error:
        raise TrainingError(f"--out {path}: {parent} cannot be written: {error.strerror}") from None


def check_classes(model: Path, expected: set[str], found: set[str]) -> None:
    """Refuse data of other classes than the model's."""
    differing = (("lacks", sorted(expected - found)), ("adds", sorted(found - expected)))
    told = [f"{what} {', '.join(names[: folder.LISTED])} ({len(names)})" for what, names in differing if names]
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
