"""Running statistics of norms that took the batch's, moved as the norms themselves would have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def update_running(norms: Sequence[Any], mean: Sequence[Tensor], var: Sequence[Tensor], count: int) -> None:
    """As :class:`torch.nn.BatchNorm2d` in training mode: momentum, or the cumulative average where it is None.

    All norms are moved by a launch or two, since each has a few hundred channels.

    Args:
        norms: those in training mode whose statistics were the batch's; none twice.
        mean: [channels] of each.
        var: biased; the running one takes it unbiased.
        count: values of a channel.
    """
    moved = [
        (norm, m, v)
        for norm, m, v in zip(norms, mean, var, strict=True)
        if norm.training and norm.track_running_stats and norm.running_mean is not None
    ]
    if not moved:
        return
    unbiased = count / (count - 1)
    with torch.no_grad():
        tracked = [norm.num_batches_tracked for norm, _, _ in moved if norm.num_batches_tracked is not None]
        if tracked:
            torch._foreach_add_(tracked, 1)
        by_factor: dict[float, tuple[list[Tensor], list[Tensor]]] = {}
        for norm, m, v in moved:
            running, new = by_factor.setdefault(_factor(norm), ([], []))
            running += [norm.running_mean, norm.running_var]
            new += [m.to(norm.running_mean.dtype), (v * unbiased).to(norm.running_var.dtype)]
        for factor, (running, new) in by_factor.items():
            torch._foreach_lerp_(running, new, factor)


def _factor(norm: Any) -> float:
    """The share of the new statistics."""
    if norm.momentum is not None:
        return float(norm.momentum)
    return 0.0 if norm.num_batches_tracked is None else 1.0 / float(norm.num_batches_tracked)
