"""One version after another takes over under load: is anything lost or mixed, what does it cost, does memory grow?"""

import shutil
import threading
import time
from dataclasses import replace
from statistics import median

from matplotlib.figure import Figure

from benchmarks import contenders, overload, plots, processes, soak
from benchmarks.plan import Plan, Row
from benchmarks.results import Table, number, select
from benchmarks.servers import Server
from benchmarks.trials import LONG_S, Ground
from benchmarks.workloads import expected, prepare, versions
from service.console import Remote

KEY = "operator"
CALM_S, PART_S = 20.0, 10.0
WAIT_S = 60.0


def measure(plan: Plan) -> list[Row]:
    """A `calm` row, then `part` rows of the load while versions change, and a `swap` row for each change."""
    (workload,) = prepare(plan.models, plan.workloads)
    folder = plan.models / "swaps"
    shutil.rmtree(folder, ignore_errors=True)
    names = versions(folder, workload.model.stem)
    contender = replace(contenders.darkroom(plan.flags), variables={"DARKROOM_ADMIN_KEYS": KEY})
    files = {name: folder / f"{name}.pt" for name in names}
    answers = {name: expected(path, workload.body) for name, path in files.items()}
    ground = Ground(plan, contender, files[names[0]], workload.body, answers, LONG_S)
    with ground.fresh() as server:
        rows = overload.capacity(ground, server)
        rate = ground.rate / 2
        calm = ground.trial(server, "calm", rate=rate, seconds=1 if plan.quick else CALM_S)
        swaps: list[Row] = []
        trouble: list[Exception] = []
        swapping = threading.Thread(target=swap, args=(server, names, plan.rounds, swaps, trouble), daemon=True)
        swapping.start()
        parts: list[Row] = []
        while swapping.is_alive():
            parts.append(ground.trial(server, "part", rate=rate, seconds=1 if plan.quick else PART_S))
        if trouble:
            raise trouble[0]
    return [*rows, *({n: v for n, v in row.items() if n != "timeline"} for row in (calm, *parts)), *swaps]


def swap(server: Server, names: list[str], count: int, rows: list[Row], trouble: list[Exception]) -> None:
    """Load and promote so many times, in turn; how long it took, and memory once the version before has left."""
    remote, started = Remote(server.url.rpartition("/")[0], KEY), time.monotonic()
    try:
        for number in range(count):
            begun = time.monotonic()
            wish = {"version": names[(number + 1) % len(names)], "promote": True}
            remote.outcome(remote.ask("/models/load", wish)["id"], WAIT_S)
            promoted = time.monotonic()
            while len(remote.ask("/models")["versions"]) > 1:
                time.sleep(0.05)
            left = time.monotonic()
            mib = sum(processes.rss_mib(server, {}).values())
            row: Row = {"scenario": "swap", "at": left - started, "mib": mib}
            rows.append(row | {"promoted_s": promoted - begun, "left_s": left - promoted})
    except Exception as error:  # told by the thread that measures
        trouble.append(error)


def tables(rows: list[Row]) -> list[Table]:
    """What became of the load, and how long a change takes."""
    (calm,), parts, swaps = (select(rows, scenario=name) for name in ("calm", "part", "swap"))
    cells = [
        [
            title,
            f"{sum(row['sent'] for row in group):,}",
            str(sum(row["lost"] for row in group)),
            str(sum(row["wrong"] for row in group)),
            str(sum(row["answered"] - row["statuses"].get("200", 0) for row in group)),
            number(median(row["p50_ms"] for row in group)),
            number(median(row["p99_ms"] for row in group)),
            number(max(row["p99_ms"] for row in group)),
        ]
        for title, group in (("before", [calm]), (f"during {len(swaps)} changes", parts))
    ]
    columns = ("", "requests", "lost", "wrong", "other than 200", "p50 ms", "p99, median of parts", "p99, worst part")
    changes = [
        ["load and promote, s", *spread([row["promoted_s"] for row in swaps])],
        ["until the version before has left, s", *spread([row["left_s"] for row in swaps])],
        ["resident memory then, MiB", *spread([row["mib"] for row in swaps])],
    ]
    slope = soak.slope([(row["at"], row["mib"]) for row in swaps])
    rate = f"{number(parts[0]['rate'])} requests a second, half of the capacity"
    memory = [["first", number(swaps[0]["mib"])], ["last", number(swaps[-1]["mib"])], ["an hour", number(slope)]]
    return [
        Table(f"The load: {rate}; wrong is also an answer of another version than it names", columns, cells),
        Table("A change", ("", "median", "least", "most"), changes),
        Table("Memory after each change, MiB of all processes", ("", "MiB"), memory),
    ]


def spread(values: list[float]) -> list[str]:
    """Median and extremes."""
    return [number(value) for value in (median(values), min(values), max(values))]


def figure(rows: list[Row]) -> Figure:
    """Latency over the parts, and memory after each change."""
    drawn, (left, right) = plots.panels(2)
    parts, swaps = select(rows, scenario="part"), select(rows, scenario="swap")
    (calm,) = select(rows, scenario="calm")
    for name, colour in (("p50_ms", plots.OURS), ("p99_ms", plots.OTHER)):
        left.plot(range(1, len(parts) + 1), [row[name] for row in parts], "o-", color=colour, label=name[:3])
        left.axhline(calm[name], color=colour, linestyle=":", label=f"{name[:3]} before")
    left.set(xlabel="part of the load", ylabel="latency, ms", ylim=(0, None))
    left.legend(frameon=False)
    right.plot(range(1, len(swaps) + 1), [row["mib"] for row in swaps], color=plots.OURS)
    right.set(xlabel="change", ylabel="MiB of all processes (RSS)", ylim=(0, None))
    return drawn
