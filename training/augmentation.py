"""Random changes of training pixels that leave their labels as they are."""

import torch
from torch import Tensor


def augment(pixels: Tensor, flip: bool, shift: int, generator: torch.Generator) -> Tensor:
    """Mirror half of the images, then move each by up to `shift` px each way, edges repeated: uint8 (N, 3, S, S)."""
    n, size = pixels.size(0), pixels.size(3)
    if flip:
        mirrored = torch.rand(n, generator=generator) < 0.5
        pixels = torch.where(mirrored[:, None, None, None], pixels.flip(3), pixels)
    if shift:
        reach = torch.arange(size)
        rows, columns = (
            (reach + torch.randint(-shift, shift + 1, (n, 1), generator=generator)).clamp(0, size - 1) for _ in range(2)
        )  # each (N, S): where every pixel comes from
        pixels = pixels[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # (N, S, S, 3)
        pixels = pixels.permute(0, 3, 1, 2)
    return pixels
