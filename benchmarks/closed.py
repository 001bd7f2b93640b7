"""Closed-loop load: each connection sends as soon as it has its answer. wrk does it, driven by a script of ours."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from benchmarks.errors import BenchmarkError
from benchmarks.outcomes import percentile

TIMEOUT_S = 60  # of a request, for slow servers with many connections
GRACE_S = 30  # wrk stops by itself after its duration; this much later it is stopped

SCRIPT = """
local file = io.open("{body}", "rb")
wrk.method, wrk.body = "POST", file:read("*a")
wrk.headers["Content-Type"] = "{content_type}"
file:close()
function done(summary, latency, requests)
  local e, counts = summary.errors, {{}}
  for i = 1, #latency do
    local microseconds, count = latency(i)
    counts[i] = string.format('[%d, %d]', microseconds, count)
  end
  io.write(string.format('\\nDONE {{"requests": %d, "microseconds": %d, "not_2xx": %d, "socket_errors": %d, ' ..
    '"latencies": [%s]}}\\n', summary.requests, summary.duration, e.status,
    e.connect + e.read + e.write + e.timeout, table.concat(counts, ', ')))
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
    return parse(output, connections, usage.ru_utime + usage.ru_stime)


def parse(output: str, connections: int, load_cpu_s: float) -> Closed:
    """Read what the script's `done` wrote below wrk's own table.

    Raises:
        BenchmarkError: it is not there, or of a wrk that works otherwise.
    """
    lines = [line.removeprefix("DONE ") for line in output.splitlines() if line.startswith("DONE ")]
    if not lines:
        raise BenchmarkError(f"wrk gave no summary: {output.strip()[-300:]}")
    told = json.loads(lines[-1])
    each = told["requests"] // connections
    seen = observed(dict(told["latencies"]), told["microseconds"] // each if each else 0)
    milliseconds = [n / 1000 for n, count in seen.items() for _ in range(count)]
    return Closed(
        requests=told["requests"],
        requests_per_s=(told["requests"] - told["not_2xx"]) / (told["microseconds"] / 1e6),
        mean_ms=fmean(milliseconds or [0.0]),
        p50_ms=percentile(milliseconds, 0.5),
        p90_ms=percentile(milliseconds, 0.9),
        p99_ms=percentile(milliseconds, 0.99),
        not_2xx=told["not_2xx"],
        socket_errors=told["socket_errors"],
        load_cpu_s=load_cpu_s,
    )


def observed(told: Mapping[int, int], interval: int) -> dict[int, int]:
    """Of the latencies that wrk tells, in us, and how often each, those that it has observed.

    For one of at least twice the mean `interval` between a connection's requests wrk adds others, each an interval
    shorter than the one before: of the requests that an open loop would have sent meanwhile (`stats_correct` in wrk
    4.1.0). A closed loop sends none. From the longest down, each one's are taken away again.

    Raises:
        BenchmarkError: they are not there, so this wrk works otherwise.
    """
    left = dict(told)
    for longest in sorted(told, reverse=True):
        if not interval or longest < 2 * interval:
            break
        for added in range(longest - interval, interval, -interval):
            left[added] = left.get(added, 0) - left[longest]
    if min(left.values(), default=0) < 0:
        raise BenchmarkError("this wrk adds other latencies than wrk 4.1.0 does; install that")
    return {latency: count for latency, count in left.items() if count}
