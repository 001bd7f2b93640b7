"""The recipe: every choice of a training run, declared once with its flag, default, range and help.

Recipes take flags only, never environment variables. A preset is a recipe in which some defaults differ.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.manifest import Name

DEVICE_HELP = "auto takes CUDA, then Apple's MPS, then the CPU"
Device = Literal["auto", "cpu", "cuda", "mps"]


def flag(default: Any, text: str, group: str, **limits: Any) -> Any:
    """A field that is also a flag: its default, its help and the help's section."""
    return Field(default, description=text, json_schema_extra={"group": group}, **limits)


class Flags(BaseModel):
    """Values given by flags; frozen, and an unknown one is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Recipe(Flags):
    """The defaults are those of the PyTorch tutorials for CIFAR-10."""

    arch: str = flag("simple_cnn", "architecture; a wrong name lists the known ones", "model")
    weights: str | None = flag(
        None, "pretrained weights: a .pth file, or a name in torchvision's registry such as DEFAULT", "model"
    )
    input_size: int | None = flag(None, "side of the network's pictures in px (else the architecture's)", "model", ge=1)
    name: Name | None = flag(None, "the model's name (else the data set's)", "model")
    version: Name | None = flag(None, "the model's version (else 12 digits of its digest)", "model")

    epochs: int = flag(10, "passes over the training images", "optimisation", ge=1)
    batch_size: int = flag(32, "images a step", "optimisation", ge=1)
    optimizer: Literal["adam", "sgd"] = flag("adam", "optimizer", "optimisation")
    lr: float = flag(1e-3, "learning rate; a schedule's highest", "optimisation", gt=0)
    momentum: float = flag(0.9, "Nesterov momentum, for sgd", "optimisation", ge=0, lt=1)
    weight_decay: float = flag(0.0, "L2 penalty", "optimisation", ge=0)
    schedule: Literal["constant", "cosine", "one-cycle"] = flag(
        "constant", "the learning rate over the run, set at every step", "optimisation"
    )

    flip: bool = flag(False, "mirror half of the training images, left to right", "images")
    shift: int = flag(0, "move training images by up to so many px each way, edges repeated", "images", ge=0)
    val: Annotated[float, Field(ge=0)] = flag(
        0.1,
        "training images held out for validation where the data brings no validation split: a share (below 1) or a "
        "number; 0: no validation at all, so the last epoch is kept and probabilities are not calibrated",
        "images",
    )
    workers: int | None = flag(None, "processes that decode files (else one a core, at most 8)", "images", ge=0)

    seed: int = flag(0, "seed of weights, shuffling, augmentation and validation split", "run", ge=0, lt=2**63)
    device: Device = flag("auto", DEVICE_HELP, "run")

    @model_validator(mode="after")
    def consistent(self) -> "Recipe":
        """Refuse values that contradict each other rather than ignore one."""
        if self.val >= 1 and self.val != int(self.val):
            raise ValueError(f"--val {self.val:g}: a share lies below 1, a number of images is whole")
        if self.optimizer == "adam" and "momentum" in self.model_fields_set:
            raise ValueError("--momentum is for --optimizer sgd")
        return self


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "demo": {
        "arch": "compact_cnn",
        "epochs": 6,
        "batch_size": 64,
        "lr": 1e-2,
        "schedule": "one-cycle",
        "shift": 1,
    },
    "tutorial": {},  # the tutorials' own choices are the defaults
    "scratch": {
        "arch": "compact_cnn",
        "input_size": 64,
        "epochs": 30,
        "lr": 5e-3,
        "schedule": "one-cycle",
        "flip": True,
        "shift": 6,
    },
    "finetune": {
        "arch": "resnet18",
        "weights": "DEFAULT",
        "epochs": 8,
        "batch_size": 8,
        "lr": 1e-4,
        "schedule": "one-cycle",
        "flip": True,
    },
}


def preset_for(data: str, given: Mapping[str, Any]) -> str:
    """The preset that suits the data where `--recipe` is not given."""
    if data in ("shapes10", "cifar10"):
        return {"shapes10": "demo", "cifar10": "tutorial"}[data]
    return "finetune" if "weights" in given else "scratch"


def compose(preset: str, given: Mapping[str, Any]) -> Recipe:
    """The preset's recipe with the flags `given`; another architecture starts from its own input size and weights.

    Raises:
        pydantic.ValidationError: a flag's value is wrong.
    """
    values = dict(PRESETS[preset])
    if given.get("arch", values.get("arch")) != values.get("arch"):
        values.pop("input_size", None)
    return Recipe(**{**values, **given})
