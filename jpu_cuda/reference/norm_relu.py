"""Norms with fixed statistics and ReLUs of several levels: y = max(0, weight · (x − mean) / √(var + eps) + bias)."""

from collections.abc import Sequence

import torch
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
    rows = zip(levels, weight, bias, mean, var, eps, strict=True)
    # The operator itself: before torch 2.14, F.batch_norm refuses an eps of 0, which the kernels take.
    cudnn = torch.backends.cudnn.enabled
    return [F.relu(torch.batch_norm(x, w, b, m, v, False, 0.0, e, cudnn)) for x, w, b, m, v, e in rows]
