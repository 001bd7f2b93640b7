"""The faults F1 to F15, ten kills, and bad inputs: what is done to a server under load, and what came of it."""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from PIL import Image as Pillow

from benchmarks import contenders, processes, servers, trials
from benchmarks.contenders import DARKROOM
from benchmarks.load import Act
from benchmarks.marked import Mark
from benchmarks.plan import Row
from benchmarks.servers import Server
from benchmarks.trials import LONG_S, Ground, poison, strike
from benchmarks.workloads import encode, expected
from service.settings import Settings

CALM_S = 2.0  # before a fault
KILLS = 10
STOPPED_S = 20.0
CRASHED_S = 45.0  # within which a service that cannot start its worker again should have ended
MARKED = 8  # one in so many requests is a marked one
BAD = (1, 4, 7, 11, 14, 17)  # of twenty requests
SEED = 4


def killed(ground: Ground) -> list[Row]:
    """F1: the worker is killed."""
    server = ground.server()
    acts = [strike(server, CALM_S, signal.SIGKILL, processes.busy_worker, "worker")]
    return [ground.trial(server, "F1", rate=ground.rate / 2, seconds=quick(ground, 12), acts=acts)]


def kills(ground: Ground) -> list[Row]:
    """F2: the worker is killed ten times, at random moments."""
    return killing(ground, ground.server(), seconds=8)


def kills_with_spare(ground: Ground) -> list[Row]:
    """F2 once more, with a warm spare worker."""
    if "spares" not in Settings.model_fields:
        return [skipped("kills_spare", "the service has no --spares")]
    with ground.fresh("--spares", "1") as server:
        return [row | {"scenario": "kills_spare"} for row in killing(ground, server, seconds=6)]


def killing(ground: Ground, server: Server, seconds: float) -> list[Row]:
    """A row a kill, each under a load of its own once the server has settled."""
    chance, rows = random.Random(SEED), list[Row]()
    for number in range(1 if ground.plan.quick else KILLS):
        if not trials.settled(server, ground.images[0]):
            rows.append(skipped("kills", f"not ready a minute after kill {number}") | {"failed": True})
            break
        acts = [strike(server, chance.uniform(1, 2), signal.SIGKILL, processes.busy_worker, "worker")]
        rows.append(ground.trial(server, "kills", rate=ground.rate / 2, seconds=quick(ground, seconds), acts=acts))
    return rows


def stopped(ground: Ground) -> list[Row]:
    """F3: the worker is stopped for 20 s."""
    server, seconds = ground.server(), quick(ground, STOPPED_S)
    acts = trials.pause(server, CALM_S, seconds)
    return [ground.trial(server, "F3", rate=ground.rate / 2, seconds=CALM_S + seconds + 4, acts=acts)]


def hanging(ground: Ground) -> list[Row]:
    """F4: a picture for which the model never ends."""
    return poisoned(ground, "F4", Mark.HANGS, seconds=12)


def http_killed(ground: Ground) -> list[Row]:
    """F5: the process that speaks HTTP is killed."""
    return struck(ground, "F5", signal.SIGKILL, "http")


def manager_killed(ground: Ground) -> list[Row]:
    """F6: LitServe's manager is killed."""
    return struck(ground, "F6", signal.SIGKILL, "manager")


def struck(ground: Ground, name: str, number: int, kind: str) -> list[Row]:
    """A signal to the first process of a kind."""

    def choose(server: Server) -> int:
        return trials.first(processes.of_kind(server, kind), kind)

    server = ground.server()
    acts = [strike(server, CALM_S, number, choose, kind)]
    return [ground.trial(server, name, rate=ground.rate / 2, seconds=quick(ground, 10), acts=acts)]


def crash_loop(ground: Ground) -> list[Row]:
    """F7: the worker is killed, and its artifact was damaged meanwhile, so that no other can start."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model.pt")
        shutil.copy(ground.model, model)
        with replace(ground, model=model).fresh() as server:
            model.write_bytes(model.read_bytes()[:-1000])
            acts = [strike(server, CALM_S, signal.SIGKILL, processes.busy_worker, "worker, artifact damaged")]
            seconds = quick(ground, CRASHED_S)
            return [ground.trial(server, "F7", rate=min(20.0, ground.rate / 2), seconds=seconds, acts=acts)]


def crowded(ground: Ground) -> list[Row]:
    """F8: pictures for which the model fails when more than four are in the batch; eight are waited for."""
    images = [ground.image(Mark.CROWDED.body, "good", expected(ground.model, Mark.CROWDED.body))]
    with ground.fresh("--max-batch-size", "8", "--max-delay-ms", "50") as server:
        return [ground.trial(server, "F8", rate=ground.rate / 2, seconds=quick(ground, 5), images=images)]


def raising(ground: Ground) -> list[Row]:
    """F9: every eighth picture is one that the model raises for."""
    return mixed(ground, "F9", Mark.RAISES)


def nonfinite(ground: Ground) -> list[Row]:
    """G4: every eighth picture is one that the model answers with NaN."""
    return mixed(ground, "G4", Mark.NONFINITE)


def out_of_memory(ground: Ground) -> list[Row]:
    """A picture for which the model wants more memory than there is; a frozen module may die of the second one."""
    return poisoned(ground, "memory", Mark.MEMORY, seconds=12, times=3)


def poisoned(ground: Ground, name: str, mark: Mark, seconds: float, times: int = 1) -> list[Row]:
    """A marked picture among others, so many times one after the other."""
    server, told = ground.server(), list[str]()
    acts = [poison(server, CALM_S, ground.image(mark.body, "bad"), told, ground.timeout_s, times)]
    row = ground.trial(server, name, rate=ground.rate / 2, seconds=quick(ground, seconds), acts=acts)
    return [row | noted(told)]


def mixed(ground: Ground, name: str, mark: Mark) -> list[Row]:
    """Every eighth picture is a marked one."""
    images = [*ground.images * (MARKED - 1), ground.image(mark.body, "bad")]
    return [ground.trial(ground.server(), name, rate=ground.rate / 2, seconds=quick(ground, 5), images=images)]


def large_pictures(ground: Ground) -> list[Row]:
    """F10 in little: 32 PNGs of 40 megapixels at once; no limit on memory but the machine's, and what was taken."""
    body = encode(Pillow.new("RGB", (8000, 4999), "teal"), "PNG")
    count = 2 if ground.plan.quick else 32
    patient = replace(ground, contender=contenders.darkroom(ground.plan.flags), timeout_s=LONG_S)
    with patient.fresh() as server:
        _, row = patient.loaded(server, [0.0] * count, images=[ground.image(body, "good")])
        peak = processes.peak_rss_mib(processes.of_kind(server, "worker"))
    return [row | {"scenario": "F10", "server": ground.name} | noted([f"the worker's peak: {peak:.0f} MiB"])]


def terminated_together(ground: Ground) -> list[Row]:
    """F12: SIGTERM to the whole process group, under load."""
    with ground.fresh() as server:

        def does(mark: Callable[[], None]) -> None:
            server.signal(signal.SIGTERM)
            mark()

        return [ended(ground, server, "F12", [Act(CALM_S, "SIGTERM group", does)])]


def terminated_twice(ground: Ground) -> list[Row]:
    """F13: SIGTERM twice under load, and SIGTERM to a service that is still loading."""

    def main(server: Server) -> int:
        return server.process.pid

    with ground.fresh() as server:
        acts = [strike(server, CALM_S + wait, signal.SIGTERM, main, "main") for wait in (0.0, 0.05)]
        row = ended(ground, server, "F13", acts)
    return [row, while_loading(ground)]


def ended(ground: Ground, server: Server, name: str, acts: Sequence[Act]) -> Row:
    """A trial after which the server should have ended by itself."""
    row = ground.trial(server, name, rate=ground.rate / 2, seconds=CALM_S + 1, acts=acts)
    if "exit_code" not in row:
        with suppress(subprocess.TimeoutExpired):
            row["exit_code"] = server.process.wait(servers.STOP_S)
        row |= trials.left(server)
    return row


def while_loading(ground: Ground) -> Row:
    """SIGTERM 1.5 s after the start."""
    arguments = [text.format(model=ground.model, port=0, dtype="fp32", device="cpu") for text in DARKROOM.arguments]
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        time.sleep(1.5)
        process.terminate()
        started = time.monotonic()
        with suppress(subprocess.TimeoutExpired):
            process.wait(servers.STOP_S)
        orphans = len(Server(ground.contender, process, "", b"").stats())
        told = f"exit code {process.returncode} after {time.monotonic() - started:.1f} s, {orphans} orphans"
    finally:
        servers.end(process)
    return skipped("F13 loading", told)


# In a mount namespace of its own: a small TMPDIR, and a root that is read-only where that can be had.
NAMESPACE = """
mount -t tmpfs -o size=64k none "$0"
mount -o remount,ro,bind / 2> /dev/null
TMPDIR="$0" exec "$@"
"""


def full_disk(ground: Ground) -> list[Row]:
    """F14: nothing can be written once it serves, neither to the temporary directory nor, where we may, to the root."""
    if os.geteuid() or subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        return [skipped("F14", "needs root, for a mount namespace")]
    with tempfile.TemporaryDirectory() as folder:
        script = ["-m", "sh", "-c", NAMESPACE, folder, sys.executable]
        contender = replace(ground.contender, arguments=[*script, *ground.contender.arguments], python="unshare")
        with replace(ground, contender=contender).fresh() as server:
            inside = Path(f"/proc/{server.process.pid}/root{folder}")
            with suppress(OSError):  # until it is full
                (inside / "full").write_bytes(bytes(1 << 20))
            row = ground.trial(server, "F14", rate=ground.rate / 2, seconds=quick(ground, 4))
            head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
            form = head + ground.body + bytes(2_000_000) + b"\r\n--b--\r\n"  # more than forms usually keep in memory
            status, _ = servers.post(server.url, form, "multipart/form-data; boundary=b", timeout=10)
            mounts = Path(f"/proc/{server.process.pid}/mounts").read_text().splitlines()
            readonly = any(line.split()[1] == "/" and "ro" in line.split()[3].split(",") for line in mounts)
            told = [f"a form of 2 MB: {status}", f"root {'read-only' if readonly else 'writable'}"]
            return [row | noted(told)]


def surface(ground: Ground) -> list[Row]:
    """F15: what the service listens on."""
    server = ground.server()
    pids = list(server.stats())
    ports = {port for pid in pids for port in processes.ports(pid)}
    open_ones = sorted({name for pid in pids for name in processes.open_to_others(pid)})
    told = f"{len(ports)} TCP port{'s' * (len(ports) != 1)}; sockets that others may write to: {len(open_ones)}"
    return [skipped("F15", told)]


def bad_inputs(ground: Ground) -> list[Row]:
    """H4: 30 % bad inputs at 0.7 C."""
    jpeg, claims = ground.body, bytearray(encode(Pillow.new("L", (8, 8)), "PNG"))
    claims[16:24] = (60_000).to_bytes(4, "big") * 2
    bodies = (b"no picture at all", b"", jpeg[: len(jpeg) // 2], jpeg[:20], bytes(claims), b"PK\x03\x04" + bytes(900))
    turns = ground.images * 20
    for place, body in zip(BAD, bodies, strict=True):
        turns[place] = ground.image(body, "bad")
    return [ground.trial(ground.server(), "bad", rate=0.7 * ground.rate, seconds=quick(ground, 10), images=turns)]


def quick(ground: Ground, seconds: float) -> float:
    """As long as it takes, or as little as shows that it works."""
    return min(seconds, 4.0) if ground.plan.quick else seconds


def skipped(name: str, told: str) -> Row:
    """A row without a load."""
    return {"scenario": name, "server": DARKROOM.name} | noted([told])


def noted(told: Sequence[str]) -> Row:
    return {"notes": list(told)}


# By name: what it is about, and what does it. The first ones leave the service well, the later ones may not.
SCENARIOS: Mapping[str, tuple[str, Callable[[Ground], list[Row]]]] = {
    "F1": ("worker killed", killed),
    "F3": ("worker stopped for 20 s", stopped),
    "F4": ("endless loop for one picture", hanging),
    "F8": ("fails for more than 4 images at once", crowded),
    "F9": ("raises for one image in 8", raising),
    "G4": ("NaN for one image in 8", nonfinite),
    "memory": ("no memory for one picture", out_of_memory),
    "F10": ("32 pictures of 40 megapixels at once", large_pictures),
    "F15": ("what listens", surface),
    "bad": ("30 % bad inputs at 0.7 C", bad_inputs),
    "kills": ("ten kills", kills),
    "kills_spare": ("ten kills, --spares 1", kills_with_spare),
    "F5": ("HTTP process killed", http_killed),
    "F6": ("manager killed", manager_killed),
    "F7": ("worker killed and artifact damaged", crash_loop),
    "F12": ("SIGTERM to the group", terminated_together),
    "F13": ("SIGTERM twice; while loading", terminated_twice),
    "F14": ("temporary directory full, root read-only", full_disk),
}
