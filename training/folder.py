"""A folder in ImageFolder layout: class/ folders of pictures, perhaps below train/, val/ and test/."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from training.data import Images, Source
from training.errors import TrainingError

# Files that are meant as pictures; those of a format that `models.decode` refuses are reported, other files ignored.
SUFFIXES = set(".jpg .jpeg .jpe .jfif .mpo .png .webp .gif .bmp .tif .tiff .heic .heif .avif .jp2 .ppm .ico".split())  # noqa: SIM905
SPLITS = ("train", "val", "test")
SHOWN = 20  # files that a refusal lists


def load(folder: Path) -> Source:
    """Find every picture, without opening any.

    Raises:
        TrainingError: no pictures, fewer than two classes, an empty class, or classes that differ between splits.
    """
    if not folder.is_dir():
        raise TrainingError(f"--data {folder}: no such folder; give shapes10, cifar10 or a folder of class folders")
    roots = {name: folder / name for name in SPLITS if folders_in(folder / name)}
    if "train" not in roots:
        if roots:
            raise TrainingError(f"{folder} has {' and '.join(roots)}/ but no train/ with class folders; add it")
        roots = {"train": folder}
    found = {name: {kind.name: pictures_in(kind) for kind in folders_in(root)} for name, root in roots.items()}
    classes = tuple(found["train"])
    if not any(pictures for kinds in found.values() for pictures in kinds.values()):
        raise TrainingError(
            f"{folder} holds no pictures below class folders; lay them out as {folder}/CLASS/picture.jpg"
        )
    if len(classes) < 2:
        raise TrainingError(
            f"{roots['train']} holds one class, {classes[0]}; a classifier needs two or more class folders"
        )
    for name, kinds in found.items():
        check(roots[name], kinds, classes)
    return Source(name_of(folder), classes, {name: gathered(kinds) for name, kinds in found.items()})


def check(root: Path, kinds: Mapping[str, Sequence[Path]], classes: Sequence[str]) -> None:
    """Refuse a split whose classes are not those of `train`, or one of whose classes is empty."""
    if differing := sorted(kinds.keys() ^ set(classes)):
        told = ", ".join(f"{kind} ({'missing' if kind in classes else 'not in train'})" for kind in differing[:SHOWN])
        raise TrainingError(
            f"{root} has other classes than train/: {told}; {len(differing)} in all. Make them the same"
        )
    if empty := [kind for kind, pictures in kinds.items() if not pictures]:
        raise TrainingError(
            f"{root} has {len(empty)} class folders without a picture: {', '.join(empty[:SHOWN])}; fill or remove them"
        )


def folders_in(folder: Path) -> list[Path]:
    """The visible folders in `folder`, by name; none where it is no folder."""
    if not folder.is_dir():
        return []
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__")))


def pictures_in(folder: Path) -> list[Path]:
    """Every visible picture below `folder`, by path."""
    return sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )


def gathered(kinds: Mapping[str, Sequence[Path]]) -> Images:
    """All classes' pictures one after the other, labelled by the class's place."""
    labels = [torch.full((len(pictures),), label) for label, pictures in enumerate(kinds.values())]
    return Images([path for pictures in kinds.values() for path in pictures], torch.cat(labels))


def name_of(folder: Path) -> str:
    """The folder's name in the characters that a model's name may have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-._")[:128] or "folder"


def refusal(problems: Sequence[str], listing: Path) -> TrainingError:
    """What to say of unreadable pictures: all of them, or the first `SHOWN` and a `listing` of all."""
    more = ""
    if len(problems) > SHOWN:
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("\n".join(problems) + "\n", encoding="utf-8")
        more = f"; the first {SHOWN} are shown, all are in {listing}"
    told = "; ".join(problems[:SHOWN])
    return TrainingError(f"{len(problems)} unreadable pictures: {told}{more}. Repair, convert or remove them")
