"""CIFAR-10 (Krizhevsky 2009) through torchvision's class: 50,000 training and 10,000 test images, 32x32 RGB."""

import urllib.request
import warnings
from http.client import HTTPException
from pathlib import Path

import torch
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity

from models import archive
from training.data import Images, Source
from training.errors import TrainingError
from training.terminal import bar, say

TIMEOUT_S = 30
CHUNK = 1 << 16
MIRROR = "give a mirror's address by --data-url, or a folder that holds cifar-10-batches-py/ by --data-dir"


def load(folder: Path, url: str | None = None, dataset: type[CIFAR10] = CIFAR10) -> Source:
    """Read CIFAR-10 from `folder`, downloading it first where it is missing. `dataset` says what files to expect."""
    if not (folder / dataset.base_folder).is_dir():
        fetch(folder, url or dataset.url, dataset)
    try:
        with warnings.catch_warnings():
            # The pickles were written by a numpy whose booleans were integers; a newer numpy remarks on it.
            warnings.filterwarnings("ignore", message=".*align should be passed", category=Warning)
            parts = {name: dataset(str(folder), train=name == "train") for name in ("train", "test")}
    except RuntimeError:
        raise TrainingError(
            f"{folder / dataset.base_folder} is incomplete or damaged (MD5 sums differ); remove it to download it again"
        ) from None
    splits = {
        name: Images(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
        for name, part in parts.items()
    }
    return Source("cifar10", tuple(parts["train"].classes), splits)


def fetch(folder: Path, url: str, dataset: type[CIFAR10]) -> None:
    """Download and unpack the archive; its MD5 is checked, so that any mirror will do."""
    target = folder / dataset.filename
    if not check_integrity(target, dataset.tgz_md5):
        # The official host gave 50 to 85 kB/s in 2026: an hour.
        say(f"CIFAR-10 is not in {folder}: downloading 170 MB from {url}; if that is slow, {MIRROR}")
        try:
            with archive.replacing(target) as temporary:
                download(url, temporary)
        except OSError as error:  # URLError and TimeoutError are OSErrors
            reason = getattr(error, "reason", None) or error
            raise TrainingError(f"{url} does not deliver ({reason}); {MIRROR}") from None
        except (ValueError, HTTPException):
            raise TrainingError(f"--data-url {url}: no address; {MIRROR}") from None
    if not check_integrity(target, dataset.tgz_md5):
        target.unlink()
        raise TrainingError(f"{url} sent another file than {dataset.filename} of MD5 {dataset.tgz_md5}; {MIRROR}")
    dataset(str(folder), download=True)


def download(url: str, target: Path) -> None:
    """Copy `url` to the file `target`, with progress."""
    with (
        urllib.request.urlopen(url, timeout=TIMEOUT_S) as response,
        target.open("wb") as file,
        bar(int(response.headers.get("Content-Length") or 0), "download", "B") as progress,
    ):
        while chunk := response.read(CHUNK):
            file.write(chunk)
            progress.update(len(chunk))
