"""A folder in ImageFolder layout: where its pictures lie, and what is wrong with how they do."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from models.formats import SUFFIXES, hidden, pictures_in
from training.data import Images, Source
from training.errors import TrainingError
from training.findings import Finding

MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG|GIF8|BM.{4}\0{4}|II\*\0|MM\0\*|RIFF....WEBP|....ftyp(heic|heix|mif1|avif)", re.DOTALL
)
SPLITS = ("train", "val", "test")
NEAR = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}
LISTED = 20  # classes or files that a refusal lists


@dataclass(frozen=True)
class Layout:
    """The pictures of each class of each split, by path, and what is wrong with how they lie."""

    folder: Path
    splits: Mapping[str, Mapping[str, Sequence[Path]]]
    findings: Sequence[Finding]

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of `train`."""
        return tuple(self.splits.get("train", ()))


def read_folder(folder: Path) -> Source:
    """Find every picture, without opening any.

    Raises:
        TrainingError: the first of what keeps the folder from being learnt from.
    """
    layout = survey(folder)
    if fatal := [finding for finding in layout.findings if finding.level == "fatal"]:
        raise TrainingError(fatal[0].told)
    return Source(name_of(folder), layout.classes, {name: gathered(kinds) for name, kinds in layout.splits.items()})


def survey(folder: Path) -> Layout:
    """How a folder's pictures lie; other files are opened only to see whether they are pictures.

    Raises:
        TrainingError: there is no such folder.
    """
    if not folder.is_dir():
        raise TrainingError(f"{folder}: no such folder; give shapes10, cifar10 or a folder of class folders")
    roots = {name: folder / name for name in SPLITS if folders_in(folder / name)}
    findings = list(misplaced(folder, roots))
    sound = not findings
    roots = roots or {"train": folder}
    splits = {name: {kind.name: pictures_in(kind) for kind in folders_in(root)} for name, root in roots.items()}
    if sound:  # else what follows from that would be told too
        findings += unlearnable(folder, roots, splits)
    findings += unused(folder, roots)
    return Layout(folder, splits, findings)


def misplaced(folder: Path, roots: Mapping[str, Path]) -> Iterator[Finding]:
    """Folders whose names are nearly a split's, and splits without `train`."""
    others = [entry for entry in folders_in(folder) if entry.name.lower() in NEAR and entry.name not in roots]
    # A class may be called `train`; beside a real train/, or with class folders in it, it is a misspelt split.
    if near := [entry.name for entry in others if "train" in roots or folders_in(entry)]:
        told = (
            f"{folder} has {' and '.join(near)}/, which is read neither as a split nor as a class: splits are called "
            "train/, val/ and test/ and hold class folders; rename or remove it"
        )
        yield Finding("misplaced_split", str(folder), told)
    elif roots and "train" not in roots:
        told = f"{folder} has {' and '.join(roots)}/ but no train/ with class folders; add it"
        yield Finding("no_train", str(folder), told)


def unlearnable(
    folder: Path, roots: Mapping[str, Path], splits: Mapping[str, Mapping[str, Sequence[Path]]]
) -> Iterator[Finding]:
    """What is wrong with the classes."""
    classes = tuple(splits["train"])
    if not any(pictures for kinds in splits.values() for pictures in kinds.values()):
        told = f"{folder} holds no pictures below class folders; lay them out as CLASS/picture.jpg"
        yield Finding("no_pictures", str(folder), told)
        return
    if len(classes) < 2:
        told = f"{roots['train']} holds one class, {classes[0]}; a classifier needs two or more"
        yield Finding("one_class", str(roots["train"]), told)
    for name, kinds in splits.items():
        root = roots[name]
        if differing := sorted(kinds.keys() ^ set(classes)):
            listed = (f"{kind} ({'missing' if kind in classes else 'not in train'})" for kind in differing[:LISTED])
            told = f"{root} has other classes than train/: {', '.join(listed)}; {len(differing)} in all"
            yield Finding("class_mismatch", str(root), f"{told}; make them the same")
        if empty := [kind for kind, pictures in kinds.items() if not pictures]:
            told = f"{root} has {len(empty)} class folders without a picture: {', '.join(empty[:LISTED])}"
            yield Finding("empty_class", str(root), f"{told}; fill or remove them")
    for name in classes:
        if name != name.encode("utf-8", "ignore").decode():
            told = f"{roots['train']} has a class folder whose name is no UTF-8, {name!a}; rename it"
            yield Finding("class_name", str(roots["train"]), told)
    alike: dict[str, list[str]] = {}
    for name in classes:
        alike.setdefault(" ".join(name.casefold().split()), []).append(name)
    for names in alike.values():
        if len(names) > 1:
            yield Finding("same_name", str(roots["train"]), ", ".join(names))


def unused(folder: Path, roots: Mapping[str, Path]) -> Iterator[Finding]:
    """Files that nothing is learnt from: pictures outside the class folders, and whatever has no picture's name."""
    used = [kind for root in roots.values() for kind in folders_in(root)]
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or any(map(hidden, path.relative_to(folder).parts)):
            continue
        if path.suffix.lower() not in SUFFIXES:
            yield Finding("unlisted" if looks_like_a_picture(path) else "other_file", str(path))
        elif not any(path.is_relative_to(kind) for kind in used):
            yield Finding("stray", str(path))


def looks_like_a_picture(path: Path) -> bool:
    """Whether a file begins as pictures do."""
    try:
        with path.open("rb") as file:
            return MAGIC.match(file.read(16)) is not None
    except OSError:
        return False


def folders_in(folder: Path) -> list[Path]:
    """The visible folders in `folder`, by name; none where it is no folder."""
    entries = folder.iterdir() if folder.is_dir() else ()
    return sorted(entry for entry in entries if entry.is_dir() and not hidden(entry.name))


def gathered(kinds: Mapping[str, Sequence[Path]]) -> Images:
    """All classes' pictures one after the other, labelled by the class's place."""
    labels = [torch.full((len(pictures),), label) for label, pictures in enumerate(kinds.values())]
    return Images([path for pictures in kinds.values() for path in pictures], torch.cat(labels))


def name_of(folder: Path) -> str:
    """The folder's name in the characters that a model's name may have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-._")[:128] or "folder"
