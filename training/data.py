"""Data as it comes: named splits of labelled pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from training.errors import TrainingError


@dataclass(frozen=True)
class Images:
    """Pictures, uint8 (N, 3, H, W) or files, and their labels int64 (N,)."""

    pictures: Tensor | Sequence[Path]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> "Images":
        """The pictures at `indices` int64 (M,), in that order."""
        if isinstance(self.pictures, Tensor):
            return Images(self.pictures[indices], self.labels[indices])
        return Images([self.pictures[i] for i in indices.tolist()], self.labels[indices])


@dataclass(frozen=True)
class Source:
    """A data set as it comes: `splits` has `train`, and perhaps `val`, `test` and others to be told beside it."""

    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, Images]

    def validated(self, val: float, seed: int) -> "Source":
        """With the validation split that the recipe asks for: none at 0, its own, or one drawn from `train`."""
        splits = dict(self.splits)
        if val == 0:
            splits.pop("val", None)
        elif "val" not in splits:
            splits["train"], splits["val"] = divided(splits["train"], val, seed)
        return Source(self.name, self.classes, splits)


def divided(images: Images, val: float, seed: int) -> tuple[Images, Images]:
    """Draw `val`, a share (below 1) or a number, of each class in equal parts, by seed: the rest and the drawn."""
    share = val if val < 1 else val / len(images)
    generator = torch.Generator().manual_seed(seed)
    rest, drawn = [], []
    for label in range(int(images.labels.max()) + 1):
        members = torch.nonzero(images.labels == label).flatten()
        count = max(1, round(share * len(members)))
        if count >= len(members):
            raise TrainingError(f"--val {val:g} takes all {len(members)} images of a class; give less, or 0 for none")
        members = members[torch.randperm(len(members), generator=generator)]
        drawn.append(members[:count])
        rest.append(members[count:])
    return images.take(torch.cat(rest).sort().values), images.take(torch.cat(drawn).sort().values)
