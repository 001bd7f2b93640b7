"""The pictures of a run's reports, for people who would rather look."""

from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from models.manifest import Accuracy
from training.loop import Epoch
from training.measurement import BINS, Figures, Mistake, reliability

# Okabe and Ito's palette, told apart by readers of every colour vision.
TRAIN, VALIDATION, BEST = "#0072B2", "#D55E00", "#666666"
NUMBERED = 20  # classes up to which every cell shows its share
NAMED = 200  # classes up to which every class has its name at the axes
COLUMNS = 6  # of the sheet of mistakes


def drawn(history: Sequence[Epoch], kept: int, figures: Figures, classes: Sequence[str]) -> dict[str, Figure]:
    """Every picture by its file's name; the curves alone where nothing was measured."""
    pictures = {"curves.png": curves(history, kept)}
    if on := figures.measured_on:
        pictures["confusion_matrix.png"] = matrix_figure(figures.matrices[on], classes, f"{on} images")
        pictures["reliability.png"] = reliability_figure(figures, f"{on} images")
        pictures["slices.png"] = slices_figure(figures.slices, f"{on} images")
        if figures.mistakes:
            pictures["mistakes.png"] = mistakes_figure(figures.mistakes, classes, f"{on} images")
    return pictures


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


def reliability_figure(figures: Figures, told: str) -> Figure:
    """How often an answer of some confidence was right, before and after the temperature; below, how many there are."""
    figure = Figure(figsize=(10, 5), layout="constrained")
    assert figures.logits is not None
    assert figures.labels is not None
    assert figures.calibration is not None
    upper, lower = figure.subplots(2, 2, sharex=True, height_ratios=(3, 1))
    temperature = figures.calibration["temperature"]
    for place, (when, by) in enumerate((("before", 1.0), ("after", temperature))):
        counts, right, confidence = reliability((figures.logits / by).softmax(1), figures.labels)
        error = figures.calibration[f"error_{when}"]
        diagonal(upper[place], f"{when} the temperature of {temperature:.2f}: calibration error {error:.2%}")
        filled = counts > 0
        upper[place].plot(confidence[filled].numpy(), right[filled].numpy(), "o-", color=TRAIN)
        lower[place].bar(((torch.arange(BINS) + 0.5) / BINS).numpy(), counts.numpy(), 0.9 / BINS, color=BEST)
        lower[place].set(xlabel="confidence", ylabel=told)
    return figure


def diagonal(axes: Axes, title: str) -> None:
    """Axes on whose diagonal confidence is right."""
    axes.plot((0, 1), (0, 1), ":", color=BEST)
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="share that is right", title=title)
    axes.grid(alpha=0.3)


def mistakes_figure(mistakes: Sequence[Mistake], classes: Sequence[str], told: str) -> Figure:
    """The wrong answers of which the model was surest."""
    rows = -(-len(mistakes) // COLUMNS)
    figure = Figure(figsize=(2 * COLUMNS, 2.4 * rows + 0.5), layout="constrained")
    figure.suptitle(f"The surest mistakes, {told}: answer and confidence, label")
    for place, axes in enumerate(figure.subplots(rows, COLUMNS, squeeze=False).flat):
        axes.set_axis_off()
        if place < len(mistakes):
            mistake = mistakes[place]
            axes.imshow(mistake.pixels.permute(1, 2, 0).numpy())
            answer, label = classes[mistake.answer], classes[mistake.label]
            axes.set_title(f"{answer[:20]} {mistake.confidence:.0%}\n{label[:24]}", fontsize=8)
    return figure


def slices_figure(slices: Mapping[str, Mapping[str, Accuracy]], told: str) -> Figure:
    """Accuracy of the images by what they are like, with 95 % intervals."""
    figure = Figure(figsize=(5 * len(slices), 4), layout="constrained")
    for axes, (name, parts) in zip(figure.subplots(1, len(slices), squeeze=False).flat, slices.items(), strict=True):
        values = [part.value for part in parts.values()]
        reach = [[part.value - part.interval[0] for part in parts.values()]]
        reach.append([part.interval[1] - part.value for part in parts.values()])
        axes.errorbar(range(len(parts)), values, reach, fmt="o", color=TRAIN, capsize=4)
        axes.set_xticks(range(len(parts)), [f"{label}\nn {part.n:,}" for label, part in parts.items()], fontsize=8)
        axes.set(title=f"by {name}, {told}", ylabel="accuracy", ylim=(0, 1.02))
        axes.grid(alpha=0.3)
    return figure
