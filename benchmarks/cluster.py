"""A Ray cluster on this machine whose nodes each have a network of their own, on one bridge; for root on Linux."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchmarkError

NETWORK = "10.213.7"
BRIDGE = "darkroom0"
PORT, STATUS_PORT, HEAD_PORT = 8000, 8265, 6379
STORE_BYTES = 80 << 20  # of a node's object store, in which nothing of ours lies
READY_S = 180.0
LOOK_S = 0.1
# Nothing is sent home, and no key is left in the user's folder.
VARIABLES = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
APPLICATION, DEPLOYMENT = "darkroom", "Replica"


@dataclass(frozen=True)
class Node:
    """A node by its number; the first is the head."""

    number: int

    @property
    def name(self) -> str:
        """Of its namespace."""
        return f"darkroom{self.number}"

    @property
    def address(self) -> str:
        return f"{NETWORK}.{self.number}"

    def processes(self) -> list[int]:
        """All that run in its namespace."""
        return [int(pid) for pid in ip("netns", "pids", self.name).split()]

    def kill(self) -> None:
        """As if its machine were lost: all processes at once, by SIGKILL."""
        while pids := self.processes():  # until nobody is left to start another
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def pss_mib(self) -> float:
        """Memory of all its processes, what several share counted once, in MiB."""
        kib = 0
        for pid in self.processes():
            with suppress(OSError, StopIteration):
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                kib += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return kib / 1024


@dataclass(frozen=True)
class Cluster:
    """Nodes that run, and what they serve."""

    nodes: list[Node]
    folder: Path

    @property
    def url(self) -> str:
        """Where the head's proxy takes images."""
        return f"http://{self.nodes[0].address}:{PORT}/predict"

    def deploy(self, configuration: Mapping[str, Any]) -> None:
        """Ask for what a Serve configuration says, which then comes about by and by; see `wait`."""
        address = f"http://{self.nodes[0].address}:{STATUS_PORT}/api/serve/applications/"
        request = urllib.request.Request(
            address, json.dumps(configuration).encode(), {"Content-Type": "application/json"}, method="PUT"
        )
        urllib.request.urlopen(request, timeout=30).close()

    def status(self) -> Mapping[str, Any]:
        """What Ray tells of the application; nothing while it knows of none."""
        address = f"http://{self.nodes[0].address}:{STATUS_PORT}/api/serve/applications/"
        with urllib.request.urlopen(address, timeout=30) as reply:
            found: Mapping[str, Any] = json.load(reply)["applications"].get(APPLICATION, {})
        return found

    def running(self) -> int:
        """Replicas that answer."""
        deployment = self.status().get("deployments", {}).get(DEPLOYMENT, {})
        return sum(replica["state"] == "RUNNING" for replica in deployment.get("replicas", []))

    def wait(self, replicas: int) -> None:
        """Until the application is as it should be, with so many replicas.

        Raises:
            BenchmarkError: it does not come about.
        """
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            told = self.status()
            if told.get("status") == "RUNNING" and self.running() == replicas:
                return
            if told.get("status") == "DEPLOY_FAILED":
                break
            time.sleep(LOOK_S)
        raise BenchmarkError(f"Ray did not come to {replicas} replicas: {told.get('message') or told.get('status')}")


def ip(*arguments: str) -> str:
    """Run iproute2.

    Raises:
        BenchmarkError: it cannot be done here.
    """
    if os.geteuid() or not shutil.which("ip"):
        raise BenchmarkError("nodes need network namespaces: run as root, with iproute2 installed")
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        raise BenchmarkError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def clear() -> None:
    """End what a run left that was killed itself."""
    left = ip("netns", "list").split()
    for number in range(1, 10):
        if (node := Node(number)).name in left:
            node.kill()
            ip("netns", "del", node.name)
        unlink(f"{node.name}v")
    unlink(BRIDGE)


def unlink(device: str) -> None:
    """Take a network device away, if it is there: the kernel removes those of a namespace only by and by."""
    with suppress(BenchmarkError):
        ip("link", "del", device)


@contextmanager
def networks(count: int) -> Iterator[list[Node]]:
    """Namespaces on a bridge, which this process is on too."""
    nodes = [Node(number + 1) for number in range(count)]
    clear()
    with ExitStack() as stack:
        ip("link", "add", BRIDGE, "type", "bridge")
        stack.callback(unlink, BRIDGE)
        ip("addr", "add", f"{NETWORK}.254/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for node in nodes:
            ip("netns", "add", node.name)
            stack.callback(ip, "netns", "del", node.name)
            stack.callback(node.kill)
            ip("link", "add", f"{node.name}v", "type", "veth", "peer", "name", "eth0", "netns", node.name)
            stack.callback(unlink, f"{node.name}v")
            ip("link", "set", f"{node.name}v", "master", BRIDGE, "up")
            ip("-n", node.name, "addr", "add", f"{node.address}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                ip("-n", node.name, "link", "set", device, "up")
        yield nodes


def start(node: Node, folder: Path) -> None:
    """Start a node's Ray; it runs on when this returns."""
    ray = str(Path(sys.executable).with_name("ray"))
    head = ["--head", f"--port={HEAD_PORT}", "--dashboard-host=0.0.0.0", f"--dashboard-port={STATUS_PORT}"]
    joining = head if node.number == 1 else [f"--address={NETWORK}.1:{HEAD_PORT}"]
    command = ["ip", "netns", "exec", node.name, ray, "start", *joining, f"--node-ip-address={node.address}"]
    command += ["--num-cpus=1", f"--object-store-memory={STORE_BYTES}", "--disable-usage-stats"]
    temporary = [f"--temp-dir={folder}"] if node.number == 1 else []
    env = os.environ | VARIABLES | {"PYTHONPATH": str(Path.cwd())}
    done = subprocess.run([*command, *temporary], capture_output=True, text=True, check=False, env=env, timeout=READY_S)
    if done.returncode:
        raise BenchmarkError(f"Ray did not start on {node.name}: {(done.stderr or done.stdout).strip()[-500:]}")


@contextmanager
def running(count: int) -> Iterator[Cluster]:
    """So many nodes; with the block they end, and leave nothing."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # Ray's sockets need a short path
    try:
        with networks(count) as nodes:
            for node in nodes:
                start(node, folder)
            yield Cluster(nodes, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
