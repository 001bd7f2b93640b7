from itertools import pairwise
from math import inf, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from models.manifest import Histogram
from models.statistics import BRIGHTNESS, CONFIDENCE, SIZE, binned, brightness, drift

COUNTS = st.lists(st.integers(0, 2000), min_size=12, max_size=12).filter(lambda counts: sum(counts) >= 2000)


def test_the_index_is_the_sum_over_the_bins_of_the_shares_difference_times_the_logarithm_of_their_ratio() -> None:
    found = drift([30_000, 70_000], [50_000, 50_000])

    assert (0.5 - 0.3) * log(0.5 / 0.3) + (0.5 - 0.7) * log(0.5 / 0.7) == pytest.approx(found, rel=1e-3)


@given(COUNTS, COUNTS)
def test_it_is_finite_never_negative_the_same_both_ways_and_zero_for_equals(a: list[int], b: list[int]) -> None:
    there, back = drift(a, b), drift(b, a)

    assert there is not None
    assert 0 <= there < inf
    assert there == pytest.approx(back)
    assert 0 == drift(a, a)


def test_of_images_like_those_of_validation_it_hardly_ever_reaches_the_limit_of_the_alert() -> None:
    random = np.random.RandomState(0)
    shares = random.dirichlet(np.ones(16))
    found = [drift(*(random.multinomial(n, shares).tolist() for n in (1000, 200))) for _ in range(2000)]
    told = [index for index in found if index is not None]

    assert len(told) > 1900
    assert sum(index > 0.25 for index in told) <= 0.005 * len(told)


@pytest.mark.parametrize(("expected", "found"), [([0, 0], [5, 5]), ([100, 100], [0, 0]), ([50] * 10, [3] * 10)])
def test_it_is_not_told_of_so_few_images_that_chance_could_make_it_large(expected: list[int], found: list[int]) -> None:
    assert drift(expected, found) is None


def test_images_that_all_fall_into_a_bin_where_none_was_expected_are_far() -> None:
    index = drift([0, 1000, 0], [0, 0, 50])

    assert index is not None
    assert index > 5


@given(st.lists(st.floats(0, 300), max_size=50))
def test_every_value_is_in_one_bin_whose_bounds_hold_it(values: list[float]) -> None:
    bounds = [-inf, *BRIGHTNESS, inf]
    expected = [sum(low < value <= high for value in values) for low, high in pairwise(bounds)]

    assert tuple(expected) == binned(values, BRIGHTNESS)


@pytest.mark.parametrize("size", [1, 15, 32, 100, 224])
def test_brightness_is_about_the_mean_of_all_pixels(size: int) -> None:
    fill = np.full((size, size, 3), 77, np.uint8)
    slope = np.broadcast_to(np.linspace(0, 250, size).astype(np.uint8)[:, None, None], (size, size, 3))

    assert 77 == brightness(fill)
    assert slope.mean() == pytest.approx(brightness(slope), abs=8)


def test_bins_are_in_order_and_usual_sizes_are_not_at_their_bounds() -> None:
    for edges in CONFIDENCE, BRIGHTNESS, SIZE:
        assert sorted(set(edges)) == list(edges)
    assert not any(abs(size - edge) < 0.03 * size for size in (32, 64, 224, 256, 512, 1024) for edge in SIZE)


def test_a_histogram_has_one_count_more_than_edges() -> None:
    with pytest.raises(ValidationError):
        Histogram(edges=(1.0, 2.0), counts=(1, 2))
