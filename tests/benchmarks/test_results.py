import json
import subprocess
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from benchmarks import compare, plots, results
from benchmarks.contenders import DARKROOM, STARLETTE, spread_out
from benchmarks.plan import Plan, Row
from benchmarks.results import Table, median_interval, number, spread


@pytest.mark.parametrize(
    ("value", "told"), [(0.0, "0.00"), (1.234, "1.23"), (12.34, "12.3"), (123.4, "123"), (12345.6, "12,346")]
)
def test_numbers_are_told_to_three_digits(value: float, told: str) -> None:
    assert told == number(value)


def test_a_spread_is_the_median_with_minimum_and_maximum() -> None:
    assert "2.00 (1.00-9.00)" == spread([9, 1, 2])
    assert "2.00" == spread([2])
    assert "-" == spread([])


def test_the_interval_of_a_median_is_the_narrowest_of_order_statistics_with_95_percent() -> None:
    # Of ten, the second smallest to the second largest: 1 - 2 (1 + 10) / 2^10.
    assert pytest.approx((2, 9, 1 - 22 / 1024)) == median_interval([10, 1, 9, 2, 8, 3, 7, 4, 6, 5])
    # Of five there is none; the whole range has 1 - 2 / 2^5.
    assert pytest.approx((1, 5, 1 - 2 / 32)) == median_interval([1, 2, 3, 4, 5])


def test_a_table_is_markdown_with_numbers_to_the_right() -> None:
    told = Table("Title", ("", "a second"), [["darkroom", "5"]]).markdown()

    assert told == "### Title\n\n|  | a second |\n| --- | ---: |\n| darkroom | 5 |"


def test_rows_tables_picture_and_conditions_are_written_and_name_no_path(tmp_path: Path) -> None:
    figure, (axes,) = plots.panels(1)
    plots.bars(axes, {"ours": [1, 2, 3], "nothing": []}, [plots.OURS, plots.GREY], number)
    rows = [{"server": "ours", "per_s": 2}]

    results.write(tmp_path, "suite", Plan(tmp_path), rows, [Table("Title", ("", "b"), [["x", "1"]])], figure)

    document = json.loads((tmp_path / "suite.json").read_text())
    assert rows == document["rows"]
    assert {"cpu", "cores", "kernel", "python", "torch", "litserve", "wrk", "commit", "date"} <= set(
        document["conditions"]
    )
    markdown = (tmp_path / "suite.md").read_text()
    assert "| x | 1 |" in markdown
    assert "![suite](suite.svg)" in markdown
    assert (tmp_path / "suite.svg").read_text().startswith("<?xml")
    assert [] == [path for path in tmp_path.iterdir() if str(tmp_path) in path.read_text()]


def test_the_same_rows_give_the_same_picture(tmp_path: Path) -> None:
    def picture() -> Figure:
        figure, (axes,) = plots.panels(1)
        plots.line(axes, {1: [1, 2], 2: [3]}, "ours", plots.OURS)
        return figure

    for name in ("one", "two"):
        results.write(tmp_path / name, "suite", Plan(tmp_path), [], [], picture())

    assert (tmp_path / "one" / "suite.svg").read_bytes() == (tmp_path / "two" / "suite.svg").read_bytes()


def test_the_ideal_is_cores_over_the_cpu_seconds_of_all_that_must_be_done() -> None:
    about = {"workload": "A", "round": 0}
    rows = [
        about | {"bound": "decode", "cpu_s": 0.001, "cores": 2},
        about | {"bound": "forward", "cpu_s": 0.002, "cores": 2},
        about | {"bound": "decode+forward", "cpu_s": 0.1, "cores": 2},
        about | {"server": STARLETTE.name, "connections": 64, "server_cpu_s": 0.0005, "load_cpu_s": 0.0005},
        about | {"server": DARKROOM.name, "connections": 64, "per_s": 400.0},
    ]

    assert {0: pytest.approx(500)} == compare.ideals(rows, "A")
    assert [pytest.approx(0.8)] == compare.of_ideal(rows, "A", DARKROOM.name)


def test_servers_are_compared_within_a_round() -> None:
    def row(server: str, at: int, per_s: float, connections: int = 64) -> Row:
        return {"workload": "A", "server": server, "round": at, "connections": connections, "per_s": per_s}

    ours = (DARKROOM.name, f"{DARKROOM.name} (2 + 2)")
    rows = [row(ours[0], 0, 400), row("other", 0, 200), row(ours[0], 1, 100), row("other", 1, 25), row("other", 2, 1)]
    rows += [row(ours[1], 0, 600), row(ours[0], 0, 7, connections=1), row(STARLETTE.name, 0, 9)]

    assert [
        [f"{ours[0]} / other", "-", "3.00 (2.00-4.00)"],
        [f"{ours[1]} / other", "-", "3.00"],
        [f"{ours[1]} / {ours[0]}", "-", "1.50"],
    ] == compare.times_others(rows, "A").cells


def test_there_is_always_a_first_round_and_no_other_that_would_pass_the_minutes() -> None:
    assert [0] == list(Plan(Path(), rounds=3, minutes=1e-9).numbers())
    assert [0, 1, 2] == list(Plan(Path(), rounds=3).numbers())


def test_a_commit_is_dirty_by_code_that_is_changed_and_not_by_earlier_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for folder in ("benchmarks/results", "service"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "file").write_text("before")
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "first"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(results, "HOUSE", tmp_path)
    clean = results.commit()
    (tmp_path / "benchmarks" / "results" / "file").write_text("after")
    measured = results.commit()
    (tmp_path / "service" / "file").write_text("after")

    assert clean
    assert (clean, f"{clean}-dirty") == (measured, results.commit())


def test_the_service_spread_out_has_as_many_workers_as_http_processes_whatever_else_it_is_told() -> None:
    *_, first, workers, second, http = spread_out(["--workers", "7", "--max-delay-ms", "1"]).arguments

    assert ("--workers", "--http-processes") == (first, second)
    assert 1 <= int(workers) == int(http)
