"""Pixels that are kept on a GPU; where there is none, tensors play them that refuse what a GPU's would."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models import artifact
from tests.training.test_loop import CPU, colours, resized, some
from training import measurement
from training.__main__ import main
from training.loop import Training, chance
from training.measurement import Mistake
from training.pixels import InMemory
from training.weights import build


class Elsewhere(Tensor):
    """In another memory: it meets no tensor of this one, and is no array; `to` and `cpu` bring it here."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.to, Tensor.cpu):
            with torch._C.DisableTorchFunctionSubclass():
                here = args[0].as_subclass(Tensor)
            return func(here, *args[1:], **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            others = [each for each in args if isinstance(each, Tensor) and each.dim() and not isinstance(each, cls)]
        index = func is Tensor.__getitem__ and isinstance(args[0], cls)  # by one that is here
        if func is Tensor.numpy or (others and not index):
            raise RuntimeError("Expected all tensors to be on the same device")
        return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]


def elsewhere(split: InMemory) -> InMemory:
    return InMemory(split.pixels.as_subclass(Elsewhere), split.labels)


def test_a_network_that_begins_from_images_does_so_wherever_they_are() -> None:
    recipe, split = some(arch="airbench93", batch_size=32), resized(colours(96, seed=1))
    whitened = [
        Training(build(recipe, 2), recipe, CPU, each).classifier.network.get_parameter("whiten.weight")
        for each in (split, elsewhere(split))
    ]

    assert torch.equal(*whitened)


def test_mistakes_and_slices_are_of_images_wherever_they_are() -> None:
    split, generator = colours(40, seed=1), chance(0)
    probabilities = torch.rand((40, 2), generator=generator).softmax(1)
    right = probabilities.argmax(1) == split.labels
    there = elsewhere(split)
    mistakes = measurement.surest_mistakes(probabilities, there)

    assert measurement.slices(split, right) == measurement.slices(there, right)
    assert [mistake[1:] for mistake in measurement.surest_mistakes(probabilities, split)] == [
        mistake[1:] for mistake in mistakes
    ]
    assert all(isinstance(mistake, Mistake) and type(mistake.pixels) is Tensor for mistake in mistakes)


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("recipe", ["demo", "scratch"])
def test_a_gpu_trains_to_the_end(tmp_path: Path, recipe: str) -> None:
    out = tmp_path / "model.pt"
    flags = ["--data", "shapes10", "--recipe", recipe, "--epochs", "1", "--device", "cuda"]

    assert 0 == main([*flags, "--run", str(tmp_path / "run"), "--out", str(out)])
    assert artifact.load(out).manifest.metrics
