"""The service's settings: each declared once, with its flag, default, range and help. A flag wins over its variable.

`--max-batch-size 8` and `DARKROOM_MAX_BATCH_SIZE=8` are the same setting.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from pydantic import AfterValidator, Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, CliImplicitFlag, CliSettingsSource, SettingsConfigDict

from models.formats import FORMATS, KNOWN_FORMATS, MAX_PIXELS

PREFIX = "DARKROOM_"
# No flags: those are seen by all users of a machine.
KEYS_VARIABLE, ADMIN_KEYS_VARIABLE = PREFIX + "API_KEYS", PREFIX + "ADMIN_KEYS"
MIB = 1 << 20
MOST_PROCESSES = 64  # of each kind
# Kubernetes gives every pod variables for each Service of its namespace: DARKROOM_PORT=tcp://... for a `darkroom`.
SERVICE_LINK_ENDINGS = ("_SERVICE_HOST", "_SERVICE_PORT", "_TCP", "_TCP_ADDR", "_TCP_PORT", "_TCP_PROTO")
SERVICE_LINK_ADVICE = " (made by Kubernetes for a Service of that name? set enableServiceLinks: false)"
HELP = f"""Serve an artifact: POST images to /predict, watch /health and /metrics.

  python -m service --model artifacts/model.pt
  curl -F file=@photo.jpg http://127.0.0.1:8000/predict
  python -m service models --help        # another version, while it serves

Every flag may be given as a variable instead: --max-batch-size 8 is {PREFIX}MAX_BATCH_SIZE=8."""


class SettingsError(Exception):
    """A setting that stops the start; one line."""


def known_formats(formats: str) -> str:
    """Formats as they are written in the setting, upper case; refuses one that is not known."""
    names = formats.upper().replace("JPG", "JPEG").split(",")
    if unknown := set(names) - set(KNOWN_FORMATS):
        raise ValueError(f"unknown format {', '.join(sorted(unknown))}; known: {', '.join(KNOWN_FORMATS)}")
    return ",".join(names)


class Settings(BaseSettings):
    """What the service is told from outside; frozen."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
    )

    model: Path = Field(description="the artifact to serve, or a folder of models: NAME/VERSION.pt")
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all")
    port: int = Field(8000, ge=0, le=65_535, description="port to listen on; 0 takes a free one")
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+(,\d+)*)?)$")] = Field(
        "auto", description="auto (the first GPU if there is one), cpu, cuda, or GPUs by number: cuda:0,1"
    )
    dtype: Literal["fp32", "bf16", "fp16", "tf32"] = Field("fp32", description="number format of the network")
    nvjpeg: CliImplicitFlag[bool] = Field(
        False, description="decode ordinary JPEGs on the GPU: faster, but few damaged ones are refused"
    )
    workers: int = Field(1, ge=1, le=MOST_PROCESSES, description="workers of each model on each device")
    spares: int = Field(
        0, ge=0, le=MOST_PROCESSES, description="loaded workers in reserve; one takes over at once from a lost one"
    )
    http_processes: int = Field(1, ge=1, le=MOST_PROCESSES, description="processes that speak HTTP")
    max_batch_size: int = Field(
        32, ge=1, le=1024, description="most images in one forward pass; on a CPU fewer, if more do not pay"
    )
    max_delay_ms: float = Field(0, ge=0, le=1000, description="how long an idle model waits for a fuller batch")
    objective_p99_ms: float | None = Field(
        None, gt=0, le=60_000, description="batches as large, and queues as long, as let 99 % be answered in this time"
    )
    capacity: int = Field(
        1024,
        ge=1,
        le=65_536,
        description="most images accepted and not yet answered, of each model; HTTP processes share it equally",
    )
    capacity_bytes: int = Field(
        256 * MIB, ge=MIB, le=1 << 40, description="most bytes of bodies accepted and not yet answered, of each model"
    )
    timeout_ms: int = Field(30_000, ge=1, le=60_000, description="deadline of a request that brings none")
    header_timeout_ms: int = Field(5000, ge=1, le=60_000, description="longest wait for a request's head")
    body_timeout_ms: int = Field(
        10_000, ge=1, le=600_000, description="longest wait for a body, and for a client that does not read"
    )
    max_connections: int = Field(
        4096, ge=1, le=1_000_000, description="most connections; beyond, idle ones are closed, then predictions refused"
    )
    max_body_bytes: int = Field(10 * MIB, ge=1, le=1 << 30, description="largest body")
    max_pixels: int = Field(MAX_PIXELS, ge=1, le=200_000_000, description="largest image, width x height")
    max_images: int = Field(32, ge=1, le=1024, description="most images in one request")
    formats: Annotated[str, AfterValidator(known_formats)] = Field(
        ",".join(FORMATS).lower(), description=f"accepted formats, of {','.join(KNOWN_FORMATS).lower()}"
    )
    api_keys_file: Path | None = Field(
        None, description=f"file of API keys, one a line; also the variable {KEYS_VARIABLE}, separated by commas"
    )
    admin_keys_file: Path | None = Field(
        None, description=f"file of keys for /models, which changes versions; also the variable {ADMIN_KEYS_VARIABLE}"
    )
    metrics_port: int | None = Field(None, ge=1, le=65_535, description="port of its own for /metrics")
    drift_window_s: int = Field(
        3600, ge=1, le=604_800, description="over how long images are compared with those of validation"
    )
    feedback: CliImplicitFlag[bool] = Field(True, description="serve /feedback: what an image really was")
    keep_images: Path | None = Field(
        None, description="folder to keep images in for the next training, sorted by feedback; none are kept without"
    )
    keep_bytes: int = Field(
        1 << 30, ge=MIB, le=1 << 50, description="most bytes of kept images, of each model; then the oldest go"
    )
    keep_days: int = Field(30, ge=1, le=3650, description="how long images are kept at most")
    docs: CliImplicitFlag[bool] = Field(True, description="serve the page at /, /docs and /openapi.json")
    info: CliImplicitFlag[bool] = Field(True, description="serve /info")
    log_format: Literal["auto", "json", "text"] = Field("auto", description="auto is text on a terminal, else JSON")
    tracing: CliImplicitFlag[bool] = Field(
        False, description="send OpenTelemetry traces to OTEL_EXPORTER_OTLP_ENDPOINT; needs darkroom[tracing]"
    )
    access_log: CliImplicitFlag[bool] = Field(False, description="log successes too, not only refusals and errors")

    @field_validator("metrics_port")
    @classmethod
    def its_own(cls, port: int | None, others: ValidationInfo) -> int | None:
        """Refuse the port of all other routes."""
        if port is not None and port == others.data.get("port"):
            raise ValueError("must not be --port")
        return port

    @field_validator("keep_images")
    @classmethod
    def sorted_by_feedback(cls, folder: Path | None, others: ValidationInfo) -> Path | None:
        """Refuse to keep what nobody can judge."""
        if folder is not None and not others.data.get("feedback"):
            raise ValueError("needs --feedback")
        return folder

    @property
    def accepted_formats(self) -> tuple[str, ...]:
        """`formats` as Pillow names them."""
        return tuple(self.formats.upper().split(","))


class Parser(argparse.ArgumentParser):
    """argparse that tells a mistake in one line instead of the whole usage, and takes no beginning for a flag."""

    def __init__(self, *told: Any, **options: Any) -> None:
        super().__init__(*told, **{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message}; see python -m service --help")


def load(arguments: Sequence[str]) -> Settings:
    """The settings from flags and `DARKROOM_*` variables.

    Raises:
        SettingsError: an unknown flag or variable, or a value out of range; one line.
    """
    refuse_unknown(os.environ)
    parser = Parser("python -m service", None, HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    source: CliSettingsSource[Any] = CliSettingsSource(
        Settings, root_parser=parser, cli_parse_args=list(arguments), cli_hide_none_type=True
    )
    return made(_cli_settings_source=source)


def made(**given: Any) -> Settings:
    """Settings from fields by name, and from `DARKROOM_*` variables.

    Raises:
        SettingsError: one is unknown or out of range; one line.
    """
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        value = "" if first["type"] == "missing" else f", not {first['input']!r}"
        advice = SERVICE_LINK_ADVICE if "tcp://" in str(first["input"]) else ""
        told = first["msg"]
        if first["type"] == "string_pattern_mismatch":
            told = f"expected {Settings.model_fields[name].description}"
        raise SettingsError(f"{flag(name)} ({PREFIX}{name.upper()}): {told}{value}{advice}") from None


def refuse_unknown(environment: Mapping[str, str]) -> None:
    """pydantic-settings ignores unknown variables; a misspelt limit must not be silently without effect."""
    known = {PREFIX + name.upper() for name in Settings.model_fields} | {KEYS_VARIABLE, ADMIN_KEYS_VARIABLE}
    if unknown := sorted(name for name in environment if name.upper().startswith(PREFIX) and name not in known):
        linked = any(name.endswith(SERVICE_LINK_ENDINGS) for name in unknown)
        advice = SERVICE_LINK_ADVICE if linked else "; see python -m service --help"
        raise SettingsError(f"unknown variable {', '.join(unknown)}{advice}")


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")
