"""The files around the code: lock files, Makefile, container files. Nothing is built or downloaded here."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from service import __version__
from service.settings import Settings

HOUSE = Path(__file__).parents[1]
PROGRAMS = Path(sys.executable).parent
PROJECT = tomllib.loads((HOUSE / "pyproject.toml").read_text())["project"]
LOCKS = ("requirements.lock", "requirements-base.lock")
TORCH = {"torch", "torchvision", "triton"}
# Below these, known holes: in forms, framing and paths (starlette, python-multipart, h11), in decoders (pillow), in
# loading and TorchScript (torch).
FLOORS = {"starlette": "1.3.1", "python-multipart": "0.0.32", "h11": "0.16.0", "pillow": "12.3.0", "torch": "2.11.0"}


def read(name: str) -> str:
    return (HOUSE / name).read_text()


def pins(lock: str) -> dict[str, str]:
    """What a lock file asks for: the version, with its marker, by the package's name."""
    return dict(re.findall(r"^([a-z0-9-]+)==(.+) \\$", read(lock), re.MULTILINE))


def stages() -> dict[str, str]:
    """The Dockerfile's stages by name, without comments."""
    text = re.sub(r"^\s*#.*\n", "", read("Dockerfile"), flags=re.MULTILINE)
    return dict(re.findall(r"^FROM \S+ AS (\w+)\n(.*?)(?=^FROM |\Z)", text, re.MULTILINE | re.DOTALL))


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the environment on the house; it stands in the lock file, so it must be there."""
    return subprocess.run([PROGRAMS / program, *arguments], cwd=HOUSE, capture_output=True, text=True, timeout=60)


def test_every_dependency_is_locked() -> None:
    extras = PROJECT["optional-dependencies"].values()
    asked = [line for lines in (PROJECT["dependencies"], *extras) for line in lines]
    names = {re.split(r"[^A-Za-z0-9_.-]", line)[0].lower() for line in asked} - {PROJECT["name"]}

    assert names <= pins("requirements.lock").keys()


@pytest.mark.parametrize("name", FLOORS)
def test_no_version_with_a_known_hole_is_allowed_locked_or_installed(name: str) -> None:
    floor = Version(FLOORS[name])
    (asked,) = (asked for asked in map(Requirement, PROJECT["dependencies"]) if asked.name == name)
    least = [Version(clause.version) for clause in asked.specifier if clause.operator in (">=", "==")]
    locked = [pins(lock)[name].partition(" ")[0] for lock in LOCKS if name in pins(lock)]

    assert least
    assert locked
    assert all(found >= floor for found in [*least, *map(Version, locked), Version(version(name))])


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_of_a_lock_file_has_hashes(lock: str) -> None:
    entries = re.sub(r"^#.*\n", "", read(lock), flags=re.MULTILINE)

    assert re.fullmatch(r"([a-z0-9-]+==[^\n]+ \\\n(    --hash=sha256:[0-9a-f]{64}( \\)?\n)+)+", entries)


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_file_names_no_index(lock: str) -> None:
    assert not re.search(r"://|--(extra-)?index|--find-links|--default-index", read(lock))


def test_the_base_lock_is_the_full_lock_without_torch_and_what_it_brings() -> None:
    full, base = pins("requirements.lock"), pins("requirements-base.lock")

    assert full.items() >= base.items()
    assert full.keys() >= TORCH
    brought = {name for name in base if name in TORCH or name.startswith(("nvidia-", "cuda-"))}
    assert {"nvidia-ml-py"} == brought  # the service's own, and small
    assert set(read("requirements.lock").splitlines()) >= set(read("requirements-base.lock").splitlines())


def test_cuda_is_locked_for_linux_alone() -> None:
    locked = pins("requirements.lock").items()
    cuda = [pin for name, pin in locked if name.startswith(("nvidia-", "cuda-")) or name == "triton"]

    assert cuda
    assert all("sys_platform == 'linux'" in pin for pin in cuda)


def test_every_target_of_the_makefile_is_told_by_help() -> None:
    told = subprocess.run(["make", "help"], cwd=HOUSE, capture_output=True, text=True, check=True).stdout
    phony = re.search(r"^\.PHONY: (.+)$", read("Makefile"), re.MULTILINE)

    assert phony
    assert set(phony[1].split()) == set(re.findall(r"^make (\w+)", told, re.MULTILINE))
    assert {"setup", "serve", "test"} <= set(phony[1].split())


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    answer = run("hadolint", "Dockerfile")

    assert (answer.returncode, answer.stdout) == (0, "")


def test_the_compose_file_keeps_to_its_specification() -> None:
    answer = run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml")

    assert answer.returncode == 0, answer.stdout


def test_the_serving_image_is_built_last_and_holds_models_and_service_alone() -> None:
    held = re.findall(
        r"^COPY (?:--from=compiled \S+ )?(?!--from)(\S+)", stages()["runtime"] + stages()["serving"], re.MULTILINE
    )

    assert list(stages())[-1] == "serving"
    assert held == ["models", "service"]


def test_the_image_is_labelled_with_the_version_of_the_project() -> None:
    assert f'image.version="{__version__}"' in stages()["serving"]


def test_images_run_as_a_numeric_user_that_is_not_root() -> None:
    users = [re.findall(r"^USER (\S+)$", stages()[stage], re.MULTILINE) for stage in ("training", "serving")]

    assert users == [["10001:10001"]] * 2


def test_the_dockerfile_fetches_no_frontend_and_names_no_host() -> None:
    assert not re.search(r"^# *syntax|https?://(?!127\.0\.0\.1)", read("Dockerfile"), re.MULTILINE)


def test_compose_and_dockerfile_agree_on_the_base_image() -> None:
    default = re.search(r"^ARG BASE_IMAGE=(\S+)$", read("Dockerfile"), re.MULTILINE)

    assert default
    assert f"${{BASE_IMAGE:-{default[1]}}}" in read("docker-compose.yml")


def test_compose_publishes_ports_on_loopback_only() -> None:
    ports = re.findall(r"^    ports: \[(.+)\]$", read("docker-compose.yml"), re.MULTILINE)

    assert ports
    assert all(port.startswith('"127.0.0.1:') for port in ports)


def test_every_container_of_compose_is_hardened() -> None:
    for name, service in yaml.safe_load(read("docker-compose.yml"))["services"].items():
        assert service["read_only"] is True, name
        assert service["tmpfs"] == ["/tmp"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "mem_limit" in service, name
        assert not service.keys() & {"privileged", "cap_add", "pid", "ipc", "network_mode", "devices", "user"}, name


def test_the_served_artifact_cannot_be_written_by_the_service() -> None:
    services = yaml.safe_load(read("docker-compose.yml"))["services"]

    assert all(volume.endswith(":ro") for name in ("serve", "serve-gpu") for volume in services[name]["volumes"])


def test_the_image_ends_on_sigterm_and_tells_its_health_without_a_shell() -> None:
    assert "STOPSIGNAL SIGTERM" in stages()["runtime"]
    assert re.search(r'^HEALTHCHECK .*\\\n  CMD \["python", ', stages()["serving"], re.MULTILINE)
    assert 'ENTRYPOINT ["python", "-m", "service"]' in stages()["serving"]


def test_every_way_to_run_the_image_that_is_told_is_hardened() -> None:
    told = [read(name).replace("\\\n", "").replace("#", "") for name in ("README.md", "Dockerfile")]
    commands = [line for text in told for line in text.splitlines() if "docker run" in line]

    assert len(commands) == 2
    for flag in ("--read-only", "--tmpfs /tmp", "--cap-drop ALL", "--security-opt no-new-privileges", ":ro"):
        assert all(flag in command for command in commands), flag


def test_variables_of_the_containers_are_settings_of_the_service() -> None:
    text = read("Dockerfile") + read("docker-compose.yml")
    told = {name.lower() for name in re.findall(r"\bDARKROOM_([A-Z_]+)\b", text)}

    assert told
    assert told <= Settings.model_fields.keys() | {"api_keys"}


def test_every_setting_is_in_the_readme() -> None:
    readme = read("README.md")

    assert [] == [name for name in Settings.model_fields if f"`--{name.replace('_', '-')}`" not in readme]


def test_every_link_between_documents_leads_somewhere() -> None:
    for path in (HOUSE / "README.md", HOUSE / "ARCHITECTURE.md", *(HOUSE / "docs").rglob("*.md")):
        links = re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text())
        assert [] == [link for link in links if not (path.parent / link).exists()], path
