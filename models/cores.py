"""How many cores this process really has: its affinity, and the CPU limit of its control groups. No torch here."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

MEMBERSHIP = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")


def available(membership: Path = MEMBERSHIP, cgroups: Path = CGROUPS) -> int:
    """Whole cores, at least one: what is left of one is rounded up, for a thread can use it."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([affinity, *map(math.ceil, limits(membership, cgroups))]))


def limits(membership: Path, cgroups: Path) -> Iterator[float]:
    """The CPU limits, in cores, of the control groups in a `/proc/PID/cgroup` file and of all groups above them.

    Version 2 keeps "quota period" (or "max period") in cpu.max, version 1 two files; both in microseconds.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # not Linux, or /proc is hidden
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        root = cgroups / controllers if controllers else cgroups
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if (not controllers or "cpu" in controllers.split(",")) and folder.is_relative_to(root):
                yield from limit(folder)


def limit(folder: Path) -> Iterator[float]:
    """One group's limit, if it has one."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if quota != "max" and int(quota) > 0:
            yield int(quota) / int(period)
    except (OSError, ValueError):  # no such file: no limit
        return
