"""One running service for the tests of this folder that leave it as it was."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import running
from tests.running import Service


@pytest.fixture(scope="session")
def service(model: Path) -> Iterator[Service]:
    with running.serving(
        model, "--max-body-bytes", "200000", "--max-pixels", "1000000", "--max-images", "4"
    ) as started:
        yield started
