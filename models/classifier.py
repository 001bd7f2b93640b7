"""The classifier: a network with everything around it that turns a picture's pixels into probabilities.

Training, evaluation and the exported artifact run this one module, so that they cannot drift apart.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class Classifier(nn.Module):
    """uint8 pixels in, probabilities out; normalisation, temperature and softmax inside. Compiles with TorchScript."""

    mean: Tensor
    std: Tensor
    temperature: Tensor

    def __init__(
        self, network: nn.Module, *, input_size: int, crop: float, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        """Wrap `network`, normalised float32 (N, 3, S, S) to logits (N, K); `mean` and `std` are of 0..1 values."""
        super().__init__()
        self.network = network
        self.input_size = input_size
        self.crop = crop
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, pixels: Tensor) -> Tensor:
        """Class probabilities: uint8 (N, 3, S, S) to float32 (N, K), rows summing to 1.

        Raises:
            ValueError: wrong dtype, rank, channel count or size (a `torch.jit.Error` once compiled).
        """
        return torch.softmax(self.logits(pixels) / self.temperature.float(), dim=1)

    @torch.jit.export
    def logits(self, pixels: Tensor) -> Tensor:
        """Scores before temperature and softmax: uint8 (N, 3, S, S) to float32 (N, K)."""
        size = self.input_size
        if pixels.dtype != torch.uint8:
            raise ValueError("pixels must be uint8")
        if pixels.dim() != 4 or pixels.size(1) != 3 or pixels.size(2) != size or pixels.size(3) != size:
            raise ValueError(f"pixels must have the shape (N, 3, {size}, {size}), not {pixels.shape}")
        normalised = (pixels.float() / 255.0 - self.mean.float()) / self.std.float()
        # The buffers follow `.to(dtype)`, so they name the network's dtype.
        logits: Tensor = self.network(normalised.to(self.mean.dtype))
        return logits.float()

    @torch.jit.export
    def preprocess(self, image: Tensor) -> Tensor:
        """Cut the centred square of side max(1, round(crop * min(H, W))), then resize: uint8 (3, H, W) to (3, S, S).

        Cutting first bounds memory by the decoded image's. Bilinear with antialiasing in float32, then rounded.

        Raises:
            ValueError: wrong dtype, rank or channel count.
        """
        if image.dtype != torch.uint8 or image.dim() != 3 or image.size(0) != 3:
            raise ValueError("image must be uint8 of shape (3, H, W)")
        height, width = image.size(1), image.size(2)
        # TorchScript rounds half to even like Python, but to a float.
        side = max(1, int(round(self.crop * min(height, width))))  # noqa: RUF046
        top, left = (height - side) // 2, (width - side) // 2
        square = image[:, top : top + side, left : left + side]
        if side == self.input_size:
            return square.contiguous()
        size = [self.input_size, self.input_size]
        # As float32 a large picture takes four times its memory: then one channel at a time.
        step = 1 if side > 2000 else 3
        resized: list[Tensor] = []
        for channel in range(0, 3, step):
            planes = square[channel : channel + step].unsqueeze(0).float()
            resized.append(
                functional.interpolate(planes, size=size, mode="bilinear", align_corners=False, antialias=True)
            )
        return torch.cat(resized, dim=1).squeeze(0).round().clamp(0, 255).to(torch.uint8)
