"""What every request passes is compiled of its sources, and stays them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import service as package
from service import MADE_OF
from tests import running
from tests.pictures import noise

HOUSE = Path(package.__file__).parents[1]


def copy(*packages: str, to: Path) -> None:
    """The sources alone."""
    for name in packages:
        shutil.copytree(HOUSE / name, to / name, ignore=shutil.ignore_patterns("compiled", "__pycache__"))


def test_what_was_compiled_is_taken_only_where_no_source_has_changed_since(tmp_path: Path) -> None:
    copy("service", to=tmp_path)
    (tmp_path / "service" / "compiled" / "service").mkdir(parents=True)
    made_of, changed = tmp_path / "service" / "compiled" / "service" / MADE_OF, tmp_path / "service" / "transport.py"

    def taken() -> bool:
        program = "import service; print(len(service.__path__))"
        told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
        return told.stdout == "2\n"

    assert not taken()
    made_of.write_text(package.sources())
    assert taken()
    changed.write_text(changed.read_text() + "# another\n")  # not compiled itself, but others are by what it says
    os.utime(changed, (0, 0))
    assert not taken()


def test_these_tests_ask_what_was_compiled() -> None:
    program = "import service.call; print(service.call.__file__)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=HOUSE)
    if not package.compiled:
        pytest.skip("not compiled, or changed since: make test compiles")

    assert found.stdout.endswith(".so\n")


def test_the_sources_alone_serve_as_well(model: Path, tmp_path: Path) -> None:
    copy("models", "service", to=tmp_path)
    with running.serving(model, PYTHONPATH=str(tmp_path), PYTHONSAFEPATH="1") as service:
        assert 'compiled="false"' in service.get("/metrics").text
        assert 200 == service.post(noise()).status_code


@pytest.mark.parametrize("compiler", ["no-such-compiler", "no-such-compiler -O1"])
def test_without_a_compiler_one_line_says_so(compiler: str, tmp_path: Path) -> None:
    copy("service", to=tmp_path)
    env = running.environment() | {"CC": compiler}
    command = [sys.executable, "-m", "service.compile"]
    found = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)

    assert 2 == found.returncode
    assert "not compiled: no C compiler (no-such-compiler). The service runs as plain Python, which is slower.\n" == (
        found.stderr
    )
