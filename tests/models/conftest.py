"""One artifact for all tests of this folder, and engines of it."""

from pathlib import Path

import pytest
import torch

from models import artifact, optimisation
from models.engine import Engine, Sharing
from tests import artifacts


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact file; read, never written."""
    path = tmp_path_factory.mktemp("artifact") / "model.pt"
    artifacts.write(path)
    return path


@pytest.fixture(scope="session")
def prepared(saved: Path) -> Engine:
    """An engine as the service has it, for up to six images a pass."""
    return optimisation.prepare(artifact.load(saved), torch.device("cpu"), max_batch_size=6)


@pytest.fixture
def plain(saved: Path) -> Engine:
    """An engine that no step was taken on."""
    loaded = artifact.load(saved)
    for weight in loaded.module.parameters():
        weight.requires_grad_(False)
    return Engine(loaded, torch.device("cpu"), "fp32", 6, 6, loaded.module, Sharing(1))
