"""A start that must not happen stops at once: one line, exit code 2."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import pytest

from tests import artifacts, running
from tests.running import Service


def only_line(finished: "subprocess.CompletedProcess[str]") -> str:
    """The one line on stderr of a start that was refused with exit code 2."""
    assert (2, "") == (finished.returncode, finished.stdout), finished
    (line,) = finished.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--port", "70000"], "--port (DARKROOM_PORT): Input should be less than or equal to 65535, not '70000'"),
        (["--prot", "1"], "unrecognized arguments: --prot 1"),
        (["--max-pix", "3"], "unrecognized arguments: --max-pix 3"),
        (["--formats", "heic"], "unknown format HEIC; known: JPEG, PNG, WEBP, GIF, BMP, TIFF"),
        (["--dtype", "int8"], "--dtype"),
        (
            ["--device", "tpu"],
            "--device (DARKROOM_DEVICE): expected auto (the first GPU if there is one), cpu, cuda, or",
        ),
        (["--objective-p99-ms", "0"], "--objective-p99-ms (DARKROOM_OBJECTIVE_P99_MS): Input should be greater than 0"),
        pytest.param(["--device", "cuda:99"], "device cuda:99: expected a GPU cuda:99, found", marks=pytest.mark.slow),
        (["--host", "203.0.113.1"], "Cannot assign requested address; choose another with --host"),
        (["--host", "127.0.0..1"], "--host 127.0.0..1: no host can be called so"),
        (
            ["--model", "a" * 300],
            "expected an artifact or a folder of models that can be read, found File name too long",
        ),
        (
            ["--port", "8123", "--metrics-port", "8123"],
            "--metrics-port (DARKROOM_METRICS_PORT): Value error, must not be",
        ),
        (["--api-keys-file", "/nowhere/keys"], "--api-keys-file /nowhere/keys: No such file or directory"),
        (["--api-keys-file", "/dev/null"], "--api-keys-file /dev/null: no keys"),
        (["--api-keys", "secret"], "--api-keys"),
    ],
)
def test_a_wrong_flag_stops_the_start_with_one_line(model: Path, flags: list[str], said: str) -> None:
    assert said in only_line(running.run("--model", str(model), *flags))


@pytest.mark.parametrize(("files", "each"), [((300, 712), 200), ((300, 2000), 300), ((2000, 2000), 300)])
def test_open_files_are_raised_to_what_connections_need_and_bound_them_with_a_warning(
    files: tuple[int, int], each: int
) -> None:
    program = (
        "import resource\nfrom service.room import connections_each\nfrom service.settings import load\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, {files})\n"
        "print(connections_each(load(['--model', 'a', '--max-connections', '600', '--http-processes', '2']), 1))\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)

    assert [each, files[1]] == [int(line) for line in finished.stdout.split()]
    assert (each < 300) == ("fewer connections than --max-connections" in finished.stderr)
    assert len(finished.stderr.splitlines()) <= 1


def test_a_signal_where_nothing_is_waited_for_ends_the_next_wait() -> None:
    program = (
        "import os, signal\nfrom service.signals import Signals\nsignals = Signals()\n"
        "os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGTERM))\n"
        "if os.fork() == 0: os._exit(0)\n"
        "os.wait()\nprint('forked')\n"
        "try:\n    with signals.waiting(): print('waited')\n"
        "except KeyboardInterrupt: print('ended')\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)

    assert (["forked", "ended"], "") == (finished.stdout.split(), finished.stderr)


def test_a_signal_ends_a_wait_once() -> None:
    program = (
        "import os, signal\nfrom service.signals import Signals\nsignals = Signals()\n"
        "try:\n    with signals.waiting(): os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt: os.kill(os.getpid(), signal.SIGTERM)\n"
        "print('left alone')\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)

    assert ("left alone\n", "") == (finished.stdout, finished.stderr)


def test_a_missing_model_flag_stops_the_start_with_one_line() -> None:
    assert "--model (DARKROOM_MODEL): Field required" in only_line(running.run())


@pytest.mark.parametrize("keys", ["", " , ", "fine,sec ret"])
def test_a_variable_without_keys_or_with_a_malformed_one_stops_the_start_without_showing_it(
    model: Path, keys: str
) -> None:
    line = only_line(running.run("--model", str(model), DARKROOM_API_KEYS=keys))

    assert "DARKROOM_API_KEYS: " in line
    assert "ret" not in line


def test_a_port_for_metrics_in_use_stops_the_start_before_the_model_loads(service: Service, model: Path) -> None:
    port = service.url.rpartition(":")[2]
    flags = ["--port", "0", "--metrics-port", port]

    assert f"--metrics-port {port}: Address already in use" in only_line(running.run("--model", str(model), *flags))


def test_an_unknown_variable_stops_the_start(model: Path) -> None:
    line = only_line(running.run("--model", str(model), DARKROOM_MAX_BATCHSIZE="8"))

    assert "unknown variable DARKROOM_MAX_BATCHSIZE" in line
    assert "enableServiceLinks" not in line


@pytest.mark.parametrize(
    "variables",
    [
        {"DARKROOM_SERVICE_HOST": "10.0.0.1"},
        {"DARKROOM_PORT": "tcp://10.0.0.1:80", "DARKROOM_PORT_80_TCP": "tcp://10.0.0.1:80"},
        {"DARKROOM_PORT": "tcp://10.0.0.1:80"},
    ],
)
def test_kubernetes_service_links_get_advice(model: Path, variables: dict[str, str]) -> None:
    assert "set enableServiceLinks: false" in only_line(running.run("--model", str(model), **variables))


def test_a_damaged_artifact_stops_the_start_before_torch_is_imported(model: Path, tmp_path: Path) -> None:
    damaged = bytearray(model.read_bytes())
    damaged[5000] ^= 1
    (tmp_path / "model.pt").write_bytes(damaged)
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    environment = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path.cwd()}"}

    line = only_line(running.run("--model", str(tmp_path / "model.pt"), **environment))
    assert "expected SHA-256" in line
    assert "damaged or altered" in line


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda whole: b"", "expected an artifact that ends in its SHA-256, found none: truncated"),
    "html": (lambda whole: b"<!doctype html>" * 20, "expected an artifact that ends in its SHA-256, found none"),
    "truncated": (lambda whole: whole[: len(whole) // 2], "expected an artifact that ends in its SHA-256, found none"),
    "its end alone": (lambda whole: whole[-86:], "expected SHA-256 {sealed}..., found {found}..."),
    "a flipped bit": (lambda whole: whole[:9000] + bytes([whole[9000] ^ 8]) + whole[9001:], "found {found}..."),
    "grown": (lambda whole: b"\0" + whole, "expected SHA-256 {sealed}..., found {found}...: the file was damaged"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_artifact_stops_the_start_with_the_hashes_where_there_are_some(
    model: Path, tmp_path: Path, name: str
) -> None:
    whole = model.read_bytes()
    damage, said = DAMAGE[name]
    damaged = damage(whole)
    path = tmp_path / "model.pt"
    path.write_bytes(damaged)
    before = cpu_of_children()

    line = only_line(running.run("--model", str(path)))
    assert cpu_of_children() - before < 5
    assert line.startswith(f"darkroom: {path}: ")
    assert said.format(sealed=whole[-64:][:12].decode(), found=sha256(damaged[:-64]).hexdigest()[:12]) in line


def cpu_of_children() -> float:
    """CPU seconds of the commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.slow
def test_an_artifact_that_was_changed_and_sealed_again_stops_the_start(model: Path, tmp_path: Path) -> None:
    from tests.models.test_artifact import rewritten, with_bomb

    path = rewritten(model, tmp_path / "model.pt", with_bomb)
    line = only_line(running.run("--model", str(path)))

    assert f"{path}: expected a TorchScript module with goldens, found" in line
    assert not Path("bomb-went-off").exists()


def test_a_missing_artifact_stops_the_start_with_advice(tmp_path: Path) -> None:
    line = only_line(running.run("--model", str(tmp_path / "none.pt")))

    assert "no such file; train one with: python -m training" in line


@pytest.mark.slow
def test_an_artifact_whose_goldens_fail_here_stops_the_start(tmp_path: Path) -> None:
    from tests.models.test_artifact import rewritten

    artifacts.write(tmp_path / "good.pt")

    def change(members: dict[str, bytes]) -> None:
        from models.goldens import Goldens

        (name,) = (name for name in members if name.endswith("goldens.pt"))
        goldens = Goldens.from_bytes(members[name])
        members[name] = Goldens(goldens.encoded, goldens.pixels, goldens.probabilities.roll(1, 1)).to_bytes()

    path = rewritten(tmp_path / "good.pt", tmp_path / "model.pt", change)
    assert "its goldens' answers on cpu in fp32" in only_line(running.run("--model", str(path)))


def test_a_port_in_use_stops_the_start_also_when_another_service_shares_ports(service: Service, model: Path) -> None:
    port = service.url.rpartition(":")[2]

    assert f"--port {port}: Address already in use" in only_line(running.run("--model", str(model), "--port", port))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("del litserve.LitServer._init_manager", "litserve {version}: LitServer has no _init_manager; install"),
        ("litserve.LitServer.lifespan = lambda self: None", "LitServer.lifespan takes (self), not (self app); install"),
        ("sys.modules['litserve.loops.base'] = None", "litserve.loops.base"),
        ("del HttpToolsProtocol.on_body, HttpToolsProtocol._start_asgi_task", "has no _start_asgi_task (and 1 more)"),
    ],
)
def test_a_version_of_a_library_that_lacks_what_we_build_on_stops_the_start(
    model: Path, change: str, said: str
) -> None:
    """The installed library is changed as another version might be."""
    program = (
        "import sys, litserve, service.__main__\n"
        "from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol\n"
        f"{change}\nsys.exit(service.__main__.main())"
    )
    command = [sys.executable, "-c", program, "--model", str(model), "--port", "0"]

    line = only_line(subprocess.run(command, capture_output=True, text=True, check=False, timeout=60))

    assert said.format(version=version("litserve")) in line
    assert line.endswith("install the versions that requirements.lock names")
