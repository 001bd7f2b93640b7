"""Signals as an interrupt that leaves a program its exit code."""

import signal
from types import FrameType


class Interrupt(KeyboardInterrupt):
    """Not KeyboardInterrupt itself.

    Where just that passes an `exec` of text, as dataclasses and named tuples are made by, CPython ends a program run by
    `python -m` by SIGINT, whatever its exit code (`_Py_UnhandledKeyboardInterrupt`).
    """


def interrupt(number: int, frame: FrameType | None) -> None:
    """A handler of signals."""
    raise Interrupt


def interrupt_by(*numbers: signal.Signals) -> None:
    """Let these signals interrupt this program."""
    for number in numbers:
        signal.signal(number, interrupt)
