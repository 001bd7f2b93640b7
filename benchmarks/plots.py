"""Pictures of rows: bars with spread, lines, stacks; one look for all suites."""

from collections.abc import Mapping, Sequence
from math import ceil
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by readers of every colour vision.
OURS, OTHER, THIRD, FOURTH, FIFTH, GREY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#999999"
COLOURS = (OURS, OTHER, THIRD, FOURTH, FIFTH)


def panels(count: int, *, width: float = 5.2, height: float = 3.4, across: int = 9) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, so many of them side by side; inches each."""
    across, down = min(count, across), ceil(count / across)
    figure = Figure(figsize=(width * across, height * down), layout="constrained")
    found = list(figure.subplots(down, across, squeeze=False).flat)
    for spare in found[count:]:
        spare.set_visible(False)
    found = found[:count]
    for axes in found:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    return figure, found


def reach(found: Sequence[float]) -> tuple[float, float, float]:
    """Median, and how far it is down to the minimum and up to the maximum."""
    middle = median(found)
    return middle, middle - min(found), max(found) - middle


def bars(axes: Axes, found: Mapping[str, Sequence[float]], colours: Sequence[str], told: Any) -> None:
    """Horizontal bars, the first on top: medians with their numbers, and lines from minimum to maximum."""
    names = [name for name in found if found[name]]
    places = range(len(names))
    middles, down, up = zip(*(reach(found[name]) for name in names), strict=True)
    chosen = [colour for name, colour in zip(found, colours, strict=True) if found[name]]
    axes.barh(places, middles, color=chosen, xerr=(down, up), error_kw={"ecolor": "#333333", "capsize": 3})
    for place, middle, above in zip(places, middles, up, strict=True):
        axes.annotate(told(middle), (middle + above, place), (5, 0), textcoords="offset points", va="center")
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.grid(visible=False, axis="y")


def line(axes: Axes, points: Mapping[float, Sequence[float]], label: str, colour: str, marker: str = "o") -> None:
    """Medians over x, with lines from minimum to maximum."""
    at = [x for x in points if points[x]]
    middles, down, up = zip(*(reach(points[x]) for x in at), strict=True)
    axes.errorbar(at, middles, (down, up), label=label, color=colour, marker=marker, capsize=3)


def stacks(axes: Axes, names: Sequence[str], parts: Mapping[str, Sequence[float]]) -> None:
    """Stacked horizontal bars, one a name, the first on top."""
    left = [0.0] * len(names)
    for (part, lengths), colour in zip(parts.items(), (*COLOURS, GREY), strict=False):
        axes.barh(range(len(names)), lengths, left=left, label=part, color=colour)
        left = [before + length for before, length in zip(left, lengths, strict=True)]
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
