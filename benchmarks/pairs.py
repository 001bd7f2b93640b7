"""The service beside its own bound: decode+forward without HTTP, measured in turn, again and again, in fp32.

Then a fifth as many rounds in bf16, with few connections, for CPUs without bf16 are slow: the service beside itself in
fp32, stock LitServe and, with --peers, mosec, all with the same module.
"""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from statistics import median

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks import bounds, contenders, plots, servers
from benchmarks.contenders import BEST, DARKROOM
from benchmarks.plan import Plan, Row
from benchmarks.results import Table, distinct, median_interval, number, select, spread, values
from benchmarks.servers import Server
from benchmarks.workloads import Workload, prepare

CONNECTIONS = 64
BF16_CONNECTIONS = 16
BF16_TIME = 0.75  # of the seconds of a pair
BOUND = "decode+forward"


def measure(plan: Plan) -> list[Row]:
    """A row for each measurement: the number format of its part, what, round, answers or images a second."""
    (workload,) = prepare(plan.models, plan.workloads)
    rows = in_fp32(workload, plan)
    return rows if plan.quick else rows + in_bf16(workload, plan)


def in_fp32(workload: Workload, plan: Plan) -> list[Row]:
    """Pairs of the service and its bound."""
    model, body = workload.model, workload.body
    rows: list[Row] = []
    with (
        servers.paused(contenders.darkroom(plan.flags), model, body) as server,
        bounds.bounding(model, body) as bounder,
    ):
        contenders.check(server, workload)
        for at in range(plan.rounds):
            rows.append({"part": "fp32", "round": at} | loaded(server, workload, CONNECTIONS, plan.seconds))
            per_s = bounder.measure(bounds.BOTH, plan.seconds).images_per_s
            rows.append({"part": "fp32", "round": at, "what": BOUND, "per_s": per_s, "errors": 0})
            plan.say(f"{workload.name} pair {at + 1}: {rows[-2]['per_s']:.1f}/s of {per_s:.1f}/s")
    return rows


def in_bf16(workload: Workload, plan: Plan) -> list[Row]:
    """The servers in bf16, and the service in fp32 beside them."""
    compared = [(DARKROOM, "bf16"), (DARKROOM, "fp32"), (BEST, "bf16")]
    if plan.peers:
        compared.append((contenders.mosec(str(len(os.sched_getaffinity(0)))), "bf16"))
    rows: list[Row] = []
    with ExitStack() as stack:
        running = []
        for contender, dtype in compared:
            named = replace(contender, name=f"{contender.name} {dtype}")
            running.append(stack.enter_context(servers.paused(named, workload.model, workload.body, dtype=dtype)))
        for at in range(max(1, plan.rounds // 5)):
            for server in running:
                found = loaded(server, workload, BF16_CONNECTIONS, BF16_TIME * plan.seconds)
                rows.append({"part": "bf16", "round": at} | found)
                plan.say(f"{workload.name} bf16 round {at + 1} {server.contender.name}: {found['per_s']:.2f}/s")
    return rows


def loaded(server: Server, workload: Workload, connections: int, seconds: float) -> Row:
    """One closed loop."""
    with server.awake():
        found = server.load(workload.body, connections=connections, seconds=seconds)
    return {"what": server.contender.name, "per_s": found.requests_per_s, "errors": found.errors}


def ratios(rows: Sequence[Row]) -> list[float]:
    """Of each pair, the service's answers a second as a share of the bound's images a second."""
    ours, bound = (values(rows, "per_s", part="fp32", what=what) for what in (DARKROOM.name, BOUND))
    return [answers / images for answers, images in zip(ours, bound, strict=True)]


def tables(rows: Sequence[Row]) -> list[Table]:
    """The pairs with the interval of their median ratio, then bf16."""
    found = ratios(rows)
    low, high, confidence = median_interval(found)
    cells = [[what, spread(values(rows, "per_s", part="fp32", what=what))] for what in (DARKROOM.name, BOUND)]
    cells.append(["darkroom / bound, of each pair", spread(found)])
    interval = f"{number(low)}-{number(high)}"
    cells.append([f"interval of the median ratio ({confidence:.1%}, order statistics)", interval])
    cells.append(["errors", str(sum(values(rows, "errors", part="fp32")))])
    made = [Table(f"fp32: {len(found)} pairs, {CONNECTIONS} connections", ("", "a second"), cells)]
    if half := select(rows, part="bf16"):
        lines = [[what, spread(values(half, "per_s", what=what))] for what in distinct(half, "what")]
        made.append(Table(f"bf16: {BF16_CONNECTIONS} connections", ("", "answers a second"), lines))
    return made


def figure(rows: Sequence[Row]) -> Figure:
    """Both of each pair, and their ratios with the median and its interval."""
    drawn, (left, right) = plots.panels(2)
    for what, colour, marker in ((DARKROOM.name, plots.OURS, "o"), (BOUND, plots.GREY, "s")):
        found = values(rows, "per_s", part="fp32", what=what)
        plots.line(left, {at + 1: [value] for at, value in enumerate(found)}, what, colour, marker)
    left.set(ylabel="answers or images a second", ylim=(0, None))
    left.legend(frameon=False, loc="lower right")
    found = ratios(rows)
    low, high, confidence = median_interval(found)
    right.plot(range(1, len(found) + 1), found, "o", color=plots.OURS)
    right.axhline(median(found), color=plots.OURS, label=f"median {median(found):.3f}")
    right.axhspan(low, high, color=plots.OURS, alpha=0.15, label=f"its {confidence:.0%} interval", linewidth=0)
    right.set(ylabel="darkroom / bound", ylim=(0, max(1.05, *found)))
    right.legend(frameon=False, loc="lower right")
    for axes in (left, right):
        axes.set_xlabel("pair")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return drawn
