"""Every suite for real, in little: real servers, real load, and what is written."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.command_line import RESULTS, SUITES

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("wrk", "started_once")]
BY_HAND = ("nodes", "compilers")  # a cluster of three nodes, and a C++ compiler at work: minutes each


def measured(suite: str, folder: Path, models: Path, *flags: str) -> list[dict[str, Any]]:
    """The rows of a quick run, which wrote its three files."""
    assert 0 == main([suite, "--quick", "--out", str(folder), "--models", str(models), *flags])
    assert {f"{suite}.json", f"{suite}.md", f"{suite}.svg"} == {path.name for path in folder.iterdir()}
    assert "| ---: |" in (folder / f"{suite}.md").read_text()
    rows: list[dict[str, Any]] = json.loads((folder / f"{suite}.json").read_text())["rows"]
    assert 0 == sum(row.get("errors", 0) for row in rows)
    return rows


def test_compare(tmp_path: Path, models: Path) -> None:
    rows = measured("compare", tmp_path, models)

    assert {"darkroom", "starlette (reads the body)"} == {row["server"] for row in rows if "server" in row}
    assert ["decode", "forward", "decode+forward"] == [row["bound"] for row in rows if "bound" in row]
    assert all(row["per_s"] > 0 for row in rows if "per_s" in row)


def test_pairs(tmp_path: Path, models: Path) -> None:
    rows = measured("pairs", tmp_path, models, "--workload", "A")

    assert ["darkroom", "decode+forward"] == [row["what"] for row in rows]


def test_stages(tmp_path: Path, models: Path) -> None:
    rows = measured("stages", tmp_path, models)

    assert [1, 16, 64] == [row["connections"] for row in rows]
    # What the stages take together is no more than the client waits, but for the images of requests still under way.
    assert all(0 < sum(row["stages_ms"].values()) < 1.5 * row["mean_ms"] for row in rows)


def test_batches(tmp_path: Path, models: Path) -> None:
    peak, *rows = measured("batches", tmp_path, models)

    assert 0 < peak["alone_p50_ms"] <= peak["alone_p99_ms"]
    assert peak["peak_per_s"] > 0
    assert [0.5, 0.8] == [row["share"] for row in rows]
    assert all(row["batch"] >= 1 and not row["wrong"] for row in rows)


def test_objective(tmp_path: Path, models: Path) -> None:
    peak, *rows = measured("objective", tmp_path, models)

    assert peak["peak_per_s"] > 0
    assert ["objective", "by hand: 32, 0 ms"] == [row["server"] for row in rows]
    assert all(row["p99_ms"] > 0 and row["batch"] >= 1 for row in rows)


def test_growth(tmp_path: Path, models: Path) -> None:
    rows = measured("growth", tmp_path, models)

    assert [1024, 128 * 128] == [row["pixels"] for row in rows if "pixels" in row]


def test_gpu_on_a_cpu(tmp_path: Path, models: Path) -> None:
    rows = measured("gpu", tmp_path, models, "--device", "cpu", "--workload", "A")

    assert ["decode", "forward"] == [row["bound"] for row in rows if "bound" in row]


def test_soak(tmp_path: Path, models: Path) -> None:
    *rows, end = measured("soak", tmp_path, models)

    assert {"main", "manager", "http", "nursery", "worker", "tracker"} == set(rows[-1]["mib"])
    assert [(0, 0)] == [(row["lost"], row["wrong"]) for row in rows if row["scenario"] == "part"]
    assert {"in flight": 0, "queue depth": 0} == end["left"]


def test_swaps(tmp_path: Path, models: Path) -> None:
    rows = measured("swaps", tmp_path, models, "--workload", "simple_cnn")

    assert 1 == len([row for row in rows if row["scenario"] == "swap"])
    assert {(0, 0)} == {(row["lost"], row["wrong"]) for row in rows if row["scenario"] == "part"}


def test_faults(tmp_path: Path, models: Path) -> None:
    capacity, kill = measured("faults", tmp_path, models, "--only", "kills")

    assert capacity["capacity"] > 0
    assert ["SIGKILL worker"] == [mark["name"] for mark in kill["marks"]]
    assert (0, 0) == (kill["lost"], kill["wrong"])
    assert kill["scheduled"] == sum(one["due"] for one in kill["timeline"])


def test_accuracy(tmp_path: Path, models: Path, test_data: Path) -> None:
    rows = measured("accuracy", tmp_path, models, "--data", str(test_data))

    assert 8 == len(rows)
    assert {"fp32", "bf16", "label"} <= rows[0].keys()


def test_loading(tmp_path: Path, models: Path, test_data: Path) -> None:
    rows = measured("loading", tmp_path, models, "--data", str(test_data))

    assert ["decode", "decode and resize", "training batches"] == [row["way"] for row in rows]
    assert all(row["images_per_s"] > 0 for row in rows)


def test_bulk(tmp_path: Path, models: Path) -> None:
    rows = measured("bulk", tmp_path, models)

    assert ["decode+forward", "bulk"] == [row["way"] for row in rows]
    assert all(row["images_per_s"] > 0 for row in rows)


def test_capacity(tmp_path: Path, models: Path) -> None:
    rows = measured("capacity", tmp_path, models)
    held = [row for row in rows if row["what"] == "held"]

    assert [0.5, 0.7] == [row["share"] for row in held]
    assert all((0, 0) == (row["lost"], row["wrong"]) and row["simulated_p99_ms"] > 0 for row in held)
    assert 15 == len([row for row in rows if row["what"] == "plan"])
    assert 6 == len([row for row in rows if row["what"] == "event"])


def test_every_suite_is_run_here_but_for_those_that_take_minutes() -> None:
    assert [*BY_HAND] == [suite for suite in SUITES if not any(name.startswith(f"test_{suite}") for name in globals())]


@pytest.mark.parametrize("suite", BY_HAND)
def test_what_was_measured_by_hand_is_told_by_the_code_of_today(suite: str) -> None:
    rows = json.loads((RESULTS / f"{suite}.json").read_text())["rows"]
    module = importlib.import_module(f"benchmarks.{suite}")
    told = (RESULTS / f"{suite}.md").read_text()

    assert all(table.markdown() in told for table in module.tables(rows))
    assert module.figure(rows).axes
