"""Reports: metrics.json, curves.png and confusion_matrix.png."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from models import archive
from training.loop import Epoch
from training.measurement import Measurement

# Okabe and Ito's palette, told apart by readers of every colour vision.
TRAIN, VALIDATION, BEST = "#0072B2", "#D55E00", "#666666"
NUMBERED = 20  # classes up to which every cell shows its share
NAMED = 200  # classes up to which every class has its name at the axes


def write(
    folder: Path,
    document: Mapping[str, Any],
    history: Sequence[Epoch],
    kept: int,
    figures: Measurement,
    classes: Sequence[str],
) -> None:
    """Write `document` as metrics.json and draw the pictures; no confusion matrix where nothing was measured."""
    with archive.replacing(folder / "metrics.json") as temporary:
        temporary.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    pictures = {"curves.png": curves(history, kept)}
    if figures.matrix is not None:
        pictures["confusion_matrix.png"] = matrix_figure(figures.matrix, classes, f"{figures.measured_on} images")
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
        for row in range(count):
            for column in range(count):
                if matrix[row, column]:
                    colour = "black" if shares[row, column] > 0.5 else "white"
                    axes.text(
                        column, row, share_told(shares[row, column]), ha="center", va="center", color=colour, fontsize=8
                    )
    return figure


def share_told(share: float) -> str:
    return f"{share:.0%}" if share >= 0.005 else "<1%"
