"""Lanes: buckets hold every batch; on a GPU every batch is answered as on the CPU."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models import artifact, optimisation
from models.engine import CUDA_TOLERANCE, Engine
from models.lanes import LANES, Lanes, bucket, buckets
from models.optimisation import CUDA_STEPS

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
MOST = 6
Answers = Callable[[Tensor], Tensor]


@given(st.integers(1, 2000), st.integers(1, 2000))
def test_a_bucket_holds_the_batch_and_is_at_most_twice_as_large(n: int, most: int) -> None:
    n = min(n, most)

    assert n <= bucket(n, most) <= min(most, 2 * n)


@given(st.integers(1, 300))
def test_every_batch_has_its_bucket_among_the_captured_ones(most: int) -> None:
    captured = buckets(most)

    assert {bucket(n, most) for n in range(1, most + 1)} == set(captured)
    assert (captured[0], captured[-1]) == (1, most)
    assert sorted(set(captured)) == captured


@given(st.integers(1, 2000), st.integers(1, 2000))
def test_a_larger_batch_never_has_a_smaller_bucket(n: int, most: int) -> None:
    n = min(n, most - 1) or 1

    assert bucket(n, most) <= bucket(min(n + 1, most), most)


def test_the_buckets_are_powers_of_two_and_the_largest_batch() -> None:
    assert [[1], [1, 2, 4, 6], [1, 2, 4, 8]] == [buckets(1), buckets(6), buckets(8)]


def test_torch_copies_many_rows_in_one_call_and_refuses_those_of_another_size() -> None:
    room, given = torch.zeros((3, 4, 4, 3), dtype=torch.uint8), torch.arange(96, dtype=torch.uint8).view(2, 4, 4, 3)
    torch._foreach_copy_(list(room[:2].unbind()), list(given), non_blocking=True)

    assert torch.equal(given, room[:2])
    assert not room[2].any()
    with pytest.raises(RuntimeError):
        torch._foreach_copy_(list(room[:1].unbind()), [torch.zeros((7, 7, 3), dtype=torch.uint8)])


@pytest.fixture(scope="module")
def gpu(saved: Path) -> Engine:
    return optimisation.prepare(artifact.load(saved), torch.device("cuda:0"), max_batch_size=MOST)


@pytest.fixture(scope="module")
def lanes(gpu: Engine) -> Lanes:
    """The lanes of the engine, or where they did not pay here, of the same module."""
    manifest = gpu.artifact.manifest
    return gpu.lanes or Lanes(
        gpu.module, gpu.artifact.module.preprocess, gpu.device, MOST, manifest.input_size, len(manifest.classes)
    )


@pytest.fixture(scope="module")
def on_cpu(saved: Path) -> Answers:
    """What the artifact answers on the CPU to uint8 (n, S, S, 3)."""
    module: Answers = artifact.load(saved).module
    return lambda pixels: module(pixels.permute(0, 3, 1, 2))


def rows(gpu: Engine, n: int, seed: int = 0) -> Tensor:
    """`n` random rows as the decoder leaves them: uint8 (n, S, S, 3), pinned."""
    room = gpu.rows(n)
    drawn = torch.Generator().manual_seed(seed)
    return room.copy_(torch.randint(0, 256, room.shape, dtype=torch.uint8, generator=drawn))


@needs_gpu
def test_each_step_on_a_gpu_is_taken_or_said_why_not(gpu: Engine) -> None:
    assert list(CUDA_STEPS) == list(gpu.steps)
    assert all(told.startswith(("taken", "dropped: takes ")) for told in gpu.steps.values())


@needs_gpu
@pytest.mark.parametrize("n", range(1, MOST + 1))
def test_a_gpu_answers_a_batch_of_any_size_as_the_cpu_does(gpu: Engine, lanes: Lanes, on_cpu: Answers, n: int) -> None:
    pixels = rows(gpu, n, seed=n)
    expected = on_cpu(pixels)

    torch.testing.assert_close(expected, gpu.predict(list(pixels)), atol=CUDA_TOLERANCE, rtol=0)
    torch.testing.assert_close(expected, lanes.predict(list(pixels)), atol=CUDA_TOLERANCE, rtol=0)


@needs_gpu
def test_rows_that_are_not_pinned_are_answered_too(gpu: Engine, lanes: Lanes, on_cpu: Answers) -> None:
    pixels = rows(gpu, 3).clone()

    torch.testing.assert_close(on_cpu(pixels), lanes.predict(list(pixels)), atol=CUDA_TOLERANCE, rtol=0)


@needs_gpu
def test_passes_on_several_threads_at_once_give_each_its_own_answers(
    gpu: Engine, lanes: Lanes, on_cpu: Answers
) -> None:
    batches = [rows(gpu, 1 + seed % MOST, seed) for seed in range(200)]
    with ThreadPoolExecutor(4 * LANES) as pool:
        found = list(pool.map(lambda batch: lanes.predict(list(batch)), batches))

    for batch, answers in zip(batches, found, strict=True):
        torch.testing.assert_close(on_cpu(batch), answers, atol=CUDA_TOLERANCE, rtol=0)


@needs_gpu
def test_an_answer_stays_as_it_was_when_the_lane_is_used_again(gpu: Engine, lanes: Lanes) -> None:
    first = lanes.predict(list(rows(gpu, 2, seed=1)))
    kept = first.clone()
    for seed in range(2, 2 + 2 * LANES):
        lanes.predict(list(rows(gpu, 2, seed)))

    assert torch.equal(kept, first)


@needs_gpu
def test_a_pass_that_fails_gives_its_lane_back(gpu: Engine, lanes: Lanes, on_cpu: Answers) -> None:
    pixels = rows(gpu, 2)
    for _ in range(2 * LANES):
        with pytest.raises(RuntimeError):
            lanes.predict([torch.zeros((7, 7, 3), dtype=torch.uint8)])

    torch.testing.assert_close(on_cpu(pixels), lanes.predict(list(pixels)), atol=CUDA_TOLERANCE, rtol=0)
