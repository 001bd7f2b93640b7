"""A real Docker engine for tests: Debian's, with a data root of its own, in a network of its own.

It is started twice: to build in this machine's network, and to run containers in a network namespace, where it may
make bridges and rules. `inside` brings a thread of ours there.
"""

import ctypes
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

DOCKER, COMPOSE = "/usr/bin/docker", "/usr/bin/docker-compose"
LEAST = ("nice", "-n", "5")  # other tests, beside it, have deadlines
PROGRAMS = (DOCKER, COMPOSE, "dockerd", "mmdebstrap", "unshare", "ip")
NEW_NETWORK = 0x40000000  # CLONE_NEWNET
START_S, STOP_S = 60, 60
BASE = "python:3.11-slim-bookworm"  # the name that FROM uses; here it is Debian's own Python
CANNOT = "no Docker engine can start here"


class Engine:
    """One engine's client."""

    def __init__(self, folder: Path) -> None:
        """Everything of it lies below `folder`, but for sockets, whose paths must be short (107 bytes)."""
        self.folder = folder
        self.sockets = Path(tempfile.mkdtemp(dir="/tmp"))
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"unix://{self.sockets}/socket"

    def docker(self, *arguments: str, timeout: float = 600, check: bool = True) -> str:
        """Run a command of docker's; what it says."""
        return self.command(DOCKER, *arguments, timeout=timeout, check=check)

    def command(self, *arguments: str, timeout: float = 600, check: bool = True, folder: Path | None = None) -> str:
        """Run a program that asks the engine; what it says."""
        env = os.environ | {"DOCKER_HOST": self.address, "DOCKER_BUILDKIT": "1"}
        found = subprocess.run(
            arguments, capture_output=True, text=True, check=False, timeout=timeout, env=env, cwd=folder
        )
        assert found.returncode == 0 or not check, f"{arguments}: {found.stdout}{found.stderr}"
        return found.stdout.strip()

    @contextmanager
    def running(self, *, apart: bool) -> Iterator[None]:
        """The engine as a process; `apart` in a network of its own. Skips where it cannot start."""
        command = [
            *(*LEAST, "dockerd", "--data-root", str(self.folder / "data")),
            *(
                "--exec-root",
                f"{self.sockets}/exec",
                "--pidfile",
                str(self.folder / "pid"),
                "--host",
                self.address,
            ),
            *("--storage-driver", "overlay2", "--default-ulimit", "nofile=4096:4096"),
        ]
        if apart:
            command = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *command]
        else:
            command += ["--bridge=none", "--iptables=false", "--ip6tables=false"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + START_S
            while not self.docker("version", "--format", "{{.Server.Version}}", check=False):
                if self.process.poll() is not None or time.monotonic() > deadline:
                    pytest.skip(f"{CANNOT}: {(self.folder / 'log').read_text()[-500:]}")
            yield
        finally:
            self.process.terminate()
            self.process.wait(STOP_S)
            # Left behind by the engine, also when all of it has ended well.
            for left in f"{self.sockets}/exec/netns/default", str(self.folder / "data"):
                subprocess.run(["umount", left], capture_output=True, check=False)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """This thread, and those that it starts, are in the engine's network."""
        assert self.process is not None
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/thread-self/ns/net") as here, open(f"/proc/{self.process.pid}/ns/net") as there:
            assert libc.setns(there.fileno(), NEW_NETWORK) == 0, os.strerror(ctypes.get_errno())
            try:
                yield
            finally:
                libc.setns(here.fileno(), NEW_NETWORK)


def require() -> None:
    """Skip where something that is needed is not installed, or this is not root."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)}: not installed: make system")
    if os.geteuid() != 0:
        pytest.skip(f"{CANNOT}: that needs root")


def base_image(target: Path) -> None:
    """Make Debian with Python as a tar file, for the name that FROM uses; it trusts whom this machine trusts."""
    certificates = "/etc/ssl/certs/ca-certificates.crt"
    subprocess.run(
        [
            *(*LEAST, "mmdebstrap", "--quiet", "--variant=minbase"),
            "--include=ca-certificates,python3,python3-venv",
            f"--customize-hook=copy-in {certificates} {Path(certificates).parent}",
            "--customize-hook=ln -sf python3 $1/usr/bin/python",
            *("bookworm", str(target)),
        ],
        check=True,
        timeout=300,
    )
