"""The names of LitServe and uvicorn that the service builds on although they are private or undocumented.

Another version may not have them, so `check` comes before the service starts; how they behave is held by
tests/service/test_litserve_contract.py.
"""

import inspect
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import litserve
from litserve.loops.base import LitLoop
from litserve.transport.base import MessageTransport
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

# Methods that are called or replaced, with the parameters that they must have.
METHODS: dict[type[Any], dict[str, str]] = {
    litserve.LitServer: {
        "_init_manager": "self num_api_servers",
        "_start_server": "self port num_uvicorn_servers log_level sockets uvicorn_worker_type kwargs",
        "launch_inference_worker": "self lit_api",
        "verify_worker_status": "self",
        "lifespan": "self app",
    },
    LitLoop: {
        "__call__": "self lit_api device worker_id request_queue transport workers_setup_status callback_runner",
    },
    MessageTransport: {"send": "self item consumer_id", "areceive": "self timeout consumer_id"},
    HttpToolsProtocol: {
        "_start_asgi_task": "self cycle app",
        "connection_made": "self transport",
        "connection_lost": "self exc",
        "eof_received": "self",
        "pause_writing": "self",
        "resume_writing": "self",
        "data_received": "self data",
        "on_headers_complete": "self",
        "on_body": "self body",
        "on_message_complete": "self",
        "on_response_complete": "self",
        "send_400_response": "self msg",
    },
    FlowControl: {"pause_reading": "self", "resume_reading": "self"},
}
# Attributes that are read, set or replaced: the class's own code must know them.
ATTRIBUTES: dict[type[Any], str] = {
    litserve.LitServer: "litapi_request_queues inference_workers devices _transport _monitor_workers "
    "_shutdown_event _callback_runner workers_setup_status uvicorn_graceful_timeout response_queue_id",
    HttpToolsProtocol: "app connections cycle expect_100_continue flow headers loop parser pipeline scope "
    "server_state timeout_keep_alive transport",
    RequestResponseCycle: "scope body more_body keep_alive response_complete waiting_for_100_continue on_response",
    FlowControl: "write_paused",
}


def check() -> None:
    """Refuse versions that this service cannot be built on.

    Raises:
        ImportError: they lack something; one line.
    """
    if lacks := list(missing()):
        raise ImportError(lacks[0] + (f" (and {len(lacks) - 1} more)" if len(lacks) > 1 else ""))


def missing() -> Iterator[str]:
    """What the installed versions lack, a line each."""
    for owner, methods in METHODS.items():
        for name, parameters in methods.items():
            method = getattr(owner, name, None)
            if method is None:
                yield f"{described(owner)} has no {name}"
            elif (found := " ".join(inspect.signature(method).parameters)) != parameters:
                yield f"{described(owner)}.{name} takes ({found}), not ({parameters})"
    for owner, attributes in ATTRIBUTES.items():
        known = names(owner)
        yield from (f"{described(owner)} has no {name}" for name in attributes.split() if name not in known)


def described(owner: type[Any]) -> str:
    """A class with its package's version."""
    package = owner.__module__.partition(".")[0]
    return f"{package} {version(package)}: {owner.__name__}"


def names(owner: type[Any]) -> set[str]:
    """Every name in the code of a class and of the functions in its methods."""
    codes = [method.__code__ for method in vars(owner).values() if inspect.isfunction(method)]
    for code in codes:
        codes.extend(inner for inner in code.co_consts if inspect.iscode(inner))
    return set(vars(owner)).union(*(code.co_names for code in codes))
