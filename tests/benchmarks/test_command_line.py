import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.command_line import SUITES, parse
from benchmarks.errors import BenchmarkError

WRONG = {
    "no suite": ([], "SUITE"),
    "an unknown suite": (["everything"], "invalid choice: 'everything'"),
    "an unknown flag": (["stages", "--pairs", "3"], "--pairs"),
    "no number": (["stages", "--seconds", "nan"], "invalid positive number value: 'nan'"),
    "no rounds": (["compare", "--rounds", "0"], "invalid positive whole number value: '0'"),
    "a number format that there is not": (["gpu", "--dtype", "int8"], "invalid choice: 'int8'"),
    "no data": (["accuracy", "--data", "no/such/folder"], "accuracy needs real photos"),
    "data without labels": (["accuracy", "--data", "."], "no photos/labels.csv"),
    "an unknown architecture": (["stages", "--workloads", "resnet9000"], "resnet9000"),
}


@pytest.mark.usefixtures("wrk")
@pytest.mark.parametrize(("arguments", "words"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_gives_one_line_and_exit_code_2_and_writes_nothing(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    assert 2 == main(arguments)
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert 1 == error.count("\n")
    assert words in error
    assert [] == list(tmp_path.iterdir())


def test_a_missing_wrk_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    with pytest.raises(BenchmarkError, match=r"^wrk is not installed; .*make system"):
        parse(["stages"])


@pytest.mark.parametrize("suite", SUITES)
def test_help_tells_what_a_suite_is_for_and_every_option(suite: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse([suite, "--help"])

    assert 0 == stopped.value.code
    told = " ".join(capsys.readouterr().out.split())
    assert SUITES[suite].help in told
    assert [] == [option for option in ("--quick", "--out", *SUITES[suite].options) if f"{option} " not in told]


def test_quick_asks_for_one_second_one_round_and_the_small_workload_unless_another_is_named() -> None:
    options = parse(["accuracy", "--quick", "--data", "."]).options

    assert {"data": Path()} == options
    assert ["A"] == quick("gpu")["workloads"]
    assert ["resnet18"] == quick("gpu", "--workload", "resnet18")["workloads"]
    assert (1, 1) == (quick("pairs")["seconds"], quick("pairs")["rounds"])


def quick(suite: str, *flags: str) -> dict[str, object]:
    """What a suite is asked to do."""
    return dict(parse([suite, "--quick", *flags]).options)


def test_help_and_errors_do_not_wait_for_torch() -> None:
    code = "import sys, benchmarks.__main__ as m; m.main(['gpu', '--seconds', 'x']); sys.exit('torch' in sys.modules)"

    assert 0 == subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL, check=False).returncode
