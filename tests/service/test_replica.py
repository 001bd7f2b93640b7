"""The service on Ray: all that is asked of our own HTTP process is asked again, and what Ray alone has."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.errors import ArtifactError
from service.settings import SettingsError
from tests import on_ray
from tests.pictures import noise
from tests.running import Service, predictions
from tests.service.test_open_inference import *  # noqa: F403
from tests.service.test_predict import *  # noqa: F403

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def service(model: Path) -> Iterator[Service]:
    with on_ray.serving(model, max_body_bytes=200_000, max_pixels=1_000_000, max_images=4) as started:
        yield started


def test_health_and_information_are_as_ever(service: Service) -> None:
    info = service.get("/info").json()

    assert {"status": "ready", "device": "cpu", "dtype": "fp32"}.items() <= service.get("/health").json().items()
    assert 200 == service.get("/readyz").status_code == service.get("/livez").status_code
    assert 200_000 == info["limits"]["max_body_bytes"]
    assert info["optimisation_steps"]
    assert "/predict" in service.get("/openapi.json").json()["paths"]


def test_a_replica_counts_as_a_service_does(service: Service) -> None:
    before = service.sample("darkroom_images_total")
    for reply in service.post_together([noise(seed) for seed in range(20)]):
        predictions(reply)

    assert before + 20 == service.sample("darkroom_images_total")
    assert 0 == service.sample("darkroom_requests_in_flight", route="/predict")


def test_a_replica_uses_the_cores_that_ray_gives_it(service: Service) -> None:
    assert re.match("1 ", service.get("/info").json()["optimisation_steps"]["threads"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's, when it is imported
@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"model": "{model}", "max_bach_size": 8}, "--max-bach-size .*not permitted"),
        ({"model": "{model}", "max_batch_size": 0}, "--max-batch-size .*greater than or equal to 1"),
        ({"model": "{model}", "workers": 2}, "workers: not a setting of a replica"),
        ({}, "--model"),
        ({"model": "missing.pt"}, "missing.pt"),
    ],
)
def test_a_wrong_setting_stops_the_deployment(model: Path, args: dict[str, object], said: str) -> None:
    from service.replica import app

    args = {name: value.format(model=model) if isinstance(value, str) else value for name, value in args.items()}
    with pytest.raises((SettingsError, ArtifactError), match=said):
        app(args)
