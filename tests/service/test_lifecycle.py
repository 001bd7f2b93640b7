"""Start, readiness, refusals at the door, draining: against real processes."""

import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import pytest
import requests

from tests import artifacts, running
from tests.pictures import noise
from tests.running import Service, command_of, gone, halt, halted, predictions, serving, workers_among

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def patient(model: Path) -> Iterator[Service]:
    """A service with little room, whose idle model waits a second for a batch of four."""
    flags = ["--max-delay-ms", "1000", "--max-batch-size", "4", "--capacity", "8", "--capacity-bytes", str(1 << 20)]
    with serving(model, *flags) as started:
        yield started


def test_the_banners_curl_line_names_the_sample_beside_the_model(tmp_path: Path) -> None:
    artifacts.write(tmp_path / "model.pt")
    (tmp_path / "sample.png").write_bytes(noise())
    with serving(tmp_path / "model.pt") as service:
        curl = service.banner.splitlines()[1].split()
        answer = subprocess.run([*curl, "--silent"], capture_output=True, text=True, check=True).stdout

    assert '"predictions": [{"class": "class-' in answer


def test_docs_and_info_can_be_switched_off_and_sizes_limited_by_variables(model: Path) -> None:
    with serving(model, "--no-docs", DARKROOM_INFO="false", DARKROOM_MAX_BODY_BYTES="100") as service:
        statuses = [service.get(path).status_code for path in ("/docs", "/openapi.json", "/info", "/health")]

        assert [404, 404, 404, 200] == statuses
        assert 413 == service.post(noise()).status_code


@pytest.mark.parametrize("most", ["1", "3"])
def test_however_small_its_batches_it_answers_all_that_come_together(model: Path, most: str) -> None:
    with serving(model, "--max-batch-size", most, "--timeout-ms", "20000") as service:
        files = [("file", ("photo", noise(seed))) for seed in range(32)]
        several = requests.post(service.url + "/predict", files=files, timeout=60)
        replies = service.post_together([noise(seed) for seed in range(128)], 64)

        assert {200} == {several.status_code, *(reply.status_code for reply in replies)}
        assert 0 == service.sample("darkroom_queue_depth")
        assert 160 == service.sample("darkroom_images_total")


def test_over_capacity_is_refused_at_once_with_retry_after(patient: Service) -> None:
    replies = crowd(patient, [noise(seed) for seed in range(24)], refused=16)
    refused = [reply for reply in replies if reply.status_code == 429]

    assert [200] * 8 + [429] * 16 == sorted(reply.status_code for reply in replies)
    assert {("capacity", "1")} == {(reply.json()["code"], reply.headers["retry-after"]) for reply in refused}
    assert {200} == {reply.status_code for reply in patient.post_together([noise()] * 4)}


def test_bodies_beyond_the_capacity_in_bytes_are_refused_and_the_room_is_given_back(patient: Service) -> None:
    body = noise() + b"\0" * 600_000
    replies = crowd(patient, [body] * 6, refused=5)

    assert [200] + [429] * 5 == sorted(reply.status_code for reply in replies)
    assert [200] * 2 == [patient.post(body).status_code for _ in range(2)]


def crowd(service: Service, bodies: list[bytes], refused: int) -> list[requests.Response]:
    """The replies to bodies that all come before one is answered, of which so many are refused."""
    before = service.sample("darkroom_refused_total", reason="capacity")
    with ThreadPoolExecutor(len(bodies)) as pool, halted(worker_of(service)):
        replies = [pool.submit(service.post, body) for body in bodies]
        for _ in range(500):
            if service.sample("darkroom_refused_total", reason="capacity") == before + refused:
                break
    assert before + refused == service.sample("darkroom_refused_total", reason="capacity")
    return [reply.result() for reply in replies]


def test_an_idle_model_waits_when_told_to_for_a_fuller_batch_of_images_of_any_size(patient: Service) -> None:
    sizes = [(1, 1), (1, 3000), (500, 20), (32, 32)] * 2
    names = "darkroom_batch_size_sum", "darkroom_batch_size_count"
    images, batches = map(patient.sample, names)
    replies = patient.post_together([noise(seed, size) for seed, size in enumerate(sizes)], 8)

    assert {200} == {reply.status_code for reply in replies}
    assert (images + 8, batches + 2) == tuple(map(patient.sample, names))


def test_waiting_for_a_fuller_batch_ends_before_the_deadline(patient: Service) -> None:
    assert 200 == patient.post(noise(), x_timeout_ms="600").status_code


def test_a_client_that_leaves_is_counted_and_harms_nobody(patient: Service) -> None:
    host, port = patient.url.removeprefix("http://").split(":")
    body, before = noise(), patient.sample("darkroom_client_disconnects_total")
    for sent in body, body[:9]:
        with socket.create_connection((host, int(port))) as client:
            client.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + sent)
    assert [200, 200] == [patient.post(body).status_code for _ in range(2)]
    assert before + 2 == patient.sample("darkroom_client_disconnects_total")
    assert 0 == patient.sample("darkroom_queue_depth")


def test_a_deadline_is_answered_with_504_while_the_worker_hangs_and_later_requests_are_served(service: Service) -> None:
    before = service.sample("darkroom_refused_total", reason="deadline")
    with halted(worker_of(service)):
        reply = service.post(noise(), x_timeout_ms="200")

    assert (504, "deadline") == (reply.status_code, reply.json()["code"])
    assert 0.2 <= reply.elapsed.total_seconds() < 1
    assert before + 1 == service.sample("darkroom_refused_total", reason="deadline")
    assert 200 == service.post(noise()).status_code
    assert 0 == service.sample("darkroom_queue_depth")
    assert '"level": "error"' not in service.stderr.read_text()


def worker_of(service: Service) -> int:
    """The first worker process."""
    return workers_among(service.children())[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("to_group", [False, True], ids=["process", "group"])
def test_a_signal_drains_and_leaves_no_process_behind(model: Path, number: signal.Signals, to_group: bool) -> None:
    with serving(model, "--max-delay-ms", "1000", "--max-batch-size", "20") as service, ThreadPoolExecutor(70) as pool:
        children = service.children()
        with halted(worker_of(service)):
            replies = [pool.submit(service.post, noise(seed)) for seed in range(70)]
            wait_until_in_flight(service, 70)
        (os.killpg if to_group else os.kill)(service.process.pid, number)

        assert [200] * 70 == [reply.result().status_code for reply in replies]
        assert 0 == service.process.wait(running.STOP_S)
        assert gone(children)
        with pytest.raises(requests.ConnectionError):
            service.get("/livez")


def wait_until_in_flight(service: Service, count: int) -> None:
    """Poll until as many requests are being answered."""
    for _ in range(500):
        if service.sample("darkroom_requests_in_flight") >= count:
            return
    pytest.fail(f"{count} requests were never in flight")


def test_it_stops_cleanly_as_process_1(model: Path) -> None:
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    command += [sys.executable, "-m", "service", "--model", str(model), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if not process.stdout.readline():
            assert process.stderr is not None
            pytest.fail(process.stderr.read())
        (first,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(first), signal.SIGTERM)

        assert 0 == process.wait(running.STOP_S)


@pytest.mark.parametrize("children", [0, 1, 2, 3], ids=["starting", "tracker", "nursery", "manager"])
def test_a_signal_while_starting_ends_it_with_nothing_left(model: Path, children: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "service", "--model", str(model), "--port", "0"]
    with tempfile.TemporaryDirectory() as folder:
        env = running.environment() | {"TMPDIR": folder}
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, text=True, env=env)
        started = Service(process, "", "", Path())
        try:
            while not handles(process.pid, signal.SIGTERM) or len(found := started.children()) < children:
                assert process.poll() is None
        finally:
            running.end(process)

        assert (0, "") == (process.returncode, (tmp_path / "log").read_text())
        assert gone(found)
        # LitServe's manager, killed while it starts, may leave its socket's folder.
        assert [] == [name for name in os.listdir(folder) if not name.startswith("pymp-")]


def test_a_signal_while_a_worker_is_waited_for_ends_it_with_nothing_left(model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "service", "--model", str(model), "--port", "0"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, text=True, env=running.environment())
    started = Service(process, "", "", Path())
    try:
        while len(found := started.children()) < 2 or b"forkserver" not in running.command_of(found[1]):
            assert process.poll() is None
        with running.halted(found[1]):  # the nursery, so that no worker starts
            while len(found := started.children()) < 3 or not (waits(process.pid, "pipe") and waits(found[2], "futex")):
                assert process.poll() is None
            process.terminate()
            process.wait(running.STOP_S)
    finally:
        running.end(process)

    assert (0, "") == (process.returncode, (tmp_path / "log").read_text())
    assert gone(found)


def waits(pid: int, function: str) -> bool:
    """Whether a process sleeps in a function of the kernel's with that in its name."""
    return function in Path(f"/proc/{pid}/wchan").read_text()


def test_a_worker_lost_between_its_start_and_the_services_ends_it_with_one_line(model: Path, tmp_path: Path) -> None:
    process, http, log = stopped_before_it_listens(model, tmp_path)
    started = Service(process, "", "", log)
    try:
        (worker,) = workers_among(children := started.children())
        os.kill(worker, signal.SIGKILL)
        while "a worker was lost" not in log.read_text():
            assert process.poll() is None
        os.kill(http, signal.SIGCONT)

        assert 2 == process.wait(running.STOP_S)
        assert "darkroom: the model worker was lost before the service could start" in log.read_text().splitlines()
        assert "Traceback" not in log.read_text()
        assert gone(children)
    finally:
        running.end(process)


def stopped_before_it_listens(model: Path, folder: Path) -> tuple["subprocess.Popen[str]", int, Path]:
    """A service whose worker has loaded and whose HTTP process, the second value, was stopped before it listened."""
    command = [sys.executable, "-m", "service", "--model", str(model), "--port", "0"]
    for attempt in range(20):
        log = folder / f"log-{attempt}"
        with log.open("w") as errors:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, text=True)
        started = Service(process, "", "", log)
        while not (http := forked_after_worker(started.children(), process.pid)):
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.01)  # looking all the time would slow the start down
        halt(http)
        if not listens(http):
            return process, http, log
        os.kill(http, signal.SIGCONT)  # too late: it serves
        running.end(process)
    raise AssertionError("its HTTP process always listened before it could be stopped")


def test_a_metrics_port_that_is_taken_while_the_model_loads_stops_the_start_with_one_line(
    model: Path, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as other:
        port = other.getsockname()[1]
    flags = ["--model", str(model), "--port", "0", "--metrics-port", str(port)]
    log = tmp_path / "log"
    with log.open("w") as errors:
        process = subprocess.Popen([sys.executable, "-m", "service", *flags], stdout=subprocess.DEVNULL, stderr=errors)
    started = Service(process, "", "", log)  # type: ignore[arg-type]
    try:
        while not workers_among(children := started.children()):
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.02)
        with socket.create_server(("127.0.0.1", port), reuse_port=True):
            assert 2 == process.wait(running.STOP_S)
    finally:
        process.kill()
        process.wait()

    assert f"--metrics-port {port}: Address already in use" in log.read_text().splitlines()[-1]
    assert "Traceback" not in log.read_text()
    assert gone(children)


def forked_after_worker(children: list[int], main: int) -> int | None:
    """The first HTTP process, which is the main one's copy; the manager is another, and comes before the worker."""
    copies = copies_of(main, children)
    return copies[1] if len(copies) > 1 else None


def copies_of(main: int, children: list[int]) -> list[int]:
    """The processes forked from the main one, in order."""
    return [pid for pid in children if command_of(pid) == command_of(main)]


def handles(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler of its own for a signal, as the kernel tells it."""
    (mask,) = re.findall(r"^SigCgt:\s*([0-9a-f]+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_a_temporary_folder_too_deep_for_sockets_stops_the_start(model: Path, tmp_path: Path) -> None:
    deep = tmp_path / ("a" * 120)
    deep.mkdir()
    finished = running.run("--model", str(model), "--port", "0", TMPDIR=str(deep))

    assert 2 == finished.returncode
    assert "set TMPDIR to a shorter path" in finished.stderr.splitlines()[-1]


def test_a_draining_service_refuses_new_requests_and_says_so_on_its_probes(model: Path) -> None:
    with (
        serving(model, "--max-delay-ms", "1000") as service,
        ThreadPoolExecutor(1) as pool,
        requests.Session() as session,
        requests.Session() as other,
    ):
        for opened in (session, other):
            assert 200 == opened.get(service.url + "/livez", timeout=60).status_code
        pending = pool.submit(service.post, noise())
        wait_until_in_flight(service, 1)
        with halted(worker_of(service)):  # keeps the request in flight while we look
            service.process.send_signal(signal.SIGTERM)
            while (health := session.get(service.url + "/health", timeout=60)).status_code == 200:
                assert service.process.poll() is None
            refused = other.post(service.url + "/predict", data=noise(), timeout=60)

        assert (503, "draining") == (health.status_code, health.json()["code"])
        assert (503, "draining") == (refused.status_code, refused.json()["code"])
        assert 200 == pending.result().status_code
        assert 0 == service.process.wait(running.STOP_S)


def connection_to(service: Service) -> HTTPConnection:
    """A connection that is kept."""
    return HTTPConnection(service.url.removeprefix("http://"), timeout=60)


def test_a_reply_once_the_service_stops_is_the_connections_last_also_before_its_process_is_told(model: Path) -> None:
    with serving(model) as service, closing(connection_to(service)) as client:
        client.putrequest("POST", "/predict")
        client.putheader("Content-Type", "multipart/form-data; boundary=frontier")
        client.putheader("Content-Length", "7")
        client.endheaders(b"no ")
        wait_until_in_flight(service, 1)
        http = next(pid for pid in service.children() if listens(pid))
        with halted(http):
            service.process.send_signal(signal.SIGTERM)
            while not waits_at(http, signal.SIGTERM):
                assert service.process.poll() is None
            client.send(b"file")
        reply = client.getresponse()

        assert (400, True) == (reply.status, reply.will_close)
        assert 0 == service.process.wait(running.STOP_S)


def waits_at(pid: int, number: signal.Signals) -> bool:
    """Whether a signal has been sent to a process that has not taken it."""
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(status["ShdPnd"], 16) >> number - 1 & 1)


@pytest.mark.parametrize("to_group", [False, True], ids=["process", "group"])
def test_a_connection_in_use_is_closed_by_a_reply_when_the_service_stops(model: Path, to_group: bool) -> None:
    with serving(model) as service, closing(connection_to(service)) as client:
        client.request("GET", "/livez")
        client.getresponse().read()  # so that it has been accepted
        (os.killpg if to_group else os.kill)(service.process.pid, signal.SIGTERM)
        told, last = set(), False
        while not last:
            idle_and_closed, _, _ = select.select([client.sock], [], [], 0.02)
            assert not idle_and_closed
            client.request("POST", "/predict", noise())
            reply = client.getresponse()
            reply.read()
            told.add(reply.status)
            last = reply.will_close

        assert told <= {200, 503}
        assert 0 == service.process.wait(running.STOP_S)


def test_nothing_outlives_a_main_process_that_is_killed(model: Path) -> None:
    with serving(model) as service:
        children = service.children()
        service.process.kill()
        service.process.wait(running.STOP_S)

        assert gone(children)


@pytest.mark.parametrize("victim", ["http", "manager"])
def test_a_lost_process_that_cannot_be_replaced_ends_the_service_with_a_line(model: Path, victim: str) -> None:
    with serving(model, "--max-delay-ms", "1000") as service, ThreadPoolExecutor(4) as pool:
        children = service.children()
        http = next(pid for pid in children if listens(pid))
        manager = copies_of(service.process.pid, children)[0]
        replies = [pool.submit(service.post, noise(seed)) for seed in range(4)]
        wait_until_in_flight(service, 4)
        os.kill(http if victim == "http" else manager, signal.SIGKILL)

        if victim == "http":
            assert all(isinstance(reply.exception(), requests.ConnectionError) for reply in replies)
        else:
            assert {503} == {reply.result().status_code for reply in replies}
        assert 1 == service.process.wait(running.STOP_S)
        assert "ended unexpectedly, exit code -9" in service.stderr.read_text()
        assert gone(children)
        with pytest.raises(requests.ConnectionError):
            service.get("/livez")


def listens(pid: int) -> bool:
    """Whether a process holds a listening TCP socket."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = {f"socket:[{row[9]}]" for row in rows if row[3] == "0A"}
    return any(os.readlink(link) in listening for link in Path(f"/proc/{pid}/fd").iterdir())


def test_several_processes_and_workers_count_every_request_once(model: Path) -> None:
    with serving(model, "--http-processes", "2", "--workers", "2", "--access-log") as service:
        bodies = [noise(seed) for seed in range(60)]
        replies = service.post_together([*bodies, b"junk"])
        answered = [predictions(reply)[0]["class"] for reply in replies[:-1]]

        assert 61 == len({reply.headers["x-request-id"] for reply in replies})
        assert 60 == service.sample("darkroom_requests_total", route="/predict", status="200")
        assert 1 == service.sample("darkroom_requests_total", route="/predict", status="415")
        assert 61 == service.sample("darkroom_request_duration_seconds_count", route="/predict")
        assert 60 == service.sample("darkroom_images_total") == service.sample("darkroom_prediction_confidence_count")
        for name in set(answered):
            assert answered.count(name) == service.sample("darkroom_predictions_total", **{"class": name})
        for stage in ("queue", "decode", "inference"):
            assert 60 == service.sample("darkroom_stage_duration_seconds_count", stage=stage)
        assert 0 == service.sample("darkroom_queue_depth")
        info = service.get("/info").json()["manifest"]
        labels = {name: info[name] for name in ("name", "version", "digest")}
        assert 1 == service.sample("darkroom_model_info", **labels, device="cpu", dtype="fp32")
        log = service.stderr.read_text()

    assert 60 == log.count('"route": "/predict", "status": 200')
