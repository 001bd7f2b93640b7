"""The engine: the goldens decide, and the clock; nothing that makes it fast touches any answer."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models import artifact, engine
from models.classifier import Classifier
from models.decode import decode
from models.engine import CPU_STEPS, Engine, Sharing
from models.errors import ArtifactError, DeviceError, ImageError
from models.simple_cnn import SimpleCNN
from tests import artifacts
from tests.pictures import noise

CPU = torch.device("cpu")
HOUSE = Path(__file__).parents[2]
FAILING = """
import sys
from pathlib import Path
import torch
from models import artifact, engine

loaded = artifact.load(Path(sys.argv[1]))
tried = engine.Engine(loaded, torch.device("cpu"), "fp32", 6, 6, loaded.module, engine.Sharing(1))
with torch.inference_mode():
    for name in sys.argv[2:]:
        tried = engine.CPU_STEPS[name](tried)
    for _ in range(20):
        try:
            tried.forward(torch.zeros((1, 32, 32, 3), dtype=torch.uint8).expand(1 << 40, -1, -1, -1))
        except RuntimeError as error:
            print("in logits" in str(error), "can't allocate memory" in str(error))
"""


@pytest.fixture(scope="module")
def prepared(saved: Path) -> Engine:
    return engine.prepare(artifact.load(saved), CPU, max_batch_size=6)


@pytest.fixture
def plain(saved: Path) -> Engine:
    """An engine that no step was taken on."""
    loaded = artifact.load(saved)
    for weight in loaded.module.parameters():
        weight.requires_grad_(False)
    return Engine(loaded, CPU, "fp32", 6, 6, loaded.module, Sharing(1))


@pytest.fixture
def threads() -> Iterator[None]:
    """Gives this thread its number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def rows(n: int, seed: int = 0) -> list[Tensor]:
    """`n` random rows, uint8 (32, 32, 3)."""
    drawn = torch.Generator().manual_seed(seed)
    return list(torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8, generator=drawn))


def golden_rows(source: Engine) -> list[Tensor]:
    return list(source.artifact.goldens.pixels.permute(0, 2, 3, 1))


def alone(source: Engine, images: list[Tensor]) -> Tensor:
    """Each image's probabilities in a pass of its own."""
    return torch.cat([source.predict([image]) for image in images])


def with_module(change: Callable[[Any], Callable[[Tensor], Tensor]]) -> engine.Step:
    """A step that puts another function in the module's place."""
    return lambda before: replace(before, module=change(before.module))


def inverted(module: Any) -> Callable[[Tensor], Tensor]:
    """Answers as for the negative."""
    return lambda pixels: module(255 - pixels)


def laboured(module: Any) -> Callable[[Tensor], Tensor]:
    """The same answers in several times the time."""
    return lambda pixels: [module(pixels) for _ in range(4)][-1]


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


def test_each_step_on_the_cpu_is_taken_or_said_why_not(prepared: Engine) -> None:
    assert {*CPU_STEPS, "threads", "batch_size"} == set(prepared.steps)
    assert all(prepared.steps[name].startswith(("taken", "dropped: takes ")) for name in CPU_STEPS)
    assert "from batch size 1" in prepared.steps["threads"]


def test_another_process_follows_the_plan_and_answers_the_same(
    prepared: Engine, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = engine.Plan(**json.loads(json.dumps(asdict(prepared.plan))))
    monkeypatch.setattr(engine, "race", None)  # nothing is timed again
    again = engine.prepare(artifact.load(saved), CPU, max_batch_size=6, plan=plan)

    assert plan == again.plan
    torch.testing.assert_close(prepared.predict(engine.sample(prepared, 3)), again.predict(engine.sample(again, 3)))


def test_want_of_memory_is_told_from_other_failures(plain: Engine) -> None:
    for message, kind in (("CUDA out of memory. Tried", MemoryError), ("shapes do not fit", RuntimeError)):

        def fail(_: Tensor, message: str = message) -> Tensor:
            raise RuntimeError(message)

        with pytest.raises(kind, match=message[:10]):
            replace(plain, module=fail).predict(engine.sample(plain, 1))


def test_a_step_that_pays_is_taken(plain: Engine) -> None:
    fast = engine.take(with_module(laboured)(plain), "fast", lambda _: plain)

    assert "taken" == fast.steps["fast"]
    assert fast.module is plain.module


def test_a_step_that_does_not_pay_is_dropped_and_said_so(plain: Engine) -> None:
    after = engine.take(plain, "labour", with_module(laboured))

    factor = after.steps["labour"].removeprefix("dropped: takes ").removesuffix(" times as long")
    assert float(factor) > 2
    assert after.module is plain.module


def test_a_step_that_changes_the_goldens_answers_is_dropped_and_said_so(plain: Engine) -> None:
    after = engine.take(plain, "spoil", with_module(inverted))

    assert after.steps["spoil"].startswith("dropped: a probability off by")
    assert after.module is plain.module


def test_a_step_that_fails_is_dropped_with_its_message(plain: Engine) -> None:
    def fail(_: Engine) -> Engine:
        raise RuntimeError("a long way down\nno such kernel")

    after = engine.take(plain, "fail", fail)

    assert {"fail": "dropped: no such kernel"} == after.steps
    assert after.module is plain.module


def test_a_step_after_which_the_model_fails_is_dropped_with_its_message(plain: Engine) -> None:
    after = engine.take(plain, "cut", with_module(lambda module: lambda pixels: module(pixels[:, :, 1:])))

    assert after.steps["cut"].startswith("dropped: builtins.ValueError: pixels must have the shape (N, 3, 32, 32)")
    assert after.module is plain.module


def test_a_dropped_step_leaves_those_before_it_and_their_record(plain: Engine) -> None:
    frozen = engine.freeze(plain)
    after = engine.take(replace(frozen, steps={"freeze": "taken"}), "spoil", with_module(inverted))

    assert ["freeze", "spoil"] == list(after.steps)
    assert after.module is frozen.module
    assert {} == plain.steps


@pytest.mark.parametrize("name", CPU_STEPS)
def test_a_step_that_is_dropped_leaves_the_engine_as_it_was(plain: Engine, name: str) -> None:
    images, strides = rows(4), [weight.stride() for weight in plain.module.parameters()]
    before = plain.predict(images)
    after = engine.take(plain, name, lambda given: with_module(inverted)(CPU_STEPS[name](given)))

    assert after.steps[name].startswith("dropped: a probability off by")
    assert torch.equal(before, after.predict(images))
    assert strides == [weight.stride() for weight in after.module.parameters()]


@pytest.mark.parametrize("name", CPU_STEPS)
def test_a_step_alone_does_not_change_the_answers(plain: Engine, name: str) -> None:
    images = rows(6)

    torch.testing.assert_close(plain.predict(images), CPU_STEPS[name](plain).predict(images), atol=1e-4, rtol=0)


@pytest.mark.parametrize("names", [[], ["freeze"], ["optimize_for_inference"], list(CPU_STEPS)], ids="+".join)
def test_an_operator_that_fails_raises_after_any_steps(saved: Path, names: list[str]) -> None:
    command = [sys.executable, "-c", FAILING, str(saved), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HOUSE)

    assert (0, "True True\n" * 20) == (done.returncode, done.stdout), done.stderr


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


def test_workers_share_the_cores_and_each_has_one_at_least(saved: Path) -> None:
    loaded = artifact.load(saved)
    counts = [engine.prepare(loaded, CPU, max_batch_size=1, workers=workers).cores for workers in (1, 1000)]

    assert counts[0] >= counts[1] == 1


def test_passes_at_once_are_bounded_by_the_cores(prepared: Engine) -> None:
    bounds = [replace(prepared, sharing=Sharing(cores)).passes for cores in (1, 2, 3, 64)]

    assert [1, 2, 3, engine.CPU_PASSES] == bounds


@pytest.mark.parametrize(
    ("milliseconds", "pays"),
    [
        (lambda n: 20, 6),
        (lambda n: 10 * n, 4),
    ],
    ids=["a pass takes as long for any number of images", "each image takes its time"],
)
def test_batches_grow_only_while_that_pays(plain: Engine, milliseconds: Callable[[int], int], pays: int) -> None:
    def laborious(pixels: Tensor) -> Tensor:
        end = perf_counter() + milliseconds(len(pixels)) / 1000
        while perf_counter() < end:
            pass
        return torch.zeros((len(pixels), 10))

    limited = engine.limit_batches(replace(plain, module=laborious))

    assert pays == limited.batch_size
    assert limited.steps["batch_size"].startswith(str(pays))
    assert plain.max_batch_size == limited.max_batch_size


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_lower_precision_answers_the_goldens_within_its_tolerance(saved: Path, dtype: str) -> None:
    lower = engine.prepare(artifact.load(saved), CPU, dtype, max_batch_size=2)
    found = alone(lower, golden_rows(lower))
    expected = lower.artifact.goldens.probabilities

    assert torch.float32 == found.dtype
    assert torch.equal(expected.argmax(1), found.argmax(1))
    torch.testing.assert_close(expected, found, atol=engine.LOW_PRECISION_TOLERANCE, rtol=0)


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
    artifacts.save(tmp_path / "model.pt", model=artifacts.sure(cropping))
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
