"""Augmentation: how a batch of training images is changed, wherever its pixels lie.

All chance comes from the one generator of a step, or from torch's own, seeded with it; so a run repeats itself.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from training.recipe import Recipe


def augment(pixels: Tensor, recipe: Recipe, epoch: int, generator: torch.Generator) -> Tensor:
    """Change each image by itself as the recipe says: uint8 (N, 3, S, S)."""
    if recipe.flip or recipe.alternate_flip:
        mirrored = every_other(pixels, epoch) if recipe.alternate_flip else heads(len(pixels), generator)
        pixels = torch.where(mirrored.to(pixels.device)[:, None, None, None], pixels.flip(3), pixels)
    if recipe.shift:
        pixels = shifted(pixels, recipe.shift, generator)
    if recipe.least_area < 1:
        pixels = parts(pixels, recipe.least_area, generator)
    return transformed(pixels, recipe) if recipe.trivial_augment or recipe.erase else pixels


def transformed(pixels: Tensor, recipe: Recipe) -> Tensor:
    """Each image by torchvision: TrivialAugment (arXiv 2103.10158), random erasing (arXiv 1708.04896)."""
    from torchvision.transforms import v2  # takes seconds, and most recipes need none of it

    steps = [v2.TrivialAugmentWide()] if recipe.trivial_augment else []
    steps += [v2.RandomErasing(recipe.erase, value=[127.0])] if recipe.erase else []
    change = v2.Compose(steps)
    return torch.stack([change(image) for image in pixels])


def heads(count: int, generator: torch.Generator) -> Tensor:
    """A coin for each image: bool (count,)."""
    return torch.rand(count, generator=generator) < 0.5


def every_other(pixels: Tensor, epoch: int) -> Tensor:
    """Half of the images in odd epochs, the others in even ones (Jordan 2024, arXiv 2404.00498): bool (N,).

    The sum of an image's values, which mirroring leaves as it is, tells by its last bit of which half the image is.
    """
    return (pixels.flatten(1).sum(1) + epoch) % 2 == 0


def shifted(pixels: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Move each by up to `most` px each way, edges repeated: uint8 (N, 3, S, S)."""
    n, size, device = pixels.size(0), pixels.size(3), pixels.device
    reach = torch.arange(size)
    rows, columns = (
        (reach + torch.randint(-most, most + 1, (n, 1), generator=generator)).clamp(0, size - 1).to(device)
        for _ in range(2)
    )  # each (N, S): where every pixel comes from
    moved = pixels[torch.arange(n, device=device)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def parts(pixels: Tensor, least: float, generator: torch.Generator) -> Tensor:
    """Cut a random part out of each, of a share of `least` to 1 and sides of up to 4 to 3, and enlarge it: uint8.

    As Inception's random resized crop (Szegedy et al. 2014, arXiv 1409.4842), without antialiasing: parts are enlarged.
    """
    n = len(pixels)
    area = least + (1 - least) * torch.rand(n, generator=generator)
    aspect = torch.exp((2 * torch.rand(n, generator=generator) - 1) * math.log(4 / 3))
    sides = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], 1).clamp(max=1)  # (N, 2) across and down
    centres = (1 - sides) * (2 * torch.rand(n, 2, generator=generator) - 1)
    where = torch.cat([torch.diag_embed(sides), centres[:, :, None]], 2)  # (N, 2, 3)
    grid = functional.affine_grid(where, list(pixels.shape), align_corners=False).to(pixels.device)
    enlarged = functional.grid_sample(pixels.float(), grid, padding_mode="border", align_corners=False)
    return enlarged.round().clamp(0, 255).to(torch.uint8)


def mix(pixels: Tensor, labels: Tensor, recipe: Recipe, classes: int) -> tuple[Tensor, Tensor]:
    """Blend images in pairs (mixup), or paste a part of one into the other (CutMix); either, where both are asked for.

    Gives pixels uint8 (N, 3, S, S) and targets: the labels int64 (N,) or, where they were mixed, shares (N, classes).
    """
    if not (recipe.mixup or recipe.cutmix):
        return pixels, labels
    from torchvision.transforms import v2

    ways = [
        way(alpha=alpha, num_classes=classes)
        for way, alpha in ((v2.MixUp, recipe.mixup), (v2.CutMix, recipe.cutmix))
        if alpha
    ]
    mixed, shares = v2.RandomChoice(ways)(pixels.float(), labels)
    return mixed.round().to(torch.uint8), shares
