import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from training.measurement import HIGHEST, LOWEST, calibration_error, fit_temperature, likelihood


def drawn(seed: int, n: int = 500, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Logits and labels drawn from the probabilities that they mean: perfectly calibrated."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, classes, generator=generator)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)


@given(st.integers(0, 2**32), st.floats(0.4, 8.0))
def test_the_temperature_undoes_a_scaling_of_calibrated_logits(seed: int, scale: float) -> None:
    logits, labels = drawn(seed)

    assert fit_temperature(logits * scale, labels) == pytest.approx(scale, rel=0.25)


@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(2, 6), st.floats(0.01, 50))
def test_the_likelihood_is_never_worse_than_without(seed: int, n: int, classes: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, classes, generator=generator)
    labels = torch.randint(classes, (n,), generator=generator)
    temperature = fit_temperature(logits, labels)

    assert likelihood(logits, labels, temperature) <= likelihood(logits, labels, 1.0)
    assert LOWEST - 1e-6 <= temperature <= HIGHEST + 1e-3


@given(st.integers(0, 2**32))
def test_no_other_temperature_is_better(seed: int) -> None:
    logits, labels = drawn(seed)
    temperature = fit_temperature(logits, labels)
    best = likelihood(logits, labels, temperature)

    assert all(best <= likelihood(logits, labels, temperature * factor) + 1e-9 for factor in (0.9, 0.99, 1.01, 1.1))


def test_a_temperature_stays_in_bounds_where_every_image_is_right_or_none() -> None:
    logits, labels = torch.eye(3) * 4, torch.arange(3)

    assert LOWEST == pytest.approx(fit_temperature(logits, labels))
    assert HIGHEST == pytest.approx(fit_temperature(-logits, labels))


def test_the_calibration_error_is_the_weighted_gap_of_its_bins() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]])
    labels = torch.tensor([0, 1, 1, 1])

    # Half the images are 90 % sure and 50 % right, half 60 % sure and all right.
    assert calibration_error(probabilities, labels) == pytest.approx(0.5 * 0.4 + 0.5 * 0.4)


@given(st.integers(0, 2**32), st.integers(1, 200), st.integers(2, 9))
def test_the_calibration_error_lies_between_accuracys_gap_and_one(seed: int, n: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.randn(n, classes, generator=generator).mul(3).softmax(1)
    labels = torch.randint(classes, (n,), generator=generator)
    confidence, predicted = probabilities.max(1)
    gap = abs(float(confidence.double().mean()) - float((predicted == labels).double().mean()))

    assert gap - 1e-9 <= calibration_error(probabilities, labels) <= 1


def test_calibrated_probabilities_have_a_small_calibration_error() -> None:
    logits, labels = drawn(seed=1, n=50_000)

    assert calibration_error(logits.softmax(1), labels) < 0.01
    assert calibration_error((3 * logits).softmax(1), labels) > 0.1


def test_certain_probabilities_fall_into_the_last_bin() -> None:
    assert math.isclose(0, calibration_error(torch.eye(4), torch.arange(4)))
    assert math.isclose(1, calibration_error(torch.eye(4), (torch.arange(4) + 1) % 4))
