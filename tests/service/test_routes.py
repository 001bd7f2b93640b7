"""What a running service says about itself."""

from pathlib import Path

import pytest
import requests

from tests import artifacts
from tests.running import Service


def test_a_ready_service_says_so_on_every_probe(service: Service) -> None:
    health = service.get("/health")

    assert (200, "ready") == (health.status_code, health.json()["status"])
    assert [(200, ""), (200, "")] == [
        (reply.status_code, reply.text) for reply in map(service.get, ("/readyz", "/livez"))
    ]


def test_the_banner_names_url_model_device_and_a_curl_line(service: Service, model: Path) -> None:
    assert f"Darkroom serves {model} at {service.url} on cpu (fp32)\n" in service.banner
    assert f"curl -F file=@photo.jpg {service.url}/predict" in service.banner


def test_info_shows_manifest_device_steps_and_limits(service: Service) -> None:
    info = service.get("/info").json()

    assert {"manifest", "device", "dtype", "optimisation_steps", "limits", "version"} == info.keys()
    assert list(artifacts.CLASSES) == info["manifest"]["classes"]
    steps = info["optimisation_steps"]
    assert ["allocator", "channels_last", "freeze", "optimize_for_inference", "threads", "batch_size"] == list(steps)
    assert all(told == "taken" or told.startswith("dropped: takes ") for told in list(steps.values())[:4])
    assert "from batch size 1" in steps["threads"]
    assert 200_000 == info["limits"]["max_body_bytes"]


def test_unknown_routes_are_404_and_wrong_methods_405_with_allow(service: Service) -> None:
    missing, wrong = service.get("/nope"), service.get("/predict")

    assert (404, "not_found") == (missing.status_code, missing.json()["code"])
    assert (405, "method_not_allowed", "POST") == (wrong.status_code, wrong.json()["code"], wrong.headers["allow"])
    assert 405 == service.post(b"", "/health").status_code


@pytest.mark.parametrize("path", ["/predict/", "/health/", "//predict", "/Predict"])
def test_a_path_that_is_nearly_right_is_404_and_no_redirect(service: Service, path: str) -> None:
    reply = requests.get(service.url + path, allow_redirects=False, timeout=60)

    assert (404, "not_found") == (reply.status_code, reply.json()["code"])


def test_litserves_own_routes_are_gone(service: Service) -> None:
    assert 404 == service.post(b"{}", "/_internal/predict").status_code


def test_only_the_worker_loads_torch(service: Service) -> None:
    loaded = [pid for pid in service.children() if "libtorch" in Path(f"/proc/{pid}/maps").read_text()]

    assert 1 == len(loaded)
    assert "libtorch" not in Path(f"/proc/{service.process.pid}/maps").read_text()
