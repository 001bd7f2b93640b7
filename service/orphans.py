"""No process outlives the one that started it."""

import ctypes
import multiprocessing
import os
import signal
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
PARENT = "NURSERY_OF"  # the variable that tells the nursery who has started it


def end_with_parent(parent: int) -> None:
    """Let the kernel kill this process when its `parent` (a process id) dies, so that none is left behind (Linux)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before prctl
        os._exit(1)


def end_with_nursery() -> None:
    """The same for a copy of the nursery: it ends with that, and that with the main process."""
    nursery, main = os.getppid(), multiprocessing.parent_process()
    end_with_parent(nursery)
    if main is None or parent_of(nursery) != main.pid:  # it was lost before this process could ask to end with it
        os._exit(1)


def await_end(pid: int, seconds: float) -> None:
    """Wait, so long at most, until no thread of a process is left: one in a system call may still take a message."""
    with suppress(OSError):  # it is no more
        opened = os.pidfd_open(pid)
        try:
            wait([opened], seconds)
        finally:
            os.close(opened)


def parent_of(pid: int) -> int:
    """A process's parent; 0 when it is no more."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0
