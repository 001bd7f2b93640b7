"""`python -m benchmarks SUITE`: measures, then writes SUITE.json, SUITE.md and SUITE.svg."""

import importlib
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks import load
from benchmarks.command_line import Order, parse
from benchmarks.errors import BenchmarkError


def main(arguments: Sequence[str]) -> int:
    """Run one suite; the exit code."""
    if arguments[:1] == ["load"]:
        return load.main(arguments[1:])
    try:
        run(parse(arguments))
    except (BenchmarkError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print("error: stopped; nothing was written", file=sys.stderr, flush=True)
        return 130
    return 0


def run(order: Order) -> None:
    """Measure, and write what was found."""
    # With torch and matplotlib, for which a mistyped flag should not wait.
    from benchmarks import results
    from benchmarks.plan import Plan

    suite = importlib.import_module(f"benchmarks.{order.suite}")
    with ExitStack() as stack:
        models = order.models or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        models.mkdir(parents=True, exist_ok=True)
        plan = Plan(models, quick=order.quick, **order.options)
        rows = suite.measure(plan)
    results.write(order.out, order.suite, plan, rows, suite.tables(rows), suite.figure(rows))
    print(f"\n{(order.out / order.suite).with_suffix('.md').read_text()}")


if __name__ == "__main__":
    # Servers, some of them paused, are ended when this process is told to end.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))
