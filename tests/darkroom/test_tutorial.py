"""docs/tutorial.md, done: its commands and its Python, in order, in an empty folder."""

import doctest
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.running import announced, end, environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

HOUSE = Path(__file__).parents[2]
TUTORIAL = HOUSE / "docs" / "tutorial.md"
ADDRESS = "http://127.0.0.1:8000"  # as the tutorial names it
NEEDS_DATA = re.compile("--weights|finetuned")  # pretrained weights
SHOWN = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def blocks() -> list[tuple[str, str]]:
    """Fenced blocks, by kind and text."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", TUTORIAL.read_text(), re.MULTILINE | re.DOTALL)


def commands(block: str) -> Iterator[tuple[str, str]]:
    """Commands of a console block, each with the output that is shown."""
    yield from re.findall(r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", block.replace("\\\n", ""), re.MULTILINE)


class Reader:
    """Who follows the tutorial in a folder: a shell, a Python prompt and, once it is started, a service."""

    def __init__(self, folder: Path, data: Path | None, stack: ExitStack) -> None:
        self.folder, self.data, self.stack = folder, data, stack
        self.url = ADDRESS
        self.names: dict[str, Any] = {}
        self.left_out: list[str] = []
        program = folder / "bin" / "darkroom"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m darkroom "$@"\n')
        program.chmod(0o755)
        path = f"{program.parent}:{os.environ['PATH']}"
        self.env = environment() | {"PATH": path, "PYTHONPATH": str(HOUSE)}

    def does(self, kind: str, block: str) -> None:
        """What one block says."""
        if kind == "pycon":
            self.types(block)
            return
        for command, shown in commands(block):
            if self.data is None and NEEDS_DATA.search(command):
                self.left_out.append(command)
            elif command.startswith("darkroom serve"):
                self.serves(command, shown)
            else:
                self.runs(command, shown)

    def runs(self, command: str, shown: str) -> None:
        weights = next((self.data / "weights").glob("squeezenet*.pth")) if self.data else ""
        asked = command.replace(ADDRESS, self.url).replace("darkroom predict", f"darkroom predict --url {self.url}")
        asked = asked.replace("--weights DEFAULT", f"--weights {weights}")
        done = subprocess.run(
            asked, shell=True, cwd=self.folder, env=self.env, capture_output=True, text=True, check=False
        )
        assert 0 == done.returncode, f"{asked}\n{done.stdout}{done.stderr}"
        assert not shown or doctest.OutputChecker().check_output(shown, done.stdout, SHOWN), f"{asked}\n{done.stdout}"

    def serves(self, command: str, shown: str) -> None:
        log = self.folder / "service.log"
        with log.open("w") as errors:
            asked = f"exec setpriv --pdeathsig TERM {command} --port 0"
            process = subprocess.Popen(
                asked, shell=True, cwd=self.folder, env=self.env, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self.stack.callback(end, process)
        self.url, told = announced(process, log)
        told = told.replace(self.url, ADDRESS).splitlines()[0]
        assert doctest.OutputChecker().check_output(shown, f"{told}\n", SHOWN), told

    def types(self, block: str) -> None:
        asked = doctest.DocTestParser().get_doctest(block.replace(ADDRESS, self.url), self.names, "tutorial", None, 0)
        asked.globs = self.names  # it has made a copy
        told: list[str] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of TorchScript's end
            failed = doctest.DocTestRunner(optionflags=SHOWN).run(asked, out=told.append, clear_globs=False).failed
        assert not failed, "".join(told)


def test_the_tutorial_has_ten_steps_each_of_which_is_done_and_names_who_does_it_better() -> None:
    steps = re.split(r"^## ", TUTORIAL.read_text(), flags=re.MULTILINE)[1:]

    assert [f"{number}." for number in range(1, 11)] == [step.split()[0] for step in steps]
    for step in steps:
        assert re.search(r"^```(console|pycon)$", step, re.MULTILINE), step
        assert re.search(r"\]\(\.\./(models|training|service|darkroom)/\w+\.py\)", step), step
    assert {"console", "pycon"} == {kind for kind, _ in blocks()}


def test_the_tutorial_works_from_its_first_step_to_its_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.environ.get("TEST_DATA")
    monkeypatch.chdir(tmp_path)
    with ExitStack() as stack:
        reader = Reader(tmp_path, Path(data) if data else None, stack)
        for kind, block in blocks():
            reader.does(kind, block)
    if reader.left_out:
        pytest.skip(f"TEST_DATA is not set: all was done but for {'; '.join(reader.left_out)}")
