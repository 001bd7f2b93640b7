"""Every name of LitServe that the service builds on is there and takes what it is given."""

import inspect

import litserve
from litserve.loops.base import LitLoop
from litserve.transport.base import MessageTransport

from service.server import Idle, Server
from service.worker import BatchingLoop, Worker


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]


def test_the_pinned_version_is_installed() -> None:
    assert litserve.__version__ == "0.2.19"


def test_the_server_has_the_private_names_with_their_arguments() -> None:
    server = litserve.LitServer

    assert ["self", "num_api_servers"] == parameters(server._init_manager)
    assert ["self"] == parameters(server.verify_worker_status)
    expected = ["self", "port", "num_uvicorn_servers", "log_level", "sockets", "uvicorn_worker_type", "kwargs"]
    assert expected == parameters(server._start_server)
    assert ["self", "app"] == parameters(server.lifespan)


def test_run_uses_the_attributes_that_are_replaced() -> None:
    source = inspect.getsource(litserve.LitServer)

    for name in (
        "_transport",
        "litapi_request_queues",
        "_monitor_workers",
        "inference_workers",
        "uvicorn_graceful_timeout",
    ):
        assert f"self.{name}" in source


def test_the_loop_is_called_with_what_ours_takes() -> None:
    called = ["lit_api", "device", "worker_id", "request_queue", "transport", "workers_setup_status", "callback_runner"]

    assert ["self", *called] == parameters(LitLoop.__call__)
    assert ["self", *called[:4], "_"] == parameters(BatchingLoop.__call__)


def test_ours_are_litserves() -> None:
    assert issubclass(Server, litserve.LitServer)
    assert issubclass(Worker, litserve.LitAPI)
    assert issubclass(BatchingLoop, LitLoop)
    assert issubclass(Idle, MessageTransport)
