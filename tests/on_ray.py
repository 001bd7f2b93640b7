"""The service on a Ray cluster of one node that ends with it, for tests."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from pathlib import Path
from time import monotonic
from typing import Any

import requests
import yaml

from tests import running
from tests.running import Service

READY_S = 120
STOP_S = 30
# Ray's sockets need a short path; nothing is sent home, and no key of its own is left in the user's folder.
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_DEDUP_LOGS": "0"}
CONFIGURATION = Path("deploy/ray/serve.yaml")


def configuration(model: Path, port: int, **changes: Any) -> dict[str, Any]:
    """The configuration that we ship, for this model on this port, with `changes` of the service's settings.

    Beside it another application has the folder's models, if there are any, at `/several`, and waits for full batches.
    """
    made: dict[str, Any] = yaml.safe_load(CONFIGURATION.read_text())
    made["http_options"] |= {"host": "127.0.0.1", "port": port}
    (first,) = made["applications"]
    first["args"] |= {"model": str(model)} | changes
    several = model.parent / "several"
    if several.is_dir():
        args = {"model": str(several), "max_delay_ms": 1000}
        made["applications"].append(deepcopy(first) | {"name": "several", "route_prefix": "/several", "args": args})
    return made


def free_port() -> int:
    """A port that nobody had just now."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        return int(other.getsockname()[1])


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder of its own for Ray, whose sockets need a short path."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def serving(model: Path, **changes: Any) -> Iterator[Service]:
    """`serve run` with our configuration, ready; with it ends the cluster."""
    with short_folder() as folder:
        yield from started(folder, model, **changes)


def started(folder: Path, model: Path, **changes: Any) -> Iterator[Service]:
    """The same, with Ray's files in a folder."""
    port = free_port()
    (folder / "serve.yaml").write_text(yaml.safe_dump(configuration(model, port, **changes)))
    env = running.environment() | ENVIRONMENT | {"RAY_TMPDIR": str(folder), "PYTHONPATH": str(Path.cwd())}
    serve = str(Path(sys.executable).with_name("serve"))
    log = folder / "log"
    with log.open("w") as told:
        command = ["setpriv", "--pdeathsig", "INT", serve, "run", str(folder / "serve.yaml")]
        process = subprocess.Popen(
            command, stdout=told, stderr=subprocess.STDOUT, text=True, env=env, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(process, url, log)
        yield Service(process, url, "", log)
    finally:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(STOP_S)


def wait_until_ready(process: "subprocess.Popen[str]", url: str, log: Path) -> None:
    """Ask until the service answers that it is ready."""
    deadline = monotonic() + READY_S
    while monotonic() < deadline and process.poll() is None:
        with suppress(requests.RequestException):  # nobody listens yet, or no replica is there
            if requests.get(url + "/readyz", timeout=5).status_code == 200:
                return
        with suppress(subprocess.TimeoutExpired):  # looking all the time would slow the start down
            process.wait(0.2)
    raise AssertionError(f"it did not start: {log.read_text()}")
