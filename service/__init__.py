"""Serves an artifact: python -m service."""

from pathlib import Path

__version__ = "0.1.0"

HERE = Path(__file__).parent
COMPILED = HERE / "compiled" / "service"  # by service/compile.py


def fits(folder: Path) -> bool:
    """Whether the modules in it were compiled of the sources that lie here, as far as their times tell."""
    names = [(found, HERE / f"{found.name.partition('.')[0]}.py") for found in folder.glob("*.so")]
    times = [(found.stat().st_mtime, source.stat().st_mtime) for found, source in names if source.exists()]
    return bool(times) and all(made >= source for made, source in times)


compiled = fits(COMPILED)
if compiled:
    __path__.insert(0, str(COMPILED))
