"""What every request passes is compiled of its sources, and stays them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import service as package
from service.compile import MODULES
from tests import running
from tests.pictures import noise

HOUSE = Path(package.__file__).parents[1]


def test_what_was_compiled_is_taken_where_it_is_no_older_than_its_sources(tmp_path: Path) -> None:
    for name in MODULES:
        (tmp_path / f"{name}.cpython-311-x86_64-linux-gnu.so").touch()
    latest = max((HOUSE / "service" / f"{name}.py").stat().st_mtime for name in MODULES)

    assert package.fits(tmp_path)
    os.utime(tmp_path / "call.cpython-311-x86_64-linux-gnu.so", (latest, latest - 60 * 60 * 24 * 365 * 50))
    assert not package.fits(tmp_path)
    assert not package.fits(tmp_path / "none")


def test_these_tests_ask_what_was_compiled() -> None:
    program = "import service.call; print(service.call.__file__)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=HOUSE)
    if not package.compiled:
        pytest.skip("not compiled, or changed since: make test compiles")

    assert found.stdout.endswith(".so\n")


def test_the_sources_alone_serve_as_well(model: Path, tmp_path: Path) -> None:
    for name in "models", "service":
        shutil.copytree(HOUSE / name, tmp_path / name, ignore=shutil.ignore_patterns("compiled", "__pycache__"))
    with running.serving(model, PYTHONPATH=str(tmp_path), PYTHONSAFEPATH="1") as service:
        assert 'compiled="false"' in service.get("/metrics").text
        assert 200 == service.post(noise()).status_code


@pytest.mark.parametrize("compiler", ["no-such-compiler", "no-such-compiler -O1"])
def test_without_a_compiler_one_line_says_so(compiler: str) -> None:
    env = running.environment() | {"CC": compiler}
    found = subprocess.run(
        [sys.executable, "-m", "service.compile"], capture_output=True, text=True, env=env, cwd=HOUSE
    )

    assert 2 == found.returncode
    assert "not compiled: no C compiler (no-such-compiler). The service runs as plain Python, a fifth slower.\n" == (
        found.stderr
    )
