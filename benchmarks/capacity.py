"""How many machines a rate needs: from one machine that is measured, by a formula that a simulation checks.

First the formula and the simulation are held against the measured machine, with the same arrivals. Then, for rates up
to those of the internet, machines, cost and what gives out next; then what a burst, a lost machine and machines that
start late do to the smallest plan.
"""

import json
import math
import os
import shutil
import tempfile
import urllib.request
from collections.abc import Sequence

from matplotlib.figure import Figure

from benchmarks import contenders, load, plots, servers
from benchmarks.batches import TOO_MUCH
from benchmarks.load import Image
from benchmarks.outcomes import percentile
from benchmarks.plan import Plan, Row
from benchmarks.results import Table, number, select
from benchmarks.servers import Contender, Server
from benchmarks.simulation import Acts, Fleet, Node, poisson, simulate
from benchmarks.workloads import Workload, expected, prepare

SHARES = (0.3, 0.5, 0.7, 0.8, 0.9)
CONNECTIONS = 256
SEED = 1
RATES = (100.0, 1_000.0, 10_000.0, 100_000.0, 1_000_000.0)  # images a second
OBJECTIVES_S = (0.05, 0.25, 0.5)
UTILISATION = 0.7  # of the peak, at most, so that the formula holds and a burst has room
LOST = 0.05  # of the machines may be lost at once, one at least
CORE_H = 0.05  # dollars for a core and an hour: an assumption, of the order of what clouds list
NETWORK_GBITS = 10.0  # of a balancer's machine: an assumption
BURST, BURST_S, START_S, CALM_S = 2.0, 10.0, 30.0, 20.0
FLEET = 10  # machines of the plan that is simulated

HAPROXY = """
global
    maxconn 4096
defaults
    mode http
    timeout connect 5s
    timeout client 75s
    timeout server 65s
frontend images
    bind 127.0.0.1:PORT
    default_backend replicas
backend replicas
    server a ADDRESS
"""


def measure(plan: Plan) -> list[Row]:
    """A `node` row, `held` rows against the measured machine, `plan` rows and `event` rows."""
    rows: list[Row] = []
    for workload in prepare(plan.models, plan.workloads):
        rows += measured(plan, workload)
    return rows


def measured(plan: Plan, workload: Workload) -> list[Row]:
    """All about one workload."""
    images = [Image(workload.body, expected(workload.model, workload.body))]
    name = workload.title
    with servers.running(contenders.darkroom(plan.flags), workload.model, workload.body) as server:
        server.load(workload.body, connections=64, seconds=servers.WARM_S)
        closed = server.load(workload.body, connections=64, seconds=plan.seconds).requests_per_s
        offered = load.run(server.url, images, rate=TOO_MUCH * closed, seconds=plan.seconds, connections=CONNECTIONS)
        peak = offered.report.answers_per_s
        own, node = curve(server)
        node = node.with_peak(peak)
        rows: list[Row] = [
            {"what": "node", "workload": name, "peak": peak, "told_per_s": own, "curve": sorted(node.curve.items())}
            | {"each_ms": 1000 * node.each, "passes": node.passes, "most": node.most, "bytes": len(workload.body)}
            | {"balancer_s": balancer_seconds(plan, server, workload), "cores": len(os.sched_getaffinity(0))}
        ]
        for share in SHARES[1:3] if plan.quick else SHARES:
            rows.append(held(plan, name, node, server, images, share * peak) | {"share": share})
    rows += [planned(rows[0], node, rate, p99) for p99 in OBJECTIVES_S for rate in RATES]
    rows += events(plan, name, node)
    return rows


def curve(server: Server) -> tuple[float, Node]:
    """What the service says that it can do, and its machine as it has measured it at its start."""
    with urllib.request.urlopen(server.url.replace("/predict", "/info"), timeout=10) as reply:
        told = json.load(reply)["speed"]
    points = {size: ms / 1000 for size, ms in told["curve"]}
    most = max(size for size in points if size <= told["batch_size"])
    return told["images_per_second"], Node(points, 0.0, told["passes"], most)


def balancer_seconds(plan: Plan, server: Server, workload: Workload) -> float:
    """CPU seconds of haproxy for one request that it passes on; zero where it is not installed."""
    if not (haproxy := shutil.which("haproxy")):
        return 0.0
    address = server.url.removeprefix("http://").partition("/")[0]
    with tempfile.TemporaryDirectory() as folder:
        # The port is filled in by `servers.running`, as a contender's is.
        started = Contender("haproxy", ["-c", STARTER, haproxy, f"{folder}/haproxy.cfg", "{port}", address, HAPROXY])
        with servers.running(started, workload.model, workload.body) as before:
            found = before.load(workload.body, connections=64, seconds=plan.seconds)
    return found.server_cpu_s / max(1, found.requests)


# Writes haproxy's configuration and becomes haproxy.
STARTER = """
import os, pathlib, sys
haproxy, path, port, address, text = sys.argv[1:]
pathlib.Path(path).write_text(text.replace("PORT", port).replace("ADDRESS", address))
os.execv(haproxy, [haproxy, "-db", "-f", path])
"""


def held(plan: Plan, name: str, node: Node, server: Server, images: Sequence[Image], rate: float) -> Row:
    """One rate measured, simulated with the same arrivals, and by the formula; milliseconds."""
    times = poisson(SEED, (rate, 2 * plan.seconds))
    found = load.drive_now(server.url, images, times, connections=CONNECTIONS).report
    simulated = simulate(node, times, 1).latencies
    plan.say(f"{name}: {rate:.0f} a second, p99 {found.p99_ms:.1f} ms")
    row: Row = {"what": "held", "workload": name, "rate": rate, "p50_ms": found.p50_ms, "p99_ms": found.p99_ms}
    row |= {"lost": found.lost, "wrong": found.wrong, "formula_p99_ms": 1000 * node.p99(rate)}
    return row | {f"simulated_p{q}_ms": 1000 * percentile(simulated, q / 100) for q in (50, 99)}


def planned(measured: Row, node: Node, rate: float, p99: float) -> Row:
    """Machines for a rate within a p99 in seconds, what they cost, and what gives out next."""
    row: Row = {"what": "plan", "workload": measured["workload"], "rate": rate, "objective_ms": 1000 * p99}
    each = node.rate_within(p99, UTILISATION)
    if not each:
        return row
    needed = math.ceil(rate / each)
    spare = max(1, math.ceil(LOST * needed))
    price = (needed + spare) * measured["cores"] * CORE_H
    row |= {"each": each, "machines": needed, "spare": spare, "a_million": price / 3600 / rate * 1e6}
    row |= {"balancer_cores": rate * measured["balancer_s"], "gbits": rate * measured["bytes"] * 8 / 1e9}
    return row


def events(plan: Plan, name: str, node: Node) -> list[Row]:
    """What befalls a fleet as the formula plans it, simulated."""
    each = node.rate_within(math.inf, UTILISATION)
    needed = 2 if plan.quick else FLEET
    rate = needed * each
    seconds = 1.5 * CALM_S if plan.quick else 3 * CALM_S

    def lose(fleet: Fleet) -> Acts:
        yield fleet.env.timeout(CALM_S)
        fleet.lose()

    def grow(fleet: Fleet) -> Acts:
        return fleet.autoscale(target=2 * node.batch(each) * node.passes, lag=START_S, most=2 * needed)

    calm = poisson(SEED, (rate, seconds))
    burst = poisson(SEED, (rate, CALM_S), (BURST * rate, BURST_S), (rate, seconds))
    doubled = poisson(SEED, (rate / 2, CALM_S), (rate, 2 * seconds))
    half = math.ceil(needed / 2)
    cases = [
        ("steady", needed, simulate(node, calm, needed)),
        (f"{BURST:g} times the rate for {BURST_S:g} s", needed, simulate(node, burst, needed)),
        ("one machine lost, none spare", needed, simulate(node, calm, needed, lose)),
        ("one machine lost, one spare", needed + 1, simulate(node, calm, needed + 1, lose)),
        (f"the rate doubles, machines take {START_S:g} s to start", half, simulate(node, doubled, half, grow)),
        ("the same, all there before", needed, simulate(node, doubled, needed)),
    ]
    return [
        {"what": "event", "workload": name, "event": event, "machines": count, "most": fleet.most, "rate": rate}
        | {"p50_ms": 1000 * percentile(fleet.latencies, 0.5), "p99_ms": 1000 * percentile(fleet.latencies, 0.99)}
        | {"longest_ms": 1000 * max(fleet.latencies), "refused": fleet.refused}
        | ({"formula_p99_ms": 1000 * node.p99(rate / count)} if count >= needed else {})
        for event, count, fleet in cases
    ]


def tables(rows: list[Row]) -> list[Table]:
    """Per workload: held against the machine, the plan, the events."""
    made: list[Table] = []
    for node in select(rows, what="node"):
        here = select(rows, workload=node["workload"])
        made += [held_table(node, select(here, what="held")), plan_table(node, select(here, what="plan"))]
        made.append(event_table(node, select(here, what="event")))
    return made


def held_table(node: Row, rows: list[Row]) -> Table:
    """The machine beside simulation and formula."""
    told = f"measured peak {number(node['peak'])} a second, by its own curve {number(node['told_per_s'])}"
    columns = ("share of the peak", "a second", "p50 ms", "simulated", "p99 ms", "simulated", "by the formula")
    names = ("rate", "p50_ms", "simulated_p50_ms", "p99_ms", "simulated_p99_ms", "formula_p99_ms")
    cells = [[f"{row['share']:.0%}", *(number(row[one]) for one in names)] for row in rows]
    return Table(f"{node['workload']}: one machine of {node['cores']} cores, {told}", columns, cells)


def plan_table(node: Row, rows: list[Row]) -> Table:
    """Machines for rates and objectives."""
    columns = ("images a second", "p99 ms", "a machine does", "machines", "spare", "$ a million", "balancer cores")
    cells = [plan_cells(row) for row in rows]
    return Table(f"{node['workload']}: the plan", (*columns, "Gbit/s", "next"), cells, texts=0)


def event_table(node: Row, rows: list[Row]) -> Table:
    """What was simulated of a fleet."""
    columns = ("simulated", "machines", "at most", "p50 ms", "p99 ms", "longest", "p99 by the formula", "refused")
    names = ("machines", "most", "p50_ms", "p99_ms", "longest_ms", "formula_p99_ms", "refused")
    cells = [[row["event"], *(told(row.get(name)) for name in names)] for row in rows]
    return Table(f"{node['workload']}: what befalls a fleet at {number(rows[0]['rate'])} a second", columns, cells)


def told(value: float | None) -> str:
    """A number, or that there is none."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else number(value)


def plan_cells(row: Row) -> list[str]:
    """A line of the plan."""
    head = [f"{row['rate']:,.0f}", number(row["objective_ms"])]
    if "machines" not in row:
        return [*head, "-", "not on this machine", *["-"] * 5]
    figures = [f"{row['machines']:,}", f"{row['spare']:,}", f"{row['a_million']:.2f}"]
    return [*head, number(row["each"]), *figures, number(row["balancer_cores"]), number(row["gbits"]), following(row)]


def following(row: Row) -> str:
    """What gives out next as the rate grows."""
    if row["gbits"] > NETWORK_GBITS:
        return f"{math.ceil(row['gbits'] / NETWORK_GBITS):,} balancers for the network, behind DNS or anycast"
    if row["balancer_cores"] > 1:
        return f"balancer: {math.ceil(row['balancer_cores']):,} cores"
    return "machines"


def figure(rows: list[Row]) -> Figure:
    """p99 measured, simulated and by the formula, by load."""
    nodes = select(rows, what="node")
    drawn, panels = plots.panels(len(nodes))
    for axes, node in zip(panels, nodes, strict=True):
        here = select(rows, what="held", workload=node["workload"])
        for name, label, colour, marker in (
            ("p99_ms", "measured", plots.OURS, "o"),
            ("simulated_p99_ms", "simulated", plots.OTHER, "s"),
            ("formula_p99_ms", "formula", plots.THIRD, "^"),
        ):
            plots.line(axes, {100 * row["share"]: [row[name]] for row in here}, label, colour, marker)
        axes.set(xlabel="% of the peak", ylabel="p99, ms", ylim=(0, None), title=node["workload"])
        axes.legend(frameon=False)
    return drawn
