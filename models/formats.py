"""Pictures as files: the formats that are accepted unless something else is asked for, and what counts as a picture.

Apart from `models.decode` so that it is read without torch.
"""

import os
from pathlib import Path

FORMATS = ("JPEG", "PNG", "WEBP")
KNOWN_FORMATS = (*FORMATS, "GIF", "BMP", "TIFF")
MAX_PIXELS = 40_000_000
# Files that are meant as pictures; those of a format that `models.decode` refuses are reported, other files ignored.
SUFFIXES = set(".jpg .jpeg .jpe .jfif .mpo .png .webp .gif .bmp .tif .tiff .heic .heif .avif .jp2 .ppm .ico".split())  # noqa: SIM905


def pictures_in(folder: Path) -> list[Path]:
    """Every visible picture below `folder`, by path.

    Raises:
        OSError: a folder that may not be read; `Path.rglob` would leave it out.
    """

    def fail(error: OSError) -> None:
        raise error

    found: list[Path] = []
    for at, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not hidden(name)]
        found += [Path(at, name) for name in (*folders, *names) if not hidden(name)]  # a folder called so is told
    return sorted(path for path in found if path.suffix.lower() in SUFFIXES)


def hidden(name: str) -> bool:
    """Whether a name is a program's or a file system's own, like .ipynb_checkpoints, __MACOSX, @eaDir or lost+found."""
    return name.startswith((".", "__", "@eaDir")) or name == "lost+found"
