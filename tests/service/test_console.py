"""`python -m service models`, against a real service."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import artifacts
from tests.running import Service, environment, serving


def models(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service", "models", *arguments]
    env = environment() | {"PYTHONPATH": str(Path.cwd())} | variables
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, check=False)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("models")
    artifacts.write(folder / "1.pt", version="1")
    artifacts.write(folder / "2.pt", version="2")
    with serving(folder / "1.pt", DARKROOM_ADMIN_KEYS="first,second") as running:
        yield running


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "the following arguments are required: list|load|shadow|share|promote|rollback"),
        (("shift",), "invalid choice: 'shift'"),
        (("load",), "the following arguments are required: version"),
        (("share", "much"), "invalid float value: 'much'"),
        (("list",), "no key; give --admin-keys-file FILE or the variable DARKROOM_ADMIN_KEYS"),
        (("list", "--admin-keys-file", "/nowhere"), "--admin-keys-file /nowhere: No such file or directory"),
    ],
)
def test_what_makes_no_sense_is_told_in_one_line(arguments: tuple[str, ...], told: str) -> None:
    finished = models(*arguments)

    assert (2, "") == (finished.returncode, finished.stdout)
    (line,) = finished.stderr.splitlines()
    assert told in line


def test_the_help_shows_every_action() -> None:
    finished = models("--help")

    assert 0 == finished.returncode
    for action in ("list", "load 2", "shadow", "share 0.1", "promote", "rollback"):
        assert f"python -m service models {action} " in finished.stdout


def test_where_no_service_answers_that_is_told() -> None:
    finished = models("list", "--url", "http://127.0.0.1:9", DARKROOM_ADMIN_KEYS="key")

    assert 1 == finished.returncode
    assert "no service answers at http://127.0.0.1:9: " in finished.stderr


def test_an_address_that_is_none_is_told_so() -> None:
    finished = models("list", "--url", "localhost", DARKROOM_ADMIN_KEYS="key")

    assert 1 == finished.returncode
    assert ["darkroom: no service answers at localhost: unknown url type: 'localhost/models'"] == (
        finished.stderr.splitlines()
    )


@pytest.mark.slow
def test_a_version_is_loaded_promoted_and_taken_back(service: Service, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# operators\nsecond\n")
    at = ("--url", service.url, "--admin-keys-file", str(tmp_path / "keys"))

    def stages(*arguments: str) -> dict[str, str]:
        finished = models(*arguments, *at)
        assert 0 == finished.returncode, finished.stderr
        rows = [line.split() for line in finished.stdout.splitlines()[1:]]
        return {row[0]: row[2] for row in rows if len(row) == 6}

    assert {"1": "serving"} == stages("list")
    assert {"1": "serving", "2": "ready"} == stages("load", "2")
    assert {"1": "serving", "2": "ready"} == stages("share", "0.5")
    assert "serving" == stages("promote")["2"]
    assert "serving" == stages("rollback")["1"]

    failed = models("load", "3", *at)
    assert (1, "darkroom: no version 3; there are: 1, 2\n") == (failed.returncode, failed.stderr)
    wrong = models("list", "--url", service.url, DARKROOM_ADMIN_KEYS="client")
    assert 1 == wrong.returncode
    assert "Send a valid key" in wrong.stderr
