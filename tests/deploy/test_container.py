"""The images and docker-compose.yml, built and run by a real Docker engine."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Semaphore
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from service import __version__
from tests import artifacts, running
from tests.deploy import engine as engines
from tests.deploy.engine import Engine
from tests.pictures import noise

HOUSE = Path(__file__).parents[2]
# Of the 5 GB torch's CUDA libraries are 3.0 and torch is 1.2; a CPU-only image (TORCH_INDEX) is without the former.
BUDGET_BYTES = 5.2e9
PATIENCE_S = 120
HARDENED = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
MEMORY = 1 << 30

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine that has built both images, in a network of its own, and this thread with it."""
    engines.require()
    folder = tmp_path_factory.mktemp("engine")
    made = Engine(folder)
    try:
        with made.running(apart=False):
            engines.base_image(folder / "base.tar")
            made.docker("import", str(folder / "base.tar"), engines.BASE)
            (folder / "base.tar").unlink()
            for target in ("serving", "training"):
                name = "darkroom" if target == "serving" else "darkroom-training"
                labels = "--build-arg", "REVISION=abc", "--build-arg", "CREATED=2026-01-01T00:00:00Z"
                made.docker("build", "--network", "host", "--target", target, *labels, "--tag", name, str(HOUSE))
        with made.running(apart=True), made.inside():
            yield made
    finally:
        for left in folder / "data", made.sockets:
            shutil.rmtree(left, ignore_errors=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.pt"
    artifacts.write(path)
    path.chmod(0o644)
    return path


@contextmanager
def container(engine: Engine, model: Path, *flags: str) -> Iterator[str]:
    """A hardened container that serves on port 8000 of the engine's network; its name."""
    volume = f"{model}:/artifacts/model.pt:ro"
    limits = "--memory", str(MEMORY), "--publish", "127.0.0.1:8000:8000", "--volume", volume
    name = engine.docker("run", "--detach", *HARDENED, *limits, *flags, "darkroom")
    try:
        yield name
    finally:
        engine.docker("rm", "--force", name)


def ready(port: int = 8000) -> None:
    """Wait until the service behind a port says so."""
    with requests.Session() as session:
        patient = Retry(connect=None, total=400, status_forcelist=[503], backoff_factor=0.1, backoff_max=0.3)
        session.mount("http://", HTTPAdapter(max_retries=patient))
        assert session.get(f"http://127.0.0.1:{port}/health", timeout=5).ok


def state(engine: Engine, name: str) -> dict[str, Any]:
    """What the engine says of a container."""
    found: dict[str, Any] = json.loads(engine.docker("inspect", name))[0]["State"]
    return found


def post(body: bytes, port: int = 8000) -> requests.Response:
    return requests.post(f"http://127.0.0.1:{port}/predict?top_k=10", data=body, timeout=60)


def test_the_image_is_labelled_small_and_without_what_it_does_not_need(engine: Engine) -> None:
    (image,) = json.loads(engine.docker("image", "inspect", "darkroom"))
    labels = {name.rpartition(".")[2]: text for name, text in image["Config"]["Labels"].items()}
    inside = "ls /app; which gcc cc g++ pip uv mypyc; for name in matplotlib triton training; do "
    inside += 'python -c "import $name" 2> /dev/null && echo $name; done; id -u'
    told = engine.docker("run", "--rm", "--network", "none", "--entrypoint", "sh", "darkroom", "-c", inside)

    assert ("Darkroom", __version__, "abc", "2026-01-01T00:00:00Z", "Apache-2.0") == (
        *(labels["title"], labels["version"], labels["revision"], labels["created"], labels["licenses"]),
    )
    assert "10001:10001" == image["Config"]["User"]
    assert image["Size"] < BUDGET_BYTES
    assert ["models", "service", "10001"] == told.split()


def test_a_hardened_container_answers_what_the_process_on_this_machine_answers(engine: Engine, model: Path) -> None:
    bodies = [noise(seed, (300, 200), kind) for seed in range(3) for kind in ("JPEG", "PNG", "WEBP")]
    with running.serving(model) as service:
        here = [post(body, int(service.url.rpartition(":")[2])).json()["predictions"] for body in bodies]
    with container(engine, model) as name:
        ready()
        there = [post(body).json()["predictions"] for body in bodies]
        limits = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2> /dev/null; true"
        limit = engine.docker("exec", name, "sh", "-c", limits)  # of either kind of cgroups
        capabilities = engine.docker("exec", name, "sh", "-c", "grep CapEff /proc/1/status")
        written = engine.docker("exec", name, "sh", "-c", "touch /app/x /opt/x 2>&1; touch /tmp/x && echo ok")
        deadline = time.monotonic() + PATIENCE_S
        while (health := state(engine, name)["Health"])["Status"] == "starting":
            assert time.monotonic() < deadline, health

    assert "healthy" == health["Status"]
    for ours, theirs in zip(here, there, strict=True):  # not to the last bit: each has tuned itself
        assert {one["class"]: one["probability"] for one in ours} == pytest.approx(
            {one["class"]: one["probability"] for one in theirs}, abs=1e-4
        )
    assert written.count("Read-only file system") == 2
    assert written.endswith("ok")
    assert str(MEMORY) == limit
    assert 0 == int(capabilities.split()[1], 16)


def test_a_container_that_is_full_of_work_keeps_to_its_memory(engine: Engine, model: Path) -> None:
    with container(engine, model) as name:
        ready()
        with ThreadPoolExecutor(16) as pool:
            found = Counter(reply.status_code for reply in pool.map(post, [noise(1, (2000, 1500), "JPEG")] * 200))
        told = state(engine, name)

    assert {200: 200} == found
    assert (True, False) == (told["Running"], told["OOMKilled"])


def test_docker_stop_loses_nothing_that_was_accepted(engine: Engine, model: Path) -> None:
    found: Counter[str] = Counter()
    answered = Semaphore(0)

    def ask(number: int, host: str) -> None:
        """Over one connection, until the service closes it or is no more."""
        body = noise(number, (400, 300), "JPEG")
        with requests.Session() as session:
            while True:
                try:
                    reply = session.post(f"http://{host}:8000/predict", data=body, timeout=60)
                except requests.RequestException as error:
                    # Where no connection was made, nothing was accepted.
                    found["unreached" if "Failed to establish a new connection" in str(error) else str(error)] += 1
                    return
                closed = reply.headers.get("Connection") == "close"
                found[f"{reply.status_code}{'' if closed or reply.ok else ' kept open'}"] += 1
                answered.release()
                if closed:
                    return

    with container(engine, model) as name:
        ready()
        # Directly: docker's proxy of published ports takes connections when nobody is behind it any more.
        host = engine.docker("inspect", "--format", "{{.NetworkSettings.IPAddress}}", name)
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(ask, number, host) for number in range(8)]
            for _ in range(100):
                assert answered.acquire(timeout=PATIENCE_S), found
            engine.docker("stop", "--time", "30", name)
            for one in asked:
                one.result()
        told = state(engine, name)

    assert 0 == told["ExitCode"]
    assert found.keys() <= {"200", "503", "unreached"}, found


def test_a_damaged_artifact_ends_the_container_with_one_line(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"no model")
    (tmp_path / "model.pt").chmod(0o644)
    with container(engine, tmp_path / "model.pt") as name:
        code = engine.docker("wait", name)
        told = engine.command("sh", "-c", f"{engines.DOCKER} logs {name} 2>&1")

    assert "2" == code
    assert told.startswith("darkroom: ")
    assert 1 == len(told.splitlines()), told


def test_compose_serves_and_is_watched(engine: Engine, model: Path) -> None:
    """The model is in the volume already. Prometheus' image is made of Debian's; Grafana's cannot be had here."""
    made = engine.docker("create", engines.BASE, "true")
    engine.docker("cp", "/usr/bin/prometheus", f"{made}:/bin/prometheus")
    start = '["/bin/prometheus","--config.file=/etc/prometheus/prometheus.yml","--storage.tsdb.path=/prometheus"]'
    engine.docker("commit", "--change", f"ENTRYPOINT {start}", made, "prometheus-of-debian")
    given = "PROMETHEUS_IMAGE=prometheus-of-debian", "COMPOSE_PROJECT_NAME=house", "PORT=8100"

    def compose(*arguments: str) -> str:
        asked = "env", *given, engines.COMPOSE, "--profile", "monitoring"
        return engine.command(*asked, *arguments, folder=HOUSE)

    try:
        engine.docker("volume", "create", "house_artifacts")
        placed = engine.docker("create", "--volume", "house_artifacts:/artifacts", "darkroom")
        engine.docker("cp", str(model), f"{placed}:/artifacts/model.pt")
        engine.docker("rm", placed)
        compose("up", "--detach", "--no-build", "serve", "prometheus")
        ready(8100)
        replies = [post(noise(seed), 8100) for seed in range(20)]

        def counted() -> float:
            query = {"query": 'sum(darkroom_requests_total{route="/predict",status="200"})'}
            found = requests.get("http://127.0.0.1:9090/api/v1/query", params=query, timeout=10).json()
            return sum(float(one["value"][1]) for one in found["data"]["result"])

        assert {200} == {reply.status_code for reply in replies}
        assert "test" == replies[0].json()["model"]["name"]
        deadline = time.monotonic() + PATIENCE_S
        while counted() != len(replies):
            assert time.monotonic() < deadline, compose("logs", "prometheus")
    finally:
        compose("down", "--volumes")
