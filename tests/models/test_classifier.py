"""The classifier's own formula: preprocessing, checks, calibration."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models.classifier import Classifier


def classifier(input_size: int = 8, crop: float = 1.0) -> Classifier:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * input_size**2, 4))
    return Classifier(network, input_size=input_size, crop=crop, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)).eval()


def triangle_resize(row: np.ndarray, size: int) -> np.ndarray:
    """Bilinear with antialiasing along the last axis, from the definition: a triangle as wide as the scale."""
    scale = row.shape[-1] / size
    support = max(scale, 1.0)
    centres = (np.arange(size) + 0.5) * scale
    distance = np.abs(np.arange(row.shape[-1])[None] + 0.5 - centres[:, None]) / support
    weights = np.clip(1 - distance, 0, None)
    resized: np.ndarray = row @ (weights / weights.sum(1, keepdims=True)).T
    return resized


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([1.0, 0.875, 0.5, 0.01]), st.integers(0, 2**31))
def test_preprocess_cuts_the_centred_square_then_resizes(height: int, width: int, crop: float, seed: int) -> None:
    image = np.random.RandomState(seed).randint(0, 256, (3, height, width)).astype(np.uint8)
    side = max(1, round(crop * min(height, width)))
    top, left = (height - side) // 2, (width - side) // 2
    square = image[:, top : top + side, left : left + side].astype(np.float64)
    expected = triangle_resize(triangle_resize(square, 8).swapaxes(1, 2), 8).swapaxes(1, 2)

    found = classifier(crop=crop).preprocess(torch.from_numpy(image)).numpy()

    assert (3, 8, 8) == found.shape
    assert np.abs(found - expected).max() <= 0.5 + 1e-3


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 100_000), (100_000, 1), (3, 2)])
def test_preprocess_takes_extreme_shapes(height: int, width: int) -> None:
    image = torch.full((3, height, width), 7, dtype=torch.uint8)

    assert torch.equal(torch.full((3, 8, 8), 7, dtype=torch.uint8), classifier().preprocess(image))


@pytest.mark.parametrize(
    "pixels",
    [
        torch.zeros(1, 3, 8, 8),
        torch.zeros(3, 8, 8, dtype=torch.uint8),
        torch.zeros(1, 1, 8, 8, dtype=torch.uint8),
        torch.zeros(1, 3, 8, 9, dtype=torch.uint8),
    ],
    ids=["dtype", "rank", "channels", "size"],
)
def test_wrong_pixels_raise_eager_and_scripted(pixels: Tensor) -> None:
    model = classifier()
    with pytest.warns(FutureWarning):
        scripted = torch.jit.script(model)

    with pytest.raises(ValueError, match="pixels must"):
        model(pixels)
    with pytest.raises(torch.jit.Error, match="pixels must"):
        scripted(pixels)


@given(st.floats(0.1, 10.0))
def test_temperature_changes_confidence_but_never_the_class(temperature: float) -> None:
    model = classifier()
    pixels = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    before = model(pixels)
    model.temperature.fill_(temperature)
    after = model(pixels)

    assert torch.equal(before.argmax(1), after.argmax(1))
    torch.testing.assert_close(torch.softmax(model.logits(pixels) / temperature, 1), after)
