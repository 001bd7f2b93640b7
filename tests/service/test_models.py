"""Several models of one service, each by its name: `shapes` always sees class 1, `letters` class 0 of its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from darkroom.client import Client
from tests import artifacts, running
from tests.pictures import noise
from tests.running import Service, halt, serving, workers_among
from tests.service.test_console import models as console
from tests.service.test_start import only_line

BODY = noise(1, (40, 30), "JPEG")
LETTERS = ("a", "b", "c")
ADMIN = {"X-API-Key": "admin"}
PATIENCE_S = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, one of them in two versions."""
    made = tmp_path_factory.mktemp("models")
    artifacts.write(made / "shapes" / "1.pt", model=artifacts.always(1, 10), version="1", name="shapes")
    artifacts.write(
        made / "letters" / "1.pt", model=artifacts.always(0, 3), version="1", name="letters", classes=LETTERS
    )
    artifacts.write(
        made / "letters" / "2.pt", model=artifacts.always(2, 3), version="2", name="letters", classes=LETTERS
    )
    (made / "letters" / "current").write_text("1")
    return made


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    """Both at once, and keys for operators."""
    with serving(folder, "--http-processes", "2", DARKROOM_ADMIN_KEYS="admin") as running:
        yield running


def told(reply: requests.Response) -> tuple[str, str]:
    """The model that a reply names, and its first class."""
    assert 200 == reply.status_code, reply.text
    return reply.json()["model"]["name"], reply.json()["predictions"][0]["class"]


def test_each_answers_at_its_name_and_none_for_another(service: Service) -> None:
    paths = ["/predict/shapes", "/predict/letters"] * 100
    with ThreadPoolExecutor(16) as pool:
        found = Counter(pool.map(lambda path: (path, *told(service.post(BODY, path))), paths))

    assert {("/predict/shapes", "shapes", "class-1"): 100, ("/predict/letters", "letters", "a"): 100} == found


def test_without_a_name_the_models_are_told(service: Service) -> None:
    reply = service.post(BODY)

    assert (404, "not_found") == (reply.status_code, reply.json()["code"])
    assert "several models (letters, shapes); ask one by its name, at /predict/NAME" in reply.json()["detail"]
    assert 404 == service.post(BODY, "/predict/others").status_code
    assert (405, "POST") == ((wrong := service.get("/predict/shapes")).status_code, wrong.headers["allow"])


def test_the_only_model_of_a_service_answers_at_its_name_too(folder: Path) -> None:
    with serving(folder / "shapes" / "1.pt") as alone:
        assert [("shapes", "class-1")] * 2 == [told(alone.post(BODY, path)) for path in ("/predict", "/predict/shapes")]
        assert alone.get("/info").json() == alone.get("/info/shapes").json()


def test_clients_name_the_model(service: Service, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(BODY)
    with Client(service.url, model="letters") as client:
        assert ("letters", "a", 3) == (
            (answer := client.predict(BODY)).model,
            answer.best.name,
            len(client.info()["manifest"]["classes"]),
        )
    command = [sys.executable, "-m", "darkroom", "predict", str(tmp_path), "--url", service.url]
    finished = subprocess.run([*command, "--model", "shapes"], capture_output=True, text=True, check=True, timeout=60)
    assert ",class-1," in finished.stdout
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert "several models (letters, shapes); ask one by its name" in finished.stderr + finished.stdout


def test_health_is_that_of_all(service: Service) -> None:
    health = service.get("/health").json()

    assert "ready" == health["status"]
    assert [{"name": "letters", "version": "1"}, {"name": "shapes", "version": "1"}] == health["models"]
    assert 200 == service.get("/readyz").status_code


def test_the_open_inference_protocol_has_both(service: Service) -> None:
    document = {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [b64encode(BODY).decode()]}]}
    for name, classes in (("letters", 3), ("shapes", 10)):
        reply = service.post(json.dumps(document).encode(), f"/v2/models/{name}/infer").json()
        assert (name, [1, classes]) == (reply["model_name"], reply["outputs"][0]["shape"])
        assert name == service.get(f"/v2/models/{name}").json()["name"]
        assert 200 == service.get(f"/v2/models/{name}/ready").status_code

    index = service.post(b"", "/v2/repository/index").json()
    assert [("letters", "READY"), ("shapes", "READY")] == [(one["name"], one["state"]) for one in index]
    assert "letters, shapes alone" in service.get("/v2/models/others").json()["detail"]


def test_information_documentation_and_pages_are_each_ones(service: Service) -> None:
    assert {"letters", "shapes"} == service.get("/info").json()["models"].keys()
    assert list(LETTERS) == service.get("/info/letters").json()["manifest"]["classes"]
    paths = service.get("/openapi.json").json()["paths"]
    assert {"/predict/letters", "/predict/shapes", "/info/letters", "/page/shapes"} <= paths.keys()
    assert '<a href="/page/letters">' in service.get("/").text
    assert "letters, version" in service.get("/page/letters").text


def test_feedback_goes_to_the_model_that_predicted(service: Service) -> None:
    request_id = service.post(BODY, "/predict/letters").headers["x-request-id"]
    judged = {"request_id": request_id, "class": "b"}

    assert {"predicted": "a", "right": False}.items() <= feedback(service, "letters", judged).json().items()
    assert 404 == feedback(service, "shapes", judged | {"class": "class-2"}).status_code
    assert 1 == service.sample("darkroom_feedback_total", model="letters", outcome="wrong")


def feedback(service: Service, name: str, document: dict[str, str]) -> requests.Response:
    return requests.post(f"{service.url}/feedback/{name}", json=document, timeout=10)


def test_each_ones_counts_have_its_name_and_no_other_requests_have_one(service: Service) -> None:
    before = {name: service.sample("darkroom_images_total", model=name) for name in ("letters", "shapes")}
    for path in ("/predict/letters", "/predict/letters", "/predict/shapes"):
        service.post(BODY, path)
    service.get("/health")
    samples = [one for family in text_string_to_metric_families(service.get("/metrics").text) for one in family.samples]

    after = {one.labels["model"]: one.value for one in samples if one.name == "darkroom_images_total"}
    assert {"letters": 2, "shapes": 1} == {name: after[name] - before[name] for name in after}
    assert {("letters", 1), ("shapes", 1)} == {
        (one.labels["model"], one.value) for one in samples if one.name == "darkroom_workers_ready"
    }


def test_requests_that_no_model_answers_are_no_models(service: Service) -> None:
    for path in ("/health", "/predict/letters", "/feedback", "/info/shapes", "/page/letters"):
        service.get(path)
    service.post(BODY)
    service.post(b"{bad", "/models/shapes/load", X_API_Key="admin")
    samples = [one for family in text_string_to_metric_families(service.get("/metrics").text) for one in family.samples]

    counted = {
        (one.labels["model"], one.labels["route"], one.labels["status"])
        for one in samples
        if one.name == "darkroom_requests_total"
    }
    nobodys = {("/health", "200"), ("/predict", "405"), ("/predict", "404"), ("/feedback", "405")}
    nobodys |= {("/info", "200"), ("/page", "200"), ("/models", "400")}
    assert {("", *of) for of in nobodys} <= counted
    assert not {(route, status) for model, route, status in counted if model} & nobodys
    rejected = {
        one.labels["model"]: one.value
        for one in samples
        if one.name == "darkroom_images_rejected_total" and one.labels["reason"] == "bad_json" and one.value
    }
    assert {"": 1} == rejected


def test_one_changes_its_version_and_the_other_stays(service: Service) -> None:
    finished = console("load", "2", "--promote", "--name", "letters", "--url", service.url, DARKROOM_ADMIN_KEYS="admin")

    assert (0, "") == (finished.returncode, finished.stderr)
    assert ("letters", "c") == told(service.post(BODY, "/predict/letters"))
    assert ("shapes", "class-1") == told(service.post(BODY, "/predict/shapes"))
    state = requests.get(f"{service.url}/models", headers=ADMIN, timeout=10).json()["models"]
    assert {"letters": "2", "shapes": "1"} == {name: one["versions"][0]["version"] for name, one in state.items()}
    finished = console("load", "1", "--url", service.url, DARKROOM_ADMIN_KEYS="admin")
    assert "several models (letters, shapes); ask one by its name" in finished.stderr


def test_a_model_whose_worker_is_lost_keeps_no_other_from_answering(service: Service) -> None:
    lost, *_ = workers_among(service.children())
    os.kill(lost, signal.SIGKILL)
    with ThreadPoolExecutor(8) as pool:
        found = Counter(
            told(reply)[0]
            for reply in pool.map(service.post, [BODY] * 60, ["/predict/letters", "/predict/shapes"] * 30)
        )

    assert {"letters": 30, "shapes": 30} == found
    deadline = monotonic() + PATIENCE_S
    while service.get("/readyz").status_code != 200:
        assert monotonic() < deadline


def test_a_folder_that_is_not_called_as_its_model_is_refused(folder: Path, tmp_path: Path) -> None:
    for model, called in (("shapes", "shapes"), ("letters", "words")):
        (tmp_path / called).mkdir()
        (tmp_path / called / "1.pt").symlink_to(folder / model / "1.pt")
    line = only_line(running.run("--model", str(tmp_path)))

    assert "called as its folder is, words, as there are others beside it, found letters; rename the folder" in line


@pytest.mark.slow
def test_images_are_kept_apart(folder: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    with serving(folder, "--keep-images", str(kept)) as service:
        for name, label in (("letters", "b"), ("shapes", "class-2")):
            request_id = service.post(BODY, f"/predict/{name}").headers["x-request-id"]
            assert 200 == feedback(service, name, {"request_id": request_id, "class": label}).status_code
        service.stop()

    assert [1, 1] == [len(list((kept / where).iterdir())) for where in ("letters/b", "shapes/class-2")]


def test_keys_and_what_is_not_served_hold_for_every_model(folder: Path) -> None:
    flags = ("--no-docs", "--no-info", "--no-feedback")
    with serving(folder, *flags, DARKROOM_ADMIN_KEYS="admin", DARKROOM_API_KEYS="key") as service:
        assert 200 == service.post(BODY, "/predict/shapes", X_API_Key="key").status_code
        for path in ("/predict/shapes", "/v2/models/letters/infer", "/v2/models/letters/versions/1/infer"):
            assert 401 == service.post(BODY, path).status_code
        assert 401 == service.get("/models/letters").status_code
        assert 401 == service.post(b"{}", "/models/letters/promote", X_API_Key="key").status_code
        for path in ("/info", "/info/shapes", "/", "/page/shapes", "/docs"):
            assert 404 == service.get(path).status_code
        assert 404 == service.post(b"{}", "/feedback/shapes").status_code
        assert service.sample("darkroom_requests_total", model="", route="other", status="404") >= 6


@pytest.mark.slow
def test_a_crowd_before_one_model_refuses_nobody_before_another(folder: Path) -> None:
    several = {"images": [b64encode(BODY).decode()] * 4}
    with serving(folder, "--capacity", "4") as service, ThreadPoolExecutor(1) as pool:
        letters, _ = workers_among(service.children())
        halt(letters)  # so that its images wait; it is replaced after seconds
        waiting = pool.submit(requests.post, f"{service.url}/predict/letters", json=several, timeout=PATIENCE_S)
        deadline = monotonic() + PATIENCE_S
        while service.sample("darkroom_queue_depth", model="letters") < 4:
            assert monotonic() < deadline
        refused, answered = service.post(BODY, "/predict/letters"), service.post(BODY, "/predict/shapes")
        late = waiting.result()

    assert (429, "capacity") == (refused.status_code, refused.json()["code"])
    assert (200, 200) == (answered.status_code, late.status_code)


def test_the_document_has_every_route(service: Service) -> None:
    paths = service.get("/openapi.json").json()["paths"]

    for name in ("letters", "shapes"):
        assert {f"/predict/{name}", f"/feedback/{name}", f"/info/{name}", f"/page/{name}"} <= paths.keys()
        assert {f"/models/{name}", f"/models/{name}/promote", f"/v2/models/{name}/infer"} <= paths.keys()
    for path, methods in paths.items():
        if "get" in methods:
            assert service.get(path).status_code in (200, 401), path


@pytest.mark.slow
def test_models_without_a_worker_to_be_had_end_the_service_and_are_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "models")
    with serving(tmp_path / "models") as service:
        (tmp_path / "models" / "letters" / "1.pt").unlink()
        os.kill(workers_among(service.children())[0], signal.SIGKILL)
        assert 1 == service.process.wait(PATIENCE_S)
        log = service.stderr.read_text()

    assert "stopping: the worker of the model letters did not start 5 times in a row" in log
    assert '"model": "letters"' in log
