import csv
import importlib.util
from pathlib import Path

import pytest

from tests.training.conftest import QUICK, PhotoFolder
from tests.training.test_loop import some
from training import report
from training.__main__ import main
from training.log import COLUMNS, Log
from training.loop import Epoch


def epoch(number: int) -> Epoch:
    return Epoch(number, 0.5 / number, 0.9, (0.4, 0.8), 1e-3, 96, 1.0)


def rows_of(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run / "epochs.csv").read_text().splitlines()))


def test_every_epoch_is_a_line_once_also_after_a_resume(tmp_path: Path) -> None:
    Log(tmp_path, tensorboard=False).write([epoch(1), epoch(2), epoch(3)])
    Log(tmp_path, tensorboard=False).write([epoch(1), epoch(2)])  # resumed from a checkpoint before the third
    rows = rows_of(tmp_path)

    assert ["1", "2"] == [row["epoch"] for row in rows]
    assert list(COLUMNS) == list(rows[0])
    assert ("0.25", "0.4") == (rows[1]["loss"], rows[1]["validation_loss"])


def test_without_validation_its_columns_are_empty(tmp_path: Path) -> None:
    Log(tmp_path, tensorboard=False).write([Epoch(1, 0.5, 0.9, None, 1e-3, 96, 1.0)])

    assert "" == rows_of(tmp_path)[0]["validation_loss"]


@pytest.mark.slow
def test_tensorboard_reads_what_was_written(photos: PhotoFolder, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    flags = ["--epochs", "2", "--log", "tensorboard", "--run", str(run), "--out", str(tmp_path / "model.pt")]
    assert 0 == main(["--data", str(photos()), *QUICK, *flags])
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    rows = rows_of(run)

    assert {"loss", "accuracy", "validation/loss", "validation/accuracy", "lr", "images", "seconds"} == set(
        events.Tags()["scalars"]
    )
    told = [(str(event.step), event.value) for event in events.Scalars("validation/loss")]
    assert [(row["epoch"], pytest.approx(float(row["validation_loss"]), rel=1e-5)) for row in rows] == told


def test_tensorboard_that_is_not_installed_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)

    assert 2 == main(["--log", "tensorboard"])
    assert "pip install tensorboard" in capsys.readouterr().err


def test_a_run_that_patience_ended_is_not_told_to_have_been_stopped() -> None:
    history = [Epoch(number, 1.0, 0.5, (1.0, 0.5), 0.1, 10, 1.0) for number in (1, 2, 3)]

    assert "stopped by --patience; 3 epochs" in report.trained(history, 1, some(epochs=30, patience=2), 3.0)
    assert "stopped by Ctrl-C; 3 epochs" in report.trained(history, 3, some(epochs=30, patience=2), 3.0)
