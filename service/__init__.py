"""Serves an artifact: python -m service."""

from hashlib import sha256
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

__version__ = "0.1.0"

HERE = Path(__file__).parent
COMPILED = HERE / "compiled" / "service"  # by service/compile.py
MADE_OF = "made_of"  # the file beside what was compiled that tells of what


def sources() -> str:
    """A digest of this package's modules as they are now, and of the Python that runs them."""
    digest = sha256(EXTENSION_SUFFIXES[0].encode())
    for path in sorted(HERE.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def fits(folder: Path) -> bool:
    """Whether what lies there was compiled of these sources, for this Python."""
    try:
        return (folder / MADE_OF).read_text() == sources()
    except OSError:
        return False


compiled = fits(COMPILED)
if compiled:
    __path__.insert(0, str(COMPILED))
