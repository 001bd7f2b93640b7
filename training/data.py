"""Data as it comes: named splits of labelled pictures, also from a folder in ImageFolder layout."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from training.errors import TrainingError

# Files that are meant as pictures; those of a format that `models.decode` refuses are reported, other files ignored.
SUFFIXES = set(".jpg .jpeg .jpe .jfif .mpo .png .webp .gif .bmp .tif .tiff .heic .heif .avif .jp2 .ppm .ico".split())  # noqa: SIM905
SPLITS = ("train", "val", "test")
NEAR = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}
LISTED = 20  # classes or files that a refusal lists


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
    """Draw `val`, a share (below 1) or a number, of each class in equal parts, by seed: the rest and the drawn."""
    share = val if val < 1 else val / len(images)
    generator = torch.Generator().manual_seed(seed)
    rest, drawn = [], []
    for label in range(int(images.labels.max()) + 1):
        members = torch.nonzero(images.labels == label).flatten()
        count = max(1, round(share * len(members)))
        if count >= len(members):
            raise TrainingError(f"--val {val:g} takes all {len(members)} images of a class; give less, or 0 for none")
        members = members[torch.randperm(len(members), generator=generator)]
        drawn.append(members[:count])
        rest.append(members[count:])
    return images.take(torch.cat(rest).sort().values), images.take(torch.cat(drawn).sort().values)


def read_folder(folder: Path) -> Source:
    """Find every picture, without opening any."""
    if not folder.is_dir():
        raise TrainingError(f"--data {folder}: no such folder; give shapes10, cifar10 or a folder of class folders")
    roots = {name: folder / name for name in SPLITS if folders_in(folder / name)}
    others = [entry for entry in folders_in(folder) if entry.name.lower() in NEAR and entry.name not in roots]
    # A class may be called `train`; beside a real train/, or with class folders in it, it is a misspelt split.
    if near := [entry.name for entry in others if "train" in roots or folders_in(entry)]:
        raise TrainingError(
            f"{folder} has {' and '.join(near)}/, which is read neither as a split nor as a class: splits are called "
            "train/, val/ and test/ and hold class folders; rename or remove it"
        )
    if "train" not in roots:
        if roots:
            raise TrainingError(f"{folder} has {' and '.join(roots)}/ but no train/ with class folders; add it")
        roots = {"train": folder}
    found = {name: {kind.name: pictures_in(kind) for kind in folders_in(root)} for name, root in roots.items()}
    classes = tuple(found["train"])
    if not any(pictures for kinds in found.values() for pictures in kinds.values()):
        raise TrainingError(f"{folder} holds no pictures below class folders; lay them out as CLASS/picture.jpg")
    if len(classes) < 2:
        raise TrainingError(f"{roots['train']} holds one class, {classes[0]}; a classifier needs two or more")
    for name, kinds in found.items():
        check(roots[name], kinds, classes)
    return Source(name_of(folder), classes, {name: gathered(kinds) for name, kinds in found.items()})


def check(root: Path, kinds: Mapping[str, Sequence[Path]], classes: Sequence[str]) -> None:
    """Refuse a split whose classes are not those of `train`, or one of whose classes is empty."""
    if differing := sorted(kinds.keys() ^ set(classes)):
        told = ", ".join(f"{kind} ({'missing' if kind in classes else 'not in train'})" for kind in differing[:LISTED])
        raise TrainingError(
            f"{root} has other classes than train/: {told}; {len(differing)} in all; make them the same"
        )
    if empty := [kind for kind, pictures in kinds.items() if not pictures]:
        raise TrainingError(
            f"{root} has {len(empty)} class folders without a picture: {', '.join(empty[:LISTED])}; fill or remove them"
        )


def folders_in(folder: Path) -> list[Path]:
    """The visible folders in `folder`, by name; none where it is no folder."""
    entries = folder.iterdir() if folder.is_dir() else ()
    return sorted(entry for entry in entries if entry.is_dir() and not hidden(entry.name))


def pictures_in(folder: Path) -> list[Path]:
    """Every visible picture below `folder`, by path."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not any(map(hidden, path.relative_to(folder).parts))
    )


def hidden(name: str) -> bool:
    """Whether a name is a program's own, like .ipynb_checkpoints, __MACOSX or @eaDir."""
    return name.startswith((".", "__", "@eaDir"))


def gathered(kinds: Mapping[str, Sequence[Path]]) -> Images:
    """All classes' pictures one after the other, labelled by the class's place."""
    labels = [torch.full((len(pictures),), label) for label, pictures in enumerate(kinds.values())]
    return Images([path for pictures in kinds.values() for path in pictures], torch.cat(labels))


def name_of(folder: Path) -> str:
    """The folder's name in the characters that a model's name may have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-._")[:128] or "folder"
