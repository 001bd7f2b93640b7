"""A running service for the tests of this folder, and a server of somebody else's."""

from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests import running
from tests.darkroom.others import KEY, Other, Reply
from tests.running import Service


@pytest.fixture
def other() -> Iterator[Any]:
    """Starts an `Other` with these replies."""
    started: list[Other] = []

    def start(*replies: Reply | None) -> Other:
        started.append(Other(replies))
        Thread(target=started[-1].serve_forever, daemon=True).start()
        return started[-1]

    yield start
    for server in started:
        server.over.set()
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="session")
def service(model: Path) -> Iterator[Service]:
    with running.serving(model, "--max-body-bytes", "200000") as started:
        yield started


@pytest.fixture(scope="session")
def guarded(model: Path) -> Iterator[Service]:
    """It takes one image at a time, and only from those who have the key."""
    with running.serving(model, "--capacity", "1", DARKROOM_API_KEYS=KEY) as started:
        yield started
