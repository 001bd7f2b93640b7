"""A run's log while it goes on: a line of CSV an epoch, and TensorBoard's events where they are asked for."""

import csv
import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path

from models import archive
from training.errors import TrainingError
from training.loop import Epoch

COLUMNS = ("epoch", "loss", "accuracy", "validation_loss", "validation_accuracy", "lr", "images", "seconds")


def check(kind: str) -> None:
    """Refuse what could not be written.

    Raises:
        TrainingError: TensorBoard is asked for and not installed.
    """
    if kind == "tensorboard" and not importlib.util.find_spec("tensorboard"):
        raise TrainingError("--log tensorboard: it is not installed; pip install tensorboard, or --log csv")


class Log:
    """Written anew with every epoch, so that a run that was resumed has one log, without gaps or repeats."""

    def __init__(self, folder: Path, tensorboard: bool) -> None:
        self.folder, self.tensorboard = folder, tensorboard

    def write(self, history: Sequence[Epoch]) -> None:
        """All epochs up to the last."""
        rows = csv.writer(text := io.StringIO())
        rows.writerow(COLUMNS)
        rows.writerows(map(row, history))
        with archive.replacing(self.folder / "epochs.csv") as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8")
        if self.tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # it imports all of TensorBoard

            last = history[-1]
            # What another process wrote of this epoch and later ones, before it was killed, is not shown.
            with SummaryWriter(str(self.folder / "tensorboard"), purge_step=last.number) as events:
                for name, value in zip(COLUMNS[1:], row(last)[1:], strict=True):
                    if value is not None:
                        events.add_scalar(name.replace("_", "/"), value, last.number)


def row(epoch: Epoch) -> tuple[float | None, ...]:
    """An epoch's values in the order of `COLUMNS`."""
    loss, accuracy = epoch.validation or (None, None)
    return epoch.number, epoch.loss, epoch.accuracy, loss, accuracy, epoch.lr, epoch.images, epoch.seconds
