"""How long what waits will take."""

from time import monotonic

from service.pace import Pace


def test_the_pace_follows_what_is_answered_and_learns_nothing_from_silence() -> None:
    pace = Pace()
    assert 0 == pace.wait(1000)
    for images, seconds in ((10, 1.0), (10, 1.0), (10, 100.0)):
        pace.since = monotonic() - seconds
        pace.learn(images, images, outage=50)

    assert 9.9 < pace.wait(100) < 10.1
