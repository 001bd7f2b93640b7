"""Models that misbehave on a marked picture: that picture is answered with 500, its neighbours are served."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from models.classifier import Classifier
from tests import artifacts
from tests.pictures import encode, noise
from tests.running import Service, serving

pytestmark = pytest.mark.slow

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
