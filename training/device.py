"""The device that a recipe names, and how it computes there."""

import os

import torch

from training.errors import TrainingError
from training.recipe import Precision


def choose_device(name: str, seed: int = 0) -> torch.device:
    """The device that `--device` names, with fp32 arithmetic (no TF32), fixed algorithms and seeded generators."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name != "auto" and not present[name]:
        here = ", ".join(kind for kind, there in present.items() if there)
        raise TrainingError(f"--device {name}: there is none that torch can use here; here is {here}")
    # cuBLAS repeats itself only with a fixed workspace; read when CUDA starts (CUDA toolkit, cuBLAS, reproducibility).
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    torch.manual_seed(seed)
    kind = next(kind for kind, there in present.items() if there) if name == "auto" else name
    # torchrun starts a process for each GPU of a machine and numbers them.
    return torch.device(kind, int(os.environ.get("LOCAL_RANK", "0"))) if kind == "cuda" else torch.device(kind)


def dtype_of(precision: Precision, device: torch.device) -> torch.dtype:
    """What most of a training step is computed in."""
    if precision == "auto":
        if device.type == "cpu":
            quick = torch.cpu.get_capabilities().get("avx512_bf16", False)
        else:
            quick = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if quick else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
