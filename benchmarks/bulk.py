"""Bulk scoring of files beside decoding and predicting alone: `python -m service.bulk` and its bound, in turn."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks import bounds, plots
from benchmarks.errors import BenchmarkError
from benchmarks.plan import Plan, Row
from benchmarks.results import Table, distinct, number, select, spread, values
from benchmarks.workloads import Workload, prepare

BULK = "bulk"
PARTS, SETTLED = 12, 4  # the clock starts with a part by when all processes have loaded long ago


def measure(plan: Plan) -> list[Row]:
    """A row a way and round: images a second, of bulk from its first image to its last row."""
    rows: list[Row] = []
    for workload in prepare(plan.models, plan.workloads):
        with bounds.bounding(workload.model, workload.body) as bounder, tempfile.TemporaryDirectory() as folder:
            for at in plan.numbers():
                bound = bounder.measure(bounds.BOTH, plan.seconds).images_per_s
                scored = score(workload, Path(folder) / str(at), int(bound * plan.seconds))
                plan.say(f"{workload.name} round {at + 1}: bulk {number(scored)}, bound {number(bound)} images/s")
                told = {"workload": workload.name, "title": workload.title, "round": at}
                rows += [
                    told | {"way": way, "images_per_s": rate} for way, rate in ((bounds.BOTH, bound), (BULK, scored))
                ]
    return rows


def score(workload: Workload, folder: Path, count: int) -> float:
    """Images a second from the first part to the last, of a list that names one file so many times."""
    folder.mkdir()
    (folder / "image.jpg").write_bytes(workload.body)
    (folder / "list.txt").write_text("image.jpg\n" * count)
    out = folder / "out"
    command = [
        sys.executable,
        "-m",
        "service.bulk",
        str(folder / "list.txt"),
        str(out),
        "--rows",
        str(max(1, count // PARTS)),
    ]
    done = subprocess.run([*command, "--model", str(workload.model)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"service.bulk ended with exit code {done.returncode}: {done.stderr.strip()}")
    parts = sorted(out.glob("part-*"))[SETTLED:]
    rows = sum(len(part.read_text().splitlines()) - 1 for part in parts[1:])
    return rows / (parts[-1].stat().st_mtime - parts[0].stat().st_mtime)


def tables(rows: Sequence[Row]) -> list[Table]:
    """One for all workloads, with bulk's share of the bound, round by round."""
    cells = []
    for name in distinct(rows, "workload"):
        here = select(rows, workload=name)
        both, bulk = (values(here, "images_per_s", way=way) for way in (bounds.BOTH, BULK))
        shares = [mine / other for mine, other in zip(bulk, both, strict=True)]
        cells.append([here[0]["title"], spread(bulk), spread(both), spread(shares)])
    return [Table("Images a second, from files to rows", ("", BULK, bounds.BOTH, "share"), cells)]


def figure(rows: Sequence[Row]) -> Figure:
    """Images a second, a panel a workload."""
    workloads = distinct(rows, "workload")
    drawn, panels = plots.panels(len(workloads), across=2)
    for axes, name in zip(panels, workloads, strict=False):
        here = select(rows, workload=name)
        bars = {way: values(here, "images_per_s", way=way) for way in (BULK, bounds.BOTH)}
        plots.bars(axes, bars, plots.COLOURS[:2], number)
        axes.set(xlabel="images a second", title=here[0]["title"])
    return drawn
