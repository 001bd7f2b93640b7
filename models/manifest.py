"""The manifest: what an artifact says about itself. Read without torch."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from models import archive
from models.errors import ArtifactError

FILE = "manifest.json"
Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
NAME_TOLD = "letters, digits, '.', '_' and '-', at most 128, a letter or a digit first"


class Record(BaseModel):
    """A frozen record that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Architecture(Record):
    """A name in `models.architectures` and the arguments that rebuild the network."""

    name: str
    arguments: dict[str, Any]


class Accuracy(Record):
    """A share of `n` images classified right, with its 95 % Wilson interval."""

    value: Fraction
    n: Annotated[int, Field(gt=0)]
    interval: tuple[Fraction, Fraction]


class Strangers(Record):
    """Of `n` images of no class: the share below the unknown threshold, and how well confidence tells them apart."""

    n: Annotated[int, Field(gt=0)]
    refused: Fraction
    auroc: Fraction


class Unknown(Record):
    """What the unknown threshold does: chosen to leave a share `coverage` of validation images known.

    Measured on test images, else validation images: the share that is known, and the share of those that is right.
    """

    coverage: Fraction
    known: Fraction
    accuracy: Fraction | None
    strangers: dict[str, Strangers]


class Metrics(Record):
    """What was measured before export; `test` is null where there was no test split."""

    validation: Accuracy | None = None
    test: Accuracy | None = None
    calibration_error: Fraction | None = None
    unknown: Unknown | None = None


class Histogram(Record):
    """How many images are in each bin: `edges` are upper bounds, and one bin more has what is above them."""

    edges: tuple[float, ...]
    counts: tuple[Annotated[int, Field(ge=0)], ...]

    @model_validator(mode="after")
    def complete(self) -> "Histogram":
        """A count for each bin."""
        if len(self.counts) != len(self.edges) + 1:
            raise ValueError("there must be one count more than edges")
        return self


class Statistics(Record):
    """What validation images and their answers are like; see `models.statistics`. `classes` are in their order."""

    classes: tuple[Annotated[int, Field(ge=0)], ...]
    confidence: Histogram
    brightness: Histogram
    size: Histogram


class Manifest(Record):
    """Everything a reader needs to use, rebuild and judge the model; null where unknown."""

    schema_version: Literal[1] = 1
    name: Name
    version: Name
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    input_size: Annotated[int, Field(ge=1)]
    crop: Annotated[float, Field(gt=0, le=1)]
    architecture: Architecture
    temperature: Annotated[float, Field(gt=0)]
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    torch: dict[str, str]
    created: datetime
    recipe: dict[str, Any] | None = None
    data_fingerprint: str | None = None
    metrics: Metrics | None = None
    unknown_threshold: Fraction | None = None
    validation_statistics: Statistics | None = None

    @property
    def unknown_below(self) -> float:
        """The unknown threshold; zero, which is no threshold, where there is none."""
        return self.unknown_threshold or 0.0

    @field_validator("classes")
    @classmethod
    def unique(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        """Two classes of one name could not be told apart in a reply."""
        if len(set(classes)) < len(classes):
            raise ValueError("class names must be unique")
        return classes

    @model_validator(mode="after")
    def of_these_classes(self) -> "Manifest":
        """Statistics count every class."""
        if self.validation_statistics and len(self.validation_statistics.classes) != len(self.classes):
            raise ValueError("the validation statistics must count every class")
        return self


def read(path: Path) -> Manifest:
    """The manifest of the artifact at `path`, whose seal is verified first.

    Raises:
        ArtifactError: the file is damaged, holds no manifest, or one of another schema.
    """
    archive.verify(path)
    content = archive.read(path, "extra").get(FILE)
    if content is None:
        raise ArtifactError(path, f"a {FILE} inside", "none: not written by Darkroom")
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise ArtifactError(path, "a manifest of schema version 1", f"{where}: {first['msg']}") from None
