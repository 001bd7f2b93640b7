"""What becomes of requests when workers die, stop, hang or run out of memory."""

import os
import signal
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import copy
from time import monotonic

import pytest
import requests
import torch
from PIL import Image
from torch import Tensor, nn

from models.classifier import Classifier
from service.batching import LONGEST_STEP_S
from service.canaries import STALE_S
from service.orphans import parent_of
from tests import artifacts, running
from tests.costly import chunk, header
from tests.pictures import encode, noise
from tests.running import Service, gone, halt, predictions, serving, workers_among
from tests.service.test_lifecycle import wait_until_in_flight, worker_of

pytestmark = pytest.mark.slow

WHITE = encode(Image.new("RGB", (32, 32), "white"))
BLACK = encode(Image.new("RGB", (32, 32), "black"))
RECOVERED_S = 40  # a worker starts in 3 s on an idle machine


class Burdened(nn.Module):
    """Never comes back from a white picture; has no memory for more than four black ones at once."""

    def forward(self, x: Tensor) -> Tensor:
        brightness = x.flatten(1).mean(1)
        if int((brightness <= -0.999).sum()) > 4:
            raise RuntimeError("out of memory")
        while bool((brightness >= 0.999).any()):
            brightness = brightness + 1
        return torch.stack([brightness * 20, -brightness * 20], 1)


class Thorough(nn.Module):
    """Takes a while for a white picture."""

    def forward(self, x: Tensor) -> Tensor:
        brightness = x.flatten(1).mean(1)
        if bool((brightness >= 0.999).any()):
            for _ in range(250_000):
                brightness = brightness + 1e-9
        return torch.stack([brightness * 20, -brightness * 20], 1)


@pytest.fixture(scope="module")
def burdened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    path: Path = tmp_path_factory.mktemp("burdened") / "model.pt"
    model = Classifier(Burdened(), input_size=32, crop=1.0, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    artifacts.write(path, model=model, classes=("bright", "dark"))
    with serving(path, "--max-delay-ms", "1000", "--max-batch-size", "8") as service:
        yield service


def wait_for_health(service: Service, status: int) -> float:
    """Poll until `/health` has this status; seconds that it took."""
    started = monotonic()
    while service.get("/health").status_code != status:
        assert monotonic() < started + RECOVERED_S, f"/health never became {status}"
        assert 200 == service.get("/livez").status_code
    return monotonic() - started


def test_what_a_killed_worker_had_is_answered_by_the_next(model: Path) -> None:
    with serving(model, "--max-delay-ms", "1000") as service, ThreadPoolExecutor(8) as pool:
        bodies = [noise(seed) for seed in range(8)]
        expected = [predictions(reply)[0]["class"] for reply in service.post_together(bodies)]
        for restarts in (1, 2):
            replies = [pool.submit(service.post, body) for body in bodies]
            wait_until_in_flight(service, 8)
            os.kill(worker_of(service), signal.SIGKILL)

            assert expected == [predictions(reply.result())[0]["class"] for reply in replies]
            assert restarts == service.sample("darkroom_worker_restarts_total")
        assert 24 == service.sample("darkroom_requests_total", route="/predict", status="200")
        assert 0 == service.sample("darkroom_queue_depth") == service.sample("darkroom_requests_in_flight")


def test_a_worker_that_finds_another_artifact_in_its_files_place_does_not_serve_it(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    copy(model, path)
    with serving(path) as service:
        artifacts.write(path, classes=[f"another-{index}" for index in range(10)])
        os.kill(worker_of(service), signal.SIGKILL)

        assert 503 == wait_for_refusal(service)
        wait_for_log(service, "expected the file that was looked at first")
        assert 503 == service.get("/health").status_code


def wait_for_refusal(service: Service) -> int:
    """Poll until `/health` is no longer 200; what it is then."""
    while (status := service.get("/health").status_code) == 200:
        assert service.process.poll() is None
    return status


def test_a_stopped_worker_is_told_by_health_and_replaced_and_no_request_waits_beyond_its_deadline(model: Path) -> None:
    with serving(model) as service:
        stopped = worker_of(service)
        halt(stopped)
        late = service.post(noise(), x_timeout_ms="500")
        unready = wait_for_health(service, 503)
        patient = service.post(noise())
        wait_for_health(service, 200)

        assert (504, "deadline") == (late.status_code, late.json()["code"])
        assert late.elapsed.total_seconds() < 1
        assert unready < 5
        assert 200 == patient.status_code
        assert gone([stopped])
        assert 1 == service.sample("darkroom_worker_restarts_total")


def test_a_flood_of_slow_damaged_pictures_does_not_make_it_unready(model: Path) -> None:
    size = 3000
    rows = zlib.compress(bytes((1 + 3 * size) * size))[:-100]
    slow = header(size, size) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    with serving(model) as service, ThreadPoolExecutor(100) as pool:
        until = monotonic() + 2 * STALE_S + 1

        def flood() -> set[int]:
            found = set()
            while monotonic() < until:
                found.add(service.post(slow, x_timeout_ms="60000").status_code)
            return found

        floods, statuses = [pool.submit(flood) for _ in range(100)], set()
        while not all(one.done() for one in floods):
            statuses.add(service.get("/health").status_code)

        assert {422} == set().union(*[one.result() for one in floods])
        assert {200} == statuses


def test_a_lost_nursery_takes_its_workers_along_and_all_are_replaced(model: Path) -> None:
    with serving(model, "--timeout-ms", "55000") as service:  # a new one imports torch first
        for restarts in (1, 2, 3):
            worker = worker_of(service)
            nursery = parent_of(worker)
            os.kill(nursery, signal.SIGKILL)

            assert gone([nursery, worker])
            assert 200 == service.post(noise()).status_code
            assert nursery != parent_of(worker_of(service))
            assert restarts == service.sample("darkroom_worker_restarts_total")
        assert 0 == service.stop()


def test_a_service_that_was_paused_as_a_whole_goes_on_with_the_same_worker(model: Path) -> None:
    with serving(model) as service:
        before = worker_of(service)
        os.killpg(service.process.pid, signal.SIGSTOP)
        with pytest.raises(requests.Timeout):
            requests.get(service.url + "/livez", timeout=4)  # longer than a worker may be without a beat
        os.killpg(service.process.pid, signal.SIGCONT)

        assert 200 == service.post(noise()).status_code
        wait_for_health(service, 200)
        assert before == worker_of(service)
        assert 0 == service.sample("darkroom_worker_restarts_total")


def test_a_service_that_was_paused_within_a_pass_goes_on_with_it(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    model = Classifier(Thorough(), input_size=32, crop=1.0, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    artifacts.write(path, model=model, classes=("bright", "dark"))
    with serving(path) as service, ThreadPoolExecutor(1) as pool:
        before = worker_of(service)
        reply = pool.submit(service.post, WHITE)
        wait_until_in_flight(service, 1)
        os.killpg(service.process.pid, signal.SIGSTOP)
        with pytest.raises(requests.Timeout):
            requests.get(service.url + "/livez", timeout=LONGEST_STEP_S + 1)
        os.killpg(service.process.pid, signal.SIGCONT)

        assert 200 == reply.result().status_code
        assert before == worker_of(service)
        assert 0 == service.sample("darkroom_worker_restarts_total")


def test_a_spare_takes_over_at_once_and_one_that_still_loads_does_not_hold_up_the_end(model: Path) -> None:
    with serving(model, "--spares", "1") as service:
        first = worker_of(service)
        wait_for_log(service, "a spare stands by")
        before = workers_among(service.children())
        os.kill(first, signal.SIGKILL)

        assert 200 == service.post(noise(), x_timeout_ms="2000").status_code
        assert "a worker took over" in service.stderr.read_text()
        while not (loading := [pid for pid in workers_among(service.children()) if pid not in before]):
            assert service.process.poll() is None
        halt(loading[0])

        assert 0 == service.stop()
        assert gone([*before, *loading])


def wait_for_log(service: Service, message: str, count: int = 1) -> None:
    """Poll the log until it tells something so many times."""
    deadline = monotonic() + RECOVERED_S
    while service.stderr.read_text().count(message) < count:
        assert monotonic() < deadline, f"never logged: {message}"


def test_a_batch_that_is_too_large_for_the_memory_is_halved_and_the_size_remembered(burdened: Service) -> None:
    for _ in range(2):
        assert [200] * 8 == [reply.status_code for reply in burdened.post_together([BLACK] * 8)]
        assert 1 == burdened.sample("darkroom_batch_splits_total")
    assert 0 == burdened.sample("darkroom_isolated_failures_total")


def test_a_picture_that_the_model_never_comes_back_from_ends_its_worker_and_neighbours_are_served(
    burdened: Service,
) -> None:
    hanging = worker_of(burdened)
    with ThreadPoolExecutor(2) as pool:
        lost = pool.submit(burdened.post, WHITE, x_timeout_ms="1500")
        wait_until_in_flight(burdened, 1)
        assert (504, "deadline") == (lost.result().status_code, lost.result().json()["code"])
        neighbour = pool.submit(burdened.post, noise())
        wait_for_log(burdened, "the worker hangs")
        wait_for_health(burdened, 200)

        assert 200 == neighbour.result().status_code
    assert gone([hanging])


def test_a_worker_that_cannot_start_any_more_ends_the_service_after_five_tries(model: Path, tmp_path: Path) -> None:
    spoilt = Path(copy(model, tmp_path))
    with serving(spoilt) as service:
        children = service.children()
        spoilt.write_bytes(b"no artifact any more")
        os.kill(worker_of(service), signal.SIGKILL)
        waiting = service.post(noise(), x_timeout_ms="60000")

        assert waiting.json()["code"] in ("not_ready", "deadline")
        assert 1 == service.process.wait(running.STOP_S)
        log = service.stderr.read_text()
        assert 6 == log.count("a worker was lost")
        assert "did not start 5 times in a row" in log
        assert gone(children)


def test_a_read_only_root_and_a_full_temporary_folder_do_not_matter(model: Path) -> None:
    script = 'mount -o remount,bind,ro / && mount -t tmpfs -o size=64k tmpfs "$TMPDIR" && exec "$0" "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, sys.executable, "-m", "service", "--model", str(model)]
    with tempfile.TemporaryDirectory() as folder:
        env = running.environment() | {"TMPDIR": folder}
        with subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True, env=env) as process:
            try:
                service = Service(process, *running.announced(process, Path("/dev/null")), Path("/dev/null"))
                with pytest.raises(OSError, match="No space"):
                    Path(f"/proc/{process.pid}/root{folder}/full").write_bytes(bytes(1 << 20))
                padded = noise() + b"\0" * 2_000_000
                form = requests.post(service.url + "/predict", files={"file": padded}, timeout=60)
                os.kill(worker_of(service), signal.SIGKILL)

                assert [200, 200] == [form.status_code, service.post(padded).status_code]
            finally:
                running.end(process)
        assert 0 == process.returncode


def test_no_room_for_temporary_files_at_the_start_stops_it_with_one_line(model: Path) -> None:
    script = 'mount -o remount,bind,ro / && exec "$0" "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, sys.executable, "-m", "service", "--model", str(model)]
    env = running.environment() | {"TMPDIR": "/proc"}
    finished = subprocess.run([*command, "--port", "0"], capture_output=True, text=True, env=env, check=False)

    assert 2 == finished.returncode
    assert finished.stderr.startswith("darkroom: no folder for temporary files")
    assert 1 == finished.stderr.count("\n")
