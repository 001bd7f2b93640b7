"""The command line: what each command is told, declared once a flag, and errors of one line."""

import argparse
import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from pydantic import Field, ValidationError
from pydantic_settings import CliPositionalArg, CliSettingsSource

from models.manifest import NAME_TOLD, Name
from training.errors import TrainingError
from training.recipe import ARCHITECTURE, NONE, PRESETS, Device, Flags, InputSize, Recipe, Version, Workers, preset_for

PROGRAM = "python -m training"


class Data(Flags):
    """Where images come from."""

    data: str = Field(
        "shapes10",
        description="shapes10 (embedded, synthetic), cifar10, or a folder in ImageFolder layout: "
        "[train/ val/ test/] class/ files",
    )
    data_dir: Path = Field(Path("data"), description="where cifar-10-batches-py/ lies or is downloaded to")
    data_url: str | None = Field(None, description="a mirror of cifar-10-python.tar.gz")


class Train(Recipe, Data):
    """Train a classifier and write its artifact."""

    recipe: Literal["demo", "tutorial", "fast94", "scratch", "finetune"] | None = Field(
        None,
        description="preset, of which every value can be overridden (else demo for shapes10, tutorial for cifar10; for "
        "a folder finetune with --weights and scratch without)",
    )
    out: Path = Field(Path("artifacts/model.pt"), description="the artifact")
    seeds: int = Field(
        1,
        ge=1,
        description="train so often, with --seed and those after it: mean and spread; the best is published",
    )
    unlike: Path | None = Field(
        None, description="a folder of pictures of none of the classes, to measure the unknown threshold (else drawn)"
    )
    skip_bad: bool = Field(False, description="leave unreadable pictures out, listed in RUN/quarantine.csv")
    log: Literal["csv", "tensorboard"] = Field(
        "csv", description="RUN/epochs.csv, written as epochs end; tensorboard: RUN/tensorboard/ too"
    )
    run: Path | None = Field(None, description="folder for checkpoints/ and reports/ (else runs/NAME-TIME)")


class Evaluate(Data):
    """Measure an artifact's accuracy on labelled images."""

    model: Path = Field(Path("artifacts/model.pt"), description="the artifact")
    views: bool = Field(False, description="tell the accuracy of the mean over 6 views (mirrored, moved) too")
    split: str | None = Field(None, description="train, val or test (else test or val; all where there are no splits)")
    workers: Workers = None
    device: Device = "auto"


class Export(Flags):
    """Make an artifact from existing weights."""

    arch: str = Field(description=ARCHITECTURE)
    weights: Path = Field(description="a state dict for that architecture (.pth), or a checkpoint of a run")
    classes: Path = Field(description="class names in the order of the outputs: one a line, or a JSON list")
    out: Path = Field(description="the artifact")
    name: Name | None = Field(None, description="the model's name (else the architecture's)")
    version: Version = None
    input_size: InputSize = None


class Resume(Flags):
    """Go on with a run that was stopped or killed, to the same result as if it had not been."""

    run: CliPositionalArg[Path] = Field(description="the run's folder, as runs/NAME-TIME")


class Compare(Flags):
    """Hold a run against another: accuracy with its interval, recipe, classes."""

    first: CliPositionalArg[Path] = Field(description="a finished run's folder")
    second: CliPositionalArg[Path] = Field(description="the folder of the run that is held against it")


class Check(Flags):
    """Look at every picture of a folder and tell what would spoil training: exit code 1 if there is something."""

    folder: CliPositionalArg[Path] = Field(description="a folder in ImageFolder layout")
    list: Path | None = Field(None, description="CSV file for all that is found; 10 of a kind are shown")
    workers: Annotated[int | None, Field(ge=1, description="threads that decode (else one a core, at most 8)")] = None


COMMANDS: Mapping[str, type[Flags]] = {
    "train": Train,
    "resume": Resume,
    "check": Check,
    "compare": Compare,
    "evaluate": Evaluate,
    "export": Export,
}
DESCRIPTION = "An image folder goes in, one file comes out that can be served.\n\n" + "\n".join(
    [f"  {name:9} {kind.__doc__}" for name, kind in COMMANDS.items()]
    + [f"\n{PROGRAM} COMMAND --help tells a command's flags. Without a command it trains."]
)
EXAMPLES = f"""examples:
  {PROGRAM}                                             the demo: about half a minute, no download
  {PROGRAM} --data cifar10 --data-dir ~/data            the tutorials' network on CIFAR-10
  {PROGRAM} --data photos/ --arch resnet18 --weights DEFAULT --out artifacts/photos.pt
  {PROGRAM} --data photos/ --epochs 50 --lr 2e-3        from scratch, some values changed
  {PROGRAM} resume runs/photos-20260101-120000          go on with a run that was killed
  {PROGRAM} check photos/                               what is wrong with a folder, before training on it
  {PROGRAM} compare runs/first runs/second              what differs, and whether by more than chance
  {PROGRAM} evaluate --model artifacts/model.pt --data photos/
  {PROGRAM} export --arch squeezenet1_0 --weights squeezenet.pth --classes imagenet.txt --out imagenet.pt"""
# What a preset says goes where the field that it depends on is given another value: another architecture brings its own
# input size, another optimiser has no such momentum.
GIVE_WAY = {
    "arch": ("input_size",),
    "schedule": ("warm_up",),
    "optimizer": ("momentum",),
    "flip": ("alternate_flip",),
    "alternate_flip": ("flip",),
}
PRESETS_TOLD = "\n\npresets (what each changes of the defaults above):\n" + "\n".join(
    f"  {name:9} {flags or 'nothing: the PyTorch tutorials are the defaults'}" for name, flags in PRESETS.items()
)


class Parser(argparse.ArgumentParser):
    """argparse that takes flags as they are spelt and tells a mistake in one line instead of the whole usage."""

    def __init__(self, prog: str, description: str, epilog: str) -> None:
        style = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, None, description, epilog, formatter_class=style, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ").split()[0].partition("=")[0]
        near = difflib.get_close_matches(unknown, re.findall(r"--[\w-]+", self.format_usage()), n=1)
        advice = f"did you mean {near[0]}?" if unknown.startswith("-") and near else f"see {self.prog} --help"
        raise TrainingError(f"{message}; {advice}")


def parse(arguments: Sequence[str]) -> Flags:
    """What to do, as an instance of one of the `COMMANDS`; SystemExit where help was asked for and printed."""
    words = list(arguments)
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        words.insert(0, "train")
    root = Parser(PROGRAM, DESCRIPTION, EXAMPLES)
    root.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    command = root.parse_args(words[:1]).command

    kind = COMMANDS[command]
    parser = Parser(f"{PROGRAM} {command}", str(kind.__doc__), EXAMPLES + PRESETS_TOLD * (kind is Train))
    source: CliSettingsSource[Any] = CliSettingsSource(kind, root_parser=parser, add_argument_method=add_flag)
    given = source(args=words[1:])()
    if kind is Train:
        preset = given.get("recipe") or preset_for(given.get("data", "shapes10"), given)
        values = source(args=PRESETS.get(preset, "").split())()
        for field, others in GIVE_WAY.items():
            if given.get(field, values.get(field)) != values.get(field):
                values = {name: value for name, value in values.items() if name not in others}
        given = {**values, **given}
    try:
        return kind(**given)
    except ValidationError as error:
        raise TrainingError(wrong_value(error)) from None


def add_flag(parser: argparse.ArgumentParser, *flags: str, **how: Any) -> None:
    """Add an argument as pydantic-settings asks for it, less the default of a flag that has none."""
    parser.add_argument(*flags, **how | {"help": how["help"].removesuffix(f" (default: {NONE})")})


def wrong_value(error: ValidationError) -> str:
    """The first wrong value as one line."""
    first = error.errors()[0]
    if not first["loc"]:
        return str(first["msg"]).removeprefix("Value error, ")
    flag = "--" + str(first["loc"][0]).replace("_", "-")
    if first["type"] == "string_pattern_mismatch":  # only names have one
        return f"{flag} {first['input']}: expected {NAME_TOLD}"
    return f"{flag} {first['input']}: {first['msg'][0].lower()}{first['msg'][1:]}"
