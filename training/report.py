"""What a command reports: every line that is not an error, metrics.json, the pictures of a run."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from models import archive
from models.manifest import Accuracy, Manifest
from training.command_line import PROGRAM
from training.data import Source
from training.loop import Epoch
from training.measurement import Figures, accuracy
from training.recipe import Recipe

SHAPES10 = f"""shapes10 is synthetic demo data, drawn by this program: a score on it says nothing about photos.
  your own pictures   {PROGRAM} --data FOLDER     (FOLDER/CLASS/picture.jpg)
  a known benchmark   {PROGRAM} --data cifar10    (downloads 170 MB; --data-dir DIR where you have it)
"""
WORST = 20  # classes that are listed where there are more
# Okabe and Ito's palette, told apart by readers of every colour vision.
TRAIN, VALIDATION, BEST = "#0072B2", "#D55E00", "#666666"
NUMBERED = 20  # classes up to which every cell shows its share
NAMED = 200  # classes up to which every class has its name at the axes
SAMPLE = "star"  # the class of the sample picture, if the model gets one right


def plan(source: Source, recipe: Recipe, device: torch.device) -> str:
    """The data and the recipe, before the first epoch."""
    sizes = ", ".join(f"{len(images):,} {name}" for name, images in source.splits.items())
    figures = "figures are on validation images" if "val" in source.splits else "nothing can be measured"
    weights = f" from {Path(recipe.weights).name}" if recipe.weights else ""
    lines = [
        f"data      {source.name}: {len(source.classes)} classes; {sizes}",
        *([] if "test" in source.splits else [f"          no test split, so {figures}"]),
        f"recipe    {recipe.arch}{weights}, {recipe.epochs} epochs of batches of {recipe.batch_size}, "
        f"{recipe.optimizer} {recipe.lr:g} {recipe.schedule}, seed {recipe.seed}",
        f"device    {device_told(device)}",
    ]
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


def trained(history: Sequence[Epoch], kept: int, recipe: Recipe, seconds: float) -> str:
    """Which epoch is kept, and why."""
    cut = "stopped by Ctrl-C; " if len(history) < recipe.epochs else ""
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
        f"\nper class, on {on} images",
        *per_class(figures.matrices[on], classes),
        f"\ntemperature {calibration['temperature']:.3f} ({fitted}); calibration error "
        f"{calibration['error_before']:.2%} before, {calibration['error_after']:.2%} after, on {on} images",
    ]
    return "\n".join(lines)


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


def evaluated(manifest: Manifest, source: Source, split: str, matrix: Tensor) -> str:
    """An artifact's figures on a split."""
    kind = {"val": "validation", "train": "training"}.get(split, split)
    remark = f": {kind} images are not test images" if split in ("val", "train") else ""
    if split == "all":
        remark = ": where the model was trained on some of them, the figure is too good"
    title = f"{manifest.name} version {manifest.version} on {source.name}, {kind} images{remark}"
    return "\n".join([title, accuracy_told(accuracy(matrix)), *per_class(matrix, manifest.classes)])


def write(
    folder: Path, document: Mapping[str, Any], history: Sequence[Epoch], figures: Figures, classes: Sequence[str]
) -> None:
    """Write `document` as metrics.json and draw the pictures; no confusion matrix where nothing was measured."""
    with archive.replacing(folder / "metrics.json") as temporary:
        temporary.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    pictures = {"curves.png": curves(history, document["best_epoch"])}
    if on := figures.measured_on:
        pictures["confusion_matrix.png"] = matrix_figure(figures.matrices[on], classes, f"{on} images")
    for name, figure in pictures.items():
        with archive.replacing(folder / name) as temporary:
            figure.savefig(temporary, format="png", dpi=120)


def curves(history: Sequence[Epoch], kept: int) -> Figure:
    """Loss and accuracy over the epochs, the kept epoch marked."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    numbers = [epoch.number for epoch in history]
    for place, (axes, what) in enumerate(zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True)):
        axes.plot(numbers, [getattr(epoch, what) for epoch in history], "o-", color=TRAIN, label="training")
        if validation := [epoch.validation[place] for epoch in history if epoch.validation]:
            axes.plot(numbers, validation, "s--", color=VALIDATION, label="validation")
        axes.axvline(kept, color=BEST, linestyle=":", label=f"kept: epoch {kept}")
        axes.set(xlabel="epoch", ylabel=what + ("" if place else " (nats)"))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def matrix_figure(matrix: Tensor, classes: Sequence[str], told: str) -> Figure:
    """Shares of each label's images, a row a label; large enough to read up to `NAMED` classes' names."""
    count = len(classes)
    side = min(36.0, 4.5 + 0.45 * min(count, NUMBERED) + 0.16 * max(0, count - NUMBERED))  # inches
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    shares = (matrix / matrix.sum(1, keepdim=True).clamp(min=1)).numpy()
    picture = axes.imshow(shares, cmap="cividis", vmin=0, vmax=1)
    step = -(-count // NAMED)
    size = 10 if count <= NUMBERED else 7
    axes.set_xticks(range(0, count, step), classes[::step], rotation=90, fontsize=size)
    axes.set_yticks(range(0, count, step), classes[::step], fontsize=size)
    axes.set(xlabel="answer", ylabel="label", title=f"Confusion matrix, {int(matrix.sum()):,} {told}")
    figure.colorbar(picture, ax=axes, shrink=0.7, label="share of the label's images")
    if count <= NUMBERED:
        for row, column in torch.nonzero(matrix).tolist():
            share = shares[row, column]
            colour = "black" if share > 0.5 else "white"
            number = f"{share:.0%}" if share >= 0.005 else "<1%"
            axes.text(column, row, number, ha="center", va="center", color=colour, fontsize=8)
    return figure


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
