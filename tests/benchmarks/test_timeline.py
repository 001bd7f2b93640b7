import pytest

from benchmarks.outcomes import Outcome, report
from benchmarks.timeline import bins, recovery

RATE = 100


def steady(seconds: float, start: float = 0.0, took: float = 0.01, status: int = 200) -> list[Outcome]:
    """Requests at 100 a second, each answered after `took` seconds."""
    due = [start + number / RATE for number in range(round(seconds * RATE))]
    return [Outcome(at, at, at + took, status) for at in due]


def stalled(start: float, seconds: float) -> list[Outcome]:
    """Requests that come while nothing is answered; all are answered at its end."""
    return [Outcome(one.due, one.sent, start + seconds + 0.001, 200) for one in steady(seconds, start)]


def test_a_time_line_counts_offers_and_answers_in_the_bins_in_which_they_happen() -> None:
    outcomes = [Outcome(0.05, 0.05, 0.06, 200), Outcome(0.15, 0.15, 0.35, 200), Outcome(0.16, 0.16, 0.17, 429)]

    found = bins(outcomes, 0.1)

    assert [0, 0.1, 0.2, 0.3] == [one.at for one in found]
    assert [1, 2, 0, 0] == [one.due for one in found]
    assert [{"200": 1}, {"429": 1}, {}, {"200": 1}] == [one.answered for one in found]
    # A stall belongs to who had to wait, and a refusal is no latency of the accepted.
    assert pytest.approx([10, 200, 0, 0]) == [one.p99_ms for one in found]


def test_a_fault_that_nobody_felt_takes_no_time() -> None:
    found = recovery(steady(6), at=2)

    assert (0.0, 0.0) == (found.full_rate_s, found.normal_s)
    assert found.first_200_s == pytest.approx(0.01)


def test_a_stall_ends_with_the_first_answer_and_full_rate_is_kept_from_then_on() -> None:
    found = recovery([*steady(2), *stalled(2, 1.5), *steady(4, start=3.5)], at=2)

    assert found.first_200_s == pytest.approx(1.501)
    assert found.full_rate_s == pytest.approx(1.4, abs=0.01)  # of the bins of 0.2 s, the first that holds answers
    assert found.normal_s == pytest.approx(1.5)


def test_answers_other_than_200_are_no_rate() -> None:
    found = recovery([*steady(2), *steady(2, start=2, status=503), *steady(3, start=4)], at=2)

    assert found.first_200_s == pytest.approx(2.01)
    assert found.full_rate_s == pytest.approx(2.0, abs=0.01)
    assert found.normal_s == pytest.approx(2.0)


def test_full_rate_with_slow_answers_is_not_yet_the_usual_p99() -> None:
    found = recovery([*steady(2), *steady(2, start=2, took=0.05), *steady(3, start=4)], at=2)

    assert found.full_rate_s == pytest.approx(0.2, abs=0.01)  # 40 ms without an answer
    assert found.normal_s == pytest.approx(2.0)


def test_what_does_not_end_has_no_end() -> None:
    dead = [Outcome(one.due, one.sent) for one in steady(4, start=2)]

    found = recovery([*steady(2), *dead], at=2)

    assert (None, None, None) == (found.first_200_s, found.full_rate_s, found.normal_s)


def test_who_was_refused_was_not_accepted_and_who_was_not_answered_was_lost() -> None:
    right, refused, late = Outcome(0, 0, 0.01, 200), Outcome(0, 0, 0.002, 429), Outcome(0, 0, 1.0, 504)
    silent, unsent, wrong = Outcome(0, 0), Outcome(0), Outcome(0, 0, 0.02, 200, wrong=True)

    found = report([right, refused, late, silent, unsent, wrong])

    assert (6, 5, 4, 4, 1, 1) == (
        found.scheduled,
        found.sent,
        found.accepted,
        found.answered,
        found.lost,
        found.wrong,
    )
    assert {"200": 2, "429": 1, "504": 1} == found.statuses
    assert (1000, 2) == (found.p99_ms, found.refusal_p99_ms)
    assert 1 == found.goodput  # one right answer in the second that it all took
