"""The engine: the goldens decide; batches are padded to buckets without touching any answer."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models import artifact, engine
from models.engine import Engine
from models.errors import ArtifactError, DeviceError, ImageError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def prepared(saved: Path) -> Engine:
    return engine.prepare(artifact.load(saved), CPU, max_batch_size=6)


def pixels(n: int) -> Tensor:
    return torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


@given(st.integers(1, 2000), st.integers(1, 2000))
def test_a_bucket_holds_the_batch_and_is_at_most_twice_as_large(n: int, most: int) -> None:
    n = min(n, most)
    found = engine.bucket(n, most)

    assert n <= found <= min(most, 2 * n)
    assert most > 64 or found in engine.buckets(most)


def test_the_buckets_are_powers_of_two_and_the_largest_batch() -> None:
    assert [1, 2, 4, 6] == engine.buckets(6)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_a_batch_gives_the_answers_of_its_images_alone(prepared: Engine, n: int) -> None:
    images = pixels(n)
    alone = torch.cat([prepared.predict(image[None]) for image in images])

    torch.testing.assert_close(alone, prepared.predict(images), atol=1e-5, rtol=0)


def test_it_answers_as_the_artifact_does(prepared: Engine, saved: Path) -> None:
    images = pixels(4)

    torch.testing.assert_close(artifact.load(saved).module(images), prepared.predict(images), atol=1e-4, rtol=0)


def test_every_step_is_taken_on_the_cpu(prepared: Engine) -> None:
    assert {"freeze": "taken", "optimize_for_inference": "taken"} == prepared.steps


def test_a_step_that_changes_the_goldens_answers_is_dropped_and_said_so(prepared: Engine) -> None:
    own = replace(prepared, steps={})
    engine.take(own, "spoil", lambda module: lambda batch: module(255 - batch))

    assert own.steps["spoil"].startswith("dropped: a probability off by")
    assert own.module is prepared.module


def test_a_step_that_fails_is_dropped_and_said_so(prepared: Engine) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("no such kernel")

    own = replace(prepared, steps={})
    engine.take(own, "fail", fail)

    assert {"fail": "dropped: no such kernel"} == own.steps


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_lower_precision_answers_the_goldens_within_its_tolerance(saved: Path, dtype: str) -> None:
    lower = engine.prepare(artifact.load(saved), CPU, dtype, max_batch_size=2)
    goldens = lower.artifact.goldens
    found = torch.cat([lower.predict(image[None]) for image in goldens.pixels])

    assert torch.equal(goldens.probabilities.argmax(1), found.argmax(1))


def test_wrong_golden_answers_stop_the_start(saved: Path) -> None:
    loaded = artifact.load(saved)
    wrong = replace(loaded, goldens=replace(loaded.goldens, probabilities=loaded.goldens.probabilities.roll(1, 0)))

    with pytest.raises(ArtifactError, match="its goldens' answers on cpu in fp32"):
        engine.prepare(wrong, CPU)


def test_wrong_golden_pixels_stop_the_start(saved: Path) -> None:
    loaded = artifact.load(saved)
    shifted = loaded.goldens.pixels.clone()
    shifted[0] ^= 1
    wrong = replace(loaded, goldens=replace(loaded.goldens, pixels=shifted))

    with pytest.raises(ArtifactError, match="golden 0's pixels within 0 levels, found 1 levels off"):
        engine.prepare(wrong, CPU)


def test_it_decodes_to_the_models_pixels_or_raises_an_image_error(prepared: Engine) -> None:
    goldens = prepared.artifact.goldens

    assert torch.equal(goldens.pixels[0], prepared.decode(goldens.encoded[0], ("PNG",), 1 << 20))
    with pytest.raises(ImageError):
        prepared.decode(b"no image", ("PNG",), 1 << 20)


def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(DeviceError, match="expected a GPU cuda:99, found"):
        engine.choose("cuda:99", "cuda:99", "fp32")


def test_tf32_on_the_cpu_is_refused() -> None:
    with pytest.raises(DeviceError, match="tf32: expected a GPU"):
        engine.choose("cpu", "cpu", "tf32")
