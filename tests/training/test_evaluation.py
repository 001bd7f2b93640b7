import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.measurement import Z, accuracy, confusion, quarters, six_views, wilson


@given(st.integers(1, 100_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_ends_where_the_score_test_just_accepts(counts: tuple[int, int]) -> None:
    correct, n = counts
    share = correct / n

    for bound in wilson(correct, n):
        assert 0 <= bound <= 1
        # The definition: |share - bound| is Z standard errors of a binomial with the bound's probability.
        assert (share - bound) ** 2 * n == pytest.approx(Z**2 * bound * (1 - bound), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    # From Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3.
    ("correct", "n", "expected"),
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611)), (1, 29, (0.0061, 0.1718))],
)
def test_the_interval_is_that_of_the_literature(correct: int, n: int, expected: tuple[float, float]) -> None:
    assert expected == pytest.approx(wilson(correct, n), abs=5e-5)


def test_an_accuracy_lies_in_its_interval() -> None:
    for correct in range(51):
        low, high = accuracy(torch.tensor([[correct, 50 - correct], [0, 0]])).interval
        assert low <= correct / 50 <= high
        assert math.isclose(wilson(50 - correct, 50)[0], 1 - high, abs_tol=1e-12)


def test_the_confusion_matrix_counts_answers_by_label() -> None:
    labels, predicted = torch.tensor([0, 0, 2, 2, 2]), torch.tensor([0, 1, 2, 2, 0])

    assert [[1, 1, 0], [0, 0, 0], [1, 0, 2]] == confusion(predicted, labels, 3).tolist()


def test_six_views_are_the_mean_over_mirrored_and_moved_images_of_which_those_moved_count_half() -> None:
    """A model that tells the value of one pixel shows what each view put there."""
    pixels = torch.arange(25, dtype=torch.uint8).view(1, 1, 5, 5).expand(1, 3, 5, 5)
    seen = six_views(lambda images: images[:, 0, 2, 1].float()[:, None], pixels)

    still, up, down = (11 + 13) / 2, (5 + 7) / 2, (17 + 19) / 2
    assert still / 2 + (up + down) / 4 == pytest.approx(float(seen))


def test_quarters_of_images_that_are_all_alike_are_told_as_one() -> None:
    found = quarters(torch.tensor([250.0] * 8 + [3.0, 1.0]))

    assert {"1 to 250": 3, "250 to 250": 7} == {ranged: len(part) for ranged, part in found.items()}
    assert list(range(10)) == sorted(torch.cat(list(found.values())).tolist())
