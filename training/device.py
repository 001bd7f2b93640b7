"""The device, and what makes a run on it repeatable."""

import os

import torch

from training.errors import TrainingError


def choose(name: str, seed: int = 0) -> torch.device:
    """The device that `--device` names, with fp32 arithmetic (no TF32), fixed algorithms and seeded generators.

    Raises:
        TrainingError: there is no such device here.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name != "auto" and not present[name]:
        here = ", ".join(kind for kind, there in present.items() if there)
        raise TrainingError(f"--device {name}: there is none that torch can use here; here is {here}")
    # cuBLAS repeats itself only with a fixed workspace; read when CUDA starts (CUDA toolkit, cuBLAS, reproducibility).
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    torch.manual_seed(seed)
    return torch.device(next(kind for kind, there in present.items() if there) if name == "auto" else name)
