"""Versions that are loaded, tried, promoted and taken back while a real service answers.

Version N always predicts class N, so that every reply shows whether it names the version that made it.
"""

import json
import os
import re
import shutil
import signal
import socket
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import requests

from models import archive, goldens
from tests import artifacts, running
from tests.pictures import noise
from tests.running import Service, gone, serving, workers_among
from tests.service.test_http import exchange

ADMIN = {"X-API-Key": "admin"}
BODY = noise(1, (40, 30), "JPEG")
PATIENCE_S = 60
CLIENTS = 8


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with versions of one model: good ones, and what cannot take over."""
    folder = tmp_path_factory.mktemp("versions") / "test"
    for index in (1, 2, 3):
        artifacts.write(folder / f"{index}.pt", model=artifacts.always(index), version=str(index))
    artifacts.write(folder / "again.pt", model=artifacts.always(3), version="1")
    artifacts.write(folder / "stranger.pt", model=artifacts.always(1), version="9", name="stranger")
    artifacts.write(folder / "classes.pt", model=artifacts.always(1), version="8", classes=artifacts.CLASSES[::-1])
    (folder / "damaged.pt").write_bytes((folder / "2.pt").read_bytes()[:-100])
    mistaken(folder / "2.pt", folder / "3.pt", folder / "mistaken.pt")
    return folder


def mistaken(model: Path, other: Path, target: Path) -> None:
    """The model with the goldens of another, sealed again."""
    (answers,) = [content for name, content in archive.read(other, "extra").items() if name == goldens.FILE]
    with zipfile.ZipFile(model) as source, zipfile.ZipFile(target, "w") as made:
        for name in source.namelist():
            content = answers if name.endswith(goldens.FILE) else source.read(name)
            made.writestr(zipfile.ZipInfo(name), content)
    target.write_bytes(archive.seal(target.read_bytes()))


@pytest.fixture
def folder(versions: Path, tmp_path: Path) -> Path:
    """The same, for one test."""
    return Path(shutil.copytree(versions, tmp_path / "models" / "test"))


@contextmanager
def started(model: Path, *flags: str) -> Iterator[Service]:
    """A service with keys for operators."""
    with serving(model, *flags, DARKROOM_ADMIN_KEYS="admin") as service:
        yield service


@pytest.fixture(scope="module")
def operated(versions: Path) -> Iterator[Service]:
    with started(versions / "1.pt") as running:
        yield running


@pytest.fixture
def service(operated: Service) -> Iterator[Service]:
    """Version 1 serves alone, and does so again after the test."""
    yield operated
    if len(stages(operated)) > 1:
        assert order(operated, "rollback")["done"]
    if stages(operated).get("1") != "serving":
        assert order(operated, "load", version="1", promote=True)["done"]
    until(operated, lambda now: len(now["versions"]) == 1 == len(workers(operated)))


def state(service: Service) -> dict[str, Any]:
    """What operators see."""
    reply = requests.get(f"{service.url}/models", headers=ADMIN, timeout=10)
    assert 200 == reply.status_code, reply.text
    found: dict[str, Any] = reply.json()
    return found


def order(service: Service, action: str, **wish: object) -> dict[str, Any]:
    """How an order ended."""
    reply = requests.post(f"{service.url}/models/{action}", json=wish, headers=ADMIN, timeout=10)
    assert 202 == reply.status_code, reply.text
    return outcome(service, reply.json()["id"])


def outcome(service: Service, order: str) -> dict[str, Any]:
    """How an order ended, once it has."""

    def ended(now: dict[str, Any]) -> list[dict[str, Any]]:
        return [one for one in now["ended"] if one["id"] == order]

    return ended(until(service, lambda now: bool(ended(now))))[0]


def until(service: Service, there: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """What operators see once it is so."""
    deadline = monotonic() + PATIENCE_S
    while not there(now := state(service)):
        assert monotonic() < deadline, now
    return now


def stages(service: Service) -> dict[str, str]:
    """The versions and what they are doing."""
    return {one["version"]: one["stage"] for one in state(service)["versions"]}


def answered(reply: requests.Response) -> str:
    """The version that answered, after a look whether the answer is its own."""
    assert 200 == reply.status_code, reply.text
    document = reply.json()
    version: str = document["model"]["version"]
    results = document.get("results") or [document]
    assert {f"class-{version}"} == {result["predictions"][0]["class"] for result in results}
    return version


@contextmanager
def load(service: Service) -> Iterator[Counter[str]]:
    """Clients that ask again and again, for one image or several, while the block runs; which versions answered."""
    found: Counter[str] = Counter()
    stop = threading.Event()

    def ask(number: int) -> None:
        with requests.Session() as session:
            while not stop.is_set():
                if number % 2:
                    reply = session.post(f"{service.url}/predict", data=BODY, timeout=PATIENCE_S)
                else:
                    files = [("file", BODY)] * 5
                    reply = session.post(f"{service.url}/predict", files=files, timeout=PATIENCE_S)
                found[answered(reply)] += 1

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(ask, number) for number in range(CLIENTS)]
        try:
            yield found
        finally:
            stop.set()
        for client in clients:
            client.result()


def workers(service: Service) -> list[int]:
    return running.workers_among(service.children())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "kept"), [((), 1), (("--http-processes", "2", "--workers", "2", "--spares", "1"), 3)], ids=["one", "two"]
)
def test_versions_change_under_load_and_nothing_is_lost_or_mixed(
    folder: Path, flags: tuple[str, ...], kept: int
) -> None:
    with started(folder / "1.pt", *flags) as service:
        with load(service) as found:
            for version in ("2", "3", "1", "2"):
                assert order(service, "load", version=version)["done"]
                assert "ready" == stages(service)[version]
                assert order(service, "promote")["done"]
                enough = found[version] + 20
                until(service, lambda _: found[version] >= enough)  # noqa: B023
                until(service, lambda now: len(now["versions"]) == 1)
                assert [version] == re.findall(r'model_info.*version="(.)"', service.get("/metrics").text)
        assert {"1", "2", "3"} == found.keys()
        assert {"2": "serving"} == stages(service)
        until(service, lambda _: len(workers(service)) == kept)
        assert 4 == service.sample("darkroom_swaps_total", outcome="promoted")
        assert "2" == service.get("/health").json()["model"]["version"]
        assert "2" == service.get("/info").json()["manifest"]["version"]
        assert 0 == service.sample("darkroom_worker_restarts_total")


@pytest.mark.slow
def test_a_candidate_gets_its_share_of_requests_and_gives_it_back(service: Service) -> None:
    assert order(service, "load", version="2")["done"]
    assert "the other version is 2, not 3" in order(service, "promote", version="3")["detail"]
    assert order(service, "share", share=0.25)["done"]
    shared = Counter(answered(service.post(BODY)) for _ in range(80))
    assert order(service, "share", share=0.0)["done"]
    given_back = Counter(answered(service.post(BODY)) for _ in range(20))

    assert {"1": 60, "2": 20} == shared
    assert {"1": 20} == given_back


@pytest.mark.slow
def test_a_shadow_answers_nobody_and_is_compared(service: Service) -> None:
    assert order(service, "load", version="2")["done"]
    assert order(service, "shadow")["done"]
    assert ["serving", "ready"] == [one["stage"] for one in state(service)["versions"]]
    assert [False, True] == [one["shadow"] for one in state(service)["versions"]]
    before = service.sample("darkroom_images_total")
    assert {"1"} == {answered(service.post(BODY)) for _ in range(30)}
    until(service, lambda _: service.sample("darkroom_shadow_images_total", outcome="differs") == 30)

    assert 0 == service.sample("darkroom_shadow_images_total", outcome="agrees")
    assert before + 30 == service.sample("darkroom_images_total")
    for role in ("serving", "candidate"):
        assert 30 == service.sample("darkroom_shadow_duration_seconds_count", role=role)


@pytest.mark.slow
def test_rollback_takes_a_candidate_away_and_then_goes_back(folder: Path) -> None:
    with started(folder / "1.pt") as service:
        assert "no version has served before" in order(service, "rollback")["detail"]
        reply = requests.post(f"{service.url}/models/load", json={"version": "2"}, headers=ADMIN, timeout=10)
        assert order(service, "rollback")["done"]
        assert "taken away" in outcome(service, reply.json()["id"])["detail"]
        until(service, lambda now: len(now["versions"]) == 1)
        assert order(service, "load", version="2")["done"]
        assert order(service, "rollback")["done"]
        until(service, lambda now: len(now["versions"]) == 1)
        assert "1" == answered(service.post(BODY))

        assert order(service, "load", version="2", promote=True)["done"]
        assert "2" == answered(service.post(BODY))
        assert order(service, "rollback")["done"]
        assert "1" == answered(service.post(BODY))
        assert order(service, "rollback")["done"]
        assert "2" == answered(service.post(BODY))


@pytest.mark.slow
def test_what_cannot_take_over_is_refused_with_the_reason_and_the_old_one_goes_on(
    service: Service, versions: Path
) -> None:
    expected = {
        "damaged": "SHA-256",
        "stranger": "its name is stranger, not test",
        "classes": "its classes are not the same",
        "1": "is the one that serves",
        "again": "calls itself 1, as the one that serves does",
        "4": "no version 4; there are: 1, 2, 3, again, classes, damaged, mistaken, stranger",
        "../test/2": "no version ../test/2",
    }
    for version, told in expected.items():
        ended = order(service, "load", version=version)
        assert (False, True) == (ended["done"], told in ended["detail"]), ended
    for action in ("promote", "shadow"):
        assert "there is no other version" in order(service, action)["detail"]
    assert str(versions) not in str(state(service))
    assert {"1": "serving"} == stages(service)
    assert "1" == answered(service.post(BODY))


@pytest.mark.slow
def test_a_version_whose_worker_cannot_load_it_is_taken_away_and_says_why(service: Service) -> None:
    ended = order(service, "load", version="mistaken")
    assert (False, True) == (ended["done"], "its goldens' answers on cpu in fp32" in ended["detail"]), ended
    (serving_worker,) = workers(service)
    reply = requests.post(f"{service.url}/models/load", json={"version": "3"}, headers=ADMIN, timeout=10)
    until(service, lambda _: len(workers(service)) == 2)
    (candidate,) = set(workers(service)) - {serving_worker}
    os.kill(candidate, signal.SIGKILL)
    ended = outcome(service, reply.json()["id"])

    assert (False, "a worker ended with exit code -9") == (ended["done"], ended["detail"])
    assert {"1": "serving"} == stages(service)
    assert "1" == answered(service.post(BODY))


@pytest.mark.slow
def test_when_the_worker_of_a_candidate_is_lost_its_requests_are_answered_all_the_same(service: Service) -> None:
    (serving_worker,) = workers(service)
    assert order(service, "load", version="2")["done"]
    (candidate,) = set(workers(service)) - {serving_worker}
    assert order(service, "share", share=0.5)["done"]
    with load(service) as found:
        until(service, lambda _: found["2"] >= 20)
        os.kill(candidate, signal.SIGKILL)
        until(service, lambda _: len(set(workers(service)) - {serving_worker, candidate}) == 1)
        again = found["2"]
        until(service, lambda _: found["2"] >= again + 20)
    assert 0 == service.sample("darkroom_queue_depth")
    assert {"1", "2"} == found.keys()


@pytest.mark.slow
def test_a_candidate_can_be_asked_by_its_version_before_anybody_else_meets_it(service: Service) -> None:
    pixels = {"name": "pixels", "datatype": "UINT8", "shape": [1, 3, 32, 32], "data": [0] * (3 * 32 * 32)}

    def asked(version: str) -> tuple[int, Any]:
        path = f"{service.url}/v2/models/test/versions/{version}"
        reply = requests.post(f"{path}/infer", json={"inputs": [pixels]}, timeout=10)
        return reply.status_code, reply.json().get("model_version")

    body = json.dumps({"inputs": [pixels]}).encode()
    lines = (
        "POST /v2/models/test/versions/1/infer HTTP/1.1",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    )
    named = "\r\n".join([*lines, "", ""]).encode() + body
    host, port = service.url.removeprefix("http://").split(":")
    kept = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
    assert [200, 200] == [exchange(kept, named)[0].status for _ in range(2)]
    assert [(200, "1"), (404, None)] == [asked("1"), asked("2")]
    assert order(service, "load", version="2")["done"]
    assert [(200, "1"), (200, "2"), (404, None)] == [asked("1"), asked("2"), asked("3")]
    assert ["1", "2"] == service.get("/v2/models/test").json()["versions"]
    assert 200 == service.get("/v2/models/test/versions/2/ready").status_code
    assert order(service, "promote")["done"]
    until(service, lambda now: len(now["versions"]) == 1)
    assert [(404, None), (200, "2")] == [asked("1"), asked("2")]
    with kept:
        assert 404 == exchange(kept, named)[0].status
        kept.shutdown(socket.SHUT_WR)
        assert b"" == kept.recv(1)


@pytest.mark.slow
def test_a_pointer_that_comes_before_its_version_is_followed_once_that_is_there(folder: Path) -> None:
    (folder / "current").write_text("1")
    with started(folder.parent) as service:
        (folder / "2.pt").rename(folder / "later")
        (folder / "current").write_text("2")
        refused = until(service, lambda now: now["ended"] and now["ended"][0]["done"] is False)
        assert "no version 2; there are: 1" in refused["ended"][0]["detail"]
        (folder / "later").rename(folder / "2.pt")
        until(service, lambda now: now["versions"][0]["version"] == "2")
        assert "2" == answered(service.post(BODY))


@pytest.mark.slow
def test_a_storage_that_hangs_does_not_end_the_watch_over_the_workers(folder: Path) -> None:
    (folder / "current").write_text("1")
    with started(folder.parent) as service:
        (worker,) = workers_among(service.children())
        (folder / "current").unlink()
        os.mkfifo(folder / "current")
        with writing(folder / "current"):  # nothing, so that its reader waits
            os.kill(worker, signal.SIGKILL)
            deadline = monotonic() + PATIENCE_S
            while service.post(BODY).status_code != 200:
                assert monotonic() < deadline
            assert 1 == service.sample("darkroom_worker_restarts_total")
            assert 0 == service.stop()


@contextmanager
def writing(pipe: Path) -> Iterator[None]:
    """The writer of a pipe, as soon as somebody reads there."""
    deadline, end = monotonic() + PATIENCE_S, None
    while end is None:
        with suppress(OSError):
            end = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        assert monotonic() < deadline
    try:
        yield
    finally:
        os.close(end)


@pytest.mark.slow
def test_the_pointer_in_the_folder_is_followed(folder: Path) -> None:
    (folder / "current").write_text("1")
    with started(folder.parent) as service:
        assert "1" == answered(service.post(BODY))
        (folder / "next").symlink_to("2.pt")
        (folder / "next").rename(folder / "current")
        until(service, lambda now: now["versions"][0]["version"] == "2")
        assert "2" == answered(service.post(BODY))
        (folder / "current").unlink()
        (folder / "current").write_text("damaged")
        until(service, lambda now: now["ended"][0]["done"] is False)
        assert "2" == answered(service.post(BODY))


@pytest.mark.slow
def test_operators_have_keys_of_their_own(folder: Path) -> None:
    with serving(folder / "1.pt", DARKROOM_API_KEYS="client", DARKROOM_ADMIN_KEYS="admin") as service:
        for key, status in (("client", 401), ("", 401), ("admin", 200)):
            reply = requests.get(f"{service.url}/models", headers={"X-API-Key": key}, timeout=10)
            assert status == reply.status_code
        for action in ("load", "promote", "shadow", "share", "rollback"):
            assert 401 == requests.post(f"{service.url}/models/{action}", json={}, timeout=10).status_code
        for body, code in ((b"[", "bad_json"), (b'{"versio": 1}', "bad_parameter"), (b"", "bad_parameter")):
            reply = requests.post(f"{service.url}/models/load", data=body, headers=ADMIN, timeout=10)
            assert (400, code) == (reply.status_code, reply.json()["code"])
        for action, body, status in (
            ("load", b" " * 5000, 413),
            ("share", b'{"share": 2}', 400),
            ("shadow", b'{"share": 0.5}', 400),
        ):
            reply = requests.post(f"{service.url}/models/{action}", data=body, headers=ADMIN, timeout=10)
            assert status == reply.status_code
        assert "share: not for shadow." == reply.json()["detail"]
        paths = service.get("/openapi.json").json()["paths"]
        assert {"/models", "/models/load", "/models/promote"} < paths.keys()
    with serving(folder / "1.pt") as service:
        assert "/models" not in service.get("/openapi.json").json()["paths"]
        assert 404 == requests.get(f"{service.url}/models", headers=ADMIN, timeout=10).status_code


@pytest.mark.slow
def test_a_service_that_is_told_to_end_while_a_version_loads_ends_and_leaves_nothing(folder: Path) -> None:
    with started(folder / "1.pt") as service:
        requests.post(f"{service.url}/models/load", json={"version": "2"}, headers=ADMIN, timeout=10)
        until(service, lambda _: len(workers(service)) == 2)
        children = service.children()

        assert 0 == service.stop()
        assert gone(children)
