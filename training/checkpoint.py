"""A run's checkpoints: all that another process needs to go on as if nothing had happened.

`last.pt` and the one before it, `previous.pt`, each sealed by its SHA-256 as the artifact is; `best.pt` holds the
weights of the best epoch alone.
"""

import fcntl
import io
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from models import archive
from models.errors import ArtifactError
from training.errors import TrainingError
from training.terminal import say

LAST, PREVIOUS = "last.pt", "previous.pt"
SHARE = 0.02  # of the time that writing checkpoints may take
MID_EPOCH_S = 120.0  # at least, between checkpoints within an epoch


class Checkpoints:
    """The checkpoints in one folder, and when the next is due."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.saved, self.cost = time.monotonic(), 0.0

    def due(self, *, mid_epoch: bool) -> bool:
        """Whether enough time went by since the last one."""
        least = max(self.cost / SHARE, MID_EPOCH_S if mid_epoch else 0.0)
        return time.monotonic() - self.saved >= least

    def save(self, content: Mapping[str, Any]) -> None:
        """Write `content`, of tensors and plain values, and keep the one before.

        Raises:
            OSError: it cannot be written; those before are untouched.
        """
        started = time.monotonic()
        torch.save(dict(content), buffer := io.BytesIO())
        last = self.folder / LAST
        with archive.replacing(last) as temporary:
            temporary.write_bytes(archive.seal(buffer.getvalue()))
            with suppress(FileNotFoundError):
                last.replace(self.folder / PREVIOUS)
        self.saved = time.monotonic()
        self.cost = self.saved - started


def load(folder: Path) -> dict[str, Any]:
    """The newest checkpoint that is whole.

    Raises:
        TrainingError: there is none.
    """
    damaged = []
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            archive.verify(path)
        except ArtifactError as error:
            damaged.append(str(error))
            continue
        for told in damaged:
            say(f"warning   {told}; going on from the checkpoint before it")
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return content
    raise TrainingError(f"{folder} holds no checkpoint to go on from{': ' * bool(damaged)}{'; '.join(damaged)}")


@contextmanager
def alone(run: Path) -> Iterator[None]:
    """Hold the folder `run` for this process; if it is made for that and left empty, it is removed.

    Raises:
        TrainingError: another process holds it.
    """
    made = [folder for folder in (run, *run.parents) if not folder.exists()]
    run.mkdir(parents=True, exist_ok=True)
    path = run / ".lock"
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go of it when the process ends, however
        except OSError:
            raise TrainingError(f"--run {run} is in use by another training run; name another folder") from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            with suppress(OSError):
                for folder in made:
                    folder.rmdir()
