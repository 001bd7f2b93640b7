"""Courses of load as rows, tables and pictures: time lines with the faults marked, latency against offered load."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import plots, results
from benchmarks.load import Course
from benchmarks.plan import Plan, Row
from benchmarks.results import Table, number
from benchmarks.timeline import bins, recovery

BINS = 100  # of a time line, at least
COLUMNS = ("sent", "accepted", "answered", "by status", "lost", "wrong", "p50 ms", "p95", "p99", "p99.9")
MORE = ("refusals p99 ms", "right a second", "s to first 200", "s to full rate", "s to usual p99")


def row(course: Course) -> Row:
    """A course as it is kept: its counts, its time line, its marks, and how long the first mark was felt."""
    width = max(0.1, round(max(outcome.due for outcome in course.outcomes) / BINS, 1))
    found = asdict(course.report) | {"clean": course.report.clean, "bin_s": width}
    found["marks"] = [asdict(mark) for mark in course.marks]
    found["timeline"] = [asdict(one) for one in bins(course.outcomes, width)]
    return found | (asdict(recovery(course.outcomes, course.marks[0].at)) if course.marks else {})


def cells(row: Row) -> list[str]:
    """What `COLUMNS` and `MORE` tell of a course."""
    counts = [f"{row[name]:,}" for name in ("sent", "accepted", "answered")]
    latencies = [number(row[name]) for name in ("p50_ms", "p95_ms", "p99_ms", "p999_ms")]
    refusals = number(row["refusal_p99_ms"]) if row["refusal_p99_ms"] else "-"
    seconds = [told(row.get(name)) for name in ("first_200_s", "full_rate_s", "normal_s")]
    missed = [str(row[name]) for name in ("lost", "wrong")]
    return [*counts, by_status(row), *missed, *latencies, refusals, number(row["goodput"]), *seconds]


def told(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f}"


def by_status(row: Row) -> str:
    """Answers by status, requests that the server closed the door on, and those that found no connection."""
    found = [f"{count:,} x {status}" for status, count in row["statuses"].items()]
    for count, what in ((row["unread"], "not read"), (row["scheduled"] - row["sent"], "not connected")):
        found += [f"{count:,} {what}"] * (count > 0)
    return ", ".join(found) or "-"


def draw(axes: Axes, row: Row, title: str) -> None:
    """A time line: what was offered, right answers and others a second, p99 on an axis of its own, marks."""
    width, line = row["bin_s"], row["timeline"]
    at = [one["at"] for one in line]
    right = [one["answered"].get("200", 0) / width for one in line]
    others = [sum(one["answered"].values()) / width - good for one, good in zip(line, right, strict=True)]
    axes.step(at, [one["due"] / width for one in line], where="post", color=plots.GREY, label="offered")
    axes.step(at, right, where="post", color=plots.OURS, label="200")
    axes.step(at, others, where="post", color=plots.OTHER, label="others")
    latency = axes.twinx()
    some = [one for one in line if one["p99_ms"]]
    latency.plot([one["at"] for one in some], [one["p99_ms"] for one in some], ".", color=plots.THIRD, markersize=3)
    latency.set_yscale("log")
    latency.set_ylabel("p99, ms (dots)", color=plots.THIRD)
    latency.spines["top"].set_visible(False)
    for mark in row["marks"]:
        axes.axvline(mark["at"], color="#D55E00", linestyle="--")
        axes.annotate(mark["name"], (mark["at"], 1), (3, -8), ("data", "axes fraction"), "offset points", fontsize=8)
    axes.set(xlabel="seconds", ylabel="a second", title=title, ylim=(0, None))
    axes.legend(frameon=False, loc="lower right", fontsize=8)


def latency(axes: Axes, rates: Sequence[float], rows: Sequence[Row], title: str) -> None:
    """p50 and p99 of accepted requests against offered load."""
    for name, label, colour, marker in (("p50_ms", "p50", plots.OURS, "o"), ("p99_ms", "p99", plots.OTHER, "s")):
        plots.line(axes, {rate: [row[name]] for rate, row in zip(rates, rows, strict=True)}, label, colour, marker)
    axes.set(xlabel="offered a second", ylabel="latency of accepted, ms", yscale="log", title=title)
    axes.legend(frameon=False)


def write(folder: Path, rates: Sequence[float], seconds: float, found: Sequence[Course]) -> None:
    """load.json, load.md and load.svg of the load tool."""
    rows = [{"rate": rate} | row(course) for rate, course in zip(rates, found, strict=True)]
    table = Table("load", ("offered a second", *COLUMNS, *MORE), [[number(one["rate"]), *cells(one)] for one in rows])
    plan = Plan(Path(), seconds=seconds)
    results.write(folder, "load", plan, rows, [table], figure(rows))


def figure(rows: Sequence[Row]) -> Figure:
    """A time line a rate; of several rates also their latencies."""
    several = len(rows) > 1
    drawn, panels = plots.panels(len(rows) + several)
    if several:
        latency(panels.pop(0), [one["rate"] for one in rows], rows, "latency by offered load")
    for axes, one in zip(panels, rows, strict=True):
        draw(axes, one, f"{number(one['rate'])} a second")
    return drawn
