"""The service on Ray: all that is asked of our own HTTP process is asked again, and what Ray alone has."""

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest
import requests

from models.errors import ArtifactError
from service.settings import SettingsError
from tests import artifacts, on_ray
from tests.pictures import noise
from tests.running import Service, predictions
from tests.service.test_open_inference import *  # noqa: F403
from tests.service.test_predict import *  # noqa: F403

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def service(model: Path) -> Iterator[Service]:
    for name in "cats", "dogs":
        artifacts.write(model.parent / "several" / name / "1.pt", name=name)
    with on_ray.serving(model, max_body_bytes=200_000, max_pixels=1_000_000, max_images=4) as started:
        yield started


def test_health_and_information_are_as_ever(service: Service) -> None:
    info = service.get("/info").json()

    assert {"status": "ready", "device": "cpu", "dtype": "fp32"}.items() <= service.get("/health").json().items()
    assert 200 == service.get("/readyz").status_code == service.get("/livez").status_code
    assert 200_000 == info["limits"]["max_body_bytes"]
    assert info["optimisation_steps"]
    assert "/predict" in service.get("/openapi.json").json()["paths"]


def test_a_replica_counts_as_a_service_does(service: Service) -> None:
    before = service.sample("darkroom_images_total")
    for reply in service.post_together([noise(seed) for seed in range(20)]):
        predictions(reply)

    assert before + 20 == service.sample("darkroom_images_total")
    assert 0 == service.sample("darkroom_requests_in_flight")


def test_an_application_behind_a_prefix_answers_there_for_each_of_its_models(service: Service) -> None:
    answers = {name: service.post(noise(), f"/several/predict/{name}") for name in ("cats", "dogs", "birds")}

    assert [200, 200, 404] == [reply.status_code for reply in answers.values()]
    assert ["cats", "dogs"] == [answers[name].json()["model"]["name"] for name in ("cats", "dogs")]
    assert "cats, dogs" in service.post(noise(), "/several/predict").json()["detail"]
    assert 200 == service.get("/several/health").status_code
    assert {"cats", "dogs"} == service.get("/several/info").json()["models"].keys()
    assert 'route="/predict",status="200"' in service.get("/several/metrics").text


def test_who_leaves_a_replica_is_counted_and_predicted_for_no_more(service: Service) -> None:
    def left() -> float:
        text = service.get("/several/metrics").text
        return sum(map(float, re.findall(r"^darkroom_client_disconnects_total{.*} (\S+)$", text, re.MULTILINE)))

    host, port = service.url.removeprefix("http://").split(":")
    body, before, deadline = noise(), left(), monotonic() + 60
    head = b"POST /several/predict/cats HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
    while left() == before:  # where it takes Ray longer to notice than the replica to answer, it is none who left
        assert monotonic() < deadline
        with socket.create_connection((host, int(port))) as client:
            client.sendall(head + body)

    assert 200 == service.post(body, "/several/predict/cats").status_code
    assert 'darkroom_requests_in_flight{model="cats"} 0.0\n' in service.get("/several/metrics").text


def test_a_replica_uses_the_cores_that_ray_gives_it(service: Service) -> None:
    assert re.match("1 ", service.get("/info").json()["optimisation_steps"]["threads"])


def test_rays_agents_show_what_a_replica_counts(service: Service) -> None:
    def told() -> str:
        """What the agents show; nothing while one of them is not there yet."""
        path = next(service.stderr.parent.rglob("prom_metrics_service_discovery.json"))
        targets = [target for group in json.loads(path.read_text()) for target in group["targets"]]
        try:
            return "".join([requests.get(f"http://{target}/metrics", timeout=10).text for target in targets])
        except requests.ConnectionError:
            return ""

    predictions(service.post(noise()))
    deadline = monotonic() + 60
    while monotonic() < deadline:
        text = told()
        counted = re.findall(r"^ray_darkroom_images_total{.*} (\S+)$", text, re.MULTILINE)
        if service.sample("darkroom_images_total") in map(float, counted):
            break

    assert service.sample("darkroom_images_total") in map(float, counted)  # beside the other application's
    assert re.search(r'^ray_darkroom_requests_total{.*route="/predict".*status="200".*}', text, re.MULTILINE)
    assert re.search(r"^ray_darkroom_request_duration_seconds_bucket{.*le=", text, re.MULTILINE)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's, when it is imported
@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("DARKROOM_MAX_BODY_BYTE", "unknown variable DARKROOM_MAX_BODY_BYTE"),
        ("DARKROOM_HTTP_PROCESSES", "http_processes: not a setting of a replica"),
        ("DARKROOM_ADMIN_KEYS", "DARKROOM_ADMIN_KEYS: not a setting of a replica"),
    ],
)
def test_a_wrong_variable_stops_the_deployment(
    model: Path, variable: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from service.replica import app

    monkeypatch.setenv(variable, "4")
    monkeypatch.setenv("DARKROOM_HOST", "0.0.0.0")
    with pytest.raises(SettingsError, match=said):
        app({"model": str(model)})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's, when it is imported
@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"model": "{model}", "max_bach_size": 8}, "--max-bach-size .*not permitted"),
        ({"model": "{model}", "max_batch_size": 0}, "--max-batch-size .*greater than or equal to 1"),
        ({"model": "{model}", "workers": 2}, "workers: not a setting of a replica"),
        ({"model": "{model}", "device": "cuda:0,1"}, "a replica has one device"),
        ({}, "--model"),
        ({"model": "missing.pt"}, "missing.pt"),
    ],
)
def test_a_wrong_setting_stops_the_deployment(model: Path, args: dict[str, object], said: str) -> None:
    from service.replica import app

    args = {name: value.format(model=model) if isinstance(value, str) else value for name, value in args.items()}
    with pytest.raises((SettingsError, ArtifactError), match=said):
        app(args)
