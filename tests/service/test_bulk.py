"""`python -m service.bulk`: rows for many images, also after it was killed."""

import csv
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from models import manifest as manifests
from service.bulk.errors import Mistake
from service.bulk.images import look
from service.bulk.on_ray import runs
from service.bulk.rows import COLUMNS
from service.orphans import parent_of
from tests import artifacts, on_ray
from tests.pictures import noise
from tests.running import UNPRIVILEGED, environment, serving

IMAGES = 40


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "service.bulk", *map(str, arguments)]


def bulk(*arguments: object) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(command(*arguments), capture_output=True, text=True, env=environment(), check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def rows(out: Path) -> list[dict[str, str]]:
    """All rows of all parts, in order."""
    found: list[dict[str, str]] = []
    for part in sorted(out.glob("part-*.csv")):
        with part.open(newline="") as file:
            found += csv.DictReader(file)
    return found


def assert_alike(expected: list[dict[str, str]], found: list[dict[str, str]]) -> None:
    """The same rows, with probabilities as close as an engine that another process has tuned may be."""
    chances = [[float(row["probability"] or 0) for row in each] for each in (expected, found)]
    without = [[row | {"probability": ""} for row in each] for each in (expected, found)]
    assert without[0] == without[1]
    assert chances[0] == pytest.approx(chances[1], abs=1e-4)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of several kinds and sizes, and three that are none."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(IMAGES):
        kind = ("JPEG", "PNG")[number % 2]
        (folder / f"{number:03}.{kind.lower()}").write_bytes(noise(number, (40 + number, 30), kind))
    (folder / "900.jpg").write_bytes(noise(1, (40, 30), "JPEG")[:200])
    (folder / "901.jpg").write_bytes(b"")
    (folder / "902.png").symlink_to("nowhere.png")
    return folder


@pytest.fixture(scope="module")
def scored(photos: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them, in parts of 16."""
    out = tmp_path_factory.mktemp("out") / "scores"
    done = bulk(photos, out, "--model", model, "--rows", 16)
    assert 0 == done.returncode, done.stderr
    assert f"{out}: {IMAGES + 3} rows in 3 parts\n" == done.stdout
    assert "3 failed" in done.stderr
    return out


@pytest.mark.slow
def test_every_image_has_one_row_in_order_and_what_is_no_image_says_why(
    photos: Path, scored: Path, model: Path
) -> None:
    found = rows(scored)

    assert sorted(path.name for path in photos.iterdir()) == [row["image"] for row in found]
    assert [16, 16, 11] == [len(part.read_text().splitlines()) - 1 for part in sorted(scored.glob("part-*"))]
    errors = {row["image"]: row["error"] for row in found if row["error"]}
    assert {"900.jpg", "901.jpg", "902.png"} == errors.keys()
    assert errors["900.jpg"].startswith("undecodable: ")
    assert "unreadable: No such file or directory" == errors["902.png"]
    assert {manifests.read(model).digest} == {row["digest"] for row in found}


@pytest.mark.slow
def test_rows_tell_what_the_service_answers(photos: Path, scored: Path, model: Path) -> None:
    good = [row for row in rows(scored) if not row["error"]]
    with serving(model) as service:
        answers = [service.post((photos / row["image"]).read_bytes()).json()["predictions"][0] for row in good]

    assert [answer["class"] for answer in answers] == [row["class"] for row in good]
    for answer, row in zip(answers, good, strict=True):
        assert answer["probability"] == pytest.approx(float(row["probability"]), abs=1e-4)


@pytest.mark.slow
def test_lists_and_parquet_of_paths_or_bytes_give_the_same(
    photos: Path, scored: Path, model: Path, tmp_path: Path
) -> None:
    expected = [row for row in rows(scored) if row["image"] != "902.png"]
    names = [row["image"] for row in rows(scored) if row["image"] != "902.png"]
    (photos.parent / "list.txt").write_text("".join(f"{photos.name}/{name}\n" for name in names))
    paths = [f"{photos}/{name}" for name in names]
    pyarrow.parquet.write_table(pyarrow.table({"path": paths}), tmp_path / "paths.parquet", row_group_size=7)
    bodies = [(photos / name).read_bytes() for name in names]
    pyarrow.parquet.write_table(pyarrow.table({"n": names, "bytes": bodies}), tmp_path / "bytes.parquet")
    for number, given in enumerate(
        (photos.parent / "list.txt", tmp_path / "paths.parquet", tmp_path / "bytes.parquet")
    ):
        assert 0 == bulk(given, tmp_path / str(number), "--model", model, "--rows", 10).returncode
        found = rows(tmp_path / str(number))
        told = ("class", "unknown", "error", "digest")
        assert [[row[name] for name in told] for row in expected] == [[row[name] for name in told] for row in found]
        # Not to the last bit: they were in other batches.
        chances = [[float(row["probability"] or 0) for row in answers] for answers in (expected, found)]
        assert chances[0] == pytest.approx(chances[1], abs=1e-4)
    assert [str(number) for number in range(len(names))] == [row["image"] for row in found]


@pytest.mark.slow
def test_rows_as_parquet_are_the_same(photos: Path, scored: Path, model: Path, tmp_path: Path) -> None:
    assert 0 == bulk(photos, tmp_path / "out", "--model", model, "--format", "parquet").returncode
    table = pyarrow.parquet.read_table(tmp_path / "out" / "part-000000.parquet")

    assert list(COLUMNS) == table.column_names
    found = table.to_pylist()
    assert [row["image"] for row in rows(scored)] == [row["image"] for row in found]
    assert [row["class"] or None for row in rows(scored)] == [row["class"] for row in found]
    assert {bool, type(None)} == {type(row["unknown"]) for row in found}


@pytest.mark.slow
def test_a_job_that_is_done_is_not_done_again(photos: Path, scored: Path, model: Path) -> None:
    before = {part: part.stat().st_mtime_ns for part in scored.iterdir()}
    done = bulk(photos, scored, "--model", model, "--rows", 16)

    assert (0, before) == (done.returncode, {part: part.stat().st_mtime_ns for part in scored.iterdir()})
    assert f"all {IMAGES + 3} images have their rows already" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "after"), [(signal.SIGKILL, (2, 5)), (signal.SIGTERM, (3,))], ids=["killed", "told"]
)
def test_a_job_that_is_killed_again_and_again_has_every_row_once(
    number: int, after: tuple[int, ...], model: Path, tmp_path: Path
) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    body = noise(1, (1200, 900), "JPEG")
    for index in range(300):
        (photos / f"{index:04}.jpg").write_bytes(body)
    order = command(photos, out, "--model", model, "--rows", 20)
    for wanted in after:
        with subprocess.Popen(order, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment()) as process:
            while len(list(out.glob("part-*.csv"))) < wanted:
                assert process.poll() is None, process.stderr and process.stderr.read()
            process.send_signal(number)
            _, told = process.communicate()
        assert process.returncode in (-number, 130), told
        (out / ".part-000009.csv.left").touch()  # as one that is killed while it writes leaves it
    finished = bulk(photos, out, "--model", model, "--rows", 20)

    assert 0 == finished.returncode
    assert {path.name: 1 for path in photos.iterdir()} == Counter(row["image"] for row in rows(out))
    assert not list(out.glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda order, other: [*order, "--rows", 7], "it holds rows of another job (rows); name another folder"),
        (lambda order, other: [*order[:3], other], "it holds rows of another job (model)"),
        (lambda order, other: [order[0].parent / "one.txt", *order[1:]], "it holds rows of another job (input"),
        (lambda order, other: [*order, "--format", "parquet"], "it holds rows of another job (format)"),
    ],
)
def test_another_job_does_not_go_on_in_its_folder(
    photos: Path, scored: Path, model: Path, tmp_path: Path, change: Callable[[list[Any], Path], list[Any]], told: str
) -> None:
    (photos.parent / "one.txt").write_text("a.jpg\n")
    artifacts.write(tmp_path / "other.pt", "compact_cnn")
    order = change([photos, scored, "--model", model], tmp_path / "other.pt")
    done = bulk(*([*order, "--rows", 16] if "--rows" not in order else order))

    assert (2, "") == (done.returncode, done.stdout)
    (line,) = done.stderr.splitlines()
    assert told in line


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "the following arguments are required: IN, OUT, --model; see python -m service.bulk --help"),
        (("nowhere", "out", "--model", "MODEL"), "nowhere: no such folder or file"),
        (("empty", "out", "--model", "MODEL"), "empty: no images"),
        (("empty", "out", "--model", "gone.pt"), "gone.pt: expected an artifact"),
        (("photos.parquet", "out", "--model", "MODEL"), "photos.parquet: Parquet magic bytes not found"),
        (("numbers.parquet", "out", "--model", "MODEL"), "no column path or bytes or image; there are n"),
        (("list.txt", "full", "--model", "MODEL"), "full: it holds other files; name a new or an empty folder"),
        (("list.txt", "out", "--model", "MODEL", "--rows", "0"), "--rows: invalid whole number greater than zero"),
        (("list.txt", "out", "--model", "MODEL", "--device", "cuda:9"), "device cuda:9: expected a GPU"),
        (("list.txt", "out", "--model", "MODEL", "--device", "gpu"), "--device gpu: auto, cpu, cuda or cuda:N"),
        (("structs.parquet", "out", "--model", "MODEL"), "the column image holds struct<"),
        (("lists.parquet", "out", "--model", "MODEL"), "the column image holds large_list<"),
        (("photos", "out", "--model", "MODEL"), "photos/closed: Permission denied"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(
    arguments: tuple[str, ...], told: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "list.txt").write_text("a.jpg\n")
    (tmp_path / "photos.parquet").write_text("not a Parquet file")
    pyarrow.parquet.write_table(pyarrow.table({"n": [1]}), tmp_path / "numbers.parquet")
    structs = pyarrow.array([{"bytes": b"", "path": "a"}])
    pyarrow.parquet.write_table(pyarrow.table({"image": structs}), tmp_path / "structs.parquet")
    lists = pyarrow.array([["a.jpg"]], pyarrow.large_list(pyarrow.string()))
    pyarrow.parquet.write_table(pyarrow.table({"image": lists}), tmp_path / "lists.parquet")
    (tmp_path / "photos" / "closed").mkdir(parents=True)
    (tmp_path / "photos" / "closed").chmod(0)
    order = [str(model) if argument == "MODEL" else argument for argument in arguments]
    env = environment() | {"PYTHONPATH": str(Path.cwd())}
    asked = [*UNPRIVILEGED, *command(*order)]
    done = subprocess.run(asked, capture_output=True, text=True, env=env, cwd=tmp_path, check=False)

    assert (2, "") == (done.returncode, done.stdout)
    (line,) = done.stderr.splitlines()
    assert told in line


@pytest.mark.slow
def test_a_second_process_is_refused(photos: Path, model: Path, tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"{number}.jpg").write_bytes(noise(number % 5, (1200, 900), "JPEG"))
    out = tmp_path / "out"
    with subprocess.Popen(command(tmp_path, out, "--model", model), env=environment()) as first:
        while not (out / "bulk.json").exists() or not (out / "bulk.json").read_text():
            assert first.poll() is None
        done = bulk(tmp_path, out, "--model", model)
        first.kill()

    assert 2 == done.returncode
    assert "another process is writing there" in done.stderr


@pytest.mark.slow
def test_no_thread_of_the_pool_is_left_when_a_job_ends(photos: Path, model: Path, tmp_path: Path) -> None:
    ended = "import sys, threading, service.bulk.__main__ as b\nb.main(sys.argv[1:])\nprint(threading.enumerate())"
    job = [photos, tmp_path / "out", "--model", model]
    done = subprocess.check_output([sys.executable, "-c", ended, *map(str, job)], text=True, env=environment())
    assert done.count("Thread(") == 1, done  # Python's way of ending such a one races with its own end


@pytest.mark.slow
def test_paths_of_any_bytes_are_told_as_they_are(model: Path, tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(noise(1, (40, 30), "JPEG"))
    (tmp_path / 'a,"b"\r.png').write_bytes(noise(1, (40, 30), "PNG"))
    assert 0 == bulk(tmp_path, tmp_path / "out", "--model", model).returncode

    assert b"caf\xe9.jpg" in (tmp_path / "out" / "part-000000.csv").read_bytes()
    with (tmp_path / "out" / "part-000000.csv").open(errors="surrogateescape", newline="") as file:
        assert ['a,"b"\r.png', os.fsdecode(b"caf\xe9.jpg")] == [row["image"] for row in csv.DictReader(file)]


def test_parquet_goes_on_at_any_row(tmp_path: Path) -> None:
    bodies = [str(number).encode() for number in range(25)]
    pyarrow.parquet.write_table(pyarrow.table({"bytes": bodies}), tmp_path / "a.parquet", row_group_size=7)
    found = look(tmp_path / "a.parquet", None)

    for start in (0, 1, 6, 7, 8, 24, 25):
        assert [(str(number), bodies[number]) for number in range(start, 25)] == list(found.since(start))
    with pytest.raises(Mistake, match="no column jpeg"):
        look(tmp_path / "a.parquet", "jpeg")
    assert json.dumps(found.count) == "25"


@pytest.mark.slow
def test_a_job_whose_process_is_killed_says_so_and_goes_on(model: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for index in range(300):
        (tmp_path / "photos" / f"{index:04}.jpg").write_bytes(noise(index % 3, (1200, 900), "JPEG"))
    out = tmp_path / "out"
    order = command(tmp_path / "photos", out, "--model", model, "--rows", 20)
    with subprocess.Popen(order, stderr=subprocess.PIPE, text=True, env=environment()) as process:
        while not list(out.glob("part-*.csv")):
            assert process.poll() is None
        os.kill(workers_below(process.pid)[0], signal.SIGKILL)
        _, told = process.communicate()

    assert (2, ["darkroom: a process that scores was killed, perhaps for its memory; the same command goes on"]) == (
        process.returncode,
        told.splitlines(),
    )
    assert 0 == bulk(tmp_path / "photos", out, "--model", model, "--rows", 20).returncode
    assert 300 == len({row["image"] for row in rows(out)})


def workers_below(main: int) -> list[int]:
    """The processes that score."""
    children = {pid: parent_of(pid) for pid in map(int, filter(str.isdigit, os.listdir("/proc")))}
    below = [pid for pid, parent in children.items() if parent == main]
    return [pid for pid, parent in children.items() if parent in below]


@pytest.mark.slow
def test_a_command_that_was_refused_does_not_stand_in_the_way(photos: Path, model: Path, tmp_path: Path) -> None:
    assert 2 == bulk(photos, tmp_path / "out", "--model", model, "--dtype", "tf32").returncode
    assert 0 == bulk(photos, tmp_path / "out", "--model", model).returncode


@pytest.mark.slow
def test_a_list_may_come_from_windows_and_names_that_cannot_be_are_rows(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(noise(1, (40, 30), "JPEG"))
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfa.jpg\r\n\r\nb\0.jpg\r\n")
    assert 0 == bulk(tmp_path / "list.txt", tmp_path / "out", "--model", model).returncode

    assert [("a.jpg", ""), ("b\0.jpg", "unreadable: embedded null byte")] == [
        (row["image"], row["error"]) for row in rows(tmp_path / "out")
    ]


def test_a_node_reads_numbers_that_follow_each_other_in_one_go() -> None:
    assert [[3, 4, 5], [9, 10], [2]] == list(runs([3, 4, 5, 9, 10, 2]))


@pytest.mark.slow
def test_a_job_goes_on_by_ray_with_the_rows_that_it_would_have_had(
    photos: Path, scored: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in on_ray.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    out = tmp_path / "out"
    assert 0 == bulk(photos, out, "--model", model, "--rows", 16).returncode
    for part in sorted(out.glob("part-*"))[1:]:
        part.unlink()
    with on_ray.short_folder() as folder:
        monkeypatch.setenv("RAY_TMPDIR", str(folder))
        done = bulk(photos, out, "--model", model, "--rows", 16, "--ray")

    assert (0, f"{out}: {IMAGES + 3} rows in 3 parts\n") == (done.returncode, done.stdout), done.stderr
    assert "27 images" in done.stderr
    assert_alike(rows(scored), rows(out))
