"""What a running service says about itself."""

from pathlib import Path

import anyio
import pytest
import requests
from anyio.to_thread import current_default_thread_limiter
from starlette.applications import Starlette
from starlette.types import Message

from models import manifest as manifests
from service import routes
from service.board import READY
from service.edition import Edition, Found
from service.keys import Keys
from service.model import Model
from service.orphans import parent_of
from service.settings import Settings
from service.store import Store
from tests import artifacts
from tests.running import Service, workers_among
from tests.service.ends import disconnect


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

    assert {"manifest", "device", "dtype", "optimisation_steps", "speed", "limits", "version"} == info.keys()
    assert list(artifacts.CLASSES) == info["manifest"]["classes"]
    steps = info["optimisation_steps"]
    tried = ["allocator", "channels_last", "freeze", "optimize_for_inference", "planes"]
    assert [*tried, "threads", "batch_size"] == list(steps)
    assert all(steps[name] == "taken" or steps[name].startswith("dropped: takes ") for name in tried)
    assert "from batch size 1" in steps["threads"]
    speed = info["speed"]
    assert {"curve", "batch_size", "passes", "images_per_second", "objective"} == speed.keys()
    assert [1, 2, 4, 8, 16, 32][: len(speed["curve"])] == [size for size, _ in speed["curve"]]
    assert steps["batch_size"].split(";")[0] == str(speed["batch_size"])
    assert speed["objective"] is None
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


def test_only_the_worker_and_what_it_is_a_copy_of_load_torch(service: Service) -> None:
    loaded = [pid for pid in service.children() if "libtorch" in Path(f"/proc/{pid}/maps").read_text()]
    (worker,) = workers_among(service.children())

    assert {parent_of(worker), worker} == set(loaded)
    assert 1 == len(list(Path(f"/proc/{parent_of(worker)}/task").iterdir())), "a process of one thread may be forked"
    assert "libtorch" not in Path(f"/proc/{service.process.pid}/maps").read_text()


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health"])
def test_a_probe_is_answered_while_scrapes_have_all_threads_of_the_pool(model: Path, path: str) -> None:
    settings = Settings(model=model, _cli_parse_args=[])  # type: ignore[call-arg]
    found = Found(Edition(model, manifests.read(model)), Store(model.parent))
    served = Model(found, settings, Keys(), 1, lambda *_: None)
    served.transport.connect()
    served.transport.phase = READY
    table = routes.build([served], settings, Keys(), Keys(), routes.scrape_of([served], [], settings))
    application = routes.application(Starlette(routes=table))
    statuses: list[int] = []

    async def send(message: Message) -> None:
        statuses.append(message.get("status", 0))

    async def receive() -> Message:
        return {"type": "http.request"}

    async def ask() -> None:
        served.begin(0, None)
        served.transport.tell(0, {"device": "cpu", "dtype": "fp32", "pass_seconds": 0.1, "plan": {"curve": {"1": 0.1}}})
        pool = current_default_thread_limiter()
        for _ in range(int(pool.total_tokens)):
            pool.acquire_on_behalf_of_nowait(object())
        scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}
        with anyio.fail_after(10):
            await application(scope, receive, send)
        served.open_channel().close()

    anyio.run(ask)
    disconnect(served.transport)
    assert 200 == statuses[0]
