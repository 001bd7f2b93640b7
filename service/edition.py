"""An edition: a version of the model as a file that has been looked at, and whether it may take another's place."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from models import manifest as manifests
from models.errors import ArtifactError
from models.manifest import Manifest
from service import album, store
from service.board import LONGEST_DOCUMENT
from service.store import Store


@dataclass(frozen=True)
class Edition:
    """A version as a file that has been looked at: what workers must find in it, and an engine's plan if one fits."""

    path: Path
    manifest: Manifest
    plan: dict[str, Any] | None = None


class Found(NamedTuple):
    """A model before it is served: the version to begin with, where others are, where images are kept if they are."""

    edition: Edition
    store: Store
    album: Path | None = None


def look_for_models(model: Path, images: Path | None = None) -> list[Found]:
    """What there is to serve at `model`, a file or a folder; `images` is where each one's are kept, if they are.

    Raises:
        ArtifactError, SettingsError: something in them is wrong; one line.
    """
    places = store.find(model)
    found: list[Found] = []
    for there, path in places:
        manifest = manifests.read(path)
        if len(places) > 1 and manifest.name != there.folder.name:
            raise ArtifactError(
                path,
                f"a model called as its folder is, {there.folder.name}, as there are others beside it",
                f"{manifest.name}; rename the folder, or train with --name {there.folder.name}",
            )
        folder = images
        if folder:
            folder = album.prepare(folder, manifest.name if len(places) > 1 else "", manifest.classes)
        found.append(Found(Edition(path, manifest), there, folder))
    return found


def inspected(path: Path, serving: Edition) -> Edition | str:
    """The version in a file, if it can take the place of the one that serves; else why not."""
    try:
        manifest = manifests.read(path)
    except ArtifactError as error:
        return str(error)
    except Exception as error:  # the file may be gone or another meanwhile, and somebody waits for an answer
        return f"version {path.stem} cannot be read: {type(error).__name__}"
    if difference := differs(serving.manifest, manifest):
        return f"version {path.stem} cannot take over from the one that serves: {difference}; serve it by itself"
    if len(manifest.model_dump_json()) > LONGEST_DOCUMENT // 4:  # characters may have four bytes
        return f"the manifest of version {path.stem} is too large"
    if (manifest.version, manifest.digest) == (serving.manifest.version, serving.manifest.digest):
        return f"version {path.stem} is the one that serves"
    if manifest.version == serving.manifest.version:
        return f"version {path.stem} calls itself {manifest.version}, as the one that serves does; train with --version"
    return Edition(path, manifest, serving.plan if alike(serving.manifest, manifest) else None)


def alike(one: Manifest, other: Manifest) -> bool:
    """Whether what pays for one pays for the other."""
    return (one.architecture, one.input_size, one.crop) == (other.architecture, other.input_size, other.crop)


def differs(old: Manifest, new: Manifest) -> str | None:
    """What clients would notice if `new` took the place of `old`, apart from its answers, if anything."""
    for told, before, after in (
        ("name", old.name, new.name),
        ("input size", old.input_size, new.input_size),
        ("classes", old.classes, new.classes),
    ):
        if before != after:
            return f"its {told} are not the same" if told == "classes" else f"its {told} is {after}, not {before}"
    return None
