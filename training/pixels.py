"""Pixels: how pictures become what a classifier takes.

Whatever the source, a picture is decoded by `models.decode` and resized by the classifier's own `preprocess`, once
before the first epoch. Pixels of up to `MEMORY` bytes are then kept; workers decode larger sets anew in every epoch.
"""

import csv
import hashlib
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from models.classifier import Classifier
from models.decode import decode
from models.errors import ImageError
from training.data import Images, Source
from training.errors import TrainingError
from training.folder import LISTED
from training.terminal import bar, say

MEMORY = 1 << 30  # bytes of pixels; 7,133 pictures of 224 x 224
CHECKED_AT_ONCE = 32
GPU_SHARE = 0.25  # of its free memory that pixels may take


@dataclass(frozen=True)
class InMemory:
    """A split whose pixels uint8 (N, 3, S, S) fit in memory."""

    pixels: Tensor
    labels: Tensor

    def take(self, indices: Tensor) -> "InMemory":
        """The images at `indices` int64 (M,)."""
        return InMemory(self.pixels[indices], self.labels[indices])

    def batches(self, chosen: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels, where they lie, and labels of each batch of indices int64 (M,)."""
        for indices in chosen:
            yield self.pixels[indices.to(self.pixels.device)], self.labels[indices]


@dataclass(frozen=True)
class Decoded(Dataset[tuple[Tensor, Tensor, str, str]]):
    """A split that workers decode, whenever it is asked for."""

    images: Images
    preparer: Classifier
    workers: int
    digests: bool = False  # a picture's takes a tenth of its decoding

    @property
    def labels(self) -> Tensor:
        return self.images.labels

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Tensor) -> "Decoded":
        """The images at `indices` int64 (M,)."""
        return replace(self, images=self.images.take(indices))

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, str, str]:
        """Pixels uint8 (3, S, S), label int64 (), the SHA-256 of its bytes where asked for, and what is wrong or ""."""
        picture, label, size = self.images.pictures[index], self.labels[index], self.preparer.input_size
        try:
            body = picture.numpy().tobytes() if isinstance(picture, Tensor) else picture.read_bytes()
            pixels = picture if isinstance(picture, Tensor) else decode(body, input_size=size, crop=self.preparer.crop)
        except (OSError, ImageError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
            return torch.zeros((3, size, size), dtype=torch.uint8), label, "", f"{picture}: {reason}"
        digest = hashlib.sha256(body).hexdigest() if self.digests else ""
        return self.preparer.preprocess(pixels), label, digest, ""

    def loader(self, **order: Any) -> Iterator[tuple[Tensor, Tensor, Sequence[str], Sequence[str]]]:
        """Batches of what `__getitem__` gives, in the `order` that `DataLoader` takes."""
        return iter(DataLoader(self, num_workers=self.workers, worker_init_fn=ignore_ctrl_c, **order))

    def batches(self, chosen: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """As `InMemory.batches`; a file that was readable before may no longer be."""
        for pixels, labels, _, problems in self.loader(batch_sampler=[indices.tolist() for indices in chosen]):
            if problem := max(problems):
                raise TrainingError(f"a picture changed while training: {problem}")
            yield pixels, labels


Split = InMemory | Decoded


def in_order(count: int, size: int) -> Sequence[Tensor]:
    """The indices of each batch of `count` images."""
    return torch.split(torch.arange(count), size)


def shuffled(count: int, size: int, generator: torch.Generator, weights: Tensor | None = None) -> Sequence[Tensor]:
    """The same, drawn: each image once or, with `weights` float (count,), each time any, in their proportion.

    Without a last batch of one: batch normalisation cannot learn from it.
    """
    if weights is None:
        drawn = torch.randperm(count, generator=generator)
    else:
        drawn = torch.multinomial(weights, count, replacement=True, generator=generator)
    batches = torch.split(drawn, size)
    return batches[:-1] if size > 1 and len(batches) > 1 and len(batches[-1]) == 1 else batches


def ignore_ctrl_c(_worker: int) -> None:
    """Ctrl-C reaches the whole process group; only the parent decides what it means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass(frozen=True)
class Prepared:
    """Splits ready for training, the `fingerprint` of the data, and which splits `shared` how many pictures.

    The fingerprint is the SHA-256 over one sorted line an image: whether it is of `test` or another split or else for
    fitting, its class, the SHA-256 of its bytes (a file's, or an array's pixels). File names, order and how `train` and
    `val` are divided do not change it. `validation` does tell which images `val` has: the SHA-256 over theirs, sorted;
    empty without.
    """

    splits: Mapping[str, Split]
    fingerprint: str
    validation: str
    shared: Mapping[tuple[str, str], int]

    def on(self, device: torch.device) -> "Prepared":
        """The same, with the pixels that are kept on a GPU, where they fit beside a model."""
        kept = [split for split in self.splits.values() if isinstance(split, InMemory)]
        size = sum(split.pixels.nbytes for split in kept)
        if device.type != "cuda" or size > torch.cuda.mem_get_info(device)[0] * GPU_SHARE:
            return self
        moved = {
            name: replace(split, pixels=split.pixels.to(device)) if isinstance(split, InMemory) else split
            for name, split in self.splits.items()
        }
        return replace(self, splits=moved)


def prepare(
    source: Source, input_size: int, crop: float, workers: int | None, run: Path, skip_bad: bool = False
) -> Prepared:
    """Decode every picture of every split once, with progress.

    Unreadable ones are refused, listed in the folder `run` where they are many; with `skip_bad` they are left out, and
    listed in `run`/quarantine.csv.

    The preparer is a classifier without a network: all that `preprocess` needs, and small enough to send to workers.
    """
    preparer = Classifier(nn.Identity(), input_size=input_size, crop=crop, mean=(0, 0, 0), std=(1, 1, 1))
    count = sum(map(len, source.splits.values()))
    kept = count * 3 * input_size**2 <= MEMORY
    splits: dict[str, Split] = {}
    lines, unreadable = list[str](), list[str]()
    digests_of: dict[str, set[str]] = {}
    validation = ""
    with bar(count, "checking") as progress:
        for name, images in source.splits.items():
            role = "fit" if name in ("train", "val") else name
            decoded = Decoded(images, preparer, processes_for(workers, images))
            memory = torch.empty((len(images) if kept else 0, 3, input_size, input_size), dtype=torch.uint8)
            found = list[str]()
            hashed = replace(decoded, digests=True)
            for pixels, labels, digests, problems in hashed.loader(batch_size=CHECKED_AT_ONCE):
                if kept:
                    memory[len(found) : len(found) + len(labels)] = pixels
                found += digests
                unreadable += filter(None, problems)
                progress.update(len(labels))
            digests_of[name] = set(found) - {""}
            if name == "val":
                validation = hashlib.sha256("\n".join(sorted(filter(None, found))).encode()).hexdigest()
            kinds = [source.classes[label] for label in images.labels.tolist()]
            lines += [f"{role} {kind} {digest}\n" for kind, digest in zip(kinds, found, strict=True) if digest]
            splits[name] = InMemory(memory, images.labels) if kept else decoded
            if not all(found):
                good = torch.tensor([index for index, digest in enumerate(found) if digest], dtype=torch.int64)
                splits[name] = splits[name].take(good)
    if unreadable and not skip_bad:
        raise TrainingError(refusal(unreadable, run / "unreadable.txt"))
    if unreadable:
        quarantine(unreadable, run / "quarantine.csv")
        for name, split in splits.items():
            if missing := sorted(set(range(len(source.classes))) - set(split.labels.tolist())):
                raise TrainingError(f"--skip-bad leaves no picture of {source.classes[missing[0]]} in {name}")
    pairs = combinations(digests_of, 2)
    shared = {(a, b): len(both) for a, b in pairs if (both := digests_of[a] & digests_of[b])}
    return Prepared(splits, hashlib.sha256("".join(sorted(lines)).encode()).hexdigest(), validation, shared)


def processes_for(workers: int | None, images: Images) -> int:
    """How many workers decode: none for pixels, else as asked for, else one a core, at most 8, and none for a few."""
    if isinstance(images.pictures, Tensor) or (workers is None and len(images) < 2 * CHECKED_AT_ONCE):
        return 0
    return min(8, os.cpu_count() or 1) if workers is None else workers


def refusal(problems: Sequence[str], listing: Path) -> str:
    """What to say of unreadable pictures: all of them, or the first `LISTED` and a `listing` of all."""
    told = "; ".join(problems[:LISTED])
    if len(problems) > LISTED:
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("\n".join(problems) + "\n", encoding="utf-8", errors="surrogateescape")
        told += f"; the first {LISTED} are shown, all are in {listing}"
    return f"{len(problems)} unreadable pictures: {told}; repair, convert or remove them"


def quarantine(problems: Sequence[str], listing: Path) -> None:
    """List the pictures that were left out, and why, and say so."""
    listing.parent.mkdir(parents=True, exist_ok=True)
    with listing.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("file", "problem"))
        rows.writerows(problem.split(": ", 1) for problem in problems)
    say(f"skipped   {len(problems)} unreadable pictures, listed in {listing}")
