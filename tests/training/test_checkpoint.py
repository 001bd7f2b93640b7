"""A run that ends anywhere goes on as if it had not: to the same weights, bit for bit."""

import io
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from models import artifact
from tests.training.conftest import QUICK, PhotoFolder
from tests.training.test_loop import CPU, colours, digest, recipe
from training import checkpoint, loop
from training.__main__ import main
from training.checkpoint import Checkpoints
from training.device import choose_device
from training.errors import TrainingError
from training.loop import Training
from training.recipe import Recipe
from training.terminal import bar
from training.weights import build

STEPS = 18  # of the recipe: 96 images in batches of 16, 3 epochs


def started(chosen: Recipe) -> Training:
    choose_device("cpu", chosen.seed)
    return Training(build(chosen, 2), chosen, CPU, colours(96, 1))


def run(training: Training, steps: int = 1000) -> Training:
    """Go on for so many steps, or to the end."""
    left = iter(range(steps - 1, -1, -1))
    for _ in loop.fit(training, colours(96, 1), colours(40, 2), lambda: next(left) == 0, bar(1, "test")):
        pass
    return training


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    torch.save(state, buffer := io.BytesIO())
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
    return loaded


RECIPES = {
    "adam": recipe(schedule="one-cycle"),
    "sgd": recipe(optimizer="sgd", schedule="cosine", warm_up=0.2, lr=0.1),
    "averaged, in bf16, two batches a step": recipe(ema=0.9, precision="bf16", accumulate=2, channels_last=True),
    "everything that is drawn": recipe(
        mixup=0.2, cutmix=1.0, trivial_augment=True, erase=0.5, least_area=0.5, balance="sampling", optimizer="adamw"
    ),
    "the last layer first": recipe(head_epochs=1, backbone_lr=0.1, label_smoothing=0.1, clip_norm=1.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("chosen", RECIPES.values(), ids=RECIPES)
def test_a_run_that_stops_after_any_step_ends_in_the_same_weights(chosen: Recipe) -> None:
    whole = run(started(chosen))
    for steps in range(1, STEPS):
        state = through_a_file(run(started(chosen), steps).state_dict())
        torch.rand(steps)  # whatever another process drew meanwhile
        other = started(chosen)
        other.load_state_dict(state)
        run(other)

        assert digest(whole.classifier) == digest(other.classifier)
        assert [(e.loss, e.validation, e.lr) for e in whole.history] == [
            (e.loss, e.validation, e.lr) for e in other.history
        ]
        assert whole.kept == other.kept
        assert all(torch.equal(value, other.best[name]) for name, value in whole.best.items())


def saved(folder: Path, *contents: int) -> None:
    checkpoints = Checkpoints(folder)
    for content in contents:
        checkpoints.save({"n": content, "weights": torch.full((1000,), content)})


def test_the_newest_checkpoint_is_loaded(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3)

    assert 3 == checkpoint.load(tmp_path)["n"]
    assert {"last.pt", "previous.pt"} == {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    "damage", [lambda body: body[:-100], lambda body: body[:300] + b"!" + body[301:], lambda _: b""]
)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before_and_says_so(
    tmp_path: Path, damage: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path, 1, 2)
    last = tmp_path / "last.pt"
    last.write_bytes(damage(last.read_bytes()))

    assert 1 == checkpoint.load(tmp_path)["n"]
    assert f"warning   {last}: " in (told := capsys.readouterr().out)
    assert "going on from the checkpoint before it" in told


def test_without_a_whole_checkpoint_there_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="holds no checkpoint"):
        checkpoint.load(tmp_path)
    saved(tmp_path, 1)
    (tmp_path / "last.pt").write_bytes(b"gone")
    with pytest.raises(TrainingError, match=r"last\.pt: expected an artifact"):
        checkpoint.load(tmp_path)


FULL = """
import resource, signal, sys
from pathlib import Path
from tests.training.test_checkpoint import saved

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # as if the disk were full beyond it
try:
    saved(Path(sys.argv[1]), 2)
except OSError as error:
    sys.exit(error.strerror)
"""


@pytest.mark.slow
def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    command = [sys.executable, "-c", FULL, str(tmp_path)]  # a process of its own: the limit is for all that it writes
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])

    assert (1, "File too large\n") == (done.returncode, done.stderr)
    assert 1 == checkpoint.load(tmp_path)["n"]
    assert ["last.pt"] == [path.name for path in tmp_path.iterdir()]


def test_checkpoints_take_no_more_than_their_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.due(mid_epoch=False)
    assert not checkpoints.due(mid_epoch=True)

    checkpoints.cost = 10.0
    for clock[0], of_an_epoch, within in ((499.0, False, False), (500.0, True, True)):
        assert (of_an_epoch, within) == (checkpoints.due(mid_epoch=False), checkpoints.due(mid_epoch=True))


def order(root: Path, run: str, *more: str) -> list[str]:
    places = ["--out", str(root.parent / f"{run}.pt"), "--run", str(root.parent / run)]
    return ["--data", str(root), *places, *QUICK, "--epochs", "6", "--schedule", "one-cycle", "--flip", *more]


def weights_digest(path: Path) -> str:
    return artifact.load(path).manifest.digest


def test_a_finished_run_is_not_begun_anew_in_its_folder(
    photos: PhotoFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    root = photos()
    assert 0 == main(order(root, "whole"))
    assert 2 == main(order(root, "whole"))

    assert "go on with it: python -m training resume" in capsys.readouterr().err


def test_a_folder_in_use_by_another_run_is_refused(photos: PhotoFolder, capsys: pytest.CaptureFixture[str]) -> None:
    root = photos()
    with checkpoint.alone(root.parent / "whole"):
        assert 2 == main(order(root, "whole"))

    assert "is in use by another training run" in capsys.readouterr().err
    assert [root] == list(root.parent.iterdir())


@pytest.mark.slow
def test_other_pictures_than_the_run_began_with_are_refused(
    photos: PhotoFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    root = photos()
    assert 0 == main(order(root, "whole"))
    (root / "red" / "001.png").unlink()

    assert 2 == main(["resume", str(root.parent / "whole")])
    assert "are not those that the run" in capsys.readouterr().err


@pytest.mark.slow
def test_pictures_that_are_divided_otherwise_than_when_the_run_began_are_refused(
    photos: PhotoFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    root = photos()
    assert 0 == main(order(root, "whole"))
    for path in sorted(root.rglob("*.*")):
        path.rename(path.with_name(f"{999 - int(path.stem):03}{path.suffix}"))  # in the reverse order

    assert 2 == main(["resume", str(root.parent / "whole")])
    assert "are divided otherwise than when the run began" in capsys.readouterr().err
    assert 0 == main(["evaluate", "--model", str(root.parent / "whole.pt"), "--data", str(root)])
    assert "all images" in capsys.readouterr().out


def begin(arguments: list[str]) -> "subprocess.Popen[str]":
    """A training process; on one thread, as its others, for sums in the same order."""
    command = [sys.executable, "-m", "training", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for_an_epoch(process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    assert any(line.startswith("epoch ") for line in process.stdout)


def finish(arguments: list[str]) -> None:
    """Train to the end."""
    with begin(arguments) as process:
        _, error = process.communicate(timeout=120)
    assert 0 == process.returncode, error


@pytest.mark.slow
def test_a_run_that_is_told_to_end_or_killed_goes_on_to_the_same_artifact(photos: PhotoFolder) -> None:
    root = photos({"blue": 120, "green": 120, "red": 120})
    finish(order(root, "whole"))
    with begin(order(root, "cut")) as process:
        wait_for_an_epoch(process)
        process.terminate()
        output, error = process.communicate(timeout=120)
    assert (0, True) == (process.returncode, "resume" in output), error
    assert not (root.parent / "cut.pt").exists()
    with begin(["resume", str(root.parent / "cut")]) as process:
        wait_for_an_epoch(process)
        process.kill()
    finish(["resume", str(root.parent / "cut")])

    assert weights_digest(root.parent / "whole.pt") == weights_digest(root.parent / "cut.pt")
