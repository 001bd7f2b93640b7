"""Several machines: what Ray costs beside one service, and a lost node, a new version and a rush under load.

Three nodes of one core each in network namespaces, load through the head's proxy. Root, iproute2 and darkroom[ray].
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure

from benchmarks import closed, cluster, contenders, courses, load, plots, servers
from benchmarks.cluster import Cluster
from benchmarks.errors import BenchmarkError
from benchmarks.load import Act, Image
from benchmarks.plan import Plan, Row
from benchmarks.results import Table, number, select
from benchmarks.workloads import expected, jpeg, prepare, versions

CONFIGURATION = Path("deploy", "ray", "serve.yaml")
COUNT = 3
RATE, CALM_RATE, RUSH_RATE = 60.0, 2.0, 25.0  # requests a second
CALM_S = 5.0
UPDATE_S = 90.0  # replicas are replaced one after another: 54 s where nodes share two cores
CONNECTIONS = 64
WARM_S = 2.0
SCALING: dict[str, float] = {"min_replicas": 1, "max_replicas": COUNT, "target_ongoing_requests": 2}
SCALING |= {"upscale_delay_s": 1.0, "downscale_delay_s": 5.0, "look_back_period_s": 2.0}
KIND = "image/jpeg"


def measure(plan: Plan) -> list[Row]:
    """Rows `latency` and `memory` of both ways, then `kill`, `update` and `scale`."""
    if not find_spec("ray"):
        raise BenchmarkError("nodes need Ray: pip install 'darkroom[ray]'")
    names = versions(plan.models / "nodes", "simple_cnn")
    files = [(plan.models / "nodes" / f"{name}.pt").resolve() for name in names]
    body = jpeg(32, 32)
    images = [Image(body, {name: expected(path, body) for name, path in zip(names, files, strict=True)}, KIND)]
    rows: list[Row] = []
    with servers.running(contenders.darkroom(plan.flags), files[0], body) as server:
        rows += latencies(plan, "one service", server.url, images)
        rows.append({"what": "memory", "way": "one service", "mib": sum(mib for _, mib in server.memory())})
    count = 2 if plan.quick else COUNT
    with cluster.running(count) as ray:
        plan.say(f"{count} nodes")
        rows += [memory(ray, f"Ray, node {node.number}, nothing deployed", node.pss_mib()) for node in ray.nodes]
        ray.deploy(configured(files[0], num_replicas=count))
        ray.wait(count)
        rows += latencies(plan, f"Ray, {count} replicas", ray.url, images)
        rows += [memory(ray, f"Ray, node {node.number}, a replica", node.pss_mib()) for node in ray.nodes]
        rows.append(kill(plan, ray, images))
        if not plan.quick:
            rows.append(update(plan, ray, images, files[1]))
            rows.append(scale(plan, ray))
    return rows


def memory(ray: Cluster, way: str, mib: float) -> Row:
    return {"what": "memory", "way": way, "mib": mib}


def configured(model: Path, **deployment: Any) -> dict[str, Any]:
    """The configuration that we ship, for this model; `deployment` takes the place of its autoscaling."""
    made: dict[str, Any] = deepcopy(yaml.safe_load(CONFIGURATION.read_text()))
    (application,) = made["applications"]
    application["args"]["model"] = str(model)
    del application["deployments"][0]["autoscaling_config"]
    application["deployments"][0] |= {"max_replicas_per_node": 1} | deployment
    return made


def latencies(plan: Plan, way: str, url: str, images: Sequence[Image]) -> Iterator[Row]:
    """One connection, then 16, in a closed loop."""
    for connections in (1, 16):
        for seconds in (WARM_S, 1 if plan.quick else 10):
            found = closed.run(url, images[0].body, connections=connections, seconds=seconds, content_type=KIND)
        row: Row = {"what": "latency", "way": way, "connections": connections, "per_s": found.requests_per_s}
        plan.say(f"{way}, {connections} connections: {number(found.requests_per_s)} a second")
        yield row | {"p50_ms": found.p50_ms, "p99_ms": found.p99_ms}


def driven(plan: Plan, what: str, ray: Cluster, images: Sequence[Image], times: Sequence[float], *acts: Act) -> Row:
    """A row of a schedule, with how many replicas there were meanwhile."""
    with counted(ray) as seen:
        course = load.drive_now(ray.url, images, times, connections=CONNECTIONS, grace=30, acts=acts)
    row = courses.row(course) | {"what": what, "version": version(ray.url, images[0])}
    row["longest_ms"] = 1000 * max(one.latency for one in course.outcomes if one.finished is not None)
    row["replicas"] = [(at - course.start, count) for at, count in seen]
    plan.say(f"{what}: {courses.by_status(row)}, {row['lost']} lost, {row['wrong']} wrong")
    return row


@contextmanager
def counted(ray: Cluster) -> Iterator[list[tuple[float, int]]]:
    """Look meanwhile how many replicas run: changes, in seconds of CLOCK_MONOTONIC."""
    seen: list[tuple[float, int]] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.5):
            count = ray.running()
            if not seen or seen[-1][1] != count:
                seen.append((time.monotonic(), count))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def version(url: str, image: Image) -> str:
    """The version that answers one more request."""
    _, reply = servers.post(url, image.body, KIND, timeout=30)
    return str(json.loads(reply)["model"]["version"])


def act(name: str, does: Callable[[], None]) -> Act:
    def marked(mark: Callable[[], None]) -> None:
        mark()
        does()

    return Act(CALM_S, name, marked)


def kill(plan: Plan, ray: Cluster, images: Sequence[Image]) -> Row:
    """The last node is lost, and comes back after the load."""
    node = ray.nodes[-1]
    times = load.schedule(RATE, 8 if plan.quick else 25)
    row = driven(plan, "kill", ray, images, times, act("node lost", node.kill))
    if not plan.quick:
        began = time.monotonic()
        cluster.start(node, ray.folder)
        ray.wait(COUNT)
        row["whole_again_s"] = time.monotonic() - began
    return row


def update(plan: Plan, ray: Cluster, images: Sequence[Image], model: Path) -> Row:
    """Another version takes over, replica by replica."""
    times = load.schedule(RATE, UPDATE_S)
    wanted = configured(model, num_replicas=COUNT)
    row = driven(plan, "update", ray, images, times, act("new version", lambda: ray.deploy(wanted)))
    ray.wait(COUNT)
    return row | {"version": version(ray.url, images[0])}


def scale(plan: Plan, ray: Cluster) -> Row:
    """A rush that one replica cannot take, and calm again; with ResNet-18, of which one core takes some 15 a second."""
    (workload,) = prepare(plan.models, ["B"])
    ray.deploy(configured(workload.model.resolve(), autoscaling_config=SCALING))
    ray.wait(1)
    image = Image(workload.body, expected(workload.model, workload.body), KIND)
    parts = [(CALM_RATE, CALM_S), (RUSH_RATE, 40.0), (CALM_RATE, 60.0)]
    times, start = list[float](), 0.0
    for rate, seconds in parts:
        times += [start + due for due in load.schedule(rate, seconds)]
        start += seconds
    return driven(plan, "scale", ray, [image], times, act("rush", lambda: None))


def tables(rows: list[Row]) -> list[Table]:
    """Latency and memory beside one service, then what became of each load."""
    costs = [
        [row["way"], str(row["connections"]), *(number(row[name]) for name in ("per_s", "p50_ms", "p99_ms"))]
        for row in select(rows, what="latency")
    ]
    mib = [[row["way"], number(row["mib"])] for row in select(rows, what="memory")]
    loads = [one for row in rows if (one := loaded(row))]
    columns = ("load", "sent", "by status", "lost", "wrong", "p50 ms", "p99", "longest", "replicas, from second")
    return [
        Table("SimpleCNN, 32x32 JPEG, closed loop", ("", "connections", "a second", "p50 ms", "p99"), costs),
        Table("Memory (proportional set size)", ("", "MiB"), mib),
        Table("Under load; wrong is also an answer of another version than it names", columns, loads),
    ]


def loaded(row: Mapping[str, Any]) -> list[str] | None:
    """A line about a load."""
    titles = {
        "kill": f"a node lost at {CALM_S:g} s, {RATE:g} a second",
        "update": f"new version at {CALM_S:g} s, {RATE:g} a second",
        "scale": f"ResNet-18: {CALM_RATE:g} a second, from {CALM_S:g} s {RUSH_RATE:g}, then {CALM_RATE:g}",
    }
    if row["what"] not in titles:
        return None
    seen = ", ".join(f"{count} ({max(0, at):.0f})" for at, count in row["replicas"])
    times = [number(row[name]) for name in ("p50_ms", "p99_ms", "longest_ms")]
    counts = [f"{row['sent']:,}", courses.by_status(dict(row)), str(row["lost"]), str(row["wrong"])]
    return [titles[row["what"]], *counts, *times, seen]


def figure(rows: list[Row]) -> Figure:
    """A time line of each load."""
    loads = [row for row in rows if "timeline" in row]
    drawn, panels = plots.panels(len(loads))
    for axes, row in zip(panels, loads, strict=True):
        courses.draw(axes, row, row["what"])
    return drawn
