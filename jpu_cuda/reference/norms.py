"""Norms with fixed statistics as affine maps, and the adjoint: y = weight · (x − mean) / √(var + eps) + bias."""

from collections.abc import Sequence

import torch
from torch import Tensor


def fold(
    weight: Sequence[Tensor | None],
    bias: Sequence[Tensor | None],
    mean: Sequence[Tensor],
    var: Sequence[Tensor],
    eps: Sequence[float],
    dtype: torch.dtype,
) -> list[Tensor]:
    """Scale and shift of the norms' first half, [D, C] each, then those of the second, in ``dtype``.

    ``scale = weight / √(var + eps)``, ``shift = bias − mean · scale``.
    """
    scales, shifts = [], []
    for w, b, m, v, e in zip(weight, bias, mean, var, eps, strict=True):
        deviation = (v.to(dtype) + e).sqrt()
        scale = deviation.reciprocal() if w is None else w.to(dtype) / deviation
        shift = -m.to(dtype) * scale
        scales.append(scale)
        shifts.append(shift if b is None else b.to(dtype) + shift)
    half = len(scales) // 2
    return [torch.stack(part) for part in (scales[:half], shifts[:half], scales[half:], shifts[half:])]


def fold_backward(
    terms: Sequence[Tensor | None],
    mean: Sequence[Tensor],
    var: Sequence[Tensor],
    eps: Sequence[float],
    needed: Sequence[int],
) -> list[Tensor]:
    """From the gradients of :func:`fold`'s results (None for 0), those of weights, then biases, that are needed."""
    norms = len(mean)
    half = norms // 2
    results = []
    for i, wanted in enumerate(needed):
        if not wanted:
            continue
        norm = i % norms
        scale, shift = (None if t is None else t[norm % half] for t in terms[0 if norm < half else 2 :][:2])
        m, v = mean[norm], var[norm]
        gradient = shift
        if i < norms:
            given = [t for t in (scale, None if shift is None else -m.to(shift.dtype) * shift) if t is not None]
            gradient = sum(given) / (v.to(given[0].dtype) + eps[norm]).sqrt() if given else None
        results.append(torch.zeros_like(m) if gradient is None else gradient.to(m.dtype))
    return results
