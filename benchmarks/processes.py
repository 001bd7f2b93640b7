"""What a server's processes are to it, as far as /proc tells: whom a fault hits, what they hold and listen on."""

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.servers import TICKS_PER_S, Server
from service.orphans import parent_of

PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / (1 << 20)
LISTENS = "0A"  # a state in /proc/net/tcp
KINDS = ("main", "manager", "nursery", "http", "worker", "tracker")


def kinds(server: Server) -> dict[int, str]:
    """Kind of each process of a server's session: a worker is a copy of the nursery, or spawned; http listens."""
    found = {}
    for pid in sorted(server.stats()):
        with suppress(OSError):  # it has just ended
            found[pid] = kind(server, pid)
    return found


def kind(server: Server, pid: int) -> str:
    """One of `KINDS`, of a process."""
    command = Path(f"/proc/{pid}/cmdline").read_bytes()
    if pid == server.process.pid:
        return "main"
    if b"resource_tracker" in command:
        return "tracker"
    if b"forkserver" in command:
        return "nursery" if parent_of(pid) == server.process.pid else "worker"
    if b"spawn_main" in command:
        return "worker" if "libtorch" in Path(f"/proc/{pid}/maps").read_text() else "spawned"
    return "http" if ports(pid) else "manager"


def of_kind(server: Server, wanted: str) -> list[int]:
    return [pid for pid, kind in kinds(server).items() if kind == wanted]


def busy_worker(server: Server, seconds: float = 0.3) -> int:
    """The worker that works most, of those that there are; a spare one only waits.

    Raises:
        ProcessLookupError: there is none.
    """
    workers = of_kind(server, "worker")
    if len(workers) < 2:
        return workers[0] if workers else gone()
    before = cpu_seconds(server)
    time.sleep(seconds)
    after = cpu_seconds(server)
    return max(workers, key=lambda pid: after.get(pid, 0.0) - before.get(pid, 0.0))


def gone() -> int:
    raise ProcessLookupError("there is no worker")


def cpu_seconds(server: Server) -> dict[int, float]:
    """User and system time, by process."""
    return {pid: (int(fields[11]) + int(fields[12])) / TICKS_PER_S for pid, fields in server.stats().items()}


def rss_mib(server: Server, known: Mapping[int, str]) -> dict[str, float]:
    """Resident memory by kind of process, in MiB."""
    found: dict[str, float] = {}
    for pid, fields in server.stats().items():
        name = known.get(pid, "new")
        found[name] = found.get(name, 0.0) + int(fields[21]) * PAGE_MIB
    return found


def peak_rss_mib(pids: Sequence[int]) -> float:
    """The most resident memory that one of these processes ever had, in MiB."""
    peaks = [0.0]
    for pid in pids:
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            peaks += [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")]
    return max(peaks)


def descriptors(server: Server) -> int:
    """Open file descriptors of all processes."""
    count = 0
    for pid in server.stats():
        with suppress(OSError):
            count += len(os.listdir(f"/proc/{pid}/fd"))
    return count


def sockets(pid: int) -> set[str]:
    """Inodes of a process's sockets."""
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            found.add(os.readlink(link).removeprefix("socket:[").rstrip("]"))
    return found


def ports(pid: int) -> set[int]:
    """TCP ports that a process listens on."""
    held, found = sockets(pid), set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENS and fields[9] in held:
                found.add(int(fields[1].rpartition(":")[2], 16))
    return found


def open_to_others(pid: int) -> list[str]:
    """Unix sockets in the file system that a process holds and that others may write to; their names."""
    held, found = sockets(pid), []
    for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and fields[6] in held and fields[7].startswith("/"):
            path = Path(fields[7])
            with suppress(OSError):
                closed = any(not folder.stat().st_mode & 0o001 for folder in path.parents)
                if path.stat().st_mode & 0o022 and not closed:
                    found.append(path.name)
    return found
