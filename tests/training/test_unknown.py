from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models.classifier import Classifier
from training.errors import TrainingError
from training.unknown import auroc, judge, strangers, threshold_for

CONFIDENCES = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60).map(torch.tensor)
PREPARER = Classifier(torch.nn.Identity(), input_size=24, crop=1.0, mean=(0, 0, 0), std=(1, 1, 1))


@given(CONFIDENCES, st.floats(0.01, 1))
def test_the_threshold_keeps_the_share_that_was_asked_for_and_no_higher_one_does(
    confidence: torch.Tensor, coverage: float
) -> None:
    threshold = threshold_for(confidence, coverage)
    higher = confidence[confidence > threshold]

    assert float((confidence >= threshold).sum()) >= coverage * len(confidence)
    assert not len(higher) or len(higher) < coverage * len(confidence)


@given(CONFIDENCES, CONFIDENCES)
def test_the_area_under_the_curve_is_the_share_of_pairs_in_order(
    confidence: torch.Tensor, strange: torch.Tensor
) -> None:
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in confidence.tolist() for b in strange.tolist()]

    assert auroc(confidence, strange) == pytest.approx(sum(pairs) / len(pairs))


def test_what_a_threshold_does_is_told_in_shares() -> None:
    confidence, right = torch.tensor([0.9, 0.8, 0.3, 0.2]), torch.tensor([True, False, True, True])
    told = judge(0.5, 0.5, confidence, right, {"noise": torch.tensor([0.1, 0.6])})

    assert (0.5, 0.5, 0.5) == (told.coverage, told.known, told.accuracy)
    assert (2, 0.5, 0.75) == (told.strangers["noise"].n, told.strangers["noise"].refused, told.strangers["noise"].auroc)


def test_strangers_are_drawn_and_always_the_same() -> None:
    first, again = (strangers(PREPARER, "photos", None, 120) for _ in range(2))

    assert {"noise", "shapes10"} == set(first)
    assert {"noise"} == set(strangers(PREPARER, "shapes10", None, 120))
    for name, split in first.items():
        assert (120, 3, 24, 24) == tuple(split.pixels.shape)
        assert torch.equal(split.pixels, again[name].pixels)


def test_strangers_may_be_ones_own_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "clouds"
    (folder / "deep").mkdir(parents=True)
    Image.new("RGB", (40, 30), "white").save(folder / "a.jpg")
    Image.new("RGB", (30, 30), "blue").save(folder / "deep" / "b.png")
    (folder / "broken.jpg").write_bytes(b"no picture")

    assert (2, 3, 24, 24) == tuple(strangers(PREPARER, "photos", folder, 120)["clouds"].pixels.shape)
    (folder / "a.jpg").unlink()
    (folder / "deep" / "b.png").unlink()
    with pytest.raises(TrainingError, match="no pictures there"):
        strangers(PREPARER, "photos", folder, 120)
