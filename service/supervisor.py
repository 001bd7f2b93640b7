"""The main process's watch over the others: a worker that is lost is replaced, all else ends the service."""

import os
import signal
import threading
from collections.abc import Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from time import monotonic

from service.board import FAILED, LOADING, READY
from service.keeper import Hopeless, Keeper, ended
from service.logs import logger

TICK_S = 0.25
FROZEN_S = 1.0  # without a look: this process did not run either, as when a container is paused


class Supervisor:
    """Watches every process, the workers through their model's keeper.

    Linux kills the nursery, and all workers, with the thread that started it (see `orphans`), so `run` never returns.
    """

    def __init__(self, keepers: Sequence[Keeper]) -> None:
        """There is one keeper or more."""
        self.keepers = keepers
        # Without one of these the service cannot go on.
        self.manager: Sequence[BaseProcess] = ()
        self.http: Sequence[BaseProcess] = ()
        self.looked = self.awake_since = monotonic()
        self.looking = threading.Lock()
        self.closed = False

    @property
    def phase(self) -> int:
        """The service's."""
        return self.keepers[0].transport.phase

    def run(self) -> None:
        """Watch until nobody waits for anything any more."""
        while not self.closed:
            processes = [process for keeper in self.keepers for process in keeper.processes]
            if self.phase in (LOADING, READY):
                processes += [*self.manager, *self.http]
            orders = [keeper.transport.orders[1] for keeper in self.keepers]
            wait([*orders, *[process.sentinel for process in processes]], TICK_S)
            with self.looking:
                if not self.closed:
                    self.look_safely()
        threading.Event().wait()

    def close(self) -> None:
        """Start no more processes."""
        with self.looking:
            self.end()

    def end(self) -> None:
        """Watch no more."""
        self.closed = True
        for keeper in self.keepers:
            keeper.end()

    def look_safely(self) -> None:
        """One look at everything; a bug ends the service instead of leaving it without a watch."""
        try:
            self.look()
        except Hopeless as error:
            self.give_up(str(error))
        except Exception:
            logger.critical("the supervisor failed", exc_info=True)
            self.give_up("the supervisor failed")

    def look(self) -> None:
        """One look at everything.

        Raises:
            Hopeless: the service cannot go on.
        """
        now = monotonic()
        if now - self.looked > FROZEN_S:
            self.awake_since = now
        self.looked = now
        for keeper in self.keepers:
            keeper.transport.deliver()
        for process in (*self.manager, *self.http):
            if ended(process) and self.phase in (LOADING, READY):
                process.join()
                raise Hopeless(f"{process.name} ended unexpectedly, exit code {process.exitcode}")
        if self.phase == FAILED or all(map(ended, self.http)):
            self.end()
        for keeper in self.keepers:
            keeper.look(now, self.awake_since)

    def give_up(self, reason: str) -> None:
        """End the service; whoever waits is told so."""
        logger.error("stopping: " + reason)
        for keeper in self.keepers:
            keeper.transport.phase = FAILED
            keeper.transport.give_up("The service is about to end; try another replica.")
        os.kill(os.getpid(), signal.SIGTERM)
