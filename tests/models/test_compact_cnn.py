"""What holds for the compact network beyond what holds for every architecture."""

import pytest
import torch

from models.compact_cnn import CompactCNN


@pytest.mark.parametrize("size", [16, 32, 37, 96])
def test_any_image_size_from_16_gives_logits(size: int) -> None:
    logits = CompactCNN(num_classes=7, width=4).eval()(torch.zeros(2, 3, size, size))

    assert ((2, 7), torch.float32) == (logits.shape, logits.dtype)


def test_the_default_has_the_documented_number_of_parameters() -> None:
    parameters = sum(parameter.numel() for parameter in CompactCNN().parameters())

    assert f"{parameters:,} parameters" in (CompactCNN.__doc__ or "")
