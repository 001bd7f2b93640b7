"""The terminal: a bar where there is one, plain lines everywhere, Ctrl-C and SIGTERM."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from models.interrupt import Interrupt

TOLD = {
    signal.SIGINT: "the best epoch so far is kept (Ctrl-C again aborts)",
    signal.SIGTERM: "a checkpoint is written, to go on from",
}
# Where torchrun started several processes, the first tells for all.
TELLS = os.environ.get("RANK", "0") == "0"


def bar(total: int, what: str, unit: str = " images", initial: int = 0) -> Any:
    """A bar with rate and time left, on standard error if that is a terminal. `tqdm` ships no types."""
    style: dict[str, Any] = {"unit_scale": True, "leave": False, "dynamic_ncols": True}
    return tqdm(
        total=total or None, initial=initial, desc=what, unit=unit, disable=not (TELLS and sys.stderr.isatty()), **style
    )


def say(line: str) -> None:
    """Print to standard output, above a bar if there is one."""
    if TELLS:
        tqdm.write(line.encode("utf-8", "backslashreplace").decode())  # files' names may be no UTF-8
        sys.stdout.flush()


@contextmanager
def interruptible() -> Iterator[Callable[[], signal.Signals | None]]:
    """What asked within the block to stop, Ctrl-C or SIGTERM; a second one is KeyboardInterrupt, as any is after it."""
    asked: list[signal.Signals] = []

    def ask(number: int, _: object) -> None:
        asked.append(signal.Signals(number))
        if len(asked) > 1:
            raise Interrupt
        if TELLS:
            print(f"\nstopping: {TOLD[asked[0]]}", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked[0] if asked else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
