"""The environment of peers that are not among our own dependencies: built on demand, our packages seen through it."""

import subprocess
import sys
import sysconfig
from pathlib import Path

from benchmarks.errors import BenchmarkError

FOLDER = Path(__file__).parent / ".peers"
PEERS = ("mosec==0.9.8",)


def python() -> str:
    """The interpreter of the peers' environment; downloads and builds it the first time.

    Raises:
        BenchmarkError: the packages cannot be had; the message is uv's.
    """
    interpreter = FOLDER / "bin" / "python"
    uv = Path(sys.executable).with_name("uv")
    if not (FOLDER / "bin" / "mosec").is_file():
        run(str(uv), "venv", "--quiet", "--clear", "--python", sys.executable, str(FOLDER))
        site = next((FOLDER / "lib").glob("python*/site-packages"))
        (site / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
        run(str(uv), "pip", "install", "--quiet", "--python", str(interpreter), *PEERS)
    return str(interpreter)


def run(*command: str) -> None:
    """Run one step of the build."""
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if finished.returncode != 0:
        raise BenchmarkError(f"{' '.join(command[:3])}: {finished.stderr.strip()[-500:]}")
