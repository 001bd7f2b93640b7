import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import closed
from benchmarks.errors import BenchmarkError
from tests.benchmarks.test_load import answering, reply

OUTPUT = """Running 2s test @ http://127.0.0.1:8000/predict
  1 threads and 64 connections
  Non-2xx or 3xx responses: 10
Requests/sec:   2000.00

DONE {"requests": 4000, "microseconds": 2000000, "not_2xx": 10, "socket_errors": 2, \
"latencies": [[30000, 2000], [31000, 1999], [50000, 1]]}
"""


def test_the_summary_is_read_and_answers_that_are_not_2xx_count_as_errors_only() -> None:
    found = closed.parse(OUTPUT, connections=64, load_cpu_s=0.5)

    assert (1995.0, 12, 0.5) == (found.requests_per_s, found.errors, found.load_cpu_s)
    assert (30.0, 31.0, 31.0) == (found.p50_ms, found.p90_ms, found.p99_ms)
    assert found.mean_ms == pytest.approx(30.50475)


def corrected(seen: Counter[int], interval: int) -> Counter[int]:
    """As wrk 4.1.0 does it: `stats_correct` in its stats.c."""
    told = Counter(seen)
    for latency in range(2 * interval, max(seen) + 1):
        added = latency - interval
        while told[latency] and added > interval:
            told[added] += told[latency]
            added -= interval
    return +told


@given(st.lists(st.integers(1, 500), min_size=1), st.integers(1, 200))
def test_what_wrk_adds_is_taken_away_again(latencies: list[int], interval: int) -> None:
    seen = Counter(latencies)

    assert seen == closed.observed(corrected(seen, interval), interval)


def test_a_wrk_that_adds_other_latencies_is_told() -> None:
    with pytest.raises(BenchmarkError, match=r"wrk 4\.1\.0"):
        closed.observed({100: 1}, 10)


@pytest.mark.usefixtures("wrk")
def test_one_slow_answer_in_two_hundred_is_none_in_a_hundred() -> None:
    async def stalling(number: int, identity: str) -> bytes:
        if number % 200 == 199:
            await asyncio.sleep(0.05)
        return reply(identity)

    with answering(stalling) as url:
        found = closed.run(url, b"picture", connections=1, seconds=1)

    assert found.requests > 400
    assert found.p99_ms < 25


def test_output_without_a_summary_is_told() -> None:
    with pytest.raises(BenchmarkError, match=r"no summary: unable to connect"):
        closed.parse("unable to connect\n", connections=1, load_cpu_s=0)


def test_a_missing_wrk_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    with pytest.raises(BenchmarkError, match=r"apt-get install wrk"):
        closed.run("http://127.0.0.1:9/", b"", connections=1, seconds=1)


@pytest.mark.usefixtures("wrk")
def test_a_server_that_is_not_there_is_told() -> None:
    with pytest.raises(BenchmarkError, match=r"Connection refused"):
        closed.run("http://127.0.0.1:9/", b"", connections=1, seconds=1)
