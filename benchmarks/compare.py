"""The service beside stock LitServe, other servers and the bounds of the hardware, all in one run.

All servers of a model are there at once, paused; in every round each is measured in turn, and each round begins with
another one, so that whatever else the machine does meets all of them.
"""

import math
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import groupby, product
from statistics import median

from matplotlib.figure import Figure

from benchmarks import bounds, contenders, plots, servers
from benchmarks.contenders import BEST, DARKROOM, INLINE, README, STARLETTE
from benchmarks.plan import Plan, Row
from benchmarks.results import Table, distinct, number, select, spread, values
from benchmarks.servers import Contender, Server
from benchmarks.workloads import Workload, prepare

IDLE_S = 3.0
QUIET_S = 1.0  # for passes whose clients left when the load ended
ANSWERS = 2  # a load lasts until each connection has this many answers, at most `LONGEST` times as long as planned
LONGEST = 4
FEW = (1, 64)  # connections of servers that stand for a limit or a beginning
IDEAL_AT = 64  # connections at which the service is held against the ideal
IDEAL = "ideal: cores / (decode + forward + HTTP + load) CPU seconds"


def measure(plan: Plan) -> list[Row]:
    """`alone` rows with idle CPU and memory, then rounds of loads and of bounds; one model after the other."""
    groups = [list(group) for _, group in groupby(prepare(plan.models, plan.workloads), lambda made: made.model)]
    rows: list[Row] = []
    for done, group in enumerate(groups):
        first = group[0]
        compared = [contenders.darkroom(plan.flags)]
        if not plan.quick:
            compared += [contenders.spread_out(plan.flags), README, BEST, INLINE]
        compared.append(STARLETTE)
        if plan.peers:
            compared.append(contenders.best_mosec(first, plan.dtype, plan.device))
        rows += [alone(contender, first, plan) for contender in (compared[-1:] if plan.quick else compared)]
        rows += together(compared, group, plan, share=(done + 1) / len(groups))
    return rows


def together(compared: Sequence[Contender], group: Sequence[Workload], plan: Plan, share: float) -> list[Row]:
    """The rounds of one model, until this share of the plan's minutes has passed."""
    first, where = group[0], {"dtype": plan.dtype, "device": plan.device}
    rows: list[Row] = []
    with ExitStack() as stack:
        enter = stack.enter_context
        running = [enter(servers.paused(contender, first.model, first.body, **where)) for contender in compared]
        bounder = enter(bounds.bounding(first.model, first.body, **where))
        for server in running:
            if server.contender != STARLETTE and plan.dtype == "fp32":
                contenders.check(server, first)
        for at in plan.numbers(share):
            start = at % len(running)
            for server in running[start:] + running[:start]:
                rows += loads(server, group, plan, at)
            rows += bound_rows(bounder, first, plan, at)
    return rows


def alone(contender: Contender, workload: Workload, plan: Plan) -> Row:
    """Idle CPU, and memory before and after requests, with no other server there that shares pages."""
    with servers.running(contender, workload.model, workload.body, dtype=plan.dtype, device=plan.device) as server:
        server.load(workload.body, connections=64, seconds=servers.WARM_S)
        time.sleep(QUIET_S)
        before, idle = server.memory(), server.idle_percent(min(IDLE_S, plan.seconds))
        asked = server.load(workload.body, connections=64, seconds=2 * plan.seconds).requests
        after = server.memory()
    plan.say(f"{workload.name} {contender.name}: {idle:.1f} % of a core idle, {total(after):.0f} MiB")
    about = {"workload": workload.name, "server": contender.name, "idle_percent": idle, "requests": asked}
    return about | {"memory_mib": before, "memory_after_mib": after}


def total(memory: Sequence[tuple[str, float]]) -> float:
    """MiB of all processes."""
    return sum(mib for _, mib in memory)


def loads(server: Server, workloads: Sequence[Workload], plan: Plan, number_of_round: int) -> list[Row]:
    """One server's closed loops of a round: each workload with each number of connections."""
    rows: list[Row] = []
    with server.awake():
        for workload in workloads:
            counts, rate = workload.connections, math.inf
            if server.contender in (README, INLINE, STARLETTE) or plan.quick:
                counts = [count for count in counts if count in FEW]
            for count in counts or workload.connections:
                # Where answers are slow, many connections need longer until each has had some.
                seconds = min(max(plan.seconds, ANSWERS * count / rate), LONGEST * plan.seconds)
                found = server.load(workload.body, connections=count, seconds=seconds)
                rate = max(1.0, found.requests_per_s)
                rows.append({"workload": workload.name, "server": server.contender.name, "round": number_of_round})
                rows[-1] |= {"connections": count, "per_s": found.requests_per_s, "errors": found.errors}
                rows[-1] |= {"p50_ms": found.p50_ms, "p90_ms": found.p90_ms, "p99_ms": found.p99_ms}
                rows[-1] |= {"server_cpu_s": found.server_cpu_s / max(1, found.requests)}
                rows[-1] |= {"load_cpu_s": found.load_cpu_s / max(1, found.requests)}
                told = f"{found.requests_per_s:.0f}/s over {count} connections"
                plan.say(f"{workload.name} round {number_of_round + 1} {server.contender.name}: {told}")
    return rows


def bound_rows(bounder: bounds.Bounder, workload: Workload, plan: Plan, number_of_round: int) -> list[Row]:
    """The bounds of a round: images a second of all cores, CPU seconds an image of one process alone."""
    rows: list[Row] = []
    for kind in (bounds.DECODE, bounds.FORWARD, bounds.BOTH):
        found, one = bounder.measure(kind, plan.seconds), bounder.alone(kind, plan.seconds / 2)
        rows.append({"workload": workload.name, "bound": kind, "round": number_of_round})
        rows[-1] |= {"per_s": found.images_per_s, "cpu_s": one.cpu_s, "cores": len(os.sched_getaffinity(0))}
        plan.say(f"{workload.name} round {number_of_round + 1} {kind}: {found.images_per_s:.0f} images/s")
    return rows


def layouts(rows: Sequence[Row]) -> list[str]:
    """The service, by its layouts; the default first."""
    return [name for name in distinct(rows, "server") if name.startswith(DARKROOM.name)]


def ideals(rows: Sequence[Row], workload: str) -> dict[int, float]:
    """For each round what a perfect server could answer a second (W)."""
    found = {}
    for at in distinct(select(rows, workload=workload), "round"):
        here = select(rows, workload=workload, round=at)
        http = select(here, server=STARLETTE.name, connections=IDEAL_AT)
        model = [row for row in here if row.get("bound") in (bounds.DECODE, bounds.FORWARD)]
        if http and model:
            costs = sum(row["cpu_s"] for row in model) + http[0]["server_cpu_s"] + http[0]["load_cpu_s"]
            found[at] = model[0]["cores"] / costs
    return found


def of_ideal(rows: Sequence[Row], workload: str, server: str) -> list[float]:
    """A server's share of it in each round."""
    here = select(rows, workload=workload, server=server, connections=IDEAL_AT)
    return [row["per_s"] / ideal for at, ideal in ideals(rows, workload).items() for row in select(here, round=at)]


def times_others(rows: Sequence[Row], workload: str) -> Table:
    """How many times as many answers ours gives as each other server: ratios within a round."""
    loads = [row for row in select(rows, workload=workload) if "connections" in row]
    rate = {(row["server"], row["connections"], row["round"]): row["per_s"] for row in loads}
    counts, rounds = sorted(distinct(loads, "connections")), distinct(loads, "round")
    ours = layouts(loads)
    others = [name for name in distinct(loads, "server") if name not in (*ours, STARLETTE.name)]
    cells = []
    for one, other in [*product(ours, others), *product(ours[1:], ours[:1])]:
        found = [
            [
                rate[one, count, at] / rate[other, count, at]
                for at in rounds
                if (one, count, at) in rate and rate.get((other, count, at))  # which may have answered nothing
            ]
            for count in counts
        ]
        cells.append([f"{one} / {other}", *map(spread, found)])
    return Table(f"{workload}: ratios within a round, by connections", ("", *map(str, counts)), cells)


def tables(rows: Sequence[Row]) -> list[Table]:
    """Throughput, latency and bounds of each workload; idle CPU and memory."""
    made = []
    for workload in distinct(rows, "workload"):
        here = select(rows, workload=workload)
        made.append(by_connections(here, f"{workload}: answers a second, by connections", "per_s"))
        made.append(by_connections(here, f"{workload}: p50 / p99 in ms, by connections", "p50_ms", "p99_ms"))
        if (ratios := times_others(here, workload)).cells:
            made.append(ratios)
        if kinds := distinct(here, "bound"):
            cells = [
                [kind, spread(values(here, "per_s", bound=kind)), micro(values(here, "cpu_s", bound=kind))]
                for kind in kinds
            ]
            if found := ideals(rows, workload):
                cells.append([IDEAL, spread([*found.values()]), "-"])
                for server in layouts(here):
                    share = spread(of_ideal(rows, workload, server))
                    cells.append([f"{server} with {IDEAL_AT} connections / ideal", share, "-"])
            made.append(Table(f"{workload}: bounds", ("", "images a second", "CPU µs an image"), cells))
    cells = []
    for row in rows:
        if "idle_percent" in row:
            before, after = row["memory_mib"], row["memory_after_mib"]
            processes = " + ".join(f"{kind} {mib:.0f}" for kind, mib in after)
            numbers = (row["idle_percent"], total(before), total(after))
            cells.append(
                [f"{row['workload']} {row['server']}", *map(number, numbers), f"{row['requests']:,}", processes]
            )
    columns = ("", "idle CPU, % of a core", "MiB (PSS) before", "after", "requests between", "each process after, MiB")
    return [*made, Table("Idle CPU and memory", columns, cells)]


def by_connections(rows: Sequence[Row], title: str, *names: str) -> Table:
    """A row a server, a column a number of connections; errors are told where there were some."""
    counts = sorted(distinct(rows, "connections"))
    cells = []
    for server in distinct(select(rows), "server"):
        line = [server]
        for count in counts:
            here = select(rows, server=server, connections=count)
            errors = sum(row["errors"] for row in here)
            told = " / ".join(spread(values(here, name)) for name in names)
            line.append(told + (f", {errors} errors" if errors else ""))
        cells.append(line)
    return Table(title, ("", *map(str, counts)), cells)


def micro(found: Sequence[float]) -> str:
    return spread([1e6 * value for value in found])


def figure(rows: Sequence[Row]) -> Figure:
    """Answers a second of every server, with the most connections up to 64, and what the hardware allows."""
    names = distinct(rows, "workload")
    drawn, panels = plots.panels(len(names))
    for axes, workload in zip(panels, names, strict=True):
        here = select(rows, workload=workload)
        count = max((count for count in distinct(here, "connections") if count <= IDEAL_AT), default=IDEAL_AT)
        found = {name: values(here, "per_s", server=name, connections=count) for name in distinct(here, "server")}
        found[bounds.BOTH] = values(here, "per_s", bound=bounds.BOTH)
        limits = dict.fromkeys((STARLETTE.name, INLINE.name, bounds.BOTH), plots.GREY)
        ours = dict.fromkeys(layouts(here), plots.OURS)
        colours = [(limits | ours).get(name, plots.OTHER) for name in found]
        plots.bars(axes, found, colours, number)
        if ideal := ideals(rows, workload):
            axes.axvline(median(ideal.values()), color="#333333", linestyle=":", label="ideal")
            axes.legend(loc="lower right")
        axes.set(xlabel="answers or images a second", title=f"{workload}, {count} connections")
    return drawn
