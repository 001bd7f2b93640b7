from typing import Any

import pytest
import torch
from torch import Tensor

from training.augmentation import augment, mix
from training.recipe import Recipe

LABELS = torch.tensor([0, 1, 2, 1])


def gradient(n: int) -> Tensor:
    """Images whose every pixel tells its column, and in another channel its row: uint8 (n, 3, 16, 16)."""
    place = torch.arange(16, dtype=torch.uint8)
    image = torch.stack([place.expand(16, 16), place[:, None].expand(16, 16), torch.zeros(16, 16, dtype=torch.uint8)])
    return image.repeat(n, 1, 1, 1)


def noise(n: int) -> Tensor:
    return torch.randint(256, (n, 3, 16, 16), dtype=torch.uint8, generator=seeded())


def seeded() -> torch.Generator:
    """And torch's own generator with it, as the loop does."""
    torch.manual_seed(0)
    return torch.Generator().manual_seed(0)


def recipe(**how: Any) -> Recipe:
    return Recipe(**how)


def changed(pixels: Tensor, epoch: int = 1, **how: Any) -> Tensor:
    return augment(pixels, recipe(**how), epoch, seeded())


def whole(equal: Tensor) -> Tensor:
    """Which images are equal in every pixel: bool (N,)."""
    return equal.flatten(1).all(1)


def test_no_augmentation_is_none() -> None:
    pixels = gradient(3)

    assert changed(pixels) is pixels


@pytest.mark.parametrize(
    "how",
    [
        {"flip": True},
        {"alternate_flip": True},
        {"shift": 2},
        {"least_area": 0.3},
        {"trivial_augment": True},
        {"erase": 1},
    ],
    ids=str,
)
def test_augmentation_repeats_itself_and_keeps_shape_and_type(how: dict[str, Any]) -> None:
    pixels = noise(8)
    once = changed(pixels, **how)

    assert torch.equal(once, changed(pixels, **how))
    assert not torch.equal(once, pixels)
    assert (pixels.shape, torch.uint8) == (once.shape, once.dtype)
    assert torch.equal(pixels, noise(8))


def test_a_flip_mirrors_half_of_the_images_and_leaves_the_others() -> None:
    pixels = gradient(400)
    flipped = changed(pixels, flip=True)
    mirrored = whole(flipped == pixels.flip(3))

    assert torch.equal(mirrored, ~whole(flipped == pixels))
    assert 150 < int(mirrored.sum()) < 250


def test_an_alternate_flip_mirrors_each_image_in_every_other_epoch() -> None:
    pixels = noise(200)
    first, second, third = (changed(pixels, epoch, alternate_flip=True) for epoch in (1, 2, 3))

    assert torch.equal(first, second.flip(3))
    assert torch.equal(first, third)
    assert 70 < int(whole(first == pixels).sum()) < 130


def test_a_shift_moves_each_image_by_itself_and_repeats_its_edges() -> None:
    moved = changed(gradient(200), shift=3).int()
    across, down = moved[:, 0, 0, 8] - 8, moved[:, 1, 8, 0] - 8

    assert set(range(-3, 4)) == set(across.tolist()) == set(down.tolist())
    place = torch.arange(16)
    assert torch.equal(moved[:, 0, 5], (place + across[:, None]).clamp(0, 15))
    assert torch.equal(moved[:, 1, :, 5], (place + down[:, None]).clamp(0, 15))


def test_a_part_is_enlarged_to_the_whole_and_has_the_area_that_was_asked_for() -> None:
    cut = changed(gradient(500) * 16, least_area=0.25).float() / 16
    across = (cut[:, 0, 8, 15] - cut[:, 0, 8, 0] + 1) / 16
    down = (cut[:, 1, 15, 8] - cut[:, 1, 0, 8] + 1) / 16

    assert 0.2 < float((across * down).min()) < 0.4
    assert float((across * down).max()) > 0.9
    assert float(cut[:, 0].min()) >= 0
    assert float(cut[:, 0].max()) <= 15


def test_erasing_blanks_a_part_of_the_share_of_images_that_was_asked_for() -> None:
    pixels = torch.zeros(200, 3, 16, 16, dtype=torch.uint8)
    blanked = changed(pixels, erase=0.5) == 127

    assert 70 < int(blanked.flatten(1).any(1).sum()) < 130
    assert not blanked.flatten(1).all(1).any()


def test_labels_stay_labels_where_nothing_is_mixed() -> None:
    pixels = noise(4)

    assert mix(pixels, LABELS, recipe(), 3) == (pixels, LABELS)


@pytest.mark.parametrize("how", [{"mixup": 0.4}, {"cutmix": 1.0}], ids=str)
def test_mixed_images_have_the_shares_of_both_labels(how: dict[str, Any]) -> None:
    seeded()
    pixels = LABELS.to(torch.uint8).mul(100)[:, None, None, None].expand(4, 3, 16, 16).contiguous()
    mixed, shares = mix(pixels, LABELS, recipe(**how), 3)

    assert (torch.uint8, (4, 3)) == (mixed.dtype, tuple(shares.shape))
    assert torch.allclose(shares.sum(1), torch.ones(4))
    assert torch.allclose(shares @ torch.tensor([0.0, 100.0, 200.0]), mixed.float().mean((1, 2, 3)), atol=0.6)
