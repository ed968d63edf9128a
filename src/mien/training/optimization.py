"""Optimiser, learning rate, gradient clipping and weight average of a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mien.training.checkpoint import TrainState
from mien.training.config import OptimizerSettings
from mien.training.muon import Muon
from mien.typing import Tensor

BETAS = (0.9, 0.999)
Tensors: TypeAlias = tuple[Tensor, ...] | list[Tensor]


def initial_state(network: nn.Module, settings: OptimizerSettings, *, half: bool) -> TrainState:
    """Make the optimiser and, if asked for, the weight average of a network that is ready for training.

    Args:
        network: In training mode, with `requires_grad` set for what is trained.
        settings: Method, rates and decay.
        half: Whether Muon computes its steps in bfloat16.
    """
    average = None
    if settings.ema_decay:
        average = AveragedModel(network, multi_avg_fn=moving_average(settings.ema_decay), use_buffers=True)
        average.eval().requires_grad_(False)
    rate, decay = settings.learning_rate, settings.weight_decay
    trained = [p for p in network.parameters() if p.requires_grad]
    # One pass over weights and moments instead of twelve. On a GPU torch's default does that.
    fused = all(p.device.type == "cpu" for p in trained) or None
    if settings.method == "muon":
        dtype = torch.bfloat16 if half else torch.float32
        muon = Muon(network, lr=rate, betas=BETAS, weight_decay=decay, iterate_in=dtype, fused=fused)
        return TrainState(network, average, muon)
    return TrainState(network, average, AdamW(trained, lr=rate, betas=BETAS, weight_decay=decay, fused=fused))


def moving_average(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """Exponential moving average of weights and statistics, for `AveragedModel`.

    torch's own function also averages integer buffers such as indices, and truncates the result.
    """
    average = get_ema_multi_avg_fn(decay)

    def update(kept: Tensors, current: Tensors, count: Tensor | int) -> None:
        if kept[0].is_floating_point():
            average(kept, current, count)
        else:
            for old, new in zip(kept, current, strict=True):
                old.copy_(new)

    return update


def learning_rate(step: int, steps: int, settings: OptimizerSettings) -> float:
    """Learning rate of a step: linear warm-up times a cosine from the rate down to `final_rate` of it.

    Args:
        step: Number of the step, from 0.
        steps: Length of the run.
        settings: Rate, warm-up and final rate.
    """
    warm = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    share = step / max(steps - 1, 1)
    cosine = settings.final_rate + (1 - settings.final_rate) * 0.5 * (1 + math.cos(math.pi * share))
    return settings.learning_rate * warm * cosine


def set_rate(state: TrainState, rate: float) -> float:
    """Set the learning rate of all parameters, and return it."""
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    return rate


def clip_gradient(network: nn.Module, limit: float) -> float:
    """Scale the gradient down to a norm of at most `limit`; with 0 it stays as it is. Returns the norm before."""
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if limit:
        torch.nn.utils.clip_grads_with_norm_(network.parameters(), limit, norm)
    return float(norm)


def trained_buffers(network: nn.Module) -> list[tuple[str, Tensor]]:
    """The buffers that training changes, e.g. batch statistics: those that the network's file holds."""
    kept = network.state_dict().keys()
    return [(name, buffer) for name, buffer in network.named_buffers() if name in kept]


def final_model(state: TrainState) -> nn.Module:
    """The network that a run returns, in evaluation mode: the average of the weights, or the last weights."""
    return (state.network if state.average is None else state.average.module).eval()
