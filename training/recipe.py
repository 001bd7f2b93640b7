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
Precision = Literal["auto", "fp32", "bf16", "fp16"]
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
    batch_size: int = Field(32, ge=1, description="images a batch")
    accumulate: int = Field(1, ge=1, description="batches whose gradients make one step")
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adam", description="optimizer")
    lr: float = Field(1e-3, gt=0, description="learning rate; a schedule's highest")
    momentum: float = Field(0.9, ge=0, lt=1, description="Nesterov momentum, for sgd")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty (adamw: decay), of all but biases and norms")
    schedule: Literal["constant", "cosine", "linear", "one-cycle"] = Field(
        "constant", description="learning rate over the run: cosine and linear fall to zero"
    )
    warm_up: float = Field(0.0, ge=0, lt=1, description="share of the run in which the rate rises: cosine and linear")
    bias_lr: float = Field(1.0, gt=0, description="times the rate, for biases")
    backbone_lr: float = Field(1.0, gt=0, description="times the rate, for all but the last layer")
    head_epochs: int = Field(0, ge=0, description="first epochs in which the last layer alone learns")
    clip_norm: float | None = Field(None, gt=0, description="the gradients' norm is cut to it")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of each label that all classes divide")
    ema: float = Field(
        0.0, ge=0, lt=1, description="weights are averaged over steps, each counting so much of the next; 0: not at all"
    )
    patience: int | None = Field(None, ge=1, description="stop after so many epochs that were no better")
    balance: Literal["none", "loss", "sampling"] = Field(
        "none", description="let rare classes count as much as others: in the loss, or by drawing them more often"
    )
    precision: Precision = Field("fp32", description="of training; auto: bf16 where it is quick, else fp32")
    channels_last: bool = Field(False, description="keep the channels of a pixel together in memory")
    compile: bool = Field(False, description="torch.compile (needs a C++ compiler): a minute later, faster steps")

    flip: bool = Field(False, description="mirror half of the training images, left to right")
    alternate_flip: bool = Field(False, description="mirror half of them in one epoch and the others in the next")
    shift: int = Field(0, ge=0, description="move training images by up to so many px each way, edges repeated")
    least_area: float = Field(1.0, gt=0, le=1, description="cut a part of at least this share, enlarged to the whole")
    trivial_augment: bool = Field(False, description="one random change of colour or shape an image (TrivialAugment)")
    erase: float = Field(0.0, ge=0, le=1, description="share of the images in which a rectangle is blanked")
    mixup: float = Field(0.0, ge=0, description="blend images and labels in pairs: Beta(a, a)'s a, e.g. 0.2")
    cutmix: float = Field(0.0, ge=0, description="paste parts and labels in pairs: Beta(a, a)'s a, e.g. 1")
    views: bool = Field(False, description="measure the mean over 6 views (mirrored, moved) too; told beside accuracy")
    val: float = Field(
        0.1,
        ge=0,
        description="training images held out for validation where the data brings no validation split: a share (below "
        "1) or a number; 0: no validation at all, so the last epoch is kept and probabilities are not calibrated",
    )
    coverage: float = Field(
        0.95, gt=0, le=1, description="share of validation images that the unknown threshold leaves known"
    )
    workers: Workers = None
    seed: int = Field(0, ge=0, lt=2**63, description="seed of weights, shuffling, augmentation and validation split")
    device: Device = "auto"

    @model_validator(mode="after")
    def consistent(self) -> "Recipe":
        """Refuse values that contradict each other rather than ignore one."""
        if self.val >= 1 and self.val != int(self.val):
            raise ValueError(f"--val {self.val:g}: a share lies below 1, a number of images is whole")
        if self.optimizer != "sgd" and "momentum" in self.model_fields_set:
            raise ValueError("--momentum is for --optimizer sgd")
        if self.warm_up and self.schedule not in ("cosine", "linear"):
            raise ValueError("--warm-up is for --schedule cosine or linear")
        if self.flip and self.alternate_flip:
            raise ValueError("--flip and --alternate-flip exclude each other")
        if self.head_epochs > self.epochs:
            raise ValueError(f"--head-epochs {self.head_epochs} is more than --epochs {self.epochs}")
        if self.patience and not self.val:
            raise ValueError("--patience needs validation images: --val above 0")
        return self


# Each as the flags that it stands for; the tutorials' own choices are the defaults.
PRESETS = {
    "demo": "--arch compact_cnn --epochs 6 --batch-size 64 --lr 0.01 --schedule one-cycle --shift 1",
    "tutorial": "",
    # airbench94 (Jordan 2024, arXiv 2404.00498), its rate and decay told for a mean loss and torch's SGD
    "fast94": "--arch airbench94 --epochs 16 --batch-size 1024 --optimizer sgd --lr 1.5 --momentum 0.85 "
    "--weight-decay 0.0013 --bias-lr 64 --schedule linear --warm-up 0.23 --label-smoothing 0.2 --ema 0.98 "
    "--alternate-flip --shift 2 --val 1000 --precision auto --channels-last --views",
    "scratch": "--arch airbench93 --input-size 64 --epochs 20 --batch-size 32 --optimizer sgd --lr 0.1 "
    "--weight-decay 0.001 --schedule cosine --warm-up 0.1 --label-smoothing 0.1 --ema 0.98 --flip --shift 4 "
    "--precision auto --channels-last",
    # The fresh last layer first, then all of it, what is pretrained at a tenth of the rate.
    "finetune": "--arch resnet18 --weights DEFAULT --epochs 8 --batch-size 16 --optimizer adamw --lr 0.001 "
    "--backbone-lr 0.1 --head-epochs 1 --weight-decay 0.01 --schedule cosine --warm-up 0.1 --label-smoothing 0.1 "
    "--flip --least-area 0.5",
}


def preset_for(data: str, given: Mapping[str, Any]) -> str:
    """The preset that suits the data where `--recipe` is not given."""
    if data in ("shapes10", "cifar10"):
        return {"shapes10": "demo", "cifar10": "tutorial"}[data]
    return "finetune" if "weights" in given else "scratch"
