"""Keys, the port of its own for metrics, and what listens: of a service that has them all."""

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from models.manifest import Manifest
from service import openapi
from service.errors import Unauthorized
from service.keys import Keys, load
from service.settings import KEYS_VARIABLE, Settings, SettingsError
from tests.pictures import noise
from tests.running import Service, serving

FILE = ["key-in-the-file", "another#one,with~marks"]
VARIABLE = ["key-in-the-variable", "and-a-second"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def metrics_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def guarded(model: Path, metrics_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two HTTP processes, keys from both places, metrics on a port of their own."""
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"# those who may ask\n\n{FILE[0]}\n  {FILE[1]}  \n")
    flags = ["--api-keys-file", str(path), "--metrics-port", str(metrics_port), "--http-processes", "2"]
    with serving(model, *flags, DARKROOM_API_KEYS=",".join(VARIABLE)) as started:
        yield started


def measured(port: int, name: str, **labels: str) -> float:
    """A sample of the metrics on their own port."""
    text = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=60).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return sum(sample.value for sample in samples if sample.name == name and labels.items() <= sample.labels.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    "key", [*FILE, *VARIABLE], ids=lambda key: str(len(key))
)  # pytest shows ids in its environment
@pytest.mark.parametrize("header", ["Authorization: Bearer ", "authorization: bearer   ", "X-API-Key: "])
def test_every_key_is_valid_in_either_header(guarded: Service, key: str, header: str) -> None:
    name, _, scheme = header.partition(": ")

    assert 200 == guarded.post(noise(), **{name: scheme + key}).status_code
    assert 200 == requests.get(guarded.url + "/info", headers={name: scheme + key}, timeout=60).status_code


@pytest.mark.slow
@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("wrong"),
        bearer(""),
        bearer(FILE[0] + "x"),
        bearer(FILE[0][:-1]),
        bearer(FILE[0].upper()),
        bearer(",".join(VARIABLE)),
        bearer("# those who may ask"),
        {"Authorization": "Basic " + FILE[0]},
        {"Authorization": FILE[0]},
        {"X-API-Key": "Bearer " + FILE[0]},
        {"X-API-Key": "\u00e9\u00ff"},
        {"Cookie": "key=" + FILE[0]},
    ],
)
def test_a_missing_or_wrong_key_is_401_and_counted(
    guarded: Service, metrics_port: int, headers: dict[str, str]
) -> None:
    sent = {name: value.encode("latin-1") for name, value in headers.items()}
    before = measured(metrics_port, "darkroom_images_rejected_total", reason="unauthorized")
    replies = [
        requests.post(guarded.url + "/predict", data=noise(), headers=sent, timeout=60),
        requests.get(guarded.url + "/info", headers=sent, timeout=60),
    ]

    for reply in replies:
        assert (401, "unauthorized") == (reply.status_code, reply.json()["code"])
        assert "Bearer" == reply.headers["www-authenticate"]
        assert "application/problem+json" == reply.headers["content-type"]
    assert before + 2 == measured(metrics_port, "darkroom_images_rejected_total", reason="unauthorized")


@pytest.mark.slow
def test_a_wrong_key_is_refused_by_the_head_alone(guarded: Service) -> None:
    host, port = guarded.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nX-API-Key: x\r\nContent-Length: 100000\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 401 ")


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/health", "/readyz", "/livez", "/docs", "/openapi.json"])
def test_probes_and_documentation_need_no_key(guarded: Service, path: str) -> None:
    assert 200 == guarded.get(path).status_code


@pytest.mark.slow
def test_no_key_is_shown_anywhere(guarded: Service) -> None:
    for key in FILE:
        guarded.post(noise(), **bearer(key))
    shown = [requests.get(guarded.url + "/info", headers=bearer(FILE[0]), timeout=60).text]
    shown += [guarded.get(path).text for path in ("/docs", "/openapi.json", "/health", "/nope")]
    shown += [guarded.post(noise(), **bearer("wrong")).text, guarded.stderr.read_text(), guarded.banner]
    processes = [guarded.process.pid, *guarded.children()]
    shown += [Path(f"/proc/{pid}/cmdline").read_text() for pid in processes]
    worker = [pid for pid in processes if "libtorch" in Path(f"/proc/{pid}/maps").read_text()]
    shown += [Path(f"/proc/{pid}/environ").read_text() for pid in worker]

    assert worker
    for text in shown:
        assert [] == [text for key in (*FILE, *VARIABLE) if key in text]
    assert "keys" not in shown[0]


@pytest.mark.slow
def test_metrics_are_on_their_own_port_alone_and_count_all_processes(guarded: Service, metrics_port: int) -> None:
    before = measured(metrics_port, "darkroom_images_total")
    for _ in range(20):  # each on a connection of its own, to either process
        assert 200 == guarded.post(noise(), **bearer(FILE[0])).status_code

    assert before + 20 == measured(metrics_port, "darkroom_images_total")
    assert 404 == guarded.get("/metrics").status_code
    assert "/metrics" not in guarded.get("/openapi.json").json()["paths"]
    for method in ("POST", "PUT", "DELETE"):
        assert 405 == requests.request(method, f"http://127.0.0.1:{metrics_port}/metrics", timeout=60).status_code
    head = requests.head(f"http://127.0.0.1:{metrics_port}/metrics", timeout=60)
    assert (200, b"") == (head.status_code, head.content)
    assert head.headers["content-type"].startswith("text/plain; version=")
    for path in ("/", "/metrics/", "/health"):
        assert 404 == requests.get(f"http://127.0.0.1:{metrics_port}{path}", timeout=60).status_code


@pytest.mark.slow
def test_only_the_intended_ports_listen_and_sockets_in_the_file_system_are_the_owners(
    guarded: Service, metrics_port: int
) -> None:
    inodes = set()
    for pid in (guarded.process.pid, *guarded.children()):
        inodes |= {link for path in Path(f"/proc/{pid}/fd").iterdir() if (link := gone_or_target(path))}
    ports = {
        int(row[1].rpartition(":")[2], 16)
        for table in ("tcp", "tcp6", "udp", "udp6")
        for row in rows(table)
        if f"socket:[{row[9]}]" in inodes and (row[3] == "0A" or table.startswith("udp"))
    }
    names = [row[7] for row in rows("unix") if len(row) > 7 and f"socket:[{row[6]}]" in inodes]

    assert {int(guarded.url.rpartition(":")[2]), metrics_port} == ports
    assert names  # the manager's
    for name in names:
        assert name.startswith("/"), "an abstract socket is open to everybody"
        assert 0 == Path(name).parent.stat().st_mode & 0o077


def rows(table: str) -> list[list[str]]:
    """What the kernel tells about sockets, without the heading."""
    return [line.split() for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]


def gone_or_target(path: Path) -> str:
    """What a link points to, nothing if it is gone."""
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return ""


def test_a_service_without_keys_lets_everybody_in() -> None:
    assert not Keys()
    Keys().check({})


def test_a_second_header_with_a_wrong_key_does_no_harm() -> None:
    keys = Keys(["right"])
    keys.check({b"x-api-key": b"wrong", b"authorization": b"Bearer right"})
    keys.check({b"x-api-key": b"right", b"authorization": b"Basic eDp5"})
    with pytest.raises(Unauthorized):
        keys.check({b"x-api-key": b"wrong", b"authorization": b"Bearer wrong"})


def test_the_variable_is_taken_out_of_the_environment() -> None:
    environment = {KEYS_VARIABLE: " one , two,", "PATH": "/bin"}
    keys = load(None, environment)

    assert 2 == len(keys.digests)
    assert {"PATH": "/bin"} == environment


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "no keys"),
        (b"# nothing\n\n", "no keys"),
        (b"fine\nsec ret\n", "line 2: a key has visible ASCII characters only"),
        (b"sec\tret", "line 1: a key"),
        (b"\xef\xbb\xbfsecret", "line 1: a key"),
        ("s\u00e9cret".encode(), "line 1: a key"),
        (b"sec\0ret", "line 1: a key"),
    ],
)
def test_a_file_without_keys_or_with_a_malformed_one_is_refused_without_showing_it(
    tmp_path: Path, text: bytes, said: str
) -> None:
    path = tmp_path / "keys"
    path.write_bytes(text)
    with pytest.raises(SettingsError) as refused:
        load(path, {})

    assert f"--api-keys-file {path}: {said}" == str(refused.value)[: len(f"--api-keys-file {path}: {said}")]
    assert "ret" not in str(refused.value).replace(str(path), "")


def test_lines_may_end_as_on_windows(tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(b"one\r\ntwo\r\n")

    load(tmp_path / "keys", {}).check({b"x-api-key": b"two"})


def document(**changed: object) -> dict[str, Any]:
    settings = Settings(model=Path("model.pt"), _cli_parse_args=[], **changed)  # type: ignore[arg-type,call-arg]
    known = SimpleNamespace(name="test", version="1", classes=("a", "b"))
    manifest: Manifest = known  # type: ignore[assignment]
    return openapi.document([manifest], settings, "1", keyed=True)


def test_openapi_shows_which_routes_need_a_key() -> None:
    made = document()
    operations = [(path, operation) for path, methods in made["paths"].items() for operation in methods.values()]
    needing = {path for path, operation in operations if "security" in operation}
    refusing = {path for path, operation in operations if "401" in operation["responses"]}

    infer = {"/v2/models/test/infer", "/v2/models/test/versions/1/infer"}
    assert {"/predict", "/feedback", "/info", *infer} == needing == refusing
    assert {"bearer", "header"} == set(made["components"]["securitySchemes"])
    assert [{"bearer": []}, {"header": []}] == made["paths"]["/predict"]["post"]["security"]


def test_openapi_lists_no_route_that_is_switched_off() -> None:
    everything = set(document()["paths"])

    assert everything - {"/info"} == set(document(info=False)["paths"])
    assert everything - {"/feedback"} == set(document(feedback=False)["paths"])
    assert everything - {"/", "/docs", "/openapi.json"} == set(document(docs=False)["paths"])
    assert everything - {"/metrics"} == set(document(metrics_port=9000)["paths"])


def test_limits_in_info_are_limits_only() -> None:
    from service.routes import NO_LIMITS

    shown = Settings.model_fields.keys() - NO_LIMITS

    assert not [name for name in shown if re.search("key|file|path|host|port|model", name)]
