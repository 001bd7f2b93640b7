"""Models that misbehave on a marked picture: that picture is answered with 500, its neighbours are served."""

from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from models.classifier import Classifier
from service.batching import LONGEST_STEP_S
from tests import artifacts
from tests.pictures import encode, noise
from tests.running import Service, serving

pytestmark = pytest.mark.slow

REPLACED_S = 60
WHITE = encode(Image.new("RGB", (32, 32), "white"))
BLACK = encode(Image.new("RGB", (32, 32), "black"))


class Faulty(nn.Module):
    """NaN for a white picture; raises for a batch that holds a black one."""

    def forward(self, x: Tensor) -> Tensor:
        brightness = x.flatten(1).mean(1)
        if bool((brightness <= -0.999).any()):
            raise RuntimeError("a black picture")
        logits = torch.stack([brightness * 20, -brightness * 20], 1)
        nan = torch.full_like(logits, float("nan"))
        return torch.where((brightness >= 0.999).unsqueeze(1), nan, logits)


class Breaking(nn.Module):
    """Raises for a black picture and ever after, as a GPU does once an access was illegal."""

    broken: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("broken", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        brightness = x.flatten(1).mean(1)
        self.broken += (brightness <= -0.999).sum()
        if bool(self.broken > 0):
            raise RuntimeError("an illegal memory access was encountered")
        return torch.stack([brightness * 20, -brightness * 20], 1)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    path: Path = tmp_path_factory.mktemp("faulty") / "model.pt"
    model = Classifier(Faulty(), input_size=32, crop=1.0, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    artifacts.write(path, model=model, classes=("bright", "dark"))
    with serving(path, "--max-delay-ms", "300") as service:
        yield service


def test_a_picture_answered_with_nan_is_a_500_of_its_own(faulty: Service) -> None:
    replies = faulty.post_together([noise(0), WHITE, noise(1)])

    assert [200, 500, 200] == [reply.status_code for reply in replies]
    assert "nonfinite" == replies[1].json()["code"]
    assert 1 == faulty.sample("darkroom_nonfinite_total")


def test_a_picture_that_the_model_raises_for_is_a_500_of_its_own(faulty: Service) -> None:
    replies = faulty.post_together([noise(0), noise(1), BLACK, noise(2)])

    assert [200, 200, 500, 200] == [reply.status_code for reply in replies]
    assert "internal" == replies[2].json()["code"]
    assert "black" not in replies[2].text
    assert 1 == faulty.sample("darkroom_isolated_failures_total")
    assert 2 == faulty.sample("darkroom_batch_splits_total")  # into halves, and one half again


def test_a_worker_whose_model_fails_on_everything_from_some_moment_on_is_replaced(tmp_path: Path) -> None:
    model = Classifier(Breaking(), input_size=32, crop=1.0, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    artifacts.write(tmp_path / "model.pt", model=model, classes=("bright", "dark"))
    with serving(tmp_path / "model.pt") as service:
        assert [200, 500, 500] == [service.post(picture).status_code for picture in (noise(0), BLACK, noise(0))]
        deadline = monotonic() + REPLACED_S
        while service.post(noise(1)).status_code != 200:
            assert monotonic() < deadline

        assert 1 == service.sample("darkroom_worker_restarts_total")
        assert "the model fails on everything" in service.stderr.read_text()


def test_a_worker_that_gets_only_pictures_that_its_model_fails_on_is_kept(faulty: Service) -> None:
    deadline = monotonic() + 2 * LONGEST_STEP_S
    while monotonic() < deadline:
        assert {500} == {reply.status_code for reply in faulty.post_together([BLACK] * 4)}

    assert 200 == faulty.post(noise(0)).status_code
    assert 0 == faulty.sample("darkroom_worker_restarts_total")
