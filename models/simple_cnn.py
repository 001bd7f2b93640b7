"""SimpleCNN, the network of the PyTorch tutorials, told twice; the same weights give the same logits."""

from torch import Tensor, nn


class SimpleCNN(nn.Module):
    """Two convolutions and two linear layers for 32x32 pictures, as a subclass of nn.Module."""

    def __init__(self, num_classes: int = 10) -> None:
        """Make the layers; `num_classes` is K."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, kernel_size=3)
        self.conv2 = nn.Conv2d(32, 64, kernel_size=3)
        self.pool = nn.MaxPool2d(2)
        self.relu = nn.ReLU()
        self.fc1 = nn.Linear(64 * 6 * 6, 128)
        self.fc2 = nn.Linear(128, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits: float32 (N, 3, 32, 32) to (N, K)."""
        x = self.pool(self.relu(self.conv1(x)))  # (N, 32, 15, 15)
        x = self.pool(self.relu(self.conv2(x)))  # (N, 64, 6, 6)
        x = x.flatten(start_dim=1)  # (N, 2304)
        logits: Tensor = self.fc2(self.relu(self.fc1(x)))
        return logits


def simple_cnn_sequential(num_classes: int = 10) -> nn.Sequential:
    """The same network as one nn.Sequential: float32 (N, 3, 32, 32) to logits (N, K)."""
    return nn.Sequential(
        nn.Conv2d(3, 32, kernel_size=3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, kernel_size=3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 6 * 6, 128),
        nn.ReLU(),
        nn.Linear(128, num_classes),
    )
