import csv
import io
import json
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from darkroom.predict import COLUMNS
from tests.darkroom.others import KEY
from tests.pictures import noise
from tests.running import Service, environment, predictions

COMMAND = [sys.executable, "-m", "darkroom", "predict"]
HOUSE = Path(__file__).parents[2]
# From a small process: what a forked copy of a large one takes would count, too.
MEASURED = """import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"""


def predict(
    *arguments: object, cwd: Path | None = None, stderr: int = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    """The command's exit code, and its output with bytes that are no UTF-8 as Python has them in names of files."""
    command = [*COMMAND, *map(str, arguments)]
    env = environment() | {"PYTHONPATH": str(HOUSE)}
    how: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "check": False, "timeout": 60}
    return subprocess.run(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=stderr, **how)


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of twelve pictures, one of them below, and what is none."""
    folder = tmp_path / "pictures"
    (folder / "below").mkdir(parents=True)
    for seed in range(11):
        (folder / f"{seed:02}.png").write_bytes(noise(seed))
    (folder / "below" / "last.JPG").write_bytes(noise(11, file_format="JPEG"))
    (folder / "notes.txt").write_text("none")
    (folder / ".hidden.png").write_text("none")
    return folder


def test_every_picture_of_a_folder_gets_the_row_that_the_service_answers(service: Service, pictures: Path) -> None:
    told = predict(pictures, "--url", service.url)
    rows = table(told.stdout)

    assert (0, "") == (told.returncode, told.stderr)
    assert COLUMNS == tuple(rows[0])
    assert sorted(map(str, [*pictures.glob("[0-9]*"), pictures / "below" / "last.JPG"])) == [r["file"] for r in rows]
    for row in rows:
        best = predictions(service.post(Path(row["file"]).read_bytes()))[0]
        assert (best["class"], str(best["index"])) == (row["class"], row["index"])
        assert best["probability"] == pytest.approx(float(row["probability"]), abs=1e-4)
        assert ("false", "") == (row["unknown"], row["error"])


def test_an_image_that_is_refused_has_a_row_and_the_others_go_on(service: Service, pictures: Path) -> None:
    (pictures / "05.png").write_text("no picture")
    files = [pictures / "07.png", pictures / "05.png", pictures / "00.png"]
    told = predict(*files, "--url", service.url)
    rows = table(told.stdout)

    assert (1, "darkroom predict: 1 failed: 1 unsupported_format\n") == (told.returncode, told.stderr)
    assert [str(file) for file in files] == [row["file"] for row in rows]
    assert [False, True, False] == [row["error"].startswith("unsupported_format: ") for row in rows]
    assert ["", ""] == [rows[1]["class"], rows[1]["unknown"]]


def test_all_formats_tell_the_same(service: Service, pictures: Path, tmp_path: Path) -> None:
    (pictures / "05.png").write_text("no picture")
    asked = pictures, "--url", service.url
    lines = [json.loads(line) for line in predict(*asked, "--format", "jsonl").stdout.splitlines()]
    predict(*asked, "--out", tmp_path / "rows.json")
    plain = table(predict(*asked).stdout)

    assert list(map(dict.keys, lines)) == list(map(dict.keys, json.loads((tmp_path / "rows.json").read_text())))
    assert [row["file"] for row in plain] == [line["file"] for line in lines]
    assert [row["class"] for row in plain] == [line["class"] or "" for line in lines]
    assert {"file": str(pictures / "05.png"), "class": None}.items() <= lines[5].items()


def test_a_file_of_rows_is_whole_or_as_it_was(service: Service, pictures: Path, other: Any, tmp_path: Path) -> None:
    out = tmp_path / "out" / "rows.csv"
    done = predict(pictures, "--url", service.url, "--out", out)
    rows = out.read_text()
    failed = predict(pictures, "--url", other((404, {}, {})).url, "--out", out)

    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)
    assert 12 == len(table(rows))
    assert (2, rows) == (failed.returncode, out.read_text())
    assert [out] == list(out.parent.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: FILE|FOLDER"),
        (["no.png"], "no.png: no such file or folder"),
        (["."], ".: no pictures in this folder"),
        (["here", "--url", "nowhere"], "'nowhere' is no address of a service; one is http://"),
        (["here", "--key-file", "none"], "No such file or directory: 'none'"),
        (["here", "--key-file", "here"], "--key-file here: no key"),
        (["here", "--concurrency", "0"], "--concurrency: invalid number from 1 to 1024 value: '0'"),
        (["here", "--timeout", "soon"], "--timeout: invalid number of seconds value: 'soon'"),
        (["here", "--format", "xml"], "--format: invalid choice: 'xml'"),
        (["here", "--top-k", "3"], "unrecognized arguments: --top-k 3; see darkroom predict --help"),
        (["here", "--url", "http://127.0.0.1:9"], "no service is reached at http://127.0.0.1:9; start one with: "),
    ],
)
def test_what_is_wrong_is_told_in_one_line(arguments: Sequence[str], words: str, tmp_path: Path) -> None:
    (tmp_path / "here").write_text("# nothing\n\n")
    told = predict(*arguments, cwd=tmp_path)

    assert (2, "") == (told.returncode, told.stdout)
    assert 1 == told.stderr.count("\n")
    assert words in told.stderr


def test_names_that_are_no_utf_8_are_written_as_they_are(service: Service, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    path.write_bytes(noise())

    assert [str(path)] == [row["file"] for row in table(predict(tmp_path, "--url", service.url).stdout)]


def test_a_terminal_shows_how_far_it_is(service: Service, pictures: Path, tmp_path: Path) -> None:
    ours, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    predict(pictures, "--url", service.url, "--out", tmp_path / "rows.csv", stderr=terminal)

    assert b"0/12" in os.read(ours, 10_000)
    os.close(ours)
    os.close(terminal)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_at_once_and_leaves_nothing(
    other: Any, pictures: Path, tmp_path: Path, number: signal.Signals
) -> None:
    held = other()
    out = tmp_path / "rows" / "rows.csv"
    command = [*COMMAND, str(pictures), "--url", held.url, "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert held.reached.wait(30)
        process.send_signal(number)
        _, told = process.communicate(timeout=10)

    assert (130, "darkroom predict: stopped\n") == (process.returncode, told)
    assert [] == list(out.parent.iterdir())


@pytest.mark.slow
def test_a_key_comes_from_a_file(guarded: Service, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"# ours\n\n{KEY}\nanother\n")
    asked = pictures, "--url", guarded.url, "--concurrency", 1
    with_it, without = predict(*asked, "--key-file", tmp_path / "keys"), predict(*asked)

    assert (0, 12) == (with_it.returncode, len(table(with_it.stdout)))
    assert (2, "") == (without.returncode, without.stdout)
    assert "--key-file FILE" in without.stderr


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images(service: Service, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    first = tmp_path / "pictures" / "first.png"
    first.write_bytes(noise() + bytes(150_000))
    for number in range(2000):  # 300 MB in all
        os.link(first, first.with_name(f"{number}.png"))
    command = [*COMMAND, str(first.parent), "--url", service.url, "--out", str(tmp_path / "rows.csv")]
    told = subprocess.run([sys.executable, "-c", MEASURED, *command], check=True, stdout=subprocess.PIPE)

    assert 2001 == len(table((tmp_path / "rows.csv").read_text()))
    assert int(told.stdout) < 150_000  # kB


def test_rows_go_into_a_pipe_that_is_there(service: Service, pictures: Path, tmp_path: Path) -> None:
    os.mkfifo(out := tmp_path / "rows")
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(out.read_text)
        done = predict(pictures, "--url", service.url, "--out", out)

        assert 0 == done.returncode
        assert 12 == len(table(reading.result(60)))
    assert out.is_fifo()
