"""One folder of model files for all suites, one start of each server, and wrk."""

import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bounds, servers


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def wrk() -> None:
    if shutil.which("wrk") is None:
        pytest.skip("wrk is not installed")


@pytest.fixture(scope="package")
def started_once() -> Iterator[None]:
    """Who asks for a server or a bound that was there before gets the same one again; starting one takes seconds."""
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setattr(servers, "running", keeping(servers.running, stack))
        patch.setattr(bounds, "bounding", keeping(bounds.bounding, stack))
        yield


def keeping(start: Callable[..., AbstractContextManager[Any]], stack: ExitStack) -> Callable[..., Any]:
    """`start`, whose context ends with the stack; servers are paused while nobody has them."""
    made: dict[str, Any] = {}

    @contextmanager
    def lent(*which: Any, **where: Any) -> Iterator[Any]:
        key = repr((which, {"dtype": "fp32", "device": "cpu"} | where))
        if key not in made:
            made[key] = stack.enter_context(start(*which, **where))
        kept = made[key]
        if isinstance(kept, servers.Server):
            kept.signal(signal.SIGCONT)
        yield kept
        if isinstance(kept, servers.Server):
            if kept.process.poll() is None:
                kept.signal(signal.SIGSTOP)
            else:
                del made[key]

    return lent
