"""Where models are, and each one's versions: files NAME/VERSION.pt, or one file alone with what lies beside it.

models/
  photos/            called as the artifacts in it call themselves, if there are other models beside it
    1.pt  2.pt       versions, called by their files' names
    current          optional: the one to serve, as a symbolic link or as text; watched while the service runs
"""

import re
from dataclasses import dataclass
from pathlib import Path

from models import manifest as manifests
from models.errors import ArtifactError
from models.formats import hidden

SUFFIX, POINTER = ".pt", "current"
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Store:
    """The folder with a model's versions; only what lies in it can be loaded."""

    folder: Path

    def names(self) -> list[str]:
        """The versions that are there.

        Raises:
            OSError: the folder cannot be read; `glob` would find nothing.
        """
        files = [path for path in self.folder.iterdir() if path.suffix == SUFFIX]
        return sorted(path.stem for path in files if VERSION.fullmatch(path.stem))

    def path(self, name: str) -> Path:
        """The file of a version.

        Raises:
            LookupError: there is none of that name; the message says which there are.
        """
        name = name.removesuffix(SUFFIX)
        if name not in self.names():
            raise LookupError(f"no version {name[:128]}; there are: {', '.join(self.names()) or 'none'}")
        return self.folder / (name + SUFFIX)

    def current(self) -> str | None:
        """The version that the pointer names; None without a pointer."""
        pointer = self.folder / POINTER
        try:
            told = str(pointer.readlink()) if pointer.is_symlink() else pointer.read_text("utf-8", "replace")
        except (FileNotFoundError, IsADirectoryError):
            return None
        return Path(told.strip()).name.removesuffix(SUFFIX)


def find(model: Path) -> list[tuple[Store, Path]]:
    """The stores for `--model`, a file or a folder, each with the file to begin with: the current one, else the newest.

    Raises:
        ArtifactError: there is none, or it is not clear which.
    """
    try:
        if not model.is_dir():
            return [(Store(model.parent), model)]
        alone = Store(model)
        below = [Store(folder) for folder in sorted(model.iterdir()) if folder.is_dir() and not hidden(folder.name)]
        stores = [alone] if alone.names() else [store for store in below if store.names()]
    except OSError as error:
        found = f"{error.strerror}: {error.filename}"
        raise ArtifactError(model, "an artifact or a folder of models that can be read", found) from None
    if not stores:
        raise ArtifactError(model, "versions of a model, NAME/VERSION.pt", "none")
    return [(store, first(store)) for store in stores]


def first(store: Store) -> Path:
    """The file of the current version, else the artifact that was made last."""
    try:
        current = store.current()
        if current is not None:
            return store.path(current)
    except (LookupError, OSError) as error:
        raise ArtifactError(store.folder / POINTER, "the name of a version", str(error)) from None
    return max(map(store.path, store.names()), key=lambda path: manifests.read(path).created)
