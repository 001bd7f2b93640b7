"""The optimiser, its schedule, and the average of the weights."""

import math
from collections.abc import Iterator
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import AveragedModel

from models.architectures import head_of
from training.recipe import Recipe

Tensors = tuple[Tensor, ...] | list[Tensor]
START = 0.2  # of the rate, where it begins to rise


def optimizer_of(recipe: Recipe, network: nn.Module) -> optim.Optimizer:
    """Over what can learn in the network, in groups that differ in rate and decay."""
    groups = list(parameter_groups(recipe, network))
    if recipe.optimizer == "sgd":
        return optim.SGD(groups, recipe.lr, recipe.momentum, nesterov=recipe.momentum > 0)
    return (optim.AdamW if recipe.optimizer == "adamw" else optim.Adam)(groups, recipe.lr)


def parameter_groups(recipe: Recipe, network: nn.Module) -> Iterator[dict[str, Any]]:
    """Weights, then biases, of the last layer and of what lies before it; biases and norms do not decay."""
    head = head_of(network)
    kinds: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            kinds.setdefault((name.startswith(head), parameter.dim() > 1), []).append(parameter)
    for (of_head, weights), parameters in sorted(kinds.items(), key=itemgetter(0), reverse=True):
        factor = (1.0 if of_head else recipe.backbone_lr) * (1.0 if weights else recipe.bias_lr)
        decay = recipe.weight_decay if weights else 0.0
        yield {"params": parameters, "lr": recipe.lr * factor, "weight_decay": decay}


def schedule_of(recipe: Recipe, optimizer: optim.Optimizer, steps: int) -> LRScheduler:
    """The learning rate at each of the run's `steps`."""
    if recipe.schedule == "one-cycle":
        # One more, for the rate that is set after the last step and never used. Adam's beta1 cycles with the rate, as
        # torch has it by default; a momentum that was asked for stays.
        highest = [group["lr"] for group in optimizer.param_groups]
        return OneCycleLR(optimizer, highest, total_steps=steps + 1, cycle_momentum=recipe.optimizer != "sgd")
    return LambdaLR(optimizer, lambda step: share(recipe, step / steps))


def share(recipe: Recipe, progress: float) -> float:
    """The part of the highest rate that is due after so much of the run, 0 to 1."""
    if recipe.schedule == "constant":
        return 1.0
    if progress < recipe.warm_up:
        return START + (1 - START) * progress / recipe.warm_up
    left = min(1.0, (1 - progress) / (1 - recipe.warm_up))
    return left if recipe.schedule == "linear" else (1 - math.cos(math.pi * left)) / 2


def average_of(recipe: Recipe, module: nn.Module) -> AveragedModel:
    """A copy of `module` that follows it: an exponential moving average of all that it holds.

    At first it follows more closely, as (1 + n) / (10 + n) after n steps (TensorFlow's ExponentialMovingAverage).
    """

    @torch.no_grad()
    def follow(averages: Tensors, values: Tensors, steps: Tensor | int) -> None:
        n = int(steps)
        weight = 1 - min(recipe.ema, (1 + n) / (10 + n))
        for average, value in zip(averages, values, strict=True):
            if average.is_floating_point():
                average.lerp_(value.to(average.dtype), weight)
            else:
                average.copy_(value)

    return AveragedModel(module, multi_avg_fn=follow, use_buffers=True)
