"""Ctrl-C while training: the first press ends training and keeps the best so far, the second aborts."""

import signal
import sys
from types import FrameType, TracebackType
from typing import Any


class Interrupt:
    """Within the `with` block, `pressed` tells whether Ctrl-C was; after it Ctrl-C is KeyboardInterrupt again."""

    def __init__(self) -> None:
        self.pressed = False
        self.before: Any = None

    def __enter__(self) -> "Interrupt":
        self.before = signal.signal(signal.SIGINT, self.press)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self.before)

    def press(self, _signal: int, _frame: FrameType | None) -> None:
        """Note the first press, raise KeyboardInterrupt at the second."""
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True
        print("\nstopping: the best epoch so far is kept (Ctrl-C again aborts)", file=sys.stderr, flush=True)
