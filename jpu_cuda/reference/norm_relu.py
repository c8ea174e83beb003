"""Norms with fixed statistics and ReLUs of several levels: y = max(0, weight · (x − mean) / √(var + eps) + bias)."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def norm_relu(
    levels: Sequence[Tensor],
    weight: Sequence[Tensor | None],
    bias: Sequence[Tensor | None],
    mean: Sequence[Tensor],
    var: Sequence[Tensor],
    eps: Sequence[float],
) -> list[Tensor]:
    """[N, C_i, H_i, W_i] of each level; its norm is the entry of the other lists at its place, [C_i] each."""
    rows = zip(levels, mean, var, weight, bias, eps, strict=True)
    return [F.relu(F.batch_norm(x, m, v, w, b, eps=e)) for x, m, v, w, b, e in rows]
