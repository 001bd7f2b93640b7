"""What is done to a loaded artifact so that it predicts fast on one device; each step only while the goldens agree.

    to device and dtype -> channels_last (CUDA) -> freeze -> optimize_for_inference (CPU) -> every batch bucket warmed

Never saved: an optimised TorchScript module does not load again. With `models/artifact.py` the only place that names
torch.jit.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from models.artifact import TOLERANCE, Artifact, deprecated_but_chosen, disagreement
from models.decode import decode
from models.errors import ArtifactError, DeviceError, ImageError
from models.goldens import JPEG_LEVELS

CUDA_TOLERANCE = 1e-3
LOW_PRECISION_TOLERANCE = 0.1
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Module = Any  # a torch.jit.ScriptModule; its methods are known at run time only


@dataclass
class Engine:
    """An artifact ready to predict. `steps` maps each optimisation step to "taken" or why it was dropped."""

    artifact: Artifact
    device: torch.device
    dtype: str
    max_batch_size: int
    module: Module
    steps: dict[str, str] = field(default_factory=dict)

    def decode(self, body: bytes | memoryview, formats: tuple[str, ...], max_pixels: int) -> Tensor:
        """Encoded bytes to pixels: uint8 (3, S, S) on the CPU. Thread-safe; raises `models.errors.ImageError`."""
        manifest = self.artifact.manifest
        image = decode(body, input_size=manifest.input_size, crop=manifest.crop, formats=formats, max_pixels=max_pixels)
        pixels: Tensor = self.artifact.module.preprocess(image)
        return pixels

    def predict(self, pixels: Tensor) -> Tensor:
        """Probabilities: uint8 (N, 3, S, S) on the CPU, N up to `max_batch_size`, to float32 (N, K) on the CPU.

        The batch is filled up to the next bucket with copies of its first image, so that the module sees few shapes
        and no picture that nobody sent.

        Raises:
            RuntimeError: the model failed on these images.
        """
        n = len(pixels)
        batch = pixels.new_empty((bucket(n, self.max_batch_size), *pixels.shape[1:]))
        batch[:n] = pixels
        batch[n:] = pixels[0]
        try:
            with torch.inference_mode():
                probabilities: Tensor = self.module(batch.to(self.device, non_blocking=True))
            return probabilities[:n].cpu()
        except torch.jit.Error as error:  # no RuntimeError by itself
            raise RuntimeError(last_line(error)) from None


def buckets(max_batch_size: int) -> list[int]:
    """The batch sizes that the module sees: powers of two up to `max_batch_size`, and that itself."""
    return sorted({bucket(n, max_batch_size) for n in range(1, max_batch_size + 1)})


def bucket(n: int, max_batch_size: int) -> int:
    """The smallest bucket that holds `n` images."""
    return min(1 << (n - 1).bit_length(), max_batch_size)


def prepare(artifact: Artifact, device: torch.device, dtype: str = "fp32", max_batch_size: int = 32) -> Engine:
    """Bring a freshly loaded artifact to `device` and `dtype`, replay its goldens, optimise and warm it.

    Raises:
        ArtifactError: the goldens are not answered as stored, on this device in this dtype.
    """
    allow_tf32 = dtype == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allow_tf32
    module = artifact.module.to(device).to(DTYPES[dtype])
    engine = Engine(artifact, device, dtype, max_batch_size, module)
    try:
        check_pixels(engine)
        difference = golden_difference(engine)
    except (RuntimeError, ImageError) as error:
        difference = last_line(error)
    if difference:
        raise ArtifactError(artifact.path, f"its goldens' answers on {device} in {dtype}", difference)
    for name, step in steps_for(device).items():
        take(engine, name, step)
    warm(engine)
    return engine


def choose(wanted: str, offered: str, dtype: str) -> torch.device:
    """The device for `wanted` (auto, cpu, cuda, cuda:0,1): the `offered` one; for `auto` the first GPU if there is one.

    Raises:
        DeviceError: no such GPU, or a dtype that only a GPU has.
    """
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = torch.device("cuda:0" if wanted == "auto" and there else offered)
    if device.type == "cuda" and (device.index or 0) >= there:
        raise DeviceError(f"device {wanted}: expected a GPU {device}, found {there} GPUs; use cpu")
    if dtype == "tf32" and device.type != "cuda":
        raise DeviceError("dtype tf32: expected a GPU, found none; use fp32 or bf16")
    return device


def steps_for(device: torch.device) -> dict[str, Callable[[Module], Module]]:
    """The optimisation steps of a device, in order; each takes and returns a module."""
    if device.type == "cuda":
        # On a copy: `to` works in place, and a step that is dropped must leave the module as it was.
        return {
            "channels_last": lambda module: module.copy().to(memory_format=torch.channels_last),
            "freeze": torch.jit.freeze,
        }
    return {"freeze": torch.jit.freeze, "optimize_for_inference": torch.jit.optimize_for_inference}


def take(engine: Engine, name: str, step: Callable[[Module], Module]) -> None:
    """Apply one step; undo it if it fails or the goldens no longer agree."""
    before = engine.module
    try:
        with deprecated_but_chosen():
            engine.module = step(before)
        difference = golden_difference(engine)
    except RuntimeError as error:
        difference = last_line(error)
    engine.steps[name] = f"dropped: {difference}" if difference else "taken"
    if difference:
        engine.module = before


def last_line(error: Exception) -> str:
    """The message without TorchScript's traceback above it."""
    return str(error).strip().rpartition("\n")[2][:200]


def check_pixels(engine: Engine) -> None:
    """Decoding and preprocessing give the goldens' pixels: exactly for PNG, within `JPEG_LEVELS` for JPEG."""
    goldens = engine.artifact.goldens
    for number, (body, expected) in enumerate(zip(goldens.encoded, goldens.pixels, strict=True)):
        levels = 0 if body.startswith(b"\x89PNG") else JPEG_LEVELS
        found = engine.decode(body, ("JPEG", "PNG"), max_pixels=1 << 26)
        worst = int((found.int() - expected.int()).abs().max())
        if worst > levels:
            raise ArtifactError(
                engine.artifact.path, f"golden {number}'s pixels within {levels} levels", f"{worst} levels off"
            )


def golden_difference(engine: Engine) -> str | None:
    """How the engine's answers to the goldens differ from the stored ones, if they do."""
    goldens = engine.artifact.goldens
    most = engine.max_batch_size
    parts = (goldens.pixels[start : start + most] for start in range(0, len(goldens.pixels), most))
    found = torch.cat([engine.predict(part) for part in parts])
    return disagreement(goldens.probabilities, found, tolerance(engine.device, engine.dtype))


def tolerance(device: torch.device, dtype: str) -> float:
    """How far a probability may differ from the stored one."""
    if dtype != "fp32":
        return LOW_PRECISION_TOLERANCE
    return CUDA_TOLERANCE if device.type == "cuda" else TOLERANCE


def warm(engine: Engine) -> None:
    """Run each bucket until the executor has specialised for it: profiled, optimised, run."""
    for n in buckets(engine.max_batch_size):
        for _ in range(3):
            engine.predict(engine.artifact.goldens.pixels[:1].expand(n, -1, -1, -1))
