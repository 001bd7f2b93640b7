"""The composition root: LitServe's processes around our transport, batching and endpoint.

    main        settings, artifact's seal, sockets; starts and watches the others; signals
    ├─ manager  LitServe's own
    ├─ nursery  has torch; workers are its copies
    │  └─ worker   (one or more) artifact -> engine -> batching
    └─ http     (one or more, forked) uvicorn -> boundary -> routes; no torch here

LitServe 0.2.19 is extended through these names, held by tests/service/test_litserve_contract.py: `_init_manager`,
`_transport`, `litapi_request_queues`, `launch_inference_worker`, `inference_worker`, `inference_workers`,
`workers_setup_status`, `_callback_runner`, `verify_worker_status`, `_start_server`, `_monitor_workers`,
`_shutdown_event`.
"""

import gc
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing, suppress
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from time import monotonic, sleep
from typing import Any

import litserve
from litserve.loops import inference_worker

from service import logs, routes
from service.board import DRAINING, FAILED, READY
from service.call import LONGEST_TIMEOUT_MS
from service.crew import Berth, Crew
from service.edition import Found
from service.front import Front
from service.keys import Keys
from service.logs import logger
from service.model import Model, named
from service.orphans import end_with_parent
from service.predict import ROUTE
from service.protocol import Protocol
from service.room import Room, connections_each
from service.settings import Settings
from service.signals import Signals
from service.sockets import StartError, hold_port, listener, taken
from service.standins import Idle, Shutdown
from service.supervisor import Supervisor
from service.worker import Worker

BACKLOG = 2048
NURSERY_S = 5  # within which a nursery that is lost has ended
KEEP_ALIVE_S = 75  # longer than the usual idle timeout of load balancers (60 s), so that they close first


class Server(litserve.LitServer):
    """LitServe with our transport, sockets and watch over the processes."""

    def __init__(
        self,
        settings: Settings,
        found: Sequence[Found],
        keys: Keys,
        admins: Keys,
        holder: socket.socket,
        signals: Signals,
    ) -> None:
        """`holder` holds the port; each HTTP process listens on a socket of its own beside it."""
        accelerator, devices = litserve_devices(settings.device)
        super().__init__(
            Worker(settings, settings.workers * len(found)),
            accelerator=accelerator,
            devices=devices,
            workers_per_device=settings.workers,
            timeout=False,
        )
        self.settings, self.holder, self.signals = settings, holder, signals
        if settings.metrics_port is not None:
            self.metrics_holder = hold_port(settings.host, settings.metrics_port, "--metrics-port")
        self.models = [Model(one, settings, keys, len(self.devices), self.launch) for one in found]
        self.supervisor = Supervisor([model.keeper for model in self.models])
        self.sockets = [holder]
        self.manager: Any = None
        self._monitor_workers = False  # the supervisor replaces it
        self.uvicorn_graceful_timeout = LONGEST_TIMEOUT_MS // 1000 + 1
        self.front = Front(self.app, self.models, settings, keys, admins)

    @property
    def phase(self) -> int:
        """The service's, which is told on every model's board."""
        return self.models[0].transport.phase

    @phase.setter
    def phase(self, phase: int) -> None:
        for model in self.models:
            model.transport.phase = phase

    def _init_manager(self, num_api_servers: int) -> Any:
        manager = self.manager = super()._init_manager(num_api_servers)
        for model in self.models:
            model.transport.connect()
        first = self.models[0].transport
        self.litapi_request_queues[self.lit_api.api_path] = first  # LitServe only wants one to be there
        self._transport = Idle(self.stop)
        self._shutdown_event = Shutdown(self.signals)
        return manager

    def launch_inference_worker(self, _: Any) -> list[BaseProcess]:
        """The first workers; spares are left to the supervisor."""
        for model in self.models:
            for berth in model.first_berths:
                with self.signals.waiting():  # for the nursery, which may be importing torch
                    self.launch(model, model.crews[0], berth)
                berth.serve()
        return []  # `launch` keeps the list itself

    def launch(self, model: Model, crew: Crew, berth: Berth) -> None:
        """Start a worker process in an empty berth of a model's crew."""
        worker: Worker = self.lit_api
        assert crew.edition, "a crew without a version has no workers"
        worker.edition, worker.berth, model.transport.side = crew.edition, berth.index, crew.side
        worker.board = model.transport
        worker.gate, berth.gate = multiprocessing.Pipe(duplex=False)
        berth.started = worker.begun = monotonic()
        device = self.devices[berth.device]
        # As LitServe does it, but forked from a process that has torch: ready in a third of the time.
        process = multiprocessing.get_context("forkserver").Process(
            target=inference_worker,
            args=(
                worker,
                device if isinstance(device, str) else device[0],
                berth.device,
                model.transport,
                self._transport,
                self.workers_setup_status,
                self._callback_runner,
                False,  # the supervisor replaces it, not LitServe
            ),
            name="inference-worker",
        )
        begin(process)  # which a signal may interrupt
        berth.process = process
        worker.gate.close()
        self.inference_workers[:] = [process for one in self.models for process in one.keeper.processes]

    def verify_worker_status(self) -> None:
        """Wait until every worker has proved the artifact; stop at the first that cannot."""
        workers: list[BaseProcess] = self.inference_workers
        while not all(model.loaded for model in self.models):
            with self.signals.waiting():
                ended = wait([worker.sentinel for worker in workers], timeout=0.05)
            if ended:
                first = next(worker for worker in workers if wait([worker.sentinel], timeout=0))
                first.join()
                code = first.exitcode
                if code == 2:
                    raise SystemExit(2)  # it has said why
                raise StartError(f"a model worker ended with exit code {code} while it was loading")

    def _start_server(self, port: int, num: int, log_level: str, _: Any, kind: str, **kwargs: Any) -> dict[int, Any]:
        kwargs.pop("fd")
        processes: dict[int, Any] = super()._start_server(port, num, log_level, self.sockets, kind, **kwargs)
        http, workers = list(processes.values()), self.inference_workers
        others = multiprocessing.active_children()
        self.supervisor.http = http
        self.supervisor.manager = [child for child in others if child not in http and child not in workers]
        if self.settings.metrics_port is not None:
            # Threads, so not before the forks. A socket that only holds the port is not in the way.
            try:
                routes.serve_metrics(self.front.scrape, self.settings.host, self.settings.metrics_port)
            except OSError as error:
                raise taken(self.settings.host, self.settings.metrics_port, "--metrics-port", error) from None
        self.signals.check()  # before the supervisor finds that HTTP processes have ended by it
        threading.Thread(target=self.supervisor.run, name="supervisor", daemon=True).start()
        for model in self.models:
            if model.sweeper:
                threading.Thread(target=model.sweeper.run, name="sweeper", daemon=True).start()
        self.announce()
        return processes

    def announce(self) -> None:
        """Say that the service answers, once it does."""
        address = self.holder.getsockname()
        while self.phase != FAILED:
            with self.signals.waiting():
                if answers(address):
                    break
                sleep(0.01)
        with self.supervisor.looking:
            self.signals.check()
            if self.phase == FAILED:
                return
            for model in self.models:
                told = model.transport.all_told()
                if not told:
                    self.phase = FAILED
                    raise StartError("the model worker was lost before the service could start")
                model.crews[0].prove(told[0]["plan"], max(facts["load_seconds"] for facts in told))
                for look in model.keeper.also:  # before the first request
                    look(monotonic())
            self.phase = READY
        banner(self.models, address, told[0])

    def stop(self) -> None:
        """The main process sends the workers nothing more, and the HTTP processes end side by side."""
        if self.phase != FAILED:
            self.phase = DRAINING
        for process in self.supervisor.http:
            process.terminate()  # LitServe ends one after another
        for model in self.models:
            model.transport.close_requests()

    def close(self) -> None:
        """However the service ends, no child outlives it."""
        self.supervisor.close()
        if self.manager is not None:
            self.manager.shutdown()  # by itself, so that it removes its folder
        for child in multiprocessing.active_children():
            child.kill()

    @asynccontextmanager
    async def lifespan(self, app: Any) -> AsyncIterator[None]:
        """An HTTP process begins: it accepts on a socket of its own, chosen evenly by the kernel."""
        logs.configure(self.settings.log_format)
        collect_seldom()
        self.sockets[:] = [listener(self.holder.getsockname(), self.holder.family)]
        tracing = None
        if self.settings.tracing:
            from service.tracing import Tracing

            tracing = Tracing()
        if self.signals.asked:  # before uvicorn had a handler
            signal.raise_signal(signal.SIGTERM)
        self.front.begin(app.response_queue_id, tracing)
        async with super().lifespan(app):
            yield
        self.front.close()
        if tracing:
            tracing.close()


def begin(process: BaseProcess) -> None:
    """Start a worker, also where the nursery is just ending: it takes a moment until another can be started."""
    deadline = monotonic() + NURSERY_S
    while True:
        try:
            process.start()
            return
        except (ConnectionError, EOFError):
            if monotonic() > deadline:
                raise
            sleep(0.01)


def collect_seldom() -> None:
    """Let the garbage collector leave alone what is there for good, and look at the rest less often."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def litserve_devices(device: str) -> tuple[str, Any]:
    """LitServe's `accelerator` and `devices`; `auto` is resolved by the worker, the first process with torch."""
    if not device.startswith("cuda"):
        return "cpu", 1
    numbers = device.partition(":")[2]
    return "cuda", [int(number) for number in numbers.split(",")] if numbers else 1


def answers(address: tuple[Any, ...]) -> bool:
    """Whether somebody accepts connections there."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address[0], address[0])
    try:
        socket.create_connection((host, address[1]), timeout=1).close()
    except OSError:
        return False
    return True


def banner(models: Sequence[Model], address: tuple[Any, ...], facts: dict[str, Any]) -> None:
    """Where the service is and a line to try it with; `facts` are a worker's."""
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{address[1]}"
    path, first = next(named(ROUTE, models))
    sample = first.edition.path.with_name("sample.png")
    image = sample if sample.is_file() else "photo.jpg"
    files = ", ".join(str(model.edition.path) for model in models)
    print(
        f"Darkroom serves {files} at {url} on {facts['device']} ({facts['dtype']})\ncurl -F file=@{image} {url}{path}",
        flush=True,
    )


def run(
    settings: Settings, found: Sequence[Found], keys: Keys, admins: Keys, holder: socket.socket, signals: Signals
) -> int:
    """Serve what was found on the port that `holder` holds until a signal; the process's exit code.

    Raises:
        StartError: the service cannot start.
    """
    started = monotonic()
    logs.configure(settings.log_format)
    with signals.waiting():
        server = Server(settings, found, keys, admins, holder, signals)
    # Also for LitServe's manager, which nothing else would end if this process were killed.
    os.register_at_fork(after_in_child=partial(end_with_parent, os.getpid()))
    # Interrupted while loading; or the manager is lost, as the supervisor tells.
    with suppress(KeyboardInterrupt, EOFError, ConnectionError), closing(server):
        server.run(
            host="127.0.0.1",
            port=8000,  # neither is used: `fd` replaces them
            fd=server.holder.fileno(),
            num_api_servers=settings.http_processes,
            generate_client_file=False,
            log_level="error",
            http=partial(
                Protocol,
                app=server.front.boundary,
                endpoints=server.front.endpoints,
                room=Room(connections_each(settings, len(found))),
            ),
            proxy_headers=False,
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            ws="none",
        )
        logger.info("stopped", extra={"seconds": round(monotonic() - started, 1)})
    return 1 if server.phase == FAILED else 0
