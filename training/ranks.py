"""Several processes that train one model together, each on its share of every batch: as `torchrun` starts them."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The place of this process among `count` of them; the first writes and tells for all."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Which of `items` are this process's: each is exactly one's."""
        return items[self.rank :: self.count]

    def parts(self, batches: Sequence[Tensor]) -> Sequence[Tensor]:
        """Of each batch of indices the part that is this process's, without batches that would leave one with none."""
        return [batch[self.rank :: self.count] for batch in batches if len(batch) >= self.count]

    def agreed(self, value: T) -> T:
        """The first process's value, for all."""
        values = [value]
        if self.count > 1:
            distributed.broadcast_object_list(values)
        return values[0]

    def gathered(self, values: Sequence[T]) -> list[T]:
        """What all processes' shares came to, in the order of the whole."""
        if self.count == 1:
            return list(values)
        parts: list[Sequence[T]] = [()] * self.count
        distributed.all_gather_object(parts, values)
        return [parts[place % self.count][place // self.count] for place in range(sum(map(len, parts)))]

    def summed(self, values: Sequence[float], device: torch.device) -> list[float]:
        """Each value's sum over all processes."""
        if self.count == 1:
            return list(values)
        kind = torch.float32 if device.type == "mps" else torch.float64
        distributed.all_reduce(sums := torch.tensor(values, dtype=kind, device=device))
        return cast(list[float], sums.tolist())

    def alike(self, module: nn.Module | None) -> None:
        """Give all processes the first one's buffers: batch normalisation has counted only each one's own part."""
        if module is not None and self.count > 1:
            for buffer in module.buffers():
                distributed.broadcast(buffer, 0)

    def together(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over all processes, in every backward pass."""
        learns = any(parameter.requires_grad for parameter in module.parameters())
        return DistributedDataParallel(module) if self.count > 1 and learns else module


ALONE = Ranks()


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """This process's place among those that torchrun started it with, on `device`'s kind; alone without torchrun."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
