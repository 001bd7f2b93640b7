"""The terminal: a bar where there is one, plain lines everywhere, and Ctrl-C."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


def bar(total: int, what: str, unit: str = " images") -> Any:
    """A bar with rate and time left, on standard error if that is a terminal. `tqdm` ships no types."""
    style: dict[str, Any] = {"unit_scale": True, "leave": False, "dynamic_ncols": True}
    return tqdm(total=total or None, desc=what, unit=unit, disable=not sys.stderr.isatty(), **style)


def say(line: str) -> None:
    """Print to standard output, above a bar if there is one."""
    tqdm.write(line)
    sys.stdout.flush()


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed within the block; the second press is KeyboardInterrupt, as any is after it."""
    presses = 0

    def press(*_: object) -> None:
        nonlocal presses
        presses += 1
        if presses > 1:
            raise KeyboardInterrupt
        print("\nstopping: the best epoch so far is kept (Ctrl-C again aborts)", file=sys.stderr, flush=True)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: presses > 0
    finally:
        signal.signal(signal.SIGINT, before)
