"""What a command reports: every line that is not an error, metrics.json, the pictures of a run."""

import csv
import io
import json
import os
import platform
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from models import archive
from models.manifest import Accuracy, Manifest, Unknown
from training.command_line import PROGRAM
from training.data import Source
from training.findings import KINDS, Finding
from training.folder import Layout
from training.loop import Epoch, Place, Training
from training.measurement import Figures, accuracy
from training.page import page
from training.pixels import Prepared
from training.ranks import Ranks
from training.recipe import Recipe

SHAPES10 = f"""shapes10 is synthetic demo data, drawn by this program: a score on it says nothing about photos.
  your own pictures   {PROGRAM} --data FOLDER     (FOLDER/CLASS/picture.jpg)
  a known benchmark   {PROGRAM} --data cifar10    (downloads 170 MB; --data-dir DIR where you have it)
"""
SHOWN = 10  # findings of a kind
WORST = 20  # classes that are listed where there are more
SAMPLE = "star"  # the class of the sample picture, if the model gets one right


def plan(name: str, classes: int, prepared: Prepared, recipe: Recipe, device: torch.device, ranks: Ranks) -> str:
    """The data and the recipe, before the first epoch."""
    splits = prepared.splits
    sizes = ", ".join(f"{len(split.labels):,} {name}" for name, split in splits.items())
    figures = "figures are on validation images" if "val" in splits else "nothing can be measured"
    weights = f" from {Path(recipe.weights).name}" if recipe.weights else ""
    lines = [
        f"data      {name}: {classes} classes; {sizes}",
        *([] if "test" in splits else [f"          no test split, so {figures}"]),
        *(
            f"warning   {count:,} files are both in {a} and in {b}, so {b} flatters; {PROGRAM} check lists them"
            for (a, b), count in prepared.shared.items()
        ),
        f"recipe    {recipe.arch}{weights}, {recipe.epochs} epochs of batches of {recipe.batch_size}, "
        f"{recipe.optimizer} {recipe.lr:g} {recipe.schedule}, seed {recipe.seed}",
        f"device    {device_told(device)}" + (f", {ranks.count} processes" if ranks.count > 1 else ""),
    ]
    return "\n".join(lines)


def checked(layout: Layout, findings: Sequence[Finding]) -> str:
    """What was found in a folder, kind by kind; `findings` are in the order of `KINDS`."""
    sizes = ", ".join(f"{sum(map(len, kinds.values())):,} {name}" for name, kinds in layout.splits.items())
    lines = [f"{layout.folder}: {len(layout.classes)} classes; {sizes}"]
    for kind, group in ((kind, list(group)) for kind, group in groupby(findings, lambda finding: finding.kind)):
        level, told = KINDS[kind]
        lines.append(f"\n{level:8} {kind} ({len(group):,}): {told}")
        for finding in group[:SHOWN]:
            lines.append(f"  {finding.told}" if level == "fatal" else f"  {finding.where}  {finding.told}".rstrip())
        if len(group) > SHOWN:
            lines.append(f"  and {len(group) - SHOWN:,} more: --list FILE tells all")
    bad = sum(finding.level != "note" for finding in findings)
    notes = len(findings) - bad
    lines.append(f"\n{bad or 'no'} defects and {notes or 'no'} notes" if findings else "nothing is wrong with it")
    return "\n".join(lines)


def device_told(device: torch.device) -> str:
    """The device in words, for claims that need their conditions."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads)"


def epoch(epoch: Epoch, epochs: int) -> str:
    """One line an epoch."""
    scores = "  validation loss {:.4f} accuracy {:.2%}".format(*epoch.validation) if epoch.validation else ""
    return (
        f"epoch {epoch.number:2}/{epochs}  loss {epoch.loss:.4f} accuracy {epoch.accuracy:.2%}{scores}"
        f"  {epoch.images / epoch.seconds:,.0f} images/s  {epoch.seconds:.1f} s"
    )


def resumed(place: Place) -> str:
    """Where a run goes on."""
    return f"going on in epoch {place.epoch} after {place.step} steps"


def suspended(training: Training, run: Path) -> str:
    """How to go on with a run that SIGTERM ended."""
    at = training.place
    return f"\nstopped in epoch {at.epoch} after {at.step} steps; go on with\n  {PROGRAM} resume {run}"


def trained(history: Sequence[Epoch], kept: int, recipe: Recipe, seconds: float) -> str:
    """Which epoch is kept, and why."""
    patient = recipe.patience is None or len(history) - kept < recipe.patience
    cut = "" if len(history) == recipe.epochs else "stopped by Ctrl-C; " if patient else "stopped by --patience; "
    why = "no validation: the last" if history[-1].validation is None else "best on validation"
    return f"\n{cut}{len(history)} epochs in {seconds:.1f} s; kept epoch {kept} ({why})"


def measured(figures: Figures, classes: Sequence[str]) -> str:
    """Accuracies, per class, and calibration."""
    on, calibration = figures.measured_on, figures.calibration
    if on is None or calibration is None:
        return "nothing was measured: there are neither validation nor test images"
    fitted = "fitted on validation images" if "validation" in figures.matrices else "not fitted: no validation images"
    lines = [
        *(f"{name:12} {accuracy_told(value)}" for name, value in figures.accuracies.items()),
        *(f"  6 views    {accuracy_told(value)}, on {name} images" for name, value in figures.views.items()),
        f"\nper class, on {on} images",
        *per_class(figures.matrices[on], classes),
        f"\ntemperature {calibration['temperature']:.3f} ({fitted}); calibration error "
        f"{calibration['error_before']:.2%} before, {calibration['error_after']:.2%} after, on {on} images",
        *([unknown_told(figures.unknown, figures.unknown_threshold, on)] if figures.unknown else []),
    ]
    return "\n".join(lines)


def unknown_told(unknown: Unknown, threshold: float | None, on: str) -> str:
    """The unknown threshold and what it does."""
    refused = "; ".join(f"{part.refused:.1%} of {part.n:,} {name}" for name, part in unknown.strangers.items())
    right = f", {unknown.accuracy:.2%} of them right" if unknown.accuracy is not None else ""
    return (
        f"unknown below {threshold:.3f} (chosen to keep {unknown.coverage:.0%} of validation images): keeps "
        f"{unknown.known:.1%} of {on} images{right}; refuses {refused or 'nothing else that was measured'}"
    )


def spread(documents: Sequence[Mapping[str, Any]]) -> str:
    """Mean, standard deviation (of a sample) and range over several runs: accuracies, and seconds of training."""
    lines = [f"\n{len(documents)} seeds"]
    for figure, told in (("accuracy", ""), ("accuracy_6_views", ", 6 views")):
        for split in documents[0][figure]:
            values = [document[figure][split]["value"] for document in documents]
            lines.append(f"{split + told:21} {spread_of(values, '.2%')}")
    lines.append(f"{'seconds':21} {spread_of([document['seconds'] for document in documents], '.1f')}")
    if documents[0]["recipe"]["compile"]:
        seconds = [settled([epoch["seconds"] for epoch in document["epochs"]]) for document in documents]
        lines.append(
            f"{'seconds, compiled':21} {spread_of(seconds, '.1f')}; if first epochs, which compile, took as others"
        )
    return "\n".join(lines)


def settled(seconds: Sequence[float]) -> float:
    """What epochs take together if the first takes as long as others on average; a single one is all there is."""
    return fmean(seconds[1:] or seconds) * len(seconds)


def spread_of(values: Sequence[float], style: str) -> str:
    """Mean, standard deviation and range, each written in a `style` of `format`."""
    mean, deviation, low, high = (
        format(value, style) for value in (fmean(values), stdev(values), min(values), max(values))
    )
    return f"{mean} on average, standard deviation {deviation}, {low} to {high}"


def accuracy_told(accuracy: Accuracy) -> str:
    """An accuracy with its conditions."""
    low, high = accuracy.interval
    return f"{accuracy.value:.2%} of {accuracy.n:,} images (95 % interval {low:.2%} to {high:.2%})"


def per_class(matrix: Tensor, classes: Sequence[str]) -> list[str]:
    """Lines of each class's accuracy, or of the `WORST`; classes without images have none."""
    counts = zip(matrix.diagonal().tolist(), matrix.sum(1).tolist(), classes, strict=True)
    rows = [(right / n, n, name) for right, n, name in counts if n]
    shown = rows if len(rows) <= WORST else sorted(rows)[:WORST]
    lines = [f"  {name:20} {share:7.2%} of {n:,}" for share, n, name in shown]
    return lines if shown is rows else [f"  the {WORST} worst of {len(rows)}:", *lines]


def published(out: Path, manifest: Manifest, *more: str) -> str:
    """Where things lie, and the next command."""
    told = f"{out.stat().st_size / 1e6:.1f} MB, {manifest.name} version {manifest.version}"
    return "\n".join([f"\nartifact  {out} ({told}), proved", *more, f"serve it  python -m service --model {out}"])


def evaluated(manifest: Manifest, source: Source, split: str, matrix: Tensor, views: Accuracy | None) -> str:
    """An artifact's figures on a split."""
    kind = {"val": "validation", "train": "training"}.get(split, split)
    remark = f": {kind} images are not test images" if split in ("val", "train") else ""
    if split == "all":
        remark = ": where the model was trained on some of them, the figure is too good"
    title = f"{manifest.name} version {manifest.version} on {source.name}, {kind} images{remark}"
    more = [f"{accuracy_told(views)} by the mean over 6 views"] if views else []
    return "\n".join([title, accuracy_told(accuracy(matrix)), *more, *per_class(matrix, manifest.classes)])


def write(
    folder: Path, document: Mapping[str, Any], history: Sequence[Epoch], figures: Figures, classes: Sequence[str]
) -> None:
    """Write `document` as metrics.json, its table of classes, the pictures, and all of it as one page."""
    from training.pictures import drawn  # by matplotlib, which other commands need not wait for

    with archive.replacing(folder / "metrics.json") as temporary:
        temporary.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    pictures = dict[str, bytes]()
    for name, figure in drawn(history, document["best_epoch"], figures, classes).items():
        figure.savefig(buffer := io.BytesIO(), format="png", dpi=120)
        pictures[name] = buffer.getvalue()
    files = pictures | {"index.html": page(document, pictures).encode()}
    if document["measured_on"]:
        files["per_class.csv"] = per_class_csv(document["per_class"]).encode()
    for name, body in files.items():
        with archive.replacing(folder / name) as temporary:
            temporary.write_bytes(body)


def per_class_csv(counts: Mapping[str, Mapping[str, int]]) -> str:
    """A line a class."""
    rows = csv.writer(text := io.StringIO())
    rows.writerow(("class", "correct", "n"))
    rows.writerows((name, count["correct"], count["n"]) for name, count in counts.items())
    return text.getvalue()


def write_sample(path: Path, source: Source, figures: Figures) -> bool:
    """Write a test picture that was classified right, a `SAMPLE` if there is one; whether there was any."""
    images = source.splits["test"]
    assert isinstance(images.pictures, Tensor), "shapes10 is drawn in memory"
    right = torch.nonzero(figures.predicted["test"] == images.labels).flatten().tolist()
    right.sort(key=lambda index: source.classes[int(images.labels[index])] != SAMPLE)
    if right:
        with archive.replacing(path) as temporary:
            Image.fromarray(images.pictures[right[0]].permute(1, 2, 0).numpy()).save(temporary, "PNG")
    return bool(right)
