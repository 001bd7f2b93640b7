"""DarkroomDrift in a real Prometheus: silent on images like those of validation, firing on darker and larger ones."""

import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image

from models.architectures import classifier
from models.statistics import NAMES
from tests import artifacts, running
from tests.deploy.test_monitoring import PROMETHEUS, Watched, prometheus
from tests.pictures import encode
from tests.running import Service
from training import shapes10
from training.data import Images
from training.pixels import InMemory
from training.statistics import statistics

pytestmark = pytest.mark.slow

WINDOW_S, FOR_S = 10, 3
BOUND_S = 30  # a window, `for`, two scrapes, and a machine with other work
FIRING = 'ALERTS{alertname="DarkroomDrift",alertstate="firing"'


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """An untrained network, with what its answers to the validation split of shapes10 are like."""
    torch.manual_seed(0)
    made = artifacts.sure(classifier("compact_cnn", 10), 60.0).eval()
    pixels, labels = map(torch.from_numpy, shapes10.render("val"))
    with torch.no_grad():
        best = made(pixels).max(1)
    like = statistics(best.indices, best.values, 10, InMemory(pixels, labels), Images(pixels, labels))
    artifacts.write(tmp_path / "model.pt", "compact_cnn", made, classes=shapes10.CLASSES, validation_statistics=like)
    return tmp_path / "model.pt"


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """Those of deploy/, where drift need last for a few seconds only."""
    text = (PROMETHEUS / "rules.yml").read_text()
    head, alert = text.split("- alert: DarkroomDrift")
    (tmp_path / "rules.yml").write_text(f"{head}- alert: DarkroomDrift{re.sub('for: 10m', f'for: {FOR_S}s', alert)}")
    return tmp_path / "rules.yml"


@contextmanager
def stream(service: Service, bodies: Sequence[bytes]) -> Iterator[None]:
    """Send these again and again."""
    over = threading.Event()

    def send(start: int) -> None:
        while not over.is_set():
            for body in bodies[start::4]:
                assert 200 == service.post(body).status_code
                if over.is_set():
                    return

    with ThreadPoolExecutor(4) as pool:
        sending = [pool.submit(send, start) for start in range(4)]
        try:
            yield
        finally:
            over.set()
    for sent in sending:
        sent.result()


def indices(watched: Watched) -> dict[str, float]:
    """The index of every statistic, as Prometheus has it."""
    found = watched.query("darkroom_drift_psi")
    return {sample["metric"]["statistic"]: round(float(sample["value"][1]), 3) for sample in found}


def seconds_until(watched: Watched, statistic: str) -> float:
    """How long it takes until the alert fires for a statistic."""
    started = time.monotonic()
    while not watched.query(f'{FIRING},statistic="{statistic}"}}'):
        assert time.monotonic() - started < BOUND_S, indices(watched)
    return time.monotonic() - started


def test_the_alert_fires_on_shifted_images_and_on_no_others(model: Path, rules: Path, tmp_path: Path) -> None:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed: make system")
    pictures = [Image.fromarray(image.transpose(1, 2, 0)) for image in shapes10.render("test")[0]]
    like = [encode(picture) for picture in pictures]
    dark = [encode(picture.point(lambda level: level // 2)) for picture in pictures]
    large = [encode(picture.resize((96, 96))) for picture in pictures]
    with (
        running.serving(model, "--drift-window-s", str(WINDOW_S)) as service,
        prometheus(tmp_path, service, rules) as url,
    ):
        watched = Watched(service, url, Counter())
        with stream(service, like):
            deadline = time.monotonic() + 2 * BOUND_S
            while watched.value(f"min_over_time(darkroom_drift_images[{WINDOW_S}s:1s])") < 200:
                assert time.monotonic() < deadline
            quiet = indices(watched)
            assert 0 == watched.value(f"count(max_over_time({FIRING}}}[5m]))")
        with stream(service, dark):
            darker = seconds_until(watched, "brightness")
            shifted = indices(watched)
        with stream(service, large):
            larger = seconds_until(watched, "size")
            resized = indices(watched)
    print(f"\nlike {quiet}\ndark {shifted}, fired after {darker:.1f} s\nlarge {resized}, fired after {larger:.1f} s")

    assert {*NAMES} == quiet.keys()
    assert max(quiet.values()) < 0.1
    assert shifted["brightness"] > 0.25
    assert shifted["size"] < 0.1
    assert resized["size"] > 0.25
