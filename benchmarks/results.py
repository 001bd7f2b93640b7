"""What a suite leaves behind: SUITE.json with every raw row, SUITE.md with tables, SUITE.svg; and how rows are told."""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from math import comb
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks.plan import Plan, Row
from service import compiled

HOUSE = Path(__file__).parents[1]
CONFIDENCE = 0.95
# Texts stay texts, and the same rows give the same file.
SVG: Any = {"svg.fonttype": "none", "svg.hashsalt": "darkroom", "font.family": "sans-serif"}


@dataclass(frozen=True)
class Table:
    """A heading, column names and cells as they are shown; the first columns are `texts`, the others numbers."""

    title: str
    columns: Sequence[str]
    cells: Sequence[Sequence[str]]
    texts: int = 1

    def markdown(self) -> str:
        """The table in GitHub's Markdown."""
        lines = [self.columns, ["---"] * self.texts + ["---:"] * (len(self.columns) - self.texts), *self.cells]
        return "\n".join([f"### {self.title}", "", *("| " + " | ".join(line) + " |" for line in lines)])


def write(folder: Path, suite: str, plan: Plan, rows: Sequence[Row], tables: Sequence[Table], figure: Figure) -> None:
    """Write the three files of a suite."""
    told = conditions(plan)
    folder.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(row) for row in rows)
    head = f'"suite": {json.dumps(suite)},\n"conditions": {json.dumps(told)}'
    (folder / f"{suite}.json").write_text(f'{{{head},\n"rows": [\n{lines}\n]}}\n')
    parts = [f"# {suite}", f"![{suite}]({suite}.svg)", *(table.markdown() for table in tables), sentence(told)]
    (folder / f"{suite}.md").write_text("\n\n".join(parts) + "\n")
    with rc_context(SVG):
        figure.savefig(folder / f"{suite}.svg", metadata={"Date": None}, facecolor="white")


def conditions(plan: Plan) -> dict[str, Any]:
    """Machine, versions, commit and options of a run; no paths."""
    options = {name: value for name, value in asdict(plan).items() if name not in ("models", "data", "started")}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or None,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "compiled": compiled,
        **{name: version(name) for name in ("torch", "litserve")},
        "wrk": " ".join(output("wrk", "-v").split()[1:2]),
        "commit": commit(),
        "options": options,
    }


def commit() -> str:
    """What was measured; "dirty" where more than earlier results is not committed."""
    git = ("git", "-C", str(HOUSE))
    changed = output(*git, "diff", "--name-only", "HEAD", "--", ".", ":!benchmarks/results")
    return output(*git, "rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")


def sentence(told: Mapping[str, Any]) -> str:
    """The conditions in one line."""
    options = told["options"]
    quick = "; quick: these figures mean nothing" if options["quick"] else ""
    rounds = f"; up to {options['rounds']} rounds of {options['seconds']:g} s; median (min-max)"
    rounds = rounds if options["rounds"] > 1 else ""
    return (
        f"{told['gpu'] + ', ' if told['gpu'] else ''}{told['cpu']}, {told['cores']} cores, Linux {told['kernel']}; "
        f"Python {told['python']}{', compiled' if told['compiled'] else ''}, "
        f"torch {told['torch']}, LitServe {told['litserve']}, wrk {told['wrk']}; "
        f"commit {told['commit']}, {told['date'][:10]}{rounds}{quick}"
    )


def cpu_model() -> str:
    """The CPU's name as Linux tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def output(program: str, *arguments: str) -> str:
    """What a program says on standard output, empty where there is none."""
    found = shutil.which(program)
    if found is None:
        return ""
    return subprocess.run([found, *arguments], capture_output=True, text=True, check=False, timeout=30).stdout.strip()


def select(rows: Iterable[Row], **known: Any) -> list[Row]:
    """The rows that have these values."""
    return [row for row in rows if all(row.get(name) == value for name, value in known.items())]


def values(rows: Iterable[Row], name: str, **known: Any) -> list[float]:
    """One column of the rows that have it and these values."""
    return [row[name] for row in select(rows, **known) if name in row]


def distinct(rows: Iterable[Row], name: str) -> list[Any]:
    """The different values of a column, in the order in which they came."""
    return list(dict.fromkeys(row[name] for row in rows if name in row))


def number(value: float) -> str:
    """A number to three digits."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def spread(found: Sequence[float], told: Callable[[float], str] = number) -> str:
    """Median (min-max), a dash where there is nothing."""
    if not found:
        return "-"
    middle = told(median(found))
    return middle if len(found) == 1 else f"{middle} ({told(min(found))}-{told(max(found))})"


def median_interval(found: Sequence[float]) -> tuple[float, float, float]:
    """An interval for the median by order statistics: low, high, and its confidence, which needs no distribution.

    The k-th smallest and k-th largest of n hold it but with probability 2 P(Binomial(n, 1/2) < k); of the intervals
    with at least `CONFIDENCE` the narrowest, or min to max where there is none.
    """
    ordered, n = sorted(found), len(found)
    outside = [2 * sum(comb(n, i) for i in range(k)) / 2**n for k in range(1, n // 2 + 1)]
    k = max(1, sum(share <= 1 - CONFIDENCE for share in outside))
    return ordered[k - 1], ordered[n - k], 1 - (outside[k - 1] if outside else 1.0)
