"""For how many connections there is room in an HTTP process, and which is closed where there is none."""

import resource
from time import monotonic
from typing import TYPE_CHECKING

from service.logs import logger
from service.settings import Settings

if TYPE_CHECKING:
    from service.protocol import Protocol

SETTLED_S = 1  # an idle connection may be closed after that: before, its next request may be on the way
OTHER_FILES = 512  # open ones that are no connection within the limit


class Room:
    """For how many connections there is room in one process, and which can make some."""

    def __init__(self, most: int) -> None:
        """Room for `most`."""
        self.most = most
        self.idle: dict[Protocol, float] = {}  # since when, the longest first; some have been asked something since

    def enter(self, one: "Protocol") -> None:
        """It is idle from now on. One beyond the limit makes no room: its place is none."""
        self.leave(one)
        if not one.crowded:
            self.idle[one] = monotonic()

    def leave(self, one: "Protocol") -> None:
        """It is no longer idle for as long as it was."""
        self.idle.pop(one, None)

    def make(self) -> bool:
        """Close the connection that has been idle for longest, and long enough; whether there was one."""
        while self.idle:
            one, since = next(iter(self.idle.items()))
            if monotonic() - since < SETTLED_S:
                return False
            self.leave(one)
            if one.idle and not one.transport.is_closing():
                one.transport.close()
                return True
        return False


def connections_each(settings: Settings, models: int) -> int:
    """How many connections each HTTP process may hold, after raising the limit of open files where that is needed."""
    others = OTHER_FILES + (models - 1) * (10 + 2 * settings.http_processes)  # sockets and memory of each
    most = max(1, settings.max_connections // settings.http_processes)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < most + others:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < most + others:
        told = {"connections": max(1, hard - others) * settings.http_processes, "open_files": hard}
        logger.warning("the limit of open files allows fewer connections than --max-connections", extra=told)
        most = max(1, hard - others)
    return most
