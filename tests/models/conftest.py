"""One artifact for all tests of this folder."""

from pathlib import Path

import pytest

from tests import artifacts


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact file; read, never written."""
    path = tmp_path_factory.mktemp("artifact") / "model.pt"
    artifacts.save(path)
    return path
