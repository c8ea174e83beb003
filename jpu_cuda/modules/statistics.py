"""Running statistics of norms that took the batch's, moved as the norms themselves would have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def update_running(norms: Sequence[Any], mean: Sequence[Tensor], var: Sequence[Tensor], count: int) -> None:
    """As :class:`torch.nn.BatchNorm2d` in training mode: momentum, or the cumulative average where it is None.

    All norms are moved together, since each has a few hundred channels: a launch to count, three to average.

    Args:
        norms: those whose statistics were the batch's; none twice.
        mean: [channels] of each, without a gradient.
        var: biased; the running one takes it unbiased.
        count: values of a channel.
    """
    # No torch.no_grad() here: exported programs would keep it as a block that cannot be loaded.
    tracking = [
        (norm, m, v) for norm, m, v in zip(norms, mean, var, strict=True) if norm.training and norm.track_running_stats
    ]
    counters = [norm.num_batches_tracked for norm, _, _ in tracking if norm.num_batches_tracked is not None]
    if counters:
        torch._foreach_add_(counters, 1)
    moved = [(norm, m, v) for norm, m, v in tracking if norm.running_mean is not None]
    if not moved:
        return
    running = [buffer for norm, _, _ in moved for buffer in (norm.running_mean, norm.running_var)]
    new = [value for _, m, v in moved for value in (m, v)]
    shares = [_factor(norm) for norm, _, _ in moved for _ in range(2)]
    unbiased = [1.0, count / (count - 1)] * len(moved)
    added = torch._foreach_mul(new, [share * factor for share, factor in zip(shares, unbiased, strict=True)])
    # Not by lerp, whose difference of two infinite values is NaN.
    torch._foreach_mul_(running, [1 - share for share in shares])
    torch._foreach_add_(running, [x.to(buffer.dtype) for x, buffer in zip(added, running, strict=True)])


def _factor(norm: Any) -> float:
    """The share of the new statistics."""
    if norm.momentum is not None:
        return float(norm.momentum)
    return 0.0 if norm.num_batches_tracked is None else 1.0 / float(norm.num_batches_tracked)
