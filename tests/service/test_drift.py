"""The window: what is compared with validation, when it is told, and that every process tells it."""

import json
from pathlib import Path

import pytest

from models.manifest import Histogram, Statistics
from models.statistics import BRIGHTNESS, CONFIDENCE, NAMES, SIZE
from service import metrics as families
from service.drift import Drift
from service.metrics import Counted, Metrics, Scrape
from service.transport import Transport
from tests import artifacts, running
from tests.artifacts import CLASSES
from tests.pictures import noise
from tests.running import Service

WINDOW_S = 60.0


def flat(edges: tuple[float, ...], each: int = 100) -> Histogram:
    return Histogram(edges=edges, counts=(each,) * (len(edges) + 1))


EXPECTED = Statistics(
    classes=(100,) * len(CLASSES), confidence=flat(CONFIDENCE), brightness=flat(BRIGHTNESS), size=flat(SIZE)
)


class Watched:
    """A drift over one worker that counts as it is told."""

    def __init__(self, expected: Statistics | None = EXPECTED) -> None:
        self.worker, own = Metrics(CLASSES), Metrics(CLASSES)
        transport = Transport(1, 1, 1 << 16, own.size)
        self.worker.cells, own.cells = transport.cells(1), transport.all_cells()[-1]
        self.scrape = Scrape([Counted("test", own, transport.all_cells())], lambda: [])
        self.drift = Drift(expected, own, transport.serving_cells, WINDOW_S)

    def count(self, brightness: float, images: int = 500) -> None:
        """Count images of this brightness, evenly of all classes."""
        self.worker.observe(families.BRIGHTNESS, brightness, n=images)
        for name in CLASSES:
            self.worker.add(families.PREDICTIONS, name, n=images / len(CLASSES))

    def told(self) -> dict[str, float]:
        """The index of each statistic that is known."""
        (family,) = [made for made in self.scrape.collect() if made.name == "darkroom_drift_psi"]
        return {sample.labels["statistic"]: sample.value for sample in family.samples}


def test_nothing_is_told_before_enough_images_came() -> None:
    watched = Watched()
    watched.drift.look(0)
    watched.count(100, images=20)
    watched.drift.look(10)

    assert {} == watched.told()


def test_each_statistic_is_compared_with_its_own_validation_counts() -> None:
    watched = Watched()
    watched.drift.look(0)
    watched.count(100)
    watched.drift.look(10)
    told = watched.told()

    assert {"classes", "brightness"} == told.keys()
    assert told["classes"] < 0.01
    assert told["brightness"] > 1


def test_what_was_before_the_window_is_forgotten() -> None:
    watched = Watched()
    for now in range(0, 200, 5):
        if now < 50:
            watched.count(100)
        else:
            for level in range(8, 256, 16):
                watched.count(level, images=100)
        watched.drift.look(now)

    assert watched.told()["brightness"] < 0.01
    assert len(watched.drift.before) < 20


def test_it_is_looked_at_no_more_often_than_the_window_slides() -> None:
    watched = Watched()
    for tick in range(4000):
        watched.drift.look(tick / 40)

    assert 60 <= len(watched.drift.before) <= 62


def test_images_that_came_before_the_first_look_do_not_count_as_a_change() -> None:
    watched = Watched()
    watched.count(100)
    watched.drift.look(0)
    watched.drift.look(10)

    assert {} == watched.told()


def test_without_validation_statistics_nothing_is_told() -> None:
    watched = Watched(None)
    watched.drift.look(0)
    watched.count(100)
    watched.drift.look(10)

    assert {} == watched.told()


def test_a_statistic_over_other_bins_is_left_out_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched(EXPECTED.model_copy(update={"brightness": Histogram(edges=(9.0,), counts=(500, 500))}))

    assert {"classes", "confidence", "size"} == watched.drift.watched.keys() == {*NAMES} - {"brightness"}
    assert "other bins" in caplog.text


@pytest.mark.slow
def test_every_process_tells_the_drift_of_all_images(tmp_path: Path) -> None:
    manifest = artifacts.write(tmp_path / "model.pt", validation_statistics=EXPECTED)
    assert EXPECTED == manifest.validation_statistics
    with running.serving(tmp_path / "model.pt", "--http-processes", "2", "--drift-window-s", "120") as service:
        for seed in range(300):
            service.post(noise(seed))
        while service.sample("darkroom_drift_images") < 300:  # it slides every 2 s
            pass
        found = {service.sample("darkroom_drift_psi", statistic="size") for _ in range(8)}

        for name in ("brightness", "side_pixels"):
            assert 300 == service.sample(f"darkroom_image_{name}_count")
        assert min(found) > 1


def test_pixels_without_a_file_have_brightness_and_no_size(service: Service) -> None:
    before = [service.sample(f"darkroom_image_{name}_count") for name in ("brightness", "side_pixels")]
    pixels = {"name": "pixels", "datatype": "UINT8", "shape": [1, 3, 32, 32], "data": [50] * 3072}
    reply = service.post(json.dumps({"inputs": [pixels]}).encode(), "/v2/models/test/infer")

    assert 200 == reply.status_code
    after = [service.sample(f"darkroom_image_{name}_count") for name in ("brightness", "side_pixels")]
    assert [before[0] + 1, before[1]] == after
