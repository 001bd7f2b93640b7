"""A compact convolutional network for small images: the embedded demo model, and a baseline for CIFAR-sized ones.

VGG's plan (3x3 convolutions, twice the channels at half the size; Simonyan and Zisserman, arXiv 1409.1556) with batch
normalisation (arXiv 1502.03167) and, from Network in Network (arXiv 1312.4400), global average pooling in place of wide
fully connected layers, so that any image size will do.
"""

from torch import Tensor, nn


class CompactCNN(nn.Module):
    """Six 3x3 convolutions and one linear layer; 145,242 parameters with 10 classes and width 16.

    Float images (N, 3, S, S), S >= 16, to logits (N, num_classes). The channels grow from `width` to 8 x `width`.
    """

    def __init__(self, num_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.features = nn.Sequential(
            convolution(3, width),
            nn.MaxPool2d(2),
            convolution(width, 2 * width),
            convolution(2 * width, 2 * width),
            nn.MaxPool2d(2),
            convolution(2 * width, 4 * width),
            convolution(4 * width, 4 * width),
            nn.MaxPool2d(2),
            convolution(4 * width, 8 * width),
        )
        self.classifier = nn.Linear(8 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of normalised images (N, 3, S, S)."""
        features = self.features(images)  # (N, 8 * width, S / 8, S / 8)
        logits: Tensor = self.classifier(features.mean((2, 3)))
        return logits


def convolution(channels_in: int, channels_out: int) -> nn.Sequential:
    """Convolve 3x3, normalise, ReLU: (N, channels_in, S, S) to (N, channels_out, S, S)."""
    # Normalisation subtracts any bias that the convolution would add. He initialisation (arXiv 1502.01852) suits ReLU.
    conv = nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True))
