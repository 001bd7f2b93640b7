"""A crew: the workers of one version of the model, on one side of the transport, and their places."""

from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from time import monotonic
from typing import Any

from service.edition import Edition


class Berth:
    """A place for one worker process, whose part of the board and of the metrics is `index`."""

    def __init__(self, index: int, device: int) -> None:
        """`device` is where its worker serves, as an index into the service's devices."""
        self.index, self.device = index, device
        self.process: BaseProcess | None = None
        self.started = 0.0
        self.gate: Connection | None = None
        self.serving_since: float | None = None
        self.spare = False
        self.answered = 0.0  # images, by workers before this one

    def serve(self) -> bool:
        """Let its worker serve, as soon as it has loaded; whether it is still there."""
        assert self.gate is not None, "a berth with a process has a gate for it"
        try:
            self.gate.send_bytes(b"serve")
        except BrokenPipeError:  # it dies, which is seen a moment later
            return False
        self.serving_since = monotonic()
        return True

    def clear(self) -> None:
        """Its worker is no more."""
        if self.gate:
            self.gate.close()
        self.process = self.gate = self.serving_since = None
        self.spare = False


class Crew:
    """One worker serving for each of `wanted`, the devices where one must, and spares in the other berths."""

    def __init__(self, side: int, berths: Sequence[Berth], wanted: Sequence[int]) -> None:
        """It has nothing to load yet."""
        self.side, self.berths, self.wanted = side, berths, wanted
        self.edition: Edition | None = None
        self.failures = 0
        self.next_start = 0.0
        self.load_seconds = 0.0  # that the first workers took
        self.proved = False  # every worker that is wanted has loaded once
        self.trouble = ""  # why it was dismissed

    def begin(self, edition: Edition, load_seconds: float = 0.0) -> None:
        """Keep workers for this version from now on; `load_seconds` is what another took to load."""
        self.edition = edition
        self.failures, self.next_start, self.load_seconds = 0, 0.0, load_seconds
        self.proved, self.trouble = False, ""

    def prove(self, plan: dict[str, Any], load_seconds: float) -> None:
        """Every worker that is wanted has loaded in this time; others need not try what pays here again."""
        assert self.edition, "it has loaded something"
        self.edition, self.load_seconds = replace(self.edition, plan=plan), load_seconds
        self.proved = True

    def end(self) -> None:
        """Keep none any more; who is there is sent nothing."""
        self.edition = None
        for berth in self.berths:
            if berth.process:
                berth.process.kill()

    @property
    def gone(self) -> bool:
        """Whether no process is left."""
        return not any(berth.process for berth in self.berths)

    @property
    def serving(self) -> bool:
        """Whether any worker does."""
        return any(berth.serving_since is not None for berth in self.berths)
