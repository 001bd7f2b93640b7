"""The table of architectures: a new entry is tested by existing."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from models.architectures import ARCHITECTURES, classifier, head_of, load_pretrained
from models.simple_cnn import SimpleCNN, simple_cnn_sequential

LARGE = {"resnet50", "efficientnet_b0", "mobilenet_v3_small", "convnext_tiny"}
every_architecture = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in ARCHITECTURES]
)


def pixels(name: str, n: int = 2) -> Tensor:
    size = ARCHITECTURES[name].smallest or ARCHITECTURES[name].input_size
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@every_architecture
def test_it_gives_one_probability_a_class(name: str) -> None:
    images = pixels(name)
    with torch.no_grad():
        found = classifier(name, 7, input_size=images.size(3)).eval()(images)

    assert (2, 7) == tuple(found.shape)
    assert torch.float32 == found.dtype
    torch.testing.assert_close(torch.ones(2), found.sum(1))


@every_architecture
def test_every_parameter_gets_a_gradient(name: str) -> None:
    images = pixels(name)
    model = classifier(name, 7, input_size=images.size(3)).eval()
    nn.functional.cross_entropy(model.logits(images), torch.tensor([0, 1])).backward()  # type: ignore[no-untyped-call]

    assert [] == [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]


@every_architecture
def test_scripted_it_answers_as_eager(name: str) -> None:
    images = pixels(name, 3)
    model = classifier(name, 7, input_size=images.size(3)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        scripted = torch.jit.script(model)
    with torch.no_grad():
        torch.testing.assert_close(model(images), scripted(images), atol=1e-5, rtol=0)


@every_architecture
def test_pretrained_weights_load_and_leave_only_another_head_fresh(name: str) -> None:
    entry = ARCHITECTURES[name]
    pretrained = entry.build(num_classes=5).state_dict()

    assert [] == load_pretrained(entry.build(num_classes=5), pretrained)
    fresh = load_pretrained(entry.build(num_classes=6), pretrained)

    head = head_of(entry.build(num_classes=6))
    assert [key for key in pretrained if key.startswith(head)] == fresh
    assert head + "weight" in fresh


def test_weights_of_another_architecture_are_refused() -> None:
    weights = ARCHITECTURES["squeezenet1_0"].build(num_classes=5).state_dict()

    with pytest.raises(ValueError, match="another architecture"):
        load_pretrained(ARCHITECTURES["resnet18"].build(num_classes=5), weights)


def test_an_unknown_architecture_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown architecture 'resnet19'; known: simple_cnn"):
        classifier("resnet19", 10)


def test_simple_cnn_takes_its_one_size_only() -> None:
    with pytest.raises(ValueError, match="32 px only, not 64 px"):
        classifier("simple_cnn", 10, input_size=64)


def test_simple_cnn_told_twice_gives_the_same_logits_with_the_same_weights() -> None:
    torch.manual_seed(0)
    subclass, sequential = SimpleCNN(), simple_cnn_sequential()
    sequential.load_state_dict(
        dict(zip(sequential.state_dict(), subclass.state_dict().values(), strict=True)),
    )
    images = torch.randn(4, 3, 32, 32)

    assert torch.equal(subclass(images), sequential(images))


def test_simple_cnn_is_the_tutorials() -> None:
    shapes = [tuple(parameter.shape) for parameter in SimpleCNN().parameters()]

    assert [(32, 3, 3, 3), (32,), (64, 32, 3, 3), (64,), (128, 2304), (128,), (10, 128), (10,)] == shapes
