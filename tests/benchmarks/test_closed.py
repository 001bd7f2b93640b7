import pytest

from benchmarks import closed
from benchmarks.errors import BenchmarkError

OUTPUT = """Running 2s test @ http://127.0.0.1:8000/predict
  1 threads and 64 connections
  Non-2xx or 3xx responses: 10
Requests/sec:   2000.00

DONE {"requests": 4000, "microseconds": 2000000, "not_2xx": 10, "socket_errors": 2, "mean": 31000.0, "p50": 30000.0, \
"p90": 40000.0, "p99": 50000.5}
"""


def test_the_summary_is_read_and_answers_that_are_not_2xx_count_as_errors_only() -> None:
    found = closed.parse(OUTPUT, load_cpu_s=0.5)

    assert (1995.0, 12, 0.5) == (found.requests_per_s, found.errors, found.load_cpu_s)
    assert (31.0, 30.0, 40.0, 50.0005) == (found.mean_ms, found.p50_ms, found.p90_ms, found.p99_ms)


def test_output_without_a_summary_is_told() -> None:
    with pytest.raises(BenchmarkError, match=r"no summary: unable to connect"):
        closed.parse("unable to connect\n", load_cpu_s=0)


def test_a_missing_wrk_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    with pytest.raises(BenchmarkError, match=r"apt-get install wrk"):
        closed.run("http://127.0.0.1:9/", b"", connections=1, seconds=1)


@pytest.mark.usefixtures("wrk")
def test_a_server_that_is_not_there_is_told() -> None:
    with pytest.raises(BenchmarkError, match=r"Connection refused"):
        closed.run("http://127.0.0.1:9/", b"", connections=1, seconds=1)
