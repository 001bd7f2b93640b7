"""Which batch size an objective allows, what is expected of it, and what a service does with it."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from benchmarks import load
from benchmarks.load import Image
from service import speed
from service.pace import Pace
from service.settings import Settings
from service.transport import Transport
from tests import artifacts, running
from tests.pictures import noise

OBJECTIVE_MS = 1000.0  # that any machine keeps
CURVES = some.lists(some.floats(1e-4, 1.0), min_size=1, max_size=8).map(
    lambda passes: {1 << power: seconds for power, seconds in enumerate(passes)}
)


def settings(**given: Any) -> Settings:
    return Settings(model=Path("model.pt"), _cli_parse_args=[], **given)  # type: ignore[call-arg]


def plan(curve: dict[int, float], batch_size: int = 0, passes: int = 2, decode: float = 0.001) -> dict[str, Any]:
    """As a worker tells it."""
    text = {str(n): seconds for n, seconds in curve.items()}
    known = {"curve": text, "passes": passes, "decode_seconds": decode}
    return known | {"steps": {}, "threads": {}, "batch_size": batch_size or max(curve)}


@given(CURVES, some.floats(0.1, 5000), some.floats(0.1, 5000))
def test_a_larger_objective_never_gives_a_smaller_batch(curve: dict[int, float], one: float, other: float) -> None:
    low, high = (speed.of(plan(curve), settings(objective_p99_ms=ms)) for ms in sorted((one, other)))

    assert low.batch_size <= high.batch_size
    assert low.met <= high.met


@given(CURVES, some.floats(0.1, 5000), some.integers(0, 7))
def test_a_batch_is_never_larger_than_pays_and_within_the_objective_where_that_can_be(
    curve: dict[int, float], ms: float, power: int
) -> None:
    most = min(1 << power, max(curve))
    found = speed.of(plan(curve, batch_size=most), settings(objective_p99_ms=ms))

    assert 1 <= found.batch_size <= most
    assert found.met == (found.worst <= ms / 1000)
    assert found.met or found.batch_size == 1


@given(CURVES)
def test_without_an_objective_batches_grow_while_that_pays(curve: dict[int, float]) -> None:
    found = speed.of(plan(curve), settings())

    assert (max(curve), True, None) == (found.batch_size, found.met, found.told()["objective"])


def test_who_waits_for_fuller_batches_gets_them_though_so_large_ones_were_not_measured() -> None:
    found = speed.of(plan({1: 0.010, 2: 0.015}, batch_size=2), settings(max_delay_ms=3, max_batch_size=64))

    assert 64 == found.batch_size
    assert 2 * 2 / 0.015 > found.images_per_second > 0


def test_the_worst_case_is_two_cycles_and_the_delay() -> None:
    known = plan({1: 0.010, 2: 0.015}, passes=2, decode=0.003 - speed.REQUEST_S)
    found = speed.of(known, settings(objective_p99_ms=100, max_delay_ms=4, max_batch_size=2))

    assert {"p99_ms": 100.0, "predicted_ms": 2 * (15.0 + 2 * 2 * 3.0) + 4, "met": True} == found.told()["objective"]
    assert pytest.approx(2 * 2 / 0.027) == found.images_per_second


@pytest.mark.parametrize(
    ("curve", "pays"),
    [
        ({1: 0.449, 2: 0.474, 4: 0.587, 8: 0.756, 16: 1.129, 32: 1.907}, True),  # SimpleCNN, ms, on two cores
        ({1: 22.2, 2: 36.8, 4: 66.3, 8: 134.0}, False),  # ResNet-18
        ({1: 0.4}, False),
    ],
)
def test_joining_the_next_pass_pays_where_a_pass_takes_hardly_longer_for_an_image_more(
    curve: dict[int, float], pays: bool
) -> None:
    assert pays == speed.joining_pays(curve)


def test_each_http_process_knows_its_share_of_what_all_workers_do_before_the_first_answer() -> None:
    transport = Transport(2, 2, 1 << 16)
    for worker in range(2):
        transport.tell(worker, {"plan": plan({1: 0.010}, passes=1, decode=0.010 - speed.REQUEST_S)})

    assert pytest.approx(1.0) == speed.pace(transport, settings()).wait(50)


def test_no_more_waits_than_half_the_objective_takes_but_a_full_batch_for_each_pass_always_may() -> None:
    pace = Pace(images_per_second=100, together=8, longest=0.05)

    assert [0, 0, pytest.approx(0.03), pytest.approx(0.95)] == [pace.excess(images) for images in (0, 7, 8, 100)]
    assert 0 == Pace(images_per_second=100).excess(10_000)


def test_few_images_that_take_longer_each_do_not_change_what_is_expected_of_many() -> None:
    pace = Pace(images_per_second=100, together=8, longest=0.05)
    for waiting in (1, 7, 8):
        before = pace.wait(100)
        pace.since -= 0.5
        pace.learn(1, waiting, outage=50)
        assert (waiting < 8) == (before == pace.wait(100))


def test_a_service_with_an_objective_tells_what_it_expects(model: Path) -> None:
    with running.serving(model, "--objective-p99-ms", str(OBJECTIVE_MS)) as service:
        told = service.get("/info").json()["speed"]
        assert 200 == service.post(noise(1)).status_code

    assert (OBJECTIVE_MS, True) == (told["objective"]["p99_ms"], told["objective"]["met"])
    assert 0 < told["objective"]["predicted_ms"] <= OBJECTIVE_MS
    assert told["images_per_second"] > 0


@pytest.mark.slow
def test_an_objective_that_cannot_be_met_is_told_in_the_log_and_the_service_serves(model: Path) -> None:
    with running.serving(model, "--objective-p99-ms", "0.1") as service:
        told = service.get("/info").json()["speed"]
        assert 200 == service.post(noise(1)).status_code
        log = service.stderr.read_text()

    assert (1, False) == (told["batch_size"], told["objective"]["met"])
    assert "the objective cannot be met here" in log


@pytest.mark.slow
def test_under_too_much_load_the_accepted_are_answered_in_the_order_of_the_objective(tmp_path: Path) -> None:
    artifacts.write(tmp_path / "model.pt", "squeezenet1_0")
    with running.serving(tmp_path / "model.pt", "--objective-p99-ms", str(OBJECTIVE_MS)) as service:
        expected = service.get("/info").json()["speed"]["images_per_second"]
        images = [Image(noise(1, (64, 64)))]
        found = load.run(service.url + "/predict", images, rate=4 * expected, seconds=4, connections=512).report

    assert {"200", "429"} == found.statuses.keys()
    assert found.p99_ms < 3 * OBJECTIVE_MS  # without it, what has waited last would have waited for a dozen seconds
    assert expected / 5 < found.goodput < 5 * expected
