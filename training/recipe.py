"""The recipe: every choice of a training run, declared once with its flag, default, range and help.

Recipes take flags only, never environment variables. A preset is a recipe in which some defaults differ.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from models.manifest import Name

NONE = "\0"  # what pydantic-settings reads as None: nothing that a command line can hold
ARCHITECTURE = "architecture; a wrong name lists the known ones"
Device = Annotated[Literal["auto", "cpu", "cuda", "mps"], Field(description="auto: CUDA, else Apple's MPS, else CPU")]
InputSize = Annotated[int | None, Field(ge=1, description="side of the pictures in px (else the architecture's)")]
Version = Annotated[Name | None, Field(description="the model's version (else 12 digits of its digest)")]
Workers = Annotated[int | None, Field(ge=0, description="processes that decode files (else one a core, at most 8)")]


class Flags(BaseSettings):
    """Values given by flags; frozen, and an unknown one is an error."""

    model_config = SettingsConfigDict(
        frozen=True,
        allow_inf_nan=False,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_enforce_required=True,
        cli_parse_none_str=NONE,
    )

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Nothing but what is given; no environment, no files."""
        return (init_settings,)


class Recipe(Flags):
    """The defaults are those of the PyTorch tutorials for CIFAR-10."""

    arch: str = Field("simple_cnn", description=ARCHITECTURE)
    weights: str | None = Field(None, description="pretrained: a .pth file, or a name in torchvision, as DEFAULT")
    input_size: InputSize = None
    name: Name | None = Field(None, description="the model's name (else the data set's)")
    version: Version = None

    epochs: int = Field(10, ge=1, description="passes over the training images")
    batch_size: int = Field(32, ge=1, description="images a step")
    optimizer: Literal["adam", "sgd"] = Field("adam", description="optimizer")
    lr: float = Field(1e-3, gt=0, description="learning rate; a schedule's highest")
    momentum: float = Field(0.9, ge=0, lt=1, description="Nesterov momentum, for sgd")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty")
    schedule: Literal["constant", "cosine", "one-cycle"] = Field("constant", description="learning rate over the run")

    flip: bool = Field(False, description="mirror half of the training images, left to right")
    shift: int = Field(0, ge=0, description="move training images by up to so many px each way, edges repeated")
    val: float = Field(
        0.1,
        ge=0,
        description="training images held out for validation where the data brings no validation split: a share (below "
        "1) or a number; 0: no validation at all, so the last epoch is kept and probabilities are not calibrated",
    )
    workers: Workers = None
    seed: int = Field(0, ge=0, lt=2**63, description="seed of weights, shuffling, augmentation and validation split")
    device: Device = "auto"

    @model_validator(mode="after")
    def consistent(self) -> "Recipe":
        """Refuse values that contradict each other rather than ignore one."""
        if self.val >= 1 and self.val != int(self.val):
            raise ValueError(f"--val {self.val:g}: a share lies below 1, a number of images is whole")
        if self.optimizer == "adam" and "momentum" in self.model_fields_set:
            raise ValueError("--momentum is for --optimizer sgd")
        return self


# Each as the flags that it stands for; the tutorials' own choices are the defaults.
PRESETS = {
    "demo": "--arch compact_cnn --epochs 6 --batch-size 64 --lr 0.01 --schedule one-cycle --shift 1",
    "tutorial": "",
    "scratch": "--arch compact_cnn --input-size 64 --epochs 30 --lr 0.005 --schedule one-cycle --flip --shift 6",
    "finetune": "--arch resnet18 --weights DEFAULT --epochs 8 --batch-size 8 --lr 0.0001 --schedule one-cycle --flip",
}


def preset_for(data: str, given: Mapping[str, Any]) -> str:
    """The preset that suits the data where `--recipe` is not given."""
    if data in ("shapes10", "cifar10"):
        return {"shapes10": "demo", "cifar10": "tutorial"}[data]
    return "finetune" if "weights" in given else "scratch"
