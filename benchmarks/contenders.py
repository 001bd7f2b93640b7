"""How each server is started: ours, stock LitServe twice, a Starlette that only reads or does all itself, and mosec."""

import json
import os
from collections.abc import Sequence

from benchmarks import environment, servers
from benchmarks.errors import BenchmarkError
from benchmarks.servers import Contender
from benchmarks.workloads import Workload, expected, json_body
from service.settings import MOST_PROCESSES

DARKROOM = Contender(
    "darkroom",
    ["-m", "service", "--model", "{model}", "--port", "{port}", "--dtype", "{dtype}", "--device", "{device}"],
)
README = Contender(
    "litserve (README)",
    ["-m", "benchmarks.peers.litserve_readme", "{model}", "{port}", "{device}"],
    takes=json_body,
    kind="application/json",
)
BEST = Contender(
    "litserve (best)", ["-m", "benchmarks.peers.litserve_best", "{model}", "{port}", "{dtype}", "{device}"]
)
STARLETTE = Contender("starlette (reads the body)", ["-m", "benchmarks.peers.starlette_body", "{port}"])
INLINE = Contender(
    "starlette (inline)", ["-m", "benchmarks.peers.starlette_inline", "{model}", "{port}", "{dtype}", "{device}"]
)
TRIAL_S = 2
TOLERANCE = 1e-3  # how far a probability in fp32 may be off before a server does not answer alike


def darkroom(flags: Sequence[str], name: str = DARKROOM.name) -> Contender:
    """The service with flags given to the benchmark."""
    return Contender(name, [*DARKROOM.arguments, *flags])


def spread_out(flags: Sequence[str]) -> Contender:
    """The service with a worker and an HTTP process a core, which share the cores."""
    each = min(MOST_PROCESSES, len(os.sched_getaffinity(0)))
    layout = ("--workers", f"{each}", "--http-processes", f"{each}")
    return darkroom([*flags, *layout], f"{DARKROOM.name} ({each} + {each})")


def mosec(layout: str) -> Contender:
    """Mosec with workers of one stage ("2"), or of decoding and of predicting ("1+1")."""
    variables = {
        "MOSEC_PORT": "{port}",
        "MOSEC_ADDRESS": "127.0.0.1",
        "MOSEC_TIMEOUT": "60000",
        "MOSEC_LOG_LEVEL": "error",
        "PEER_MODEL": "{model}",
        "PEER_DTYPE": "{dtype}",
        "PEER_DEVICE": "{device}",
        "PEER_LAYOUT": layout,
    }
    return Contender(f"mosec ({layout})", ["-m", "benchmarks.peers.mosec_served"], variables, environment.python())


def best_mosec(workload: Workload, dtype: str, device: str, seconds: float = TRIAL_S) -> Contender:
    """The layout of mosec that is fastest with 64 connections, each tried once."""
    cores = len(os.sched_getaffinity(0))
    rates = {}
    for layout in ("1", f"{cores}", "1+1", f"{cores}+1"):
        contender = mosec(layout)
        with servers.running(contender, workload.model, workload.body, dtype=dtype, device=device) as server:
            server.load(workload.body, connections=64, seconds=1)
            rates[server.load(workload.body, connections=64, seconds=seconds).requests_per_s] = contender
    return rates[max(rates)]


def check(server: servers.Server, workload: Workload) -> None:
    """In fp32 all servers must give the artifact's own answer, or they are not doing the same work.

    Raises:
        BenchmarkError: this one does not.
    """
    told = json.loads(server.reply)
    first = told["predictions"][0] if "predictions" in told else told
    index, probability = expected(workload.model, workload.body)
    if first["index"] != index or abs(first["probability"] - probability) > TOLERANCE:
        raise BenchmarkError(f"{server.contender.name} answers {first}, the artifact {index} with {probability}")
