"""The artifact: one TorchScript file that carries its preprocessing, classes, calibration and proof.

    save   classifier -> script -> archive with manifest, goldens, weights, card -> sealed -> proved -> in place
    load   seal -> manifest -> digest -> module          (`models.engine` then replays the goldens on the device)

TorchScript is hidden here and in `models.optimisation`; `models.classifier` only marks what is exported.
"""

import hashlib
import io
import re
import subprocess
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import archive, goldens
from models import manifest as manifests
from models.card import card
from models.classifier import Classifier
from models.errors import ArtifactError
from models.goldens import Goldens
from models.manifest import Architecture, Manifest

WEIGHTS_FILE = "weights.pt"
CARD_FILE = "model_card.md"
TOLERANCE = 1e-4  # between eager and scripted probabilities, fp32 on one device
# TorchScript is deprecated (decision 0001); every call says so.
JIT_DEPRECATION = r"`torch\.jit\.\w+` is deprecated"
OperatorError = torch.jit.Error  # what a failing TorchScript operator raises; no RuntimeError

# Runs in a fresh process that has torch alone: a file and a device in its arguments; on stdin the number of images and
# their size, then their pixels, again and again; on stdout their probabilities.
PROOF = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
module = torch.jit.load(sys.argv[1], map_location=sys.argv[2])
while header := sys.stdin.buffer.read(8):
    n, size = int.from_bytes(header[:4], "little"), int.from_bytes(header[4:], "little")
    pixels = torch.frombuffer(bytearray(sys.stdin.buffer.read(n * 3 * size * size)), dtype=torch.uint8)
    with torch.no_grad():
        probabilities = module(pixels.view(n, 3, size, size).to(sys.argv[2])).cpu().contiguous()
    sys.stdout.buffer.write(probabilities.numpy().tobytes())
    sys.stdout.buffer.flush()
"""


@dataclass(frozen=True)
class Artifact:
    """A loaded artifact: eval mode, fp32, not yet optimised, goldens not yet replayed."""

    path: Path
    manifest: Manifest
    module: torch.jit.ScriptModule
    goldens: Goldens


@dataclass(frozen=True)
class Validation:
    """Batches of (pixels uint8 (N, 3, S, S), labels int64 (N,)) of which the trainer's model got `correct` right."""

    batches: Iterable[tuple[Tensor, Tensor]]
    correct: int


@contextmanager
def deprecated_but_chosen() -> Any:
    """Silence TorchScript's deprecation warnings, and only those."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", JIT_DEPRECATION)
        yield


def save(
    path: Path, classifier: Classifier, *, validation: Validation | None = None, device: str = "cpu", **known: Any
) -> Manifest:
    """Write the artifact and put it at `path` once it is proved; a failure leaves what was there before.

    `known` is what `write` takes. The proof runs on `device`, as the trainer did.

    Raises:
        ArtifactError: the written file does not answer as the classifier does.
        ValueError: the manifest's fields are not valid.
    """
    with archive.replacing(path) as temporary:
        manifest, answers = write(temporary, classifier, **known)
        load(temporary)
        prove(temporary, answers, validation, device)
    return manifest


def write(
    path: Path,
    classifier: Classifier,
    *,
    name: str,
    classes: Sequence[str],
    architecture: Architecture,
    version: str | None = None,
    **known: Any,
) -> tuple[Manifest, Goldens]:
    """Write the artifact, not proved yet; `known` are further manifest fields (recipe, metrics, ...).

    Raises:
        ValueError: the manifest's fields are not valid.
    """
    classifier = deepcopy(classifier).cpu().float().eval()
    with deprecated_but_chosen():
        scripted = torch.jit.script(classifier)
        buffer = io.BytesIO()
        torch.jit.save(scripted, buffer)
    saved = buffer.getvalue()
    digest = digest_of(classifier.state_dict(), archive.read(io.BytesIO(saved), "code"))
    manifest = Manifest(
        name=name,
        version=version or digest[:12],
        classes=tuple(classes),
        input_size=classifier.input_size,
        crop=classifier.crop,
        architecture=architecture,
        temperature=float(classifier.temperature),
        digest=digest,
        torch={package: installed(package) for package in ("torch", "torchvision")},
        created=datetime.now(UTC),
        **known,
    )
    answers = goldens.make(classifier)
    if not answers.probabilities.isfinite().all():
        raise ArtifactError(path, "finite probabilities", "none: the weights hold NaN or infinite values")
    weights = io.BytesIO()
    torch.save(classifier.state_dict(), weights)
    extra = {
        manifests.FILE: manifest.model_dump_json(indent=2).encode(),
        goldens.FILE: answers.to_bytes(),
        WEIGHTS_FILE: weights.getvalue(),
        CARD_FILE: card(manifest).encode(),
    }
    path.write_bytes(archive.seal(archive.with_extra_files(saved, extra)))
    return manifest, answers


def prove(path: Path, answers: Goldens, validation: Validation | None, device: str) -> None:
    """Let a fresh process load the file and answer; compare with the goldens and the trainer's figure.

    Raises:
        ArtifactError: an answer or the accuracy differs.
    """
    command = [sys.executable, "-I", "-c", PROOF, str(path), device]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        found = ask(process, path, answers.pixels, answers.probabilities.size(1))
        if difference := disagreement(answers.probabilities, found, TOLERANCE):
            raise ArtifactError(path, "scripted answers equal to the eager model's", difference)
        if validation is not None:
            correct = sum(
                int((ask(process, path, pixels, found.size(1)).argmax(1) == labels).sum())
                for pixels, labels in validation.batches
            )
            if correct != validation.correct:
                raise ArtifactError(path, f"{validation.correct} validation images right, as in training", f"{correct}")
    if process.returncode != 0:
        raise ArtifactError(path, "a file that a fresh process can run", f"exit code {process.returncode}")


def ask(process: subprocess.Popen[bytes], path: Path, pixels: Tensor, num_classes: int) -> Tensor:
    """The proof process's probabilities (N, K) for uint8 (N, 3, S, S)."""
    assert process.stdin is not None, "the process was started with pipes"
    assert process.stdout is not None, "the process was started with pipes"
    n, size = pixels.size(0), pixels.size(3)
    expected = n * num_classes * 4
    try:
        process.stdin.write(n.to_bytes(4, "little") + size.to_bytes(4, "little") + pixels.cpu().numpy().tobytes())
        process.stdin.flush()
    except BrokenPipeError:
        raise ArtifactError(path, "a file that a fresh process can run", "it stopped; its message is above") from None
    answer = process.stdout.read(expected)
    if len(answer) != expected:
        raise ArtifactError(path, f"probabilities for {n} images of {num_classes} classes", f"{len(answer)} bytes")
    return torch.frombuffer(bytearray(answer), dtype=torch.float32).view(n, num_classes)


def disagreement(expected: Tensor, found: Tensor, tolerance: float) -> str | None:
    """How two probability tables (N, K) differ by more than `tolerance` or in an argmax; None where they agree."""
    if expected.shape != found.shape:
        return f"probabilities of shape {tuple(found.shape)} instead of {tuple(expected.shape)}"
    worst = float((expected - found).abs().max())
    if not worst <= tolerance:  # also true for NaN
        return f"a probability off by {worst:.2g} (at most {tolerance:g})"
    changed = int((expected.argmax(1) != found.argmax(1)).sum())
    return f"{changed} of {len(found)} top-1 answers changed" if changed else None


def load(path: Path, device: str = "cpu") -> Artifact:
    """Load an artifact whose bytes, schema, weights and code are the ones that were saved.

    Raises:
        ArtifactError: file, what was expected, what was found.
    """
    manifest = manifests.read(path)
    extra = archive.read(path, "extra")
    try:
        answers = Goldens.from_bytes(extra[goldens.FILE])
        with deprecated_but_chosen():
            module: torch.jit.ScriptModule = torch.jit.load(path, map_location=device)  # type: ignore[no-untyped-call]
    except Exception as error:  # unpickling and TorchScript raise many types
        found = f"{type(error).__name__}: {error}".strip().splitlines()[-1]
        raise ArtifactError(path, "a TorchScript module with goldens", found) from None
    digest = digest_of(module.state_dict(), archive.read(path, "code"))
    if digest != manifest.digest:
        raise ArtifactError(path, f"weights and code of digest {manifest.digest[:12]}...", f"{digest[:12]}...")
    outputs = answers.probabilities.size(1)
    if outputs != len(manifest.classes):
        raise ArtifactError(path, f"{outputs} class names, one an output", f"{len(manifest.classes)}")
    if (module.input_size, module.crop, module.training) != (manifest.input_size, manifest.crop, False):
        raise ArtifactError(path, "a module in eval mode with the manifest's input size and crop", "another")
    return Artifact(path, manifest, module, answers)


def digest_of(state: Mapping[str, Tensor], code: Mapping[str, bytes]) -> str:
    """SHA-256 over weights (name, dtype, shape, bytes) and code, each sorted by name; the same for equal models.

    TorchScript numbers types that a process compiled twice (`___torch_mangle_3`) and lists constants in an order that
    depends on the hash seed; neither is part of the code.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    for source in sorted(canonical(name, text) for name, text in code.items() if name.endswith(".py")):
        digest.update(source)
    return digest.hexdigest()


def canonical(name: str, text: bytes) -> bytes:
    """One source file without what differs between equal models."""
    lines = re.sub(rb"___torch_mangle_\d+", b"___torch_mangle", name.encode() + b"\n" + text).splitlines()
    constants = sorted(line for line in lines if b" : Final[" in line)
    return b"\n".join(constants + [line for line in lines if b" : Final[" not in line])
