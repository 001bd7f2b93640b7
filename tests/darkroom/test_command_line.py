import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

from darkroom.__main__ import COMMANDS
from service import __version__
from tests.running import environment

HOUSE = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")
SAME = {
    "train": ("training", "train"),
    "resume": ("training", "resume"),
    "check": ("training", "check"),
    "compare": ("training", "compare"),
    "evaluate": ("training", "evaluate"),
    "export": ("training", "export"),
    "serve": ("service",),
    "models": ("service", "models"),
    "bench": ("benchmarks",),
}


def run(*command: str, cwd: Path = HOUSE, path: Path = HOUSE) -> subprocess.CompletedProcess[str]:
    env = environment() | {"PYTHONPATH": str(path)}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=cwd, env=env, check=False)


def darkroom(*arguments: str, cwd: Path = HOUSE) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "darkroom", *arguments, cwd=cwd)


@pytest.mark.parametrize("asked", [[], ["--help"], ["-h"]])
def test_help_is_one_screen_that_names_every_command(asked: Sequence[str]) -> None:
    told = darkroom(*asked)

    assert 0 == told.returncode
    assert len(told.stdout.splitlines()) <= 24
    assert all(f"  {command} " in told.stdout for command in COMMANDS)


def test_the_version_is_the_services() -> None:
    assert f"darkroom {__version__}\n" == darkroom("--version").stdout


@pytest.mark.parametrize(("word", "advice"), [("trian", "did you mean train?"), ("deploy", "see darkroom --help")])
def test_an_unknown_command_is_told_in_one_line(word: str, advice: str) -> None:
    told = darkroom(word, "--data", "shapes10")

    assert (2, f"darkroom: no command '{word}'; {advice}\n") == (told.returncode, told.stderr)


@pytest.mark.parametrize(("command", "flag"), [("train", "--help"), *((command, "--no-such-flag") for command in SAME)])
def test_a_command_is_the_module_that_it_stands_for(command: str, flag: str) -> None:
    ours, theirs = darkroom(command, flag), run(sys.executable, "-m", *SAME[command], flag)

    assert ours.stdout or ours.stderr
    assert (theirs.returncode, theirs.stdout, theirs.stderr) == (ours.returncode, ours.stdout, ours.stderr)


def test_every_command_is_tested() -> None:
    assert {*SAME, "predict"} == set(COMMANDS)


def test_measuring_needs_a_checkout(tmp_path: Path) -> None:
    told = darkroom("bench", "compare", cwd=tmp_path)

    assert 2 == told.returncode
    assert "a checkout of Darkroom" in told.stderr
    assert 1 == told.stderr.count("\n")


def test_asking_needs_no_torch() -> None:
    told = run(sys.executable, "-c", "import darkroom.predict, sys; print({'torch', 'training'} & {*sys.modules})")

    assert "set()\n" == told.stdout


@pytest.mark.slow
def test_pip_install_gives_a_command_that_takes_no_other_package_for_ours(tmp_path: Path) -> None:
    source, site, elsewhere = (tmp_path / name for name in ("source", "site", "elsewhere"))
    packages = tomllib.loads((HOUSE / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    for package in {package.split(".")[0] for package in packages}:
        shutil.copytree(HOUSE / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(HOUSE / name, source)
    how = ["--offline", "--no-cache", "--no-deps", "--no-build-isolation", "--python", sys.executable]
    made = run(str(UV), "pip", "install", *how, "--target", str(site), str(source))
    assert 0 == made.returncode, made.stderr

    for name in ("models", "service", "training"):
        (elsewhere / name).mkdir(parents=True)
        (elsewhere / name / "__init__.py").write_text("raise SystemExit('this is not Darkroom')")
    for command, words in {"--version": __version__, "train": "--batch-size", "serve": "--max-batch-size"}.items():
        told = run(str(site / "bin" / "darkroom"), command, "--help", cwd=elsewhere, path=site)
        assert (0, "") == (told.returncode, told.stderr)
        assert words in told.stdout
    for package in packages:
        folder = package.replace(".", "/")
        kept = {path.name for path in (HOUSE / folder).iterdir() if path.is_file()}
        assert kept == {path.name for path in (site / folder).iterdir() if path.is_file()}, package
