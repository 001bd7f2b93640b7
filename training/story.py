"""What the commands tell: every line that is not an error."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from models.manifest import Accuracy, Manifest
from training.command_line import PROGRAM, Data
from training.data import Source
from training.evaluation import accuracy
from training.loop import Epoch
from training.measurement import Measurement
from training.recipe import Recipe

SHAPES10 = f"""shapes10 is synthetic demo data, drawn by this program: a score on it says nothing about photos.
  your own pictures   {PROGRAM} --data FOLDER     (FOLDER/CLASS/picture.jpg)
  a known benchmark   {PROGRAM} --data cifar10    (downloads 170 MB; --data-dir DIR where you have it)
"""
WORST = 20  # classes that are listed where there are more


def opening(order: Data) -> str:
    """The first screen."""
    return SHAPES10 if order.data == "shapes10" else f"reading {order.data}"


def plan(source: Source, recipe: Recipe, device: torch.device) -> str:
    """The data and the recipe, before the first epoch."""
    sizes = ", ".join(f"{len(images):,} {name}" for name, images in source.splits.items())
    lines = [f"data      {source.name}: {len(source.classes)} classes; {sizes}"]
    if "test" not in source.splits:
        figures = "figures are on validation images" if "val" in source.splits else "nothing can be measured"
        lines.append(f"          no test split, so {figures}")
    weights = f" from {Path(recipe.weights).name}" if recipe.weights else ""
    lines.append(
        f"recipe    {recipe.arch}{weights}, {recipe.epochs} epochs of batches of {recipe.batch_size}, "
        f"{recipe.optimizer} {recipe.lr:g} {recipe.schedule}, seed {recipe.seed}"
    )
    return "\n".join([*lines, f"device    {device_told(device)}"])


def device_told(device: torch.device) -> str:
    """The device in words, for claims that need their conditions."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads)"


def epoch(epoch: Epoch, epochs: int) -> str:
    """One line an epoch."""
    validation = ""
    if epoch.validation:
        validation = "  validation loss {:.4f} accuracy {:.2%}".format(*epoch.validation)
    return (
        f"epoch {epoch.number:2}/{epochs}  loss {epoch.loss:.4f} accuracy {epoch.accuracy:.2%}{validation}"
        f"  {epoch.images / epoch.seconds:,.0f} images/s  {epoch.seconds:.1f} s"
    )


def trained(history: Sequence[Epoch], kept: int, recipe: Recipe, seconds: float) -> str:
    """Which epoch is kept, and why."""
    cut = "stopped by Ctrl-C; " if len(history) < recipe.epochs else ""
    why = "no validation: the last" if history[-1].validation is None else "best on validation"
    return f"\n{cut}{len(history)} epochs in {seconds:.1f} s; kept epoch {kept} ({why})"


def figures(measured: Measurement, classes: Sequence[str]) -> str:
    """Accuracies, per class, and calibration."""
    lines = [f"{name:12} {told(accuracy)}" for name, accuracy in measured.accuracies.items()]
    if measured.matrix is None or measured.calibration is None:
        return "nothing was measured: there are neither validation nor test images"
    lines += ["", f"per class, on {measured.measured_on} images", *per_class(measured.matrix, classes), ""]
    calibration = measured.calibration
    fitted = (
        "fitted on validation images" if "validation" in measured.accuracies else "not fitted: no validation images"
    )
    lines.append(
        f"temperature {calibration['temperature']:.3f} ({fitted}); calibration error {calibration['error_before']:.2%} "
        f"before, {calibration['error_after']:.2%} after, on {measured.measured_on} images"
    )
    return "\n".join(lines)


def told(accuracy: Accuracy) -> str:
    """An accuracy with its conditions."""
    low, high = accuracy.interval
    return f"{accuracy.value:.2%} of {accuracy.n:,} images (95 % interval {low:.2%} to {high:.2%})"


def per_class(matrix: Tensor, classes: Sequence[str]) -> list[str]:
    """Lines of each class's accuracy, or of the `WORST`; classes without images have none."""
    rows = [
        (right / n, n, name)
        for right, n, name in zip(matrix.diagonal().tolist(), matrix.sum(1).tolist(), classes, strict=True)
        if n
    ]
    shown = rows if len(rows) <= WORST else sorted(rows)[:WORST]
    lines = [f"  {name:20} {share:7.2%} of {n:,}" for share, n, name in shown]
    return lines if len(rows) <= WORST else [f"  the {WORST} worst of {len(rows)}:", *lines]


def ending(out: Path, reports: Path | None, manifest: Manifest, sample: Path | None) -> str:
    """Where things lie, and the next command."""
    lines = [
        f"\nartifact  {out} ({out.stat().st_size / 1e6:.1f} MB, {manifest.name} version {manifest.version}), proved"
    ]
    lines += [f"reports   {reports}/"] if reports else []
    lines += [f"sample    {sample}"] if sample else []
    return "\n".join([*lines, f"serve it  python -m service --model {out}"])


def other_classes(model: Path, expected: Sequence[str], found: Sequence[str]) -> str:
    """Why an artifact cannot be evaluated on data of other classes."""
    missing, strange = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    parts = [
        f"{what} {', '.join(names[:WORST])} ({len(names)})"
        for what, names in (("lacks", missing), ("adds", strange))
        if names
    ]
    return f"the data's classes are not those of {model}: it {' and '.join(parts)}; give data of the model's classes"


def evaluated(manifest: Manifest, source: Source, split: str, matrix: Tensor) -> str:
    """An artifact's figures on a split."""
    score = accuracy(int(matrix.trace()), int(matrix.sum()))
    kind = {"val": "validation", "train": "training"}.get(split, split)
    remark = f": {kind} images are not test images" if kind in ("validation", "training") else ""
    lines = [f"{manifest.name} version {manifest.version} on {source.name}, {kind} images{remark}", told(score)]
    return "\n".join([*lines, *per_class(matrix, manifest.classes)])
