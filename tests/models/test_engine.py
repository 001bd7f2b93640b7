"""The engine: every image gets its own answer, however many come at once, on cores that are shared."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models import artifact, engine
from models.classifier import Classifier
from models.decode import decode
from models.engine import Engine, Sharing
from models.errors import DeviceError, ImageError
from models.simple_cnn import SimpleCNN
from tests import artifacts
from tests.pictures import noise

CPU = torch.device("cpu")


def rows(n: int, seed: int = 0) -> list[Tensor]:
    """`n` random rows, uint8 (32, 32, 3)."""
    drawn = torch.Generator().manual_seed(seed)
    return list(torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8, generator=drawn))


def alone(source: Engine, images: list[Tensor]) -> Tensor:
    """Each image's probabilities in a pass of its own."""
    return torch.cat([source.predict([image]) for image in images])


@pytest.fixture
def threads() -> Iterator[None]:
    """Gives this thread its number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_a_batch_gives_the_answers_of_its_images_alone(prepared: Engine, n: int) -> None:
    images = rows(n, seed=n)

    torch.testing.assert_close(alone(prepared, images), prepared.predict(images), atol=1e-5, rtol=0)


def test_it_answers_as_the_artifact_does(prepared: Engine, saved: Path) -> None:
    images = rows(4)
    expected = artifact.load(saved).module(torch.stack(images).permute(0, 3, 1, 2))

    torch.testing.assert_close(expected, prepared.predict(images), atol=1e-4, rtol=0)


def test_passes_on_several_threads_at_once_give_each_its_own_answers(prepared: Engine) -> None:
    batches = [rows(1 + seed % 6, seed) for seed in range(60)]
    expected = [prepared.predict(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(prepared.predict, batches))

    for before, now in zip(expected, found, strict=True):
        torch.testing.assert_close(before, now, atol=1e-5, rtol=0)


def test_want_of_memory_is_told_from_other_failures(plain: Engine) -> None:
    for message, kind in (("CUDA out of memory. Tried", MemoryError), ("shapes do not fit", RuntimeError)):

        def fail(_: Tensor, message: str = message) -> Tensor:
            raise RuntimeError(message)

        with pytest.raises(kind, match=message[:10]):
            replace(plain, module=fail).predict(engine.sample(plain, 1))


@given(st.integers(1, 16), st.lists(st.integers(1, 64), min_size=1, max_size=8), st.integers(1, 16), st.integers(1, 16))
@pytest.mark.usefixtures("threads")
def test_passes_under_way_divide_the_cores_and_take_no_more_than_pay(
    available: int, passes: list[int], alone_useful: int, useful: int
) -> None:
    sharing = Sharing(available)
    sharing.useful |= {1: alone_useful, 8: useful}
    with ExitStack() as under_way:
        for before, n in enumerate(passes):
            under_way.enter_context(sharing.share(n))
            share = max(1, available // (before + 1))
            assert min(share, useful if n >= 8 else alone_useful) == torch.get_num_threads()


@pytest.mark.usefixtures("threads")
def test_a_pass_that_has_ended_or_failed_leaves_its_cores_to_the_next() -> None:
    sharing = Sharing(4)
    with sharing.share(1), sharing.share(1):
        assert 2 == torch.get_num_threads()
    with pytest.raises(RuntimeError), sharing.share(1):
        raise RuntimeError("the model failed")

    with sharing.share(1):
        assert 4 == torch.get_num_threads()


def test_passes_at_once_are_bounded_by_the_cores(prepared: Engine) -> None:
    bounds = [replace(prepared, sharing=Sharing(cores)).passes for cores in (1, 2, 3, 64)]

    assert [1, 2, 3, engine.CPU_PASSES] == bounds


@pytest.mark.parametrize("as_view", [bytes, memoryview])
def test_it_decodes_to_the_models_pixels_in_the_row_it_is_given(
    prepared: Engine, as_view: Callable[[bytes], bytes | memoryview]
) -> None:
    room = prepared.rows(3).zero_()
    goldens = prepared.artifact.goldens
    assert (torch.uint8, (3, 32, 32, 3)) == (room.dtype, tuple(room.shape))

    for body, expected in zip(goldens.encoded, goldens.pixels, strict=True):
        if body.startswith(b"\x89PNG"):
            prepared.decode(as_view(body), ("PNG",), 1 << 20, room[1])
            assert torch.equal(expected.permute(1, 2, 0), room[1])
    assert not room[0].any()
    assert not room[2].any()


def test_what_is_no_image_raises_an_image_error(prepared: Engine) -> None:
    with pytest.raises(ImageError):
        prepared.decode(b"no image", ("PNG",), 1 << 20, prepared.rows(1)[0])


@pytest.mark.parametrize("size", [(32, 32), (32, 40), (300, 200)])
def test_a_decoded_row_is_what_the_artifacts_preprocessing_gives(plain: Engine, size: tuple[int, int]) -> None:
    out = plain.rows(1)[0]
    plain.decode(noise(1, size), ("PNG",), 1 << 20, out)

    assert torch.equal(preprocessed(plain, noise(1, size)), out)


@pytest.mark.slow
def test_a_picture_of_the_models_size_is_cropped_where_the_model_crops(tmp_path: Path) -> None:
    cropping = Classifier(SimpleCNN(10), input_size=32, crop=0.5, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    artifacts.write(tmp_path / "model.pt", model=artifacts.sure(cropping))
    loaded = artifact.load(tmp_path / "model.pt")
    cropped = Engine(loaded, CPU, "fp32", 1, 1, loaded.module, Sharing(1))
    out = cropped.rows(1)[0]
    cropped.decode(noise(1, (32, 32)), ("PNG",), 1 << 20, out)

    assert torch.equal(preprocessed(cropped, noise(1, (32, 32))), out)


def preprocessed(source: Engine, body: bytes) -> Tensor:
    """The row that the artifact itself makes of a body."""
    manifest = source.artifact.manifest
    image = decode(body, input_size=manifest.input_size, crop=manifest.crop)
    pixels: Tensor = source.artifact.module.preprocess(image)
    return pixels.permute(1, 2, 0)


def test_rows_that_do_not_fit_the_model_fail_with_its_message(prepared: Engine) -> None:
    with pytest.raises(RuntimeError, match=r"^builtins.ValueError: pixels must have the shape \(N, 3, 32, 32\)"):
        prepared.predict([torch.zeros((16, 16, 3), dtype=torch.uint8)])


def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(DeviceError, match="expected a GPU cuda:99, found"):
        engine.choose("cuda:99", "cuda:99", "fp32")


def test_tf32_on_the_cpu_is_refused() -> None:
    with pytest.raises(DeviceError, match="tf32: expected a GPU"):
        engine.choose("cpu", "cpu", "tf32")
