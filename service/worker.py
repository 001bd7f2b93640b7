"""The worker process: loads and proves the artifact on its device, then hands it to the batching loop."""

import os
import sys
from multiprocessing.connection import Connection
from time import monotonic
from typing import TYPE_CHECKING, Any

import litserve
from litserve.loops.base import LitLoop

from models.errors import ArtifactError, DeviceError
from service import logs
from service.board import Board
from service.edition import Edition
from service.loading import load
from service.metrics import Metrics
from service.orphans import end_with_nursery
from service.settings import Settings
from service.transport import Transport

if TYPE_CHECKING:
    from models.engine import Engine

# HTTP goes first where cores are short: it takes little, and what it lets in meanwhile makes the next batch larger.
NICENESS = 5


class Worker(litserve.LitAPI):
    """LitServe's seam for the model. Pickled for the worker's process; `setup` runs there."""

    engine: "Engine"
    # Told to each process before it is started.
    edition: Edition  # what it serves
    berth: int  # which worker or spare it is
    begun: float  # when its process was started, in seconds of CLOCK_MONOTONIC
    gate: Connection  # where it waits, loaded, until it is to serve
    board: Board

    def __init__(self, settings: Settings, sharing: int) -> None:
        """So many workers are `sharing` each device's cores. Batching is the loop's, so LitServe is told of none."""
        super().__init__(api_path="/_internal/predict", loop=BatchingLoop(settings))
        self.settings, self.sharing = settings, sharing

    def setup(self, device: str) -> None:
        """Load, prove, optimise and warm; LitServe calls the worker ready when this returns.

        An unusable artifact or device ends the process with exit code 2 and one line on stderr.
        """
        end_with_nursery()
        logs.configure(self.settings.log_format)
        os.nice(NICENESS)
        settings = self.settings
        try:
            self.engine = load(
                self.edition,
                settings.device,
                device,
                settings.dtype,
                settings.max_batch_size,
                self.sharing,
                nvjpeg=settings.nvjpeg,
            )
        except (ArtifactError, DeviceError) as error:
            print(f"darkroom: {error}", file=sys.stderr, flush=True)
            self.board.refuse(self.berth, str(error))
            raise SystemExit(2) from None

    def predict(self, x: Any, **_: Any) -> Any:
        """LitServe wants the method; the batching loop calls the engine."""
        return self.engine.predict(x)


class BatchingLoop(LitLoop):
    """LitServe's seam for the worker's main loop: called once, after `Worker.setup`, until no more can come."""

    def __init__(self, settings: Settings) -> None:
        """Sent to the worker by pickling."""
        super().__init__()
        self.settings = settings

    def __call__(self, lit_api: Worker, device: str, worker_id: int, request_queue: Transport, *_: object) -> None:
        """Wait at the gate, then serve until the last HTTP process has closed its end."""
        from service.batching import Pipeline  # not above: the main and HTTP processes stay without torch

        engine, transport, berth = lit_api.engine, request_queue, lit_api.berth
        metrics = Metrics(engine.artifact.manifest.classes)
        metrics.cells = transport.cells(transport.processes + berth)
        tracing = None
        if self.settings.tracing:
            from service.tracing import Tracing

            tracing = Tracing()
        pipeline = Pipeline(engine, transport, self.settings, metrics, tracing)
        transport.beat(berth)  # loaded
        loading = monotonic() - lit_api.begun
        try:
            lit_api.gate.recv_bytes()
        except EOFError:  # the service ends, and this spare was never needed
            os._exit(0)
        transport.tell(berth, pipeline.facts(loading))
        pipeline.run(berth)
        if tracing:
            tracing.close()
        os._exit(0)  # taking torch down takes seconds, in which nothing is left to do
