"""Data: named splits of pictures, and how pictures become the pixels that a classifier takes.

Whatever the source, a picture is decoded by `models.decode` and resized by the classifier's own `preprocess`, once
before the first epoch. Pixels of up to `MEMORY` bytes are then kept; larger sets are decoded anew in every epoch, by
workers.
"""

import hashlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from models.classifier import Classifier
from models.decode import decode
from models.errors import ImageError
from training.errors import TrainingError

MEMORY = 1 << 30  # bytes of pixels; 7,133 pictures of 224 x 224
CHECKED_AT_ONCE = 32
Batch = tuple[Tensor, Tensor]  # pixels uint8 (N, 3, S, S), labels int64 (N,)


@dataclass(frozen=True)
class Images:
    """Pictures, uint8 (N, 3, H, W) or files, and their labels int64 (N,)."""

    pictures: Tensor | Sequence[Path]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> "Images":
        """The pictures at `indices` int64 (M,), in that order."""
        if isinstance(self.pictures, Tensor):
            return Images(self.pictures[indices], self.labels[indices])
        return Images([self.pictures[i] for i in indices.tolist()], self.labels[indices])


@dataclass(frozen=True)
class Source:
    """A data set as it comes: `splits` has `train`, and perhaps `val`, `test` and others to be told beside it."""

    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, Images]

    def validated(self, val: float, seed: int) -> "Source":
        """With the validation split that the recipe asks for: none at 0, its own, or one drawn from `train`."""
        splits = dict(self.splits)
        if val == 0:
            splits.pop("val", None)
        elif "val" not in splits:
            splits["train"], splits["val"] = divided(splits["train"], val, seed)
        return Source(self.name, self.classes, splits)


def divided(images: Images, val: float, seed: int) -> tuple[Images, Images]:
    """Draw `val`, a share (below 1) or a number, of each class in equal parts, by seed: the rest and the drawn.

    Raises:
        TrainingError: a class would have nothing left to train or validate on.
    """
    share = val if val < 1 else val / len(images)
    generator = torch.Generator().manual_seed(seed)
    rest, drawn = [], []
    for label in range(int(images.labels.max()) + 1):
        members = torch.nonzero(images.labels == label).flatten()
        count = max(1, round(share * len(members)))
        if count >= len(members):
            raise TrainingError(
                f"--val {val:g} takes all {len(members)} images of a class; give less, or 0 for no validation"
            )
        members = members[torch.randperm(len(members), generator=generator)]
        drawn.append(members[:count])
        rest.append(members[count:])
    return images.take(torch.cat(rest).sort().values), images.take(torch.cat(drawn).sort().values)


class Split(Protocol):
    """Pixels of one split, in batches, and their labels int64 (N,)."""

    @property
    def labels(self) -> Tensor: ...

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Batches of up to `size`: all images in order, or shuffled by `generator`."""


@dataclass(frozen=True)
class InMemory:
    """A split whose pixels uint8 (N, 3, S, S) fit in memory."""

    pixels: Tensor
    labels: Tensor

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """See `Split.batches`."""
        for indices in order(len(self.labels), size, generator):
            yield self.pixels[indices], self.labels[indices]


@dataclass(frozen=True)
class Decoded(Dataset[tuple[Tensor, Tensor]]):
    """A split that workers decode anew for every epoch."""

    images: Images
    preparer: Classifier
    workers: int

    @property
    def labels(self) -> Tensor:
        return self.images.labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Pixels uint8 (3, S, S) and label int64 ()."""
        return pixels_of(self.images.pictures[index], self.preparer)[0], self.images.labels[index]

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """See `Split.batches`.

        Raises:
            TrainingError: a file that was readable before is no longer.
        """
        chosen = [indices.tolist() for indices in order(len(self), size, generator)]
        try:
            yield from DataLoader(
                self, batch_sampler=chosen, num_workers=self.workers, worker_init_fn=ignore_ctrl_c, generator=generator
            )
        except (OSError, ImageError) as error:
            raise TrainingError(f"a picture changed while training: {str(error).splitlines()[-1]}") from None


def order(count: int, size: int, generator: torch.Generator | None) -> list[Tensor]:
    """The indices of each batch; shuffled, without a last batch of one: batch normalisation cannot learn from it."""
    if generator is None:
        return list(torch.split(torch.arange(count), size))
    batches = list(torch.split(torch.randperm(count, generator=generator), size))
    return batches[:-1] if len(batches) > 1 and len(batches[-1]) == 1 else batches


def ignore_ctrl_c(_worker: int) -> None:
    """Ctrl-C reaches the whole process group; only the parent decides what it means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def pixels_of(picture: Tensor | Path, preparer: Classifier) -> tuple[Tensor, bytes]:
    """A picture's pixels uint8 (3, S, S), and the bytes that it came in.

    Raises:
        OSError, ImageError: the file cannot be read or decoded.
    """
    if isinstance(picture, Tensor):
        return preparer.preprocess(picture), picture.numpy().tobytes()
    body = picture.read_bytes()
    return preparer.preprocess(decode(body, input_size=preparer.input_size, crop=preparer.crop)), body


def preparer(input_size: int, crop: float) -> Classifier:
    """A classifier without a network: all that `preprocess` needs, and small enough to send to workers."""
    return Classifier(nn.Identity(), input_size=input_size, crop=crop, mean=(0, 0, 0), std=(1, 1, 1))


@dataclass(frozen=True)
class Checked(Dataset[tuple[Tensor | None, str, str]]):
    """Every picture decoded once: its pixels if they are `kept`, its bytes' SHA-256, and what is wrong with it."""

    pictures: Tensor | Sequence[Path]
    preparer: Classifier
    kept: bool

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor | None, str, str]:
        """Pixels uint8 (3, S, S) or None, digest, problem (empty where there is none)."""
        try:
            pixels, body = pixels_of(self.pictures[index], self.preparer)
        except (OSError, ImageError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            return None, "", f"{self.pictures[index]}: {reason}"
        return pixels if self.kept else None, hashlib.sha256(body).hexdigest(), ""


@dataclass(frozen=True)
class Prepared:
    """Splits ready for training, and the `fingerprint` of the data.

    The fingerprint is the SHA-256 over one sorted line an image: whether it is of `test` or another split or else for
    fitting, its class, the SHA-256 of its bytes (a file's, or an array's pixels). File names, order and how `train` and
    `val` are divided do not change it.
    """

    splits: Mapping[str, Split]
    fingerprint: str


def prepare(
    source: Source, input_size: int, crop: float, workers: int | None, tick: Callable[[int], object]
) -> tuple[Prepared, list[str]]:
    """Decode every picture of every split once; `tick` is told how many are done. Also returns what is unreadable."""
    preparing = preparer(input_size, crop)
    count = sum(map(len, source.splits.values()))
    kept = count * 3 * input_size**2 <= MEMORY
    splits: dict[str, Split] = {}
    lines, problems = [], []
    for name, images in source.splits.items():
        processes = 0 if isinstance(images.pictures, Tensor) else processes_for(workers, len(images))
        loader = DataLoader(
            Checked(images.pictures, preparing, kept),
            batch_size=CHECKED_AT_ONCE,
            num_workers=processes,
            collate_fn=list,
            worker_init_fn=ignore_ctrl_c,
        )
        pixels = torch.zeros((len(images) if kept else 0, 3, input_size, input_size), dtype=torch.uint8)
        done = 0
        role = "fit" if name in ("train", "val") else name
        for items in loader:
            for picture, digest, problem in items:
                if problem:
                    problems.append(problem)
                elif kept:
                    pixels[done] = picture
                lines.append(f"{role} {source.classes[int(images.labels[done])]} {digest}\n")
                done += 1
            tick(len(items))
        splits[name] = InMemory(pixels, images.labels) if kept else Decoded(images, preparing, processes)
    fingerprint = hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
    return Prepared(splits, fingerprint), problems


def processes_for(workers: int | None, images: int) -> int:
    """How many workers decode: as asked for, else one a core, at most 8, and none for a handful of images."""
    if workers is not None:
        return workers
    return 0 if images < 2 * CHECKED_AT_ONCE else min(8, os.cpu_count() or 1)
