"""The watch over one model's workers: who is lost or hangs is replaced, and a version that is only tried is given up.

There may be two crews, of the version that serves and of another (`service.rollout`), which the service can do without.

    berth:  empty -> loading -> (spare ->) serving -> lost -> empty, after a pause that grows while nothing serves long

Every worker loads and then waits for its order to serve, so that a spare is one that has no order yet.
"""

from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from time import monotonic
from typing import Any

from service.board import DRAINING, READY
from service.crew import Berth, Crew
from service.logs import logger
from service.metrics import IMAGES, WORKER_RESTARTS, Metrics
from service.orphans import await_end
from service.transport import Transport

DYING_S = 1.0  # how long a process that has been killed may take to end
HANG_S = 3.0  # without a beat; a slow decoder keeps Python's lock for less than 1.5 s
LOADING_S, LOADS = 60.0, 5  # how long a worker may take to load, or so many times as long as the first ones did
STEADY_S = 60.0  # a candidate that is lost sooner has failed, whatever it has answered
STABLE_S = 2.0  # who has served that long, has answered anything or stood by for long did not fail to start
# Before the next start, by failures in a row; after one more the service gives up, if no worker serves.
PAUSES_S = (0, 1, 2, 4, 4)


class Hopeless(Exception):
    """Why the service cannot go on."""


class Keeper:
    """Keeps every crew of a model that has a version to serve complete."""

    def __init__(
        self,
        model: str,
        transport: Transport,
        metrics: Metrics,
        crews: Sequence[Crew],
        launch: Callable[[Crew, Berth], None],
    ) -> None:
        """`model` is its name, for the log; `launch` starts a process in an empty berth of a crew."""
        self.model = model
        self.transport, self.metrics, self.crews, self.launch = transport, metrics, crews, launch
        self.also: Sequence[Callable[[float], None]] = ()  # others that look, once the service is ready
        self.closed = False

    @property
    def processes(self) -> list[BaseProcess]:
        """All workers that are there."""
        return [berth.process for crew in self.crews for berth in crew.berths if berth.process]

    def about(self, worker: BaseProcess) -> dict[str, Any]:
        """What the log tells of a worker."""
        return {"model": self.model, "worker": worker.pid}

    def end(self) -> None:
        """Watch no more; who does not serve is not needed, and would first load to its end."""
        self.closed = True
        for crew in self.crews:
            for berth in crew.berths:
                if berth.process and berth.serving_since is None:
                    berth.process.kill()
                berth.clear()

    def look(self, now: float, awake_since: float) -> None:
        """One look at all workers; times in seconds of CLOCK_MONOTONIC, this process has run since `awake_since`.

        Raises:
            Hopeless: no worker serves, and none starts.
        """
        for crew in self.crews:
            for berth in crew.berths:
                if berth.process and ended(berth.process):
                    self.lose(crew, berth, berth.process)
                elif berth.process and self.hangs(crew, berth, awake_since):
                    logger.error("a worker does not move; killing it", extra=self.about(berth.process))
                    berth.process.kill()  # the next look finds it ended
        if not self.closed and self.transport.phase == READY:
            for look in self.also:
                look(now)
        if not self.closed and self.transport.phase in (READY, DRAINING):
            for crew in self.crews:
                if crew.edition:
                    self.replace(crew)

    def hangs(self, crew: Crew, berth: Berth, awake_since: float) -> bool:
        """Whether its worker should have shown that it lives; one that has loaded rests until its order."""
        beat = self.transport.last_beat(berth.index)
        if berth.serving_since is None:
            return not beat and monotonic() - max(berth.started, awake_since) > longest_load(crew)
        return monotonic() - max(berth.serving_since, awake_since, beat) > HANG_S

    def lose(self, crew: Crew, berth: Berth, process: BaseProcess) -> None:
        """A worker is no more; what it had is sent again, and another starts now or after a pause."""
        process.join()
        if process.pid:  # its nursery's end looks like its own, which follows a moment later
            await_end(process.pid, DYING_S)
        if crew.edition is None:  # that is what was wanted
            self.metrics.cells = self.transport.cells(self.transport.processes + berth.index)
            self.metrics.clear_gauges()
            self.transport.clear(berth.index)
            berth.clear()
            return
        now = monotonic()
        self.metrics.cells = self.transport.cells(self.transport.processes + berth.index)
        served = berth.serving_since is not None and now - berth.serving_since > STABLE_S
        stood_by = bool(self.transport.last_beat(berth.index)) and now - berth.started > longest_load(crew)
        started = served or stood_by or self.metrics.value(IMAGES) > berth.answered
        if crew.side != self.transport.serving:  # which the service can do without
            started = berth.serving_since is not None and now - berth.serving_since > STEADY_S
        crew.failures = 1 if started else crew.failures + 1
        reason = self.transport.refusal(berth.index) or f"a worker ended with exit code {process.exitcode}"
        logger.error("a worker was lost", extra=self.about(process) | {"exit_code": process.exitcode})
        self.metrics.clear_gauges()
        self.metrics.add(WORKER_RESTARTS)
        self.transport.clear(berth.index)
        if berth.serving_since is not None:
            self.transport.lost(process.pid or 0)
        berth.clear()
        if not crew.proved and crew.side != self.transport.serving:
            self.dismiss(crew, reason)
        elif crew.failures <= len(PAUSES_S):
            crew.next_start = now + PAUSES_S[crew.failures - 1]
        elif crew.serving:
            crew.next_start = now + PAUSES_S[-1]
        elif crew.side != self.transport.serving:
            self.dismiss(crew, reason)
        else:
            raise Hopeless(f"the worker of the model {self.model} did not start {len(PAUSES_S)} times in a row")

    def dismiss(self, crew: Crew, reason: str) -> None:
        """Do without a crew that does not serve; what it had goes to the one that does."""
        logger.error("a version cannot be used", extra={"model": self.model, "reason": reason})
        crew.trouble = reason
        self.transport.divide(self.transport.serving)
        self.transport.open(crew.side, to=False)
        self.transport.abandon(crew.side)
        crew.end()

    def replace(self, crew: Crew) -> None:
        """Let spares serve where a worker is missing, and fill empty berths."""
        missing = list(crew.wanted)
        for berth in crew.berths:
            if berth.serving_since is not None:
                missing.remove(berth.device)
        for berth in crew.berths:
            if berth.process is None or berth.serving_since is not None or not self.transport.last_beat(berth.index):
                continue
            if berth.device in missing:
                if not berth.serve():
                    continue
                missing.remove(berth.device)
                told = "a worker took over" if crew.proved else "a worker has loaded"
                logger.info(told, extra=self.about(berth.process))
            elif not berth.spare:
                berth.spare = True
                logger.info("a spare stands by", extra=self.about(berth.process))
        if monotonic() >= crew.next_start and (missing or self.transport.phase == READY):
            for berth in crew.berths:
                if berth.process is None:
                    self.metrics.cells = self.transport.cells(self.transport.processes + berth.index)
                    berth.answered = self.metrics.value(IMAGES)
                    self.launch(crew, berth)


def longest_load(crew: Crew) -> float:
    """How long a worker may take until it has loaded, in seconds."""
    return max(LOADING_S, LOADS * crew.load_seconds)


def ended(process: BaseProcess) -> bool:
    """Whether a process is no more; unlike `is_alive` it does not take the exit code from another thread."""
    return bool(wait([process.sentinel], 0))
