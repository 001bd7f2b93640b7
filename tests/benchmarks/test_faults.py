import pytest

from benchmarks import courses, faults, overload, processes, soak
from benchmarks.command_line import FAULTS
from benchmarks.load import Course
from benchmarks.outcomes import Outcome
from benchmarks.plan import Row
from benchmarks.timeline import Mark


def row(name: str, server: str = "darkroom", lost: int = 0, **known: object) -> Row:
    """What a scenario leaves behind: a second of load, with a fault in its middle."""
    answered = [Outcome(at / 100, at / 100, at / 100 + 0.01, 200, group="good") for at in range(100 - lost)]
    silent = [Outcome(at / 100, at / 100, group="good") for at in range(100 - lost, 100)]
    course = Course([*answered, *silent], [Mark(0.5, "SIGKILL worker")])
    return courses.row(course) | {"scenario": name, "server": server, "rate": 100.0} | known


def test_every_scenario_can_be_asked_for_by_its_name() -> None:
    assert set(FAULTS) == set(faults.TITLES)
    assert set(faults.BESIDE) < set(FAULTS)


def test_a_fault_is_told_by_what_was_seen_from_outside() -> None:
    health, counters = [(0.1, 200), (0.7, 503), (2.5, 200)], {"restarts": 1.0, "splits": 0.0}

    told = faults.happened(row("F1", health=health, counters=counters))

    assert "/health 503 after 0.2 s; /health 200 after 2.0 s; restarts 1" == told


def test_a_server_that_ended_is_told_with_its_exit_code_and_what_it_left() -> None:
    told = faults.happened(row("F6", exit_code=1, ended_s=1.5, orphans=2, port_held=True))

    assert "exit code 1 after 1.0 s, 2 orphans; port still held" == told


def test_kills_are_told_one_by_one_and_together() -> None:
    (table,) = [one for one in faults.tables([row("kills"), row("kills", lost=3)]) if one.title.startswith("Ten kills")]

    assert ["1", "2", "all; longest"] == [line[0] for line in table.cells]
    assert [["100", "100", "0"], ["100", "97", "3"], ["200", "197", "3"]] == [line[3:6] for line in table.cells]


def test_both_servers_stand_side_by_side_where_both_were_asked() -> None:
    table = faults.beside([row("F1"), row("F1", "litserve (README)", lost=10)])

    assert ["", "darkroom", "litserve (README)"] == list(table.columns)
    assert "100 of 100 right, 0 lost, 0 wrong" in table.cells[0][1]
    assert "90 of 100 right, 10 lost, 0 wrong" in table.cells[0][2]
    assert [] == faults.beside([row("F1")]).cells


def test_a_burst_is_ten_times_the_capacity_on_half_of_it() -> None:
    times, over = overload.phases(10, calm=2, long=3, after=4)

    assert 5 == over
    assert [10, 315, 20] == [sum(low <= at < high for at in times) for low, high in ((0, 2), (2, 5), (5, 9))]


def test_goodput_of_a_burst_counts_right_answers_that_came_in_it() -> None:
    calm = [Outcome(at / 10, at / 10, at / 10 + 0.05, 200) for at in range(20)]
    taken = [Outcome(2 + at / 10, 2 + at / 10, 2 + at / 10 + 0.08, 200) for at in range(9)]
    refused = [Outcome(2.5, 2.5, 2.502, 429)] * 100
    late = [Outcome(2.9, 2.9, 3.2, 200)]

    found = overload.felt(Course([*calm, *taken, *refused, *late]), start=2, over=3, rate=10)

    assert 0.9 == found["burst_goodput"]
    assert (pytest.approx(300), pytest.approx(2)) == (found["accepted_ms"], found["refused_ms"])


def test_memory_grows_by_the_hour_after_the_warm_up() -> None:
    warming = [(at, 100.0 + at) for at in range(0, 20)]
    growing = [(at, 200 + at / 3600) for at in range(20, 101)]

    assert pytest.approx(1) == soak.slope([*warming, *growing])
    assert 0 == soak.slope([(0, 5.0)])


def test_the_most_memory_of_a_process_that_has_ended_is_unknown_and_no_error() -> None:
    assert 0 == processes.peak_rss_mib([2**22 + 1])
