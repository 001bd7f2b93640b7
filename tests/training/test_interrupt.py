"""Ctrl-C and SIGTERM, as real signals to real processes."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from models import manifest as manifests
from tests.training.conftest import QUICK, PhotoFolder

pytestmark = pytest.mark.slow


@contextmanager
def training(root: Path, *more: str) -> Iterator["subprocess.Popen[str]"]:
    """A process that trains on `root` and would go on for a very long time."""
    flags = ["--data", str(root), "--out", str(root.parent / "m.pt"), "--run", str(root.parent / "run")]
    command = [sys.executable, "-m", "training", *flags, *QUICK, "--epochs", "1000000", *more]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read_until(process: "subprocess.Popen[str]", start: str) -> str:
    """The first line of the output that begins so."""
    assert process.stdout is not None
    return next(line for line in process.stdout if line.startswith(start))


def test_ctrl_c_keeps_the_best_epoch_and_publishes_it(photos: PhotoFolder) -> None:
    root = photos()
    with training(root, "--workers", "2") as process:
        read_until(process, "epoch  1/")
        process.send_signal(signal.SIGINT)
        output, error = process.communicate(timeout=120)

    assert 0 == process.returncode, error
    assert "stopping: the best epoch so far is kept" in error
    assert "stopped by Ctrl-C; " in output
    assert "serve it" in output
    assert "photos" == manifests.read(root.parent / "m.pt").name
    assert (root.parent / "run" / "reports" / "metrics.json").exists()


def test_no_other_seed_is_begun_after_a_signal(photos: PhotoFolder) -> None:
    root = photos()
    with training(root, "--seeds", "3") as process:
        read_until(process, "epoch  1/")
        process.send_signal(signal.SIGTERM)
        output, error = process.communicate(timeout=120)

    assert 0 == process.returncode, error
    assert "stopped at seed 0 of 3 seeds" in output
    assert ["seed-0"] == [path.name for path in (root.parent / "run").iterdir()]
    assert not (root.parent / "m.pt").exists()


def test_ctrl_c_before_the_first_epoch_ended_writes_nothing(photos: PhotoFolder) -> None:
    root = photos()
    with training(root) as process:
        read_until(process, "device")
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=120)

    assert 130 == process.returncode, error
    assert "error: stopped" in error
    assert "Traceback" not in error
    assert [root] == list(root.parent.iterdir())


def test_ctrl_c_while_a_class_is_made_from_text_has_the_same_exit_code(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import os, signal, sys\nfrom training import __main__ as training\n"
        "text = 'os.kill(os.getpid(), signal.SIGINT); [None for _ in range(1000)]'\n"
        "training.parse = lambda _: exec(text)\nsys.exit(training.main([]))\n"
    )
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "program"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, env=env)

    assert (130, "error: stopped; nothing was published\n") == (finished.returncode, finished.stderr)
