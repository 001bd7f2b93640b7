"""Closed-loop load: each connection sends as soon as it has its answer. wrk does it, driven by a script of ours."""

import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import BenchmarkError

TIMEOUT_S = 60  # of a request, for slow servers with many connections
GRACE_S = 30  # wrk stops by itself after its duration; this much later it is stopped

SCRIPT = """
local file = io.open("{body}", "rb")
wrk.method, wrk.body = "POST", file:read("*a")
wrk.headers["Content-Type"] = "{content_type}"
file:close()
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\\nDONE {{"requests": %d, "microseconds": %d, "not_2xx": %d, "socket_errors": %d, ' ..
    '"mean": %.1f, "p50": %.1f, "p90": %.1f, "p99": %.1f}}\\n', summary.requests, summary.duration, e.status,
    e.connect + e.read + e.write + e.timeout, latency.mean, latency:percentile(50), latency:percentile(90),
    latency:percentile(99)))
end
"""


@dataclass(frozen=True)
class Closed:
    """What a closed loop found. `errors` are answers that are not 2xx or 3xx, and failures of sockets."""

    requests: int
    requests_per_s: float
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    not_2xx: int
    socket_errors: int
    load_cpu_s: float
    server_cpu_s: float = 0.0  # known to who runs the server

    @property
    def errors(self) -> int:
        """All that was not an answer as wished."""
        return self.not_2xx + self.socket_errors


def run(url: str, body: bytes, *, connections: int, seconds: float, content_type: str = "image/jpeg") -> Closed:
    """Post `body` over so many connections for whole seconds (at least one: wrk knows no shorter time).

    Raises:
        BenchmarkError: wrk is not installed, or failed.
    """
    wrk = shutil.which("wrk")
    if wrk is None:
        raise BenchmarkError("wrk is not installed; on Debian: apt-get install wrk")
    duration = max(1, round(seconds))
    threads = min(connections, 1 if (os.cpu_count() or 1) < 8 else 4)
    with tempfile.TemporaryDirectory() as folder:
        content, script = Path(folder, "body"), Path(folder, "post.lua")
        content.write_bytes(body)
        script.write_text(SCRIPT.format(body=content, content_type=content_type))
        command = [
            wrk,
            f"-t{threads}",
            f"-c{connections}",
            f"-d{duration}s",
            f"--timeout={TIMEOUT_S}s",
            f"-s{script}",
            url,
        ]
        # `timeout` ends a wrk that hangs; its own CPU time is negligible beside that of the child it waits for.
        command = ["timeout", str(duration + GRACE_S), *command]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout is not None
            output = process.stdout.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise BenchmarkError(f"wrk ended with exit code {process.returncode}: {output.strip()[-300:]}")
    return parse(output, usage.ru_utime + usage.ru_stime)


def parse(output: str, load_cpu_s: float) -> Closed:
    """Read what the script's `done` wrote below wrk's own table.

    Raises:
        BenchmarkError: it is not there.
    """
    lines = [line.removeprefix("DONE ") for line in output.splitlines() if line.startswith("DONE ")]
    if not lines:
        raise BenchmarkError(f"wrk gave no summary: {output.strip()[-300:]}")
    told = json.loads(lines[-1])
    return Closed(
        requests=told["requests"],
        requests_per_s=(told["requests"] - told["not_2xx"]) / (told["microseconds"] / 1e6),
        mean_ms=told["mean"] / 1000,
        p50_ms=told["p50"] / 1000,
        p90_ms=told["p90"] / 1000,
        p99_ms=told["p99"] / 1000,
        not_2xx=told["not_2xx"],
        socket_errors=told["socket_errors"],
        load_cpu_s=load_cpu_s,
    )
