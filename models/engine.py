"""An artifact on one device: bytes to pixels, pixels to probabilities, several passes at a time; its goldens decide.

What makes it fast is in `models.optimisation`.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import nvjpeg
from models.artifact import TOLERANCE, Artifact, OperatorError, disagreement
from models.decode import decode_rgb
from models.errors import ArtifactError, DeviceError
from models.goldens import JPEG_LEVELS
from models.lanes import LANES, Lanes, Row
from models.limits import Turn

CUDA_TOLERANCE = 1e-3
LOW_PRECISION_TOLERANCE = 0.1
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CPU_PASSES = 4  # more would divide the batches further, and Python between the passes is one core's work
OUT_OF_MEMORY = ("out of memory", "can't allocate memory")  # CUDA's and the CPU allocator's words
Module = Any  # a torch.jit.ScriptModule; its methods are known at run time only


class Sharing:
    """Divides the cores among the forward passes under way; a pass takes no more threads than pay for its size."""

    def __init__(self, available: int) -> None:
        """`useful` maps a batch size to the most threads that pay for it and for larger ones."""
        self.available = available
        self.useful = {1: available}
        self.active = 0
        self.lock = threading.Lock()

    @contextmanager
    def share(self, n: int) -> Iterator[None]:
        """Run a forward pass of `n` images on this thread's share."""
        with self.lock:
            self.active += 1
            share = max(1, self.available // self.active)
        # OpenMP's number of threads belongs to the thread that sets it.
        use_threads(min(share, self.useful[max(size for size in self.useful if size <= n)]))
        try:
            yield
        finally:
            with self.lock:
                self.active -= 1


@dataclass(frozen=True)
class Plan:
    """What was found to pay on this machine, so that another process need not try it again; fit for JSON."""

    steps: dict[str, str]
    threads: dict[str, int]  # by batch size, the most that pay
    batch_size: int
    passes: int
    curve: dict[str, float]  # by batch size, seconds of a pass with all passes under way
    decode_seconds: float  # of an image like the goldens, with all cores at it


@dataclass(frozen=True)
class Engine:
    """An artifact ready to predict. `steps` maps each optimisation step to "taken" or why it was dropped.

    A pass takes up to `max_batch_size` images; more than `batch_size` at once make none of them faster.
    """

    artifact: Artifact
    device: torch.device
    dtype: str
    max_batch_size: int
    batch_size: int
    module: Module
    sharing: Sharing
    lanes: Lanes | None = None
    planes: bool = False
    nvjpeg: bool = False
    steps: dict[str, str] = field(default_factory=dict)
    curve: dict[int, float] = field(default_factory=dict)  # see `Plan`, as for the next
    decode_seconds: float = 0.0

    @property
    def cores(self) -> int:
        """The cores that this engine may use."""
        return self.sharing.available

    @property
    def passes(self) -> int:
        """How many forward passes pay at once: on a CPU one a core up to `CPU_PASSES`, each on its share of them."""
        return LANES if self.lanes else min(CPU_PASSES, self.cores)

    @property
    def plan(self) -> Plan:
        """How this engine came to be."""
        threads = {str(n): found for n, found in self.sharing.useful.items()}
        curve = {str(n): seconds for n, seconds in self.curve.items()}
        return Plan(self.steps, threads, self.batch_size, self.passes, curve, self.decode_seconds)

    def rows(self, count: int) -> Tensor:
        """Room for `count` decoded images: uint8 (count, S, S, 3), pinned where a GPU reads it."""
        size = self.artifact.manifest.input_size
        return torch.empty((count, size, size, 3), dtype=torch.uint8, pin_memory=self.device.type == "cuda")

    def decode(
        self,
        body: bytes | memoryview,
        formats: tuple[str, ...],
        max_pixels: int,
        out: Tensor,
        resting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> int:
        """Encoded bytes to pixels in `out`, uint8 (S, S, 3) on the CPU; how many pixels the image has.

        Thread-safe; see `Turn` for `resting`.

        Raises:
            ImageError: the subclass says why.
        """
        with Turn(resting) as turn:
            self.fill(body, formats, max_pixels, out, turn)
        return turn.pixels

    def takes(self, body: bytes | memoryview, formats: tuple[str, ...], max_pixels: int) -> bool:
        """Whether `predict` takes this body as it is, a JPEG that the GPU decodes."""
        manifest = self.artifact.manifest
        wanted = self.nvjpeg and "JPEG" in formats
        return wanted and nvjpeg.takes(body, manifest.input_size, manifest.crop, max_pixels)

    def fill(
        self, body: bytes | memoryview, formats: tuple[str, ...], max_pixels: int, out: Tensor, turn: Turn
    ) -> None:
        """See `decode`; returns before the turn ends, so that its memory is freed with it."""
        manifest = self.artifact.manifest
        size, crop = manifest.input_size, manifest.crop
        image = decode_rgb(body, size, crop, formats, max_pixels, whole=False, turn=turn)
        if crop == 1.0 and image.shape == (size, size, 3):  # `preprocess` would give it back as it is
            out.numpy()[:] = image
        else:
            use_threads(1)  # other images are decoded beside this one
            interleave(self.artifact.module.preprocess(torch.from_numpy(image).permute(2, 0, 1)).numpy(), out)

    def place(self, body: memoryview, out: Tensor) -> None:
        """Pixels that need no decoding, uint8 (3, S, S) in `body`, into `out`, uint8 (S, S, 3)."""
        interleave(np.frombuffer(body, np.uint8).reshape(3, *out.shape[:2]), out)

    def predict(self, rows: Sequence[Row]) -> Tensor:
        """Probabilities of up to `max_batch_size` rows, uint8 (S, S, 3) on the CPU: float32 (N, K) on the CPU.

        A row may also be a JPEG that the engine `takes`. Thread-safe; passes on several threads overlap.

        Raises:
            MemoryError: so many need more memory than there is.
            RuntimeError: the model failed on these images.
        """
        try:
            with torch.inference_mode():
                if self.lanes:
                    return self.lanes.predict(rows)
                with self.sharing.share(len(rows)):
                    return self.forward(torch.stack(tuple(rows)))  # type: ignore[arg-type]  # none is a JPEG
        except (RuntimeError, OperatorError) as error:  # the latter is none of the former
            if isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in OUT_OF_MEMORY):
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                raise MemoryError(last_line(error)) from None
            raise RuntimeError(last_line(error)) from None

    def forward(self, pixels: Tensor) -> Tensor:
        """One pass over uint8 (N, S, S, 3); the module sees (N, 3, S, S), in `planes` or as it lies."""
        images = pixels.to(self.device).permute(0, 3, 1, 2)
        probabilities: Tensor = self.module(images.contiguous() if self.planes else images)
        return probabilities.cpu()


def use_threads(count: int) -> None:
    """Let this thread's operators take so many; setting it anew would cost the pass 20 us, MobileNet V3's 120."""
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)


def interleave(planes: NDArray[np.uint8], out: Tensor) -> None:
    """Write (3, S, S) into (S, S, 3)."""
    for channel in range(3):  # NumPy is quickest plane by plane, in a quarter of the time
        out.numpy()[:, :, channel] = planes[channel]


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


def sample(engine: Engine, n: int) -> list[Tensor]:
    """`n` rows to try the engine with."""
    row = engine.artifact.goldens.pixels[0].permute(1, 2, 0).contiguous()
    return [row] * n


def last_line(error: Exception) -> str:
    """The message without TorchScript's traceback above it."""
    return str(error).strip().rpartition("\n")[2][:200]


def check_pixels(engine: Engine) -> None:
    """Decoding and preprocessing give the goldens' pixels: exactly for PNG, within `JPEG_LEVELS` for JPEG."""
    goldens = engine.artifact.goldens
    rows = engine.rows(len(goldens.encoded))
    for number, (body, expected) in enumerate(zip(goldens.encoded, goldens.pixels, strict=True)):
        levels = 0 if body.startswith(b"\x89PNG") else JPEG_LEVELS
        engine.decode(body, ("JPEG", "PNG"), max_pixels=1 << 26, out=rows[number])
        worst = int((rows[number].permute(2, 0, 1).int() - expected.int()).abs().max())
        if worst > levels:
            raise ArtifactError(
                engine.artifact.path, f"golden {number}'s pixels within {levels} levels", f"{worst} levels off"
            )


def golden_difference(engine: Engine) -> str | None:
    """How the engine's answers to the goldens differ from the stored ones, if they do."""
    goldens, most = engine.artifact.goldens, engine.max_batch_size
    rows = list(goldens.pixels.permute(0, 2, 3, 1).contiguous())
    found = torch.cat([engine.predict(rows[start : start + most]) for start in range(0, len(rows), most)])
    return disagreement(goldens.probabilities, found, tolerance(engine.device, engine.dtype))


def tolerance(device: torch.device, dtype: str) -> float:
    """How far a probability may differ from the stored one."""
    if dtype != "fp32":
        return LOW_PRECISION_TOLERANCE
    return CUDA_TOLERANCE if device.type == "cuda" else TOLERANCE
