"""One folder of model files for all suites, and wrk."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def wrk() -> None:
    if shutil.which("wrk") is None:
        pytest.skip("wrk is not installed")
