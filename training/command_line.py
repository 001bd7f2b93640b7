"""The command line: a parser made from the declarations of the flags, and errors of one line."""

import argparse
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from models.manifest import Name
from training.errors import TrainingError
from training.recipe import DEVICE_HELP, PRESETS, Device, Flags, Recipe, compose, flag, preset_for

PROGRAM = "python -m training"
DATA_HELP = (
    "shapes10 (embedded, synthetic), cifar10, or a folder in ImageFolder layout: [train/ val/ test/] class/ files"
)


class Data(Flags):
    """Where images come from."""

    data: str = flag("shapes10", DATA_HELP, "data")
    data_dir: Path = flag(Path("data"), "where cifar-10-batches-py/ lies or is downloaded to", "data")
    data_url: str | None = flag(None, "a mirror of cifar-10-python.tar.gz", "data")


class Train(Data):
    """Train a classifier and write its artifact."""

    recipe: Literal["demo", "tutorial", "scratch", "finetune"] | None = flag(
        None,
        "preset, of which every value can be overridden (else demo for shapes10, tutorial for cifar10; for a folder "
        "finetune with --weights and scratch without)",
        "run",
    )
    out: Path = flag(Path("artifacts/model.pt"), "the artifact", "run")
    run: Path | None = flag(None, "folder for checkpoints/ and reports/ (else runs/NAME-TIME)", "run")


class Evaluate(Data):
    """Measure an artifact's accuracy on labelled images."""

    model: Path = flag(Path("artifacts/model.pt"), "the artifact", "model")
    split: str | None = flag(
        None, "train, val or test (else test, or val where there is no test; a folder without splits: all)", "data"
    )
    workers: int | None = flag(None, "processes that decode files (else one a core, at most 8)", "run", ge=0)
    device: Device = flag("auto", DEVICE_HELP, "run")


class Export(Flags):
    """Make an artifact from existing weights."""

    arch: str = flag(..., "architecture; a wrong name lists the known ones", "model")
    weights: Path = flag(..., "a state dict for that architecture (.pth), or a checkpoint of a run", "model")
    classes: Path = flag(..., "class names in the order of the outputs: one a line, or a JSON list", "model")
    out: Path = flag(..., "the artifact", "model")
    name: Name | None = flag(None, "the model's name (else the architecture's)", "model")
    version: Name | None = flag(None, "the model's version (else 12 digits of its digest)", "model")
    input_size: int | None = flag(None, "side of the network's pictures in px (else the architecture's)", "model", ge=1)


EXAMPLES = {
    "train": """examples:
  python -m training                                             the demo: about half a minute, no download
  python -m training --data cifar10 --data-dir ~/data            the tutorials' network on CIFAR-10
  python -m training --data photos/ --arch resnet18 --weights DEFAULT --out artifacts/photos.pt
  python -m training --data photos/ --epochs 50 --lr 2e-3        from scratch, some values changed""",
    "evaluate": """example:
  python -m training evaluate --model artifacts/model.pt --data photos/""",
    "export": """example:
  python -m training export --arch squeezenet1_0 --weights squeezenet.pth --classes imagenet.txt --out imagenet.pt""",
}
COMMANDS: Mapping[str, tuple[type[Flags], ...]] = {
    "train": (Train, Recipe),
    "evaluate": (Evaluate,),
    "export": (Export,),
}


class Parser(argparse.ArgumentParser):
    """Raises instead of printing a usage of many lines."""

    def error(self, message: str) -> NoReturn:
        raise TrainingError(f"{message}; see {self.prog} --help")


def parse(arguments: Sequence[str]) -> tuple[Flags, Recipe | None]:
    """What to do, and for `train` by which recipe.

    Raises:
        TrainingError: an unknown flag or a wrong value.
        SystemExit: help was asked for and printed.
    """
    arguments = list(arguments) or ["train"]
    if arguments[0].startswith("-") and arguments[0] not in ("-h", "--help"):
        arguments.insert(0, "train")
    namespace, unknown = parser().parse_known_args(arguments)
    given = vars(namespace)
    command = given.pop("command")
    if unknown:
        raise TrainingError(unknown_flag(command, unknown[0]))
    try:
        if command != "train":
            return COMMANDS[command][0](**given), None
        order = Train(**{name: given.pop(name) for name in list(given) if name in Train.model_fields})
        return order, compose(order.recipe or preset_for(order.data, given), given)
    except ValidationError as error:
        raise TrainingError(wrong_value(error)) from None


def parser() -> Parser:
    """The parser of all commands; only flags that were given appear in its result."""
    style: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    examples = "\n".join(EXAMPLES.values())
    root = Parser(
        prog=PROGRAM,
        description="An image folder goes in, one file comes out that can be served.",
        epilog=f"{PROGRAM} COMMAND --help tells a command's flags. Without a command it trains.\n\n{examples}",
        **style,
    )
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for command, models in COMMANDS.items():
        text = str(models[0].__doc__)
        epilog = EXAMPLES[command] + (presets() if command == "train" else "")
        add_flags(commands.add_parser(command, help=text, description=text, epilog=epilog, **style), models)
    return root


def add_flags(parser: argparse.ArgumentParser, models: Sequence[type[Flags]]) -> None:
    """Add every field of `models` as a flag, in sections by the fields' groups."""
    fields = {name: field for model in models for name, field in model.model_fields.items()}
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, field in fields.items():
        title = group_of(field)
        section = groups.setdefault(title, parser.add_argument_group(title) if title not in groups else groups[title])
        text = str(field.description) + default_of(field)
        choices = choices_of(field.annotation)
        kind: dict[str, Any] = {
            "metavar": "{" + ",".join(choices) + "}" if choices else name.rpartition("_")[2].upper()
        }
        if field.annotation is bool:
            kind = {"action": argparse.BooleanOptionalAction}
        section.add_argument(
            flag_of(name),
            dest=name,
            default=argparse.SUPPRESS,
            required=field.is_required(),
            help=text.replace("%", "%%"),
            **kind,
        )


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def group_of(field: FieldInfo) -> str:
    assert isinstance(field.json_schema_extra, dict), "every field is declared by `flag`"
    return str(field.json_schema_extra["group"])


def default_of(field: FieldInfo) -> str:
    """The default in brackets, where there is one to tell."""
    return "" if field.is_required() or field.default is None else f" (default {field.default})"


def choices_of(annotation: Any) -> tuple[str, ...]:
    """The values of a Literal, also of one that may be None; else nothing."""
    for kind in (annotation, *get_args(annotation)):
        if get_origin(kind) is Literal:
            return get_args(kind)
    return ()


def presets() -> str:
    """The presets as the flags that they stand for."""
    lines = ["\n\npresets (what each changes of the defaults above):"]
    for name, values in PRESETS.items():
        told = " ".join(flag_of(key) + ("" if value is True else f" {value}") for key, value in values.items())
        lines.append(f"  {name:9} {told or 'nothing: the defaults are those of the PyTorch tutorials'}")
    return "\n".join(lines)


def unknown_flag(command: str, word: str) -> str:
    """What to say to a flag or word that the command does not know, with the nearest one that it knows."""
    known = [flag_of(name) for model in COMMANDS[command] for name in model.model_fields]
    near = difflib.get_close_matches(word.partition("=")[0], known, n=1)
    advice = f"did you mean {near[0]}?" if near else f"{PROGRAM} {command} --help lists the flags"
    return f"{command} knows no {word}; {advice}"


def wrong_value(error: ValidationError) -> str:
    """The first wrong value as one line."""
    first = error.errors()[0]
    if not first["loc"]:
        return str(first["msg"]).removeprefix("Value error, ")
    return f"{flag_of(str(first['loc'][0]))} {first['input']}: {first['msg'][0].lower()}{first['msg'][1:]}"
