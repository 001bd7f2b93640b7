"""Images that are kept: where they lie, who may read them, when they go, and what keeps the service from starting."""

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from service.album import DAY_S, Sweeper
from service.metrics import KEPT_BYTES, Metrics
from service.settings import Settings
from service.transport import Transport
from tests import artifacts, running
from tests.artifacts import CLASSES
from tests.pictures import noise
from tests.running import Service

SOON_S = 20


def until(true: Callable[[], bool]) -> None:
    """Ask again and again."""
    deadline = time.monotonic() + SOON_S
    while not true():
        assert time.monotonic() < deadline


def tell(service: Service, request_id: str, label: str, **image: int) -> None:
    """Say what an image is."""
    said = json.dumps({"request_id": request_id, "class": label} | image).encode()
    assert 200 == service.post(said, "/feedback", Content_Type="application/json").status_code


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("album") / "kept"


@pytest.fixture(scope="module")
def keeping(model: Path, folder: Path) -> Iterator[Service]:
    """Three HTTP processes that keep images."""
    with running.serving(model, "--keep-images", str(folder), "--http-processes", "3") as started:
        yield started


def test_an_image_waits_until_somebody_says_what_it_is_and_moves_again_when_that_is_corrected(
    keeping: Service, folder: Path
) -> None:
    body = noise(1, file_format="JPEG")
    for number in range(12):
        keeping.post(body, X_Request_ID=f"id-{number}")
        tell(keeping, f"id-{number}", "class-3")
    keeping.post(noise(2), X_Request_ID="waits")

    until(lambda: len(list((folder / "class-3").glob("*"))) == 12)
    until(lambda: ["waits.png"] == os.listdir(folder / ".waiting"))
    assert body == (folder / "class-3" / "id-7.jpg").read_bytes()
    tell(keeping, "id-7", "class-4")
    until((folder / "class-4" / "id-7.jpg").exists)
    assert not (folder / "class-3" / "id-7.jpg").exists()


def test_nobody_else_may_read_them(keeping: Service, folder: Path) -> None:
    keeping.post(noise(), X_Request_ID="private")
    tell(keeping, "private", "class-5")
    until((folder / "class-5" / "private.png").exists)

    for path in (folder, *folder.rglob("*")):
        assert (0o700 if path.is_dir() else 0o600) == path.stat().st_mode & 0o777


def test_images_of_one_request_are_told_apart_and_no_name_is_hidden(keeping: Service, folder: Path) -> None:
    images = [base64.b64encode(noise(seed)).decode() for seed in (1, 2)]
    keeping.post(json.dumps({"images": images}).encode(), Content_Type="application/json", X_Request_ID="..")
    tell(keeping, "..", "class-6", image=1)

    until((folder / "class-6" / "id..+1.png").exists)
    assert noise(2) == (folder / "class-6" / "id..+1.png").read_bytes()
    until((folder / ".waiting" / "id..+0.png").exists)


def test_it_is_said_that_images_are_kept_and_not_where(keeping: Service, folder: Path) -> None:
    info = keeping.get("/info")
    predict = keeping.get("/openapi.json").json()["paths"]["/predict"]["post"]

    assert info.json()["images_kept"] is True
    assert (1 << 30, 30) == tuple(info.json()["limits"][name] for name in ("keep_bytes", "keep_days"))
    assert str(folder) not in info.text
    assert "kept for up to 30 days" in predict["description"]
    assert "keeps them for up to 30 days" in keeping.get("/").text
    (line,) = [line for line in keeping.stderr.read_text().splitlines() if "images are kept" in line]
    assert {"folder": str(folder), "bytes": 1 << 30, "days": 30}.items() <= json.loads(line).items()


def test_without_the_setting_nothing_is_kept_and_nothing_said(service: Service) -> None:
    assert "images_kept" not in service.get("/info").json()
    assert "description" not in service.get("/openapi.json").json()["paths"]["/predict"]["post"]
    assert 0 == service.sample("darkroom_kept_images_total", outcome="written")


def test_what_cannot_be_written_is_counted_and_logged_once_and_every_request_answered(
    model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "kept"
    with running.serving(model, "--keep-images", str(folder)) as service:
        (folder / ".waiting").rename(tmp_path / "away")
        statuses = {service.post(noise(seed)).status_code for seed in range(5)}
        until(lambda: 5 == service.sample("darkroom_kept_images_total", outcome="failed"))
        (tmp_path / "away").rename(folder / ".waiting")
        service.post(noise())
        until(lambda: 1 == service.sample("darkroom_kept_images_total", outcome="written"))
        log = service.stderr.read_text()

    assert {200} == statuses
    assert 1 == log.count("images cannot be kept")


@pytest.mark.slow
def test_the_size_is_never_more_than_was_allowed_and_what_is_judged_stays_longest(model: Path, tmp_path: Path) -> None:
    folder, most = tmp_path / "kept", 1 << 20
    body = noise(1, (300, 300))
    with running.serving(model, "--keep-images", str(folder), "--keep-bytes", str(most)) as service:
        service.post(body, X_Request_ID="first")
        tell(service, "first", "class-1")
        for number in count():
            service.post(body, X_Request_ID=f"more-{number}")
            assert size_of(folder) <= most
            if number * len(body) > 3 * most and service.sample("darkroom_kept_images_total", outcome="removed"):
                break
        assert (folder / "class-1" / "first.png").exists()
        assert not (folder / ".waiting" / "more-0.png").exists()
        until(lambda: service.sample("darkroom_kept_bytes") == size_of(folder))


def size_of(folder: Path) -> int:
    """The bytes in a folder, of which some may be removed meanwhile."""
    found = 0
    for path in folder.rglob("*.png"):
        try:
            found += path.stat().st_size
        except FileNotFoundError:
            continue
    return found


def test_an_image_that_the_disk_has_no_room_for_leaves_nothing_behind(tmp_path: Path) -> None:
    program = (
        "import resource, sys\nfrom pathlib import Path\nfrom service.album import write\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write(Path(sys.argv[1]) / 'small', bytes(900))\nwrite(Path(sys.argv[1]) / 'large', bytes(5000))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False
    )

    assert "File too large" in finished.stderr
    assert ["small"] == os.listdir(tmp_path)


def swept(folder: Path, *flags: str) -> Metrics:
    """The main process's metrics after its first look at the folder."""
    arguments = ["--keep-images", str(folder), *flags]
    settings = Settings(model=Path("model.pt"), _cli_parse_args=arguments)  # type: ignore[call-arg]
    metrics = Metrics(CLASSES)
    transport = Transport(1, 1, 1 << 16, metrics.size)
    metrics.cells = transport.cells(2)
    Sweeper(settings, folder, CLASSES, metrics, transport.all_cells())
    return metrics


def keep(folder: Path, name: str, days: float, size: int = 10) -> Path:
    """A file of this age."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (time.time() - days * DAY_S,) * 2)
    return path


def test_what_was_kept_before_a_start_counts_and_what_is_too_old_goes(tmp_path: Path) -> None:
    young = [keep(tmp_path, ".waiting/a.jpg", 6), keep(tmp_path, "class-1/b.jpg", 6)]
    old = [keep(tmp_path, ".waiting/c.jpg", 8), keep(tmp_path, "class-1/d.jpg", 8)]
    foreign = keep(tmp_path, "elsewhere/e.jpg", 800)
    metrics = swept(tmp_path, "--keep-days", "7")

    assert [True, True, False, False, True] == [path.exists() for path in (*young, *old, foreign)]
    assert 20 == metrics.value(KEPT_BYTES)


def test_of_too_much_the_oldest_that_nobody_judged_goes_first(tmp_path: Path) -> None:
    kept = [keep(tmp_path, f".waiting/{age}.jpg", age, 300_000) for age in (1, 2, 3)]
    judged = keep(tmp_path, "class-1/old.jpg", 9, 300_000)
    swept(tmp_path, "--keep-bytes", str(1 << 20))

    assert [True, False, False] == [path.exists() for path in kept]
    assert judged.exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--keep-images", "/nowhere/kept"], "--keep-images /nowhere/kept: No such file or directory"),
        (["--keep-images", "/dev/null"], "--keep-images /dev/null: File exists"),
        (["--keep-images", "{full}"], "it holds other files; name a new or an empty folder"),
        (["--keep-images", "kept", "--no-feedback"], "needs --feedback"),
    ],
)
def test_a_folder_that_cannot_be_used_stops_the_start(model: Path, tmp_path: Path, flags: list[str], said: str) -> None:
    (tmp_path / "own.jpg").touch()
    finished = running.run("--model", str(model), *[flag.format(full=tmp_path) for flag in flags])

    assert (2, 1) == (finished.returncode, len(finished.stderr.splitlines()))
    assert said in finished.stderr


@pytest.mark.parametrize("name", ["a/b", ".hidden", "__own", "x" * 300])
def test_a_class_that_no_folder_can_be_called_stops_the_start(tmp_path: Path, name: str) -> None:
    artifacts.write(tmp_path / "model.pt", classes=("class-1", name))
    finished = running.run("--model", str(tmp_path / "model.pt"), "--keep-images", str(tmp_path / "kept"))

    assert 2 == finished.returncode
    assert repr(name) in finished.stderr
    assert not (tmp_path / "kept").exists()


def test_a_folder_among_the_kept_images_stays_and_keeps_no_other_from_going(tmp_path: Path) -> None:
    (tmp_path / "class-1" / "sub").mkdir(parents=True)
    os.utime(tmp_path / "class-1" / "sub", (time.time() - 40 * DAY_S,) * 2)
    old, young = keep(tmp_path, "class-1/b.jpg", 35), keep(tmp_path, "class-1/c.jpg", 1)
    metrics = swept(tmp_path, "--keep-days", "30")

    assert [False, True, True] == [path.exists() for path in (old, young, tmp_path / "class-1" / "sub")]
    assert 10 == metrics.value(KEPT_BYTES)
