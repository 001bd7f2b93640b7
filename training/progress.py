"""Progress: a bar on a terminal; nothing on a pipe, where the plain lines that are printed tell enough."""

import sys
from typing import Any

from tqdm import tqdm


def bar(total: int, what: str, unit: str = " images") -> Any:
    """A bar with rate and time left, on standard error if that is a terminal. `tqdm` ships no types."""
    return tqdm(
        total=total or None,
        desc=what,
        unit=unit,
        unit_scale=True,
        leave=False,
        dynamic_ncols=True,
        disable=not sys.stderr.isatty(),
    )


def say(line: str = "") -> None:
    """Print a line to standard output, above a bar if there is one."""
    tqdm.write(line)
    sys.stdout.flush()
