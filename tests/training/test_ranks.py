"""Several processes, as torchrun starts them, train what one would."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import artifact
from tests.training.conftest import QUICK, PhotoFolder
from training.ranks import Ranks

# No batch normalisation and no chance: then the weights can be compared.
PLAIN = ["--recipe", "tutorial", "--batch-size", "15", "--epochs", "3", "--optimizer", "sgd", "--lr", "0.05"]
SPLITS = {"train/blue": 22, "train/red": 22, "val/blue": 75, "val/red": 76}


def torchrun(count: int, *arguments: str) -> list[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m", "--"]
    return [*(launch if count > 1 else [sys.executable, "-m"]), "training", *arguments]


def run(count: int, *arguments: str) -> str:
    """Train in so many processes; what they told."""
    finished = subprocess.run(torchrun(count, *arguments), capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def document(folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((folder / "reports" / "metrics.json").read_text())
    return told


@given(st.integers(1, 200), st.integers(1, 20), st.integers(1, 5))
def test_every_item_is_exactly_one_process_s(n: int, size: int, count: int) -> None:
    batches = torch.split(torch.randperm(n), size)
    shares = [Ranks(rank, count).share(batches) for rank in range(count)]
    parts = [Ranks(rank, count).parts(batches) for rank in range(count)]

    assert sorted(torch.cat([batch for share in shares for batch in share]).tolist()) == list(range(n))
    used = [batch for batch in batches if len(batch) >= count]
    assert [len(used)] * count == [len(part) for part in parts]
    for number, batch in enumerate(used):
        assert sorted(batch.tolist()) == sorted(torch.cat([part[number] for part in parts]).tolist())
        assert all(len(part[number]) for part in parts)


@pytest.mark.slow
def test_two_processes_train_what_one_does_and_count_no_image_twice(photos: PhotoFolder, tmp_path: Path) -> None:
    root, models = photos(SPLITS), []
    for count in (1, 2):
        folder, out = tmp_path / f"run-{count}", tmp_path / f"{count}.pt"
        told = run(count, "--data", str(root), *PLAIN, "--device", "cpu", "--run", str(folder), "--out", str(out))
        assert 1 == told.count("proved")
        assert (", 2 processes" in told) == (count == 2)
        models.append(artifact.load(out).module.state_dict())
    one, two = document(tmp_path / "run-1"), document(tmp_path / "run-2")

    assert all(torch.allclose(value, models[1][name], atol=1e-4) for name, value in models[0].items())
    assert [epoch["images"] for epoch in one["epochs"]] == [epoch["images"] for epoch in two["epochs"]]
    assert 151 == two["accuracy"]["validation"]["n"]
    last = two["epochs"][two["best_epoch"] - 1]["validation"][1]
    assert two["accuracy"]["validation"]["value"] == pytest.approx(last)
    assert one["accuracy"]["validation"]["value"] == pytest.approx(last, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--ema", "0.9"]], ids=["weights", "their average"])
def test_with_batch_normalisation_too_the_kept_epochs_figure_is_the_published_one(
    photos: PhotoFolder, tmp_path: Path, more: list[str]
) -> None:
    told = ["--run", str(tmp_path / "run"), "--out", str(tmp_path / "model.pt"), "--epochs", "2", "--lr", "0.02", *more]
    run(2, "--data", str(photos(SPLITS)), *QUICK, *told)
    two = document(tmp_path / "run")
    kept_loss, _ = two["epochs"][two["best_epoch"] - 1]["validation"]

    assert two["calibration"]["likelihood_before"] == pytest.approx(kept_loss, rel=1e-4)


Host = tuple[list[str], str, dict[str, str]]  # what runs a command there, its address, what gloo must know


@pytest.fixture
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two network namespaces joined by a cable or, where none can be made (no root), this machine twice."""
    names = [f"darkroom{side}{os.getpid() % 10_000}" for side in "ab"]
    addresses = ["10.86.0.1", "10.86.0.2"]
    commands = [
        *(f"ip netns add {name}" for name in names),
        f"ip -n {names[0]} link add {names[0][8:]} type veth peer name {names[1][8:]} netns {names[1]}",
    ]
    for name, address in zip(names, addresses, strict=True):
        commands += [
            f"ip -n {name} addr add {address}/24 dev {name[8:]}",
            f"ip -n {name} link set {name[8:]} up",
            f"ip -n {name} link set lo up",
        ]
    made = shutil.which("ip") is not None and all(
        subprocess.run(command.split(), check=False).returncode == 0 for command in commands
    )
    if made:
        one, two = (
            (["ip", "netns", "exec", name], address, {"GLOO_SOCKET_IFNAME": name[8:]})
            for name, address in zip(names, addresses, strict=True)
        )
    else:
        one, two = ([], "127.0.0.1", {"GLOO_SOCKET_IFNAME": "lo"}), ([], "127.0.0.1", {"GLOO_SOCKET_IFNAME": "lo"})
    yield one, two
    for name in names if made else ():
        subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.mark.slow
def test_two_machines_train_one_model(photos: PhotoFolder, tmp_path: Path, two_hosts: tuple[Host, Host]) -> None:
    root, folder, out = photos(SPLITS), tmp_path / "run", tmp_path / "model.pt"
    launch = ["--nnodes", "2", "--master-addr", two_hosts[0][1], "--master-port", "29417", "-m", "--", "training"]
    flags = ["--data", str(root), *PLAIN, "--device", "cpu", "--run", str(folder), "--out", str(out)]
    processes = [
        subprocess.Popen(
            [*prefix, sys.executable, "-m", "torch.distributed.run", "--node-rank", str(rank), *launch, *flags],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        for rank, (prefix, _, environment) in enumerate(two_hosts)
    ]
    first, second = (process.communicate()[0] for process in processes)

    assert [0, 0] == [process.returncode for process in processes]
    assert ", 2 processes" in first
    assert "proved" in first
    assert "" == second
    assert 151 == document(folder)["accuracy"]["validation"]["n"]


@pytest.mark.slow
def test_processes_that_are_told_to_end_go_on_as_one_or_several(photos: PhotoFolder, tmp_path: Path) -> None:
    root, folder, out = photos(SPLITS), tmp_path / "run", tmp_path / "model.pt"
    flags = ["--data", str(root), *QUICK, "--epochs", "2000", "--run", str(folder), "--out", str(out)]
    with subprocess.Popen(torchrun(2, *flags), stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch  2"):
                process.send_signal(signal.SIGTERM)
                break
        told = process.stdout.read()

    assert "stopped in epoch" in told
    assert not out.exists()
    assert ["run"] == [path.name for path in tmp_path.iterdir() if path.name.startswith("run")]
    with subprocess.Popen(torchrun(1, "resume", str(folder)), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = iter(process.stdout)
        assert any(line.startswith("going on in epoch") for line in lines)
        assert any(line.startswith("epoch ") for line in lines)
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
    assert 0 == process.returncode
