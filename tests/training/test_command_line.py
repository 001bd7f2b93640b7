import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from training.__main__ import main
from training.command_line import COMMANDS, Train, parse
from training.errors import TrainingError
from training.recipe import PRESETS, Recipe, preset_for

WRONG = {
    "an unknown flag": (["--epoch", "3"], "did you mean --epochs?"),
    "an unknown word": (["train", "now"], "unrecognized arguments: now"),
    "an unknown command": (["deploy"], "deploy"),
    "a value out of range": (["--epochs", "0"], "--epochs 0: input should be greater than or equal to 1"),
    "a value of another type": (["--lr", "fast"], "--lr fast: input should be a valid number"),
    "no number": (["--lr", "nan"], "--lr nan: input should be a finite number"),
    "a choice that there is not": (
        ["--optimizer", "lion"],
        "--optimizer lion: input should be 'adam', 'ada",
    ),
    "an unknown preset": (["--recipe", "magic"], "--recipe magic"),
    "a flag without its value": (["--epochs"], "--epochs: expected one argument"),
    "a fraction of an image": (["--val", "2.5"], "--val 2.5: a share lies below 1, a number of images is whole"),
    "momentum without sgd": (["--momentum", "0.5"], "--momentum is for --optimizer sgd"),
    "a name that no artifact may have": (["--name", "../x"], "--name ../x"),
    "an unknown architecture": (["--arch", "resnet9000"], "unknown architecture 'resnet9000'; known: simple_cnn"),
    "an input size that the network cannot take": (
        ["--arch", "simple_cnn", "--input-size", "64"],
        "32 px only, not 64",
    ),
    "missing data": (["--data", "no/such/folder"], "no/such/folder: no such folder"),
    "a folder of strangers that there is not": (["--unlike", "no/clouds"], "--unlike no/clouds: no such folder"),
    "missing weights": (["--weights", "no.pth"], "--weights no.pth: No such file or directory"),
    "an unknown name of weights": (
        ["--arch", "resnet18", "--weights", "BEST"],
        "torchvision has DEFAULT, IMAGENET1K_V1",
    ),
    "weights that there are not": (["--weights", "DEFAULT"], "compact_cnn has no pretrained weights in torchvision"),
    "an artifact that is a folder": (["--out", "."], "--out . is a folder"),
    "an artifact in what is no folder": (["--out", "/dev/null/model.pt"], "/dev/null cannot be written"),
    "an artifact where nothing can be made": (["--out", "/proc/model.pt"], "/proc cannot be written"),
    "a name that no path can have": (["--name", "a/b"], "--name a/b: expected letters, digits, '.', '_' and"),
    "a missing artifact": (["evaluate", "--model", "no.pt"], "no.pt: expected an artifact, found no such file"),
    "missing flags of export": (["export", "--arch", "simple_cnn"], "--weights, --classes, --out"),
}


@pytest.mark.parametrize(("arguments", "words"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_gives_one_line_and_exit_code_2_and_writes_nothing(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error
    assert list(tmp_path.iterdir()) == []


def test_train_is_the_command_where_none_is_given() -> None:
    assert parse(["train", "--epochs", "3"]) == parse(["--epochs", "3"])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_tells_every_flag(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse([command, "--help"])

    assert stopped.value.code == 0
    text = capsys.readouterr().out
    told = [(f"--{name.replace('_', '-')} ", f"  {name.upper()} ") for name in COMMANDS[command].model_fields]
    assert [] == [flag for flag, argument in told if flag not in text and argument not in text]
    assert "example" in text


def test_help_and_errors_do_not_wait_for_torch() -> None:
    code = "import sys, training.__main__ as m; m.main(['--epochs', 'x']); sys.exit('torch' in sys.modules)"

    assert 0 == subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL, check=False).returncode


def recipe(preset: str, *flags: str) -> Recipe:
    """What `train` is told by a preset and flags."""
    order = parse(["--recipe", preset, *flags])
    assert isinstance(order, Train)
    return order


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_valid_recipe_that_flags_override(preset: str) -> None:
    assert recipe(preset, "--epochs", "77").epochs == 77


def test_the_tutorial_is_the_tutorials_recipe() -> None:
    told = recipe("tutorial").model_dump()

    assert {
        "arch": "simple_cnn",
        "optimizer": "adam",
        "lr": 1e-3,
        "batch_size": 32,
        "epochs": 10,
    }.items() <= told.items()
    assert {"flip": False, "shift": 0, "schedule": "constant", "weights": None}.items() <= told.items()


@pytest.mark.parametrize(
    ("data", "given", "preset"),
    [
        ("shapes10", {}, "demo"),
        ("cifar10", {}, "tutorial"),
        ("photos", {}, "scratch"),
        ("photos", {"arch": "resnet18"}, "scratch"),
        ("photos", {"weights": "DEFAULT"}, "finetune"),
    ],
)
def test_the_data_and_the_weights_choose_the_preset(data: str, given: dict[str, str], preset: str) -> None:
    assert preset == preset_for(data, given)


def test_a_presets_value_gives_way_with_the_field_that_it_belongs_to() -> None:
    assert recipe("scratch", "--schedule", "one-cycle").warm_up == 0
    assert recipe("scratch", "--schedule", "linear").warm_up == 0
    assert recipe("scratch", "--schedule", "cosine").warm_up > 0
    assert recipe("fast94", "--optimizer", "adam").momentum == 0.9
    assert not recipe("fast94", "--flip").alternate_flip
    assert not recipe("scratch", "--alternate-flip").flip


def test_another_architecture_brings_its_own_input_size() -> None:
    assert recipe("scratch").input_size == 64
    assert recipe("scratch", "--arch", "resnet18").input_size is None


def test_a_recipe_is_frozen_and_knows_no_other_fields() -> None:
    with pytest.raises(ValidationError):
        recipe("tutorial").epochs = 3
    with pytest.raises(ValidationError):
        Recipe.model_validate({"epoch": 3})


def test_the_environment_changes_no_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EPOCHS", "RECIPE_EPOCHS", "DARKROOM_EPOCHS", "TRAINING_EPOCHS"):
        monkeypatch.setenv(name, "77")

    assert recipe("tutorial").epochs == 10


def test_flags_are_not_abbreviated() -> None:
    with pytest.raises(TrainingError, match="--epo"):
        parse(["--epo", "3"])
