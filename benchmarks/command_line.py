"""The command line: suites, the options that each takes with their defaults, and what is wrong with what was given."""

import argparse
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.errors import BenchmarkError

PROGRAM = "python -m benchmarks"
RESULTS = Path("benchmarks", "results")  # where `python -m benchmarks` finds this package, too
HELP = f"""Measure the service: beside other servers and its bounds, stage by stage, under growing load.

  {PROGRAM} compare --quick --out figures   a first look, in seconds
  {PROGRAM} compare                         the real thing, in minutes, to benchmarks/results/
  {PROGRAM} SUITE --help                    what a suite takes

Each suite writes SUITE.json (every row, and the conditions), SUITE.md (tables) and SUITE.svg. They need wrk (make
system) and, for real photos, TEST_DATA. Keep the machine otherwise idle."""


@dataclass(frozen=True)
class Suite:
    """What a suite is for, and the options that it takes, with their defaults."""

    help: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Order:
    """What was asked for; `models` is None where model files are made for this run only."""

    suite: str
    out: Path
    models: Path | None
    quick: bool
    options: Mapping[str, Any]


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError
    return value


def whole(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


# argparse names the type where it refuses a value.
positive.__name__, whole.__name__ = "positive number", "positive whole number"
WORKLOAD = (
    "A (SimpleCNN, 32x32 JPEG), A100k (the same in 100 kB), B (ResNet-18, photo), or an architecture with the photo"
)
FAULTS = (
    *("F1", "F3", "F4", "F8", "F9", "G4", "memory", "F10", "F15", "bad", "kills", "kills_spare", "F5", "F6", "F7"),
    *("F12", "F13", "F14", "F11", "burst"),
)
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "--seconds": {"type": positive, "help": "how long one measurement takes"},
    "--rounds": {"type": whole, "help": "how often everything is measured, in turn"},
    "--pairs": {"type": whole, "help": "how often service and bound are measured, in turn", "dest": "rounds"},
    "--swaps": {"type": whole, "help": "how often another version takes over", "dest": "rounds"},
    "--minutes": {
        "type": positive,
        "help": "no round begins, but for the first, that would pass them; of soak, its length",
    },
    "--only": {"nargs": "+", "choices": FAULTS, "help": "these scenarios, after the capacity that they need"},
    "--workloads": {"nargs": "+", "help": WORKLOAD},
    "--workload": {"nargs": 1, "help": WORKLOAD, "dest": "workloads"},
    "--dtype": {"choices": ("fp32", "bf16", "fp16", "tf32"), "help": "number format of the network"},
    "--device": {"choices": ("cuda", "cpu"), "help": "where the network runs"},
    "--flags": {"type": str.split, "help": "for the service, in one string: --flags='--http-processes 2'"},
    "--peers": {"action": "store_true", "help": "mosec too; a download, to benchmarks/.peers"},
    "--arrivals": {"choices": ("even", "poisson"), "help": "how requests are spaced"},
    "--data": {"type": Path, "help": "where photos/, hymenoptera/ and weights/ lie; as TEST_DATA"},
}
DATA = Path(os.environ["TEST_DATA"]) if os.environ.get("TEST_DATA") else None
PHOTOS = ("accuracy", "loading")  # suites that do nothing without
SUITES: Mapping[str, Suite] = {
    "compare": Suite(
        "The service, stock LitServe twice, a bare Starlette and the bounds of the hardware, in turn: answers a "
        "second, latency, idle CPU, memory, and the share of the ideal.",
        {"--seconds": 2, "--rounds": 3, "--minutes": 18, "--workloads": ["A", "A100k", "B"], "--dtype": "fp32"}
        | {"--peers": False, "--flags": []},
    ),
    "pairs": Suite(
        "The service and its decode+forward bound in pairs, with the interval of the median ratio; then bf16.",
        {"--seconds": 20, "--pairs": 10, "--workload": ["B"], "--peers": False, "--flags": []},
    ),
    "stages": Suite(
        "Where a request's time goes, over 1, 16 and 64 connections.",
        {"--seconds": 3, "--rounds": 3, "--minutes": 2, "--workloads": ["A", "B"], "--flags": []},
    ),
    "batches": Suite(
        "Images a batch, p50 and p99 at 10 to 100 % of the peak, in an open loop.",
        {"--seconds": 4, "--rounds": 3, "--minutes": 4, "--workload": ["A"], "--arrivals": "even", "--flags": []},
    ),
    "objective": Suite(
        "Answers within an objective and their p99: the service that is told it, and tuned by hand in a small grid.",
        {"--seconds": 2, "--rounds": 1, "--minutes": 8, "--workloads": ["A", "B"], "--flags": []},
    ),
    "growth": Suite(
        "Throughput by size of the picture, by workers and by HTTP processes.",
        {"--seconds": 2, "--rounds": 3, "--minutes": 5, "--flags": []},
    ),
    "gpu": Suite(
        "ResNet-50 with photos on a GPU, against the smaller of decode bound and forward bound, with stages.",
        {"--seconds": 5, "--rounds": 3, "--minutes": 5, "--workload": ["resnet50"], "--dtype": "fp32"}
        | {"--device": "cuda", "--flags": []},
    ),
    "faults": Suite(
        "The service under load while its processes are killed, stopped and told to end, its model fails, its disk is "
        "full, and ten times its capacity comes; where it applies beside LitServe as its README shows it.",
        {"--only": [], "--flags": []},
    ),
    "soak": Suite(
        "Memory, file descriptors and what is left in flight over many minutes at half of the capacity.",
        {"--minutes": 15, "--workload": ["simple_cnn"], "--flags": []},
    ),
    "swaps": Suite(
        "One version after another takes over at half of the capacity: requests lost or mixed, latency, memory.",
        {"--swaps": 200, "--workload": ["simple_cnn"], "--flags": []},
    ),
    "nodes": Suite(
        "Three Ray nodes in network namespaces beside one service: latency, memory, a lost node, an update, a rush.",
        {"--flags": []},
    ),
    "capacity": Suite(
        "How many machines a rate needs, from one that is measured: formula, simulation, cost, what gives out next.",
        {"--seconds": 10, "--workloads": ["A", "B"], "--flags": []},
    ),
    "accuracy": Suite(
        "What bf16 costs: SqueezeNet with its ImageNet weights on real photos.",
        {"--data": DATA},
    ),
    "loading": Suite(
        "How fast training gets batches of photos from files, beside decoding and resizing them without a loader.",
        {"--rounds": 5, "--minutes": 5, "--data": DATA},
    ),
    "bulk": Suite(
        "Bulk scoring of files beside decoding and predicting alone.",
        {"--seconds": 10, "--rounds": 5, "--minutes": 8, "--workloads": ["A", "B"]},
    ),
    "compilers": Suite(
        "What torch.compile and AOTInductor would give in place of TorchScript; they need a C++ compiler.",
        {"--seconds": 2, "--rounds": 3, "--minutes": 12, "--device": "cpu"}
        | {"--workloads": ["simple_cnn", "mobilenet_v3_small", "resnet18"]},
    ),
}
WITHOUT_WRK = (*PHOTOS, "bulk", "compilers")
LOAD = "The open-loop load tool, for any server: python -m benchmarks load --help."
QUICK = {"seconds": 1.0, "rounds": 1}
QUICK_WORKLOAD = ["A"]  # unless another is asked for


class Parser(argparse.ArgumentParser):
    """argparse that tells a mistake in one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise BenchmarkError(f"{message}; see {self.prog} --help")


def parser() -> Parser:
    """All suites with their options."""
    made = Parser(PROGRAM, description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    suites = made.add_subparsers(dest="suite", required=True, metavar="SUITE")
    for name, suite in SUITES.items():
        one = suites.add_parser(
            name,
            help=suite.help.replace("%", "%%"),
            description=suite.help,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        one.add_argument("--quick", action="store_true", help="as little as shows that it works; figures mean nothing")
        one.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
        one.add_argument("--models", type=Path, help="folder to keep model files in")
        for option, default in suite.options.items():
            one.add_argument(option, default=default, **OPTIONS[option])
    suites.add_parser("load", help=LOAD)  # has a parser of its own
    return made


def parse(arguments: Sequence[str]) -> Order:
    """What the command line asks for.

    Raises:
        BenchmarkError: it is wrong, or something that the suite needs is missing; one line.
    """
    given = vars(parser().parse_args(arguments))
    suite, out, models, quick = (given.pop(name) for name in ("suite", "out", "models", "quick"))
    if quick:
        given |= {name: value for name, value in QUICK.items() if name in given}
        defaults = [SUITES[suite].options.get(option) for option in ("--workload", "--workloads")]
        if "workloads" in given and given["workloads"] in defaults:
            given["workloads"] = QUICK_WORKLOAD if suite != "compilers" else given["workloads"][:1]
    if suite == "compilers" and shutil.which(os.environ.get("CXX", "g++")) is None:
        raise BenchmarkError("g++ is not installed, which torch.compile needs; on Debian: apt-get install g++")
    if suite in PHOTOS and (given["data"] is None or not given["data"].is_dir()):
        raise BenchmarkError(f"{suite} needs real photos: set TEST_DATA, or give --data DIR")
    if suite not in WITHOUT_WRK and shutil.which("wrk") is None:
        raise BenchmarkError("wrk is not installed; on Debian: make system, or apt-get install wrk")
    return Order(suite, out, models, quick, given)
