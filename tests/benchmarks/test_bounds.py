"""What a moment meets of batches that take differently long."""

from benchmarks.bounds import in_time


def test_half_of_all_moments_fall_into_the_one_batch_that_takes_half_of_the_time() -> None:
    took = [1.0] * 99 + [101.0]

    assert (1.0, 101.0, 101.0) == (in_time(took, 0.49), in_time(took, 0.5), in_time(took, 0.99))


def test_batches_that_take_equally_long_are_all_that_a_moment_meets() -> None:
    assert (0.1, 0.1) == (in_time([0.1] * 7, 0.5), in_time([0.1] * 7, 0.99))
