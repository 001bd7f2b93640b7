"""Every name of LitServe and uvicorn that the service builds on is there and takes what it is given."""

import ast
import asyncio
import inspect
import re
from functools import partial
from pathlib import Path
from typing import Any

import litserve
import uvicorn
from litserve.loops.base import LitLoop
from litserve.loops.loops import inference_worker
from litserve.server import response_queue_to_buffer
from litserve.transport.base import MessageTransport
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from service import server as composition
from service.protocol import Protocol
from service.server import Server
from service.standins import Idle
from service.worker import BatchingLoop, Worker

SERVICE = Path(composition.__file__).parent
# The private names of LitServer that `service/server.py` calls, overrides, sets or reads.
CALLED = {"_init_manager", "_start_server"}
SET = {"_transport", "_monitor_workers", "_shutdown_event"}
READ = {"_callback_runner"}


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]


def source(thing: object) -> str:
    return inspect.getsource(thing)  # type: ignore[arg-type]


def private_names(path: Path) -> set[str]:
    """Names with one leading underscore that a file's classes define, or reach by `self` and `super()`."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    reached = [node for node in nodes if isinstance(node, ast.Attribute)]
    names |= {node.attr for node in reached if ast.unparse(node.value) in ("self", "super()")}
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def test_the_pinned_version_is_installed() -> None:
    assert litserve.__version__ == "0.2.19"


def test_no_other_private_name_is_used_than_those_held_here() -> None:
    used = {path.name: found for path in SERVICE.glob("*.py") if (found := private_names(path))}

    assert {"server.py": CALLED | SET | READ, "protocol.py": {"_start_asgi_task"}} == used


def test_the_server_is_made_with_arguments_that_it_has() -> None:
    used = {"lit_api", "accelerator", "devices", "workers_per_device", "timeout"}

    assert used <= set(parameters(litserve.LitServer.__init__))


def test_the_server_has_the_private_names_with_their_arguments() -> None:
    server = litserve.LitServer

    assert ["self", "lit_api"] == parameters(server.launch_inference_worker)
    assert ["self", "num_api_servers"] == parameters(server._init_manager) == parameters(Server._init_manager)
    assert ["self"] == parameters(server.verify_worker_status) == parameters(Server.verify_worker_status)
    expected = ["self", "port", "num_uvicorn_servers", "log_level", "sockets", "uvicorn_worker_type", "kwargs"]
    assert expected == parameters(server._start_server)
    assert len(expected) == len(parameters(Server._start_server))
    assert ["self", "app"] == parameters(server.lifespan) == parameters(Server.lifespan)
    assert "kwargs" in parameters(server.run)
    assert {"host", "port", "num_api_servers", "generate_client_file", "log_level"} <= set(parameters(server.run))


def test_run_calls_in_the_order_that_is_relied_on() -> None:
    run = source(litserve.LitServer.run)
    steps = [
        "manager = self._init_manager(num_api_servers)",
        "self.launch_inference_worker(lit_api)",
        "self.verify_worker_status()",
        "self._start_server(",
        "if self._monitor_workers:",
        "self._shutdown_event.wait()",
        "except KeyboardInterrupt:",
        "self._perform_graceful_shutdown(",
    ]

    places = [run.index(step) for step in steps]
    assert sorted(places) == places


def test_run_uses_the_attributes_that_are_replaced() -> None:
    whole = source(litserve.LitServer)

    for name in (
        *SET,
        "litapi_request_queues",
        "inference_workers",
        "uvicorn_graceful_timeout",
    ):
        assert f"self.{name}" in whole


def test_the_server_has_the_attributes_that_are_read() -> None:
    made = litserve.LitServer(Plain(api_path="/somewhere"), accelerator="cpu", devices=1, workers_per_device=2)

    assert "/somewhere" == made.lit_api.api_path
    assert 1 == len(made.devices)
    assert isinstance(made.litapi_request_queues, dict)
    assert made.app.router.routes
    assert made.app.router.redirect_slashes


class Plain(litserve.LitAPI):  # type: ignore[misc]
    """The least that LitServe takes for a model."""

    def setup(self, device: str) -> None: ...

    def predict(self, x: object, **_: object) -> object:
        return x


def test_http_processes_are_forked_and_know_their_number() -> None:
    start = source(litserve.LitServer._start_server)

    assert "self.app.response_queue_id = response_queue_id" in start
    assert "app: FastAPI = copy.copy(self.app)" in start
    assert 'mp.get_context("fork")' in start
    assert "target=server.run, args=(response_queue_id, sockets)" in start
    assert "return dict(enumerate(workers))" in start


def test_a_worker_process_is_given_what_litserve_would_give_it() -> None:
    launch = source(litserve.LitServer.launch_single_inference_worker)
    given = re.search(r"target=inference_worker,args=\((.*?),\),name", re.sub(r"\s", "", launch))

    assert given
    queue = "self._get_request_queue(lit_api.api_path)"
    more = ["self._transport", "self.workers_setup_status", "self._callback_runner", "self.restart_workers"]
    assert ["lit_api", "device", "worker_id", queue, *more] == given[1].split(",")
    ours = source(Server.launch)
    assert all(name in ours for name in more[:3])
    assert len(more) + 4 == len(parameters(inference_worker))


def test_a_worker_is_set_up_and_then_its_loop_is_called_once() -> None:
    worker = source(inference_worker)

    assert worker.index("lit_api.setup(device)") < worker.index("\n    loop(\n")
    assert "loop: LitLoop = lit_api.loop" in worker
    assert "except Exception:" in worker, "a SystemExit of ours passes it"
    assert {"api_path", "loop"} <= set(parameters(litserve.LitAPI.__init__))


def test_the_loop_is_called_with_what_ours_takes() -> None:
    called = ["lit_api", "device", "worker_id", "request_queue", "transport", "workers_setup_status", "callback_runner"]

    assert ["self", *called] == parameters(LitLoop.__call__)
    assert ["self", *called[:4], "_"] == parameters(BatchingLoop.__call__)


def test_the_transport_that_litserve_asks_is_ours() -> None:
    names = ("send", "areceive", "close")

    assert MessageTransport.__abstractmethods__ == {"send", "areceive"}
    assert {name for name in vars(MessageTransport) if not name.startswith("_")} == set(names)
    assert all(name in vars(Idle) for name in names)
    assert "await transport.areceive(consumer_id)" in source(response_queue_to_buffer)
    shutdown = source(litserve.LitServer._perform_graceful_shutdown)
    assert shutdown.index("self._transport.close(send_sentinel=") < shutdown.index("uw.terminate()")
    assert shutdown.index("uw.join(timeout=self.uvicorn_graceful_timeout)") < shutdown.index("iw.terminate()")


def test_ours_are_litserves() -> None:
    assert issubclass(Server, litserve.LitServer)
    assert issubclass(Worker, litserve.LitAPI)
    assert issubclass(BatchingLoop, LitLoop)
    assert issubclass(Idle, MessageTransport)


def test_uvicorns_protocol_has_the_names_that_ours_extends() -> None:
    theirs = HttpToolsProtocol

    assert ["self", "config", "server_state", "app_state", "_loop"] == parameters(theirs.__init__)
    for name in set(vars(Protocol)) & set(vars(theirs)) - {"__init__", "__module__", "__doc__"}:
        assert parameters(getattr(theirs, name)) == parameters(getattr(Protocol, name)), name


def test_uvicorns_request_cycle_has_what_ours_reads_and_sets() -> None:
    made = source(httptools_impl.RequestResponseCycle.__init__)

    for name in (
        "scope",
        "body",
        "more_body",
        "keep_alive",
        "response_complete",
        "waiting_for_100_continue",
        "disconnected",
    ):
        assert f"self.{name} = " in made, name
    assert {"resume_reading", "write_paused"} <= set(dir(FlowControl)) | set(vars(FlowControl(asyncio.Transport())))


def test_uvicorn_starts_each_request_by_the_method_that_ours_replaces() -> None:
    theirs = HttpToolsProtocol

    assert "self._start_asgi_task(self.cycle, app)" in source(theirs.on_headers_complete)
    assert "self._start_asgi_task(" in source(theirs.on_response_complete)
    assert "self.flow.resume_writing()" in source(theirs.resume_writing)
    assert "self.server_state.default_headers" in source(theirs)


def test_uvicorn_does_at_the_end_of_a_response_what_ours_does_and_sets_its_own_timer() -> None:
    theirs = source(HttpToolsProtocol.on_response_complete)

    for step in ("total_requests += 1", "is_closing()", "flow.resume_reading()", "self.pipeline.pop()"):
        assert step in theirs, step
    assert "self.timeout_keep_alive_task = self.loop.call_later(" in theirs
    assert "call_later(" not in source(HttpToolsProtocol).replace(theirs, "")


def test_uvicorn_asks_for_the_application_at_each_request_and_gives_it_a_state_of_its_own() -> None:
    assert "app = self.app" in source(HttpToolsProtocol.on_headers_complete)
    assert '"state": self.app_state.copy(),' in source(HttpToolsProtocol.on_message_begin)
    assert '"headers": self.headers,' in source(HttpToolsProtocol.on_message_begin)
    assert "self.expect_100_continue = True" in source(HttpToolsProtocol.on_header)
    assert "self.scope" in source(HttpToolsProtocol.on_message_begin)
    assert "self.send_400_response(" in source(HttpToolsProtocol.data_received)
    assert "self.app = config.loaded_app" in source(HttpToolsProtocol.__init__)


def test_uvicorns_request_cycle_tells_of_a_client_that_has_left_while_its_body_is_read() -> None:
    receive = source(httptools_impl.RequestResponseCycle.receive)

    assert '{"type": "http.disconnect"}' in receive
    assert '"more_body": self.more_body' in receive


def test_uvicorn_takes_a_protocol_with_arguments_and_makes_one_for_each_connection() -> None:
    made: list[HttpToolsProtocol] = []

    class Noticed(HttpToolsProtocol):
        def __init__(self, config: uvicorn.Config, mark: str, **given: object) -> None:
            super().__init__(config, **given)  # type: ignore[arg-type]
            assert "ours" == mark
            made.append(self)

    async def scenario() -> None:
        http: Any = partial(Noticed, mark="ours")
        config = uvicorn.Config(nothing, host="127.0.0.1", port=0, http=http, log_config=None, lifespan="off")
        server = uvicorn.Server(config)
        config.load()
        server.lifespan = config.lifespan_class(config)
        await server.startup()
        (listening,) = server.servers[0].sockets
        for _ in range(2):
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            writer.write_eof()
            assert b"" == await reader.read()
            writer.close()
            await writer.wait_closed()
        server.should_exit = True
        await server.shutdown()

    asyncio.run(scenario())
    assert 2 == len(made)
    assert all(isinstance(protocol.server_state, ServerState) for protocol in made)


async def nothing(scope: object, receive: object, send: object) -> None:
    """An ASGI application that is never asked anything."""
