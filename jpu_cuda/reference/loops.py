"""A JPU in NumPy, pixel by pixel and tap by tap, with a bound on what rounding may do to it.

It shares no code with the modules: no convolution, resize or norm of PyTorch stands in it. Every
step carries, beside its float64 value, an a-priori bound on how far an evaluation in another
arithmetic may lie from it (Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., section
3.3, running error analysis). Hence the tolerance of a comparison is derived, not chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..modules.core import JointPyramid

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Arithmetic:
    """The arithmetic whose error is bounded.

    Attributes:
        accumulate: unit roundoff of sums and of per-channel arithmetic.
        store: unit roundoff of each stored result.
    """

    accumulate: float
    store: float

    @classmethod
    def of(cls, dtype: torch.dtype) -> Arithmetic:
        """PyTorch's: float16 and bfloat16 accumulate in float32 and are rounded once per op."""
        wide = dtype if dtype == torch.float64 else torch.float32
        return cls(torch.finfo(wide).eps / 2, torch.finfo(dtype).eps / 2)

    def gamma(self, terms: int) -> float:
        """γ_n = n·u / (1 − n·u), the relative error of a sum of products with n roundings.

        The loops themselves round in float64, hence the second unit roundoff.
        """
        nu = terms * (self.accumulate + np.finfo(np.float64).eps / 2)
        if nu >= 1:
            raise ValueError(f"terms: expected fewer than {int(1 / self.accumulate)} for this arithmetic, got {terms}")
        return nu / (1 - nu)


@dataclass(frozen=True)
class Bounded:
    """A value and, entry by entry, how far the other arithmetic's result may be from it."""

    value: Array
    error: Array

    @classmethod
    def exact(cls, tensor: Tensor) -> Bounded:
        value = tensor.detach().double().numpy()
        return cls(value, np.zeros_like(value))


@dataclass(frozen=True)
class Norm:
    """A normalisation per channel.

    Attributes:
        weight: [C] or None for 1.
        bias: [C] or None for 0.
        eps: added to the variance.
        mean: [C] running mean; None to take statistics from the input.
        var: [C] running variance; None to take statistics from the input.
        groups: statistics per sample over groups of channels (GroupNorm); None for per channel over
            the batch (BatchNorm).
    """

    weight: Array | None
    bias: Array | None
    eps: float
    mean: Array | None = None
    var: Array | None = None
    groups: int | None = None


@dataclass(frozen=True)
class Conv:
    """A convolution [O, I, k, k] with "same" zero padding; ``groups`` equal to its outputs, or 1."""

    weight: Array
    bias: Array | None = None
    dilation: int = 1
    groups: int = 1


@dataclass(frozen=True)
class Stage:
    """Dense 3×3 convolution and norm of one level."""

    conv: Conv
    norm: Norm | None


@dataclass(frozen=True)
class Branch:
    """Separable convolution and norms of one dilation."""

    depthwise: Conv
    norm: Norm | None
    pointwise: Conv
    out_norm: Norm | None


def conv2d(x: Bounded, conv: Conv, arithmetic: Arithmetic) -> Bounded:
    """y[n, o, i, j] = Σ w[o, c, a, b] · x[n, c, i + d·(a − r), j + d·(b − r)], zeros outside."""
    w = conv.weight
    batch, _, height, width = x.value.shape
    value = np.zeros((batch, w.shape[0], height, width))
    magnitude, error = np.zeros_like(value), np.zeros_like(value)
    radius = w.shape[2] // 2
    for n, i, j in np.ndindex(batch, height, width):
        for a, b in np.ndindex(w.shape[2], w.shape[3]):
            y, z = i + conv.dilation * (a - radius), j + conv.dilation * (b - radius)
            if not (0 <= y < height and 0 <= z < width):
                continue
            tap, pixel, pixel_error = w[:, :, a, b], x.value[n, :, y, z], x.error[n, :, y, z]
            if conv.groups == 1:
                value[n, :, i, j] += tap @ pixel
                magnitude[n, :, i, j] += np.abs(tap) @ np.abs(pixel)
                error[n, :, i, j] += np.abs(tap) @ pixel_error
            else:  # depthwise
                value[n, :, i, j] += tap[:, 0] * pixel
                magnitude[n, :, i, j] += np.abs(tap[:, 0] * pixel)
                error[n, :, i, j] += np.abs(tap[:, 0]) * pixel_error
    if conv.bias is not None:
        value += conv.bias[:, None, None]
        magnitude += np.abs(conv.bias)[:, None, None]
    error += arithmetic.gamma(w[0].size + 1) * (magnitude + error)
    return _stored(value, error, arithmetic)


def normalise(x: Bounded, norm: Norm, arithmetic: Arithmetic) -> Bounded:
    """The norm: weight · (x − mean) / √(var + eps) + bias."""
    channels = x.value.shape[1]
    column = (slice(None), None, None)
    weight = np.ones(channels) if norm.weight is None else norm.weight
    bias = np.zeros(channels) if norm.bias is None else norm.bias
    if norm.mean is not None and norm.var is not None:
        mean, var = norm.mean[None, :], norm.var[None, :]  # [1, C]
        mean_error, var_error = np.zeros_like(mean), np.zeros_like(var)
    else:
        mean, var, mean_error, var_error = _statistics(x, norm.groups, arithmetic)  # [1 or N, C]
    sigma = 1 / np.sqrt(var + norm.eps)
    # The least variance within the bound gives the greatest σ; eps keeps it positive.
    sigma_error = 1 / np.sqrt(np.maximum(var - var_error, 0) + norm.eps) - sigma

    mean, mean_error = mean[..., None, None], mean_error[..., None, None]
    sigma, sigma_error = sigma[..., None, None], sigma_error[..., None, None]
    value = weight[column] * sigma * (x.value - mean) + bias[column]
    magnitude = np.abs(weight[column]) * sigma * (np.abs(x.value) + np.abs(mean)) + np.abs(bias[column])
    offset_error = x.error + mean_error
    error = np.abs(weight[column]) * (sigma * offset_error + sigma_error * (np.abs(x.value - mean) + offset_error))
    # Eight roundings: var + eps, root, reciprocal, weight · σ, the mean's product, x's, two sums.
    error += arithmetic.gamma(8) * (magnitude + error)
    return _stored(value, error, arithmetic)


def _statistics(x: Bounded, groups: int | None, arithmetic: Arithmetic) -> tuple[Array, Array, Array, Array]:
    """Mean, biased variance and bounds of both, [1, C] over the batch or [N, C] over groups."""
    batch, channels = x.value.shape[:2]
    # [samples pooled apart, samples pooled together, group, channel in group, pixel]
    if groups is None:
        value, error = (a.reshape(1, batch, channels, 1, -1) for a in (x.value, x.error))
    else:
        value, error = (a.reshape(batch, 1, groups, channels // groups, -1) for a in (x.value, x.error))
    axes = (1, 3, 4)
    count = value.shape[1] * value.shape[3] * value.shape[4]
    gamma = arithmetic.gamma(count + 2)
    mean = value.mean(axes, keepdims=True)
    mean_error = error.mean(axes, keepdims=True) + gamma * (np.abs(value) + error).mean(axes, keepdims=True)
    offset, offset_error = np.abs(value - mean), error + mean_error
    var = (offset**2).mean(axes, keepdims=True)
    var_error = (2 * offset * offset_error + offset_error**2).mean(axes, keepdims=True)
    var_error += gamma * (var + var_error)
    repeat = 1 if groups is None else channels // groups
    return tuple(  # type: ignore[return-value]
        np.repeat(a.reshape(a.shape[0], -1), repeat, axis=1) for a in (mean, var, mean_error, var_error)
    )


def resize(x: Bounded, size: tuple[int, int], align_corners: bool, arithmetic: Arithmetic) -> Bounded:
    """Bilinear interpolation between the four neighbours of each output pixel's place in the input."""
    batch, channels, height, width = x.value.shape
    if (height, width) == size:
        return x
    value = np.zeros((batch, channels, *size))
    error = np.zeros_like(value)
    for i, j in np.ndindex(*size):
        for y, wy in _neighbours(i, height, size[0], align_corners):
            for z, wz in _neighbours(j, width, size[1], align_corners):
                value[:, :, i, j] += wy * wz * x.value[:, :, y, z]
                error[:, :, i, j] += wy * wz * x.error[:, :, y, z]
    # A place has four roundings of a number up to the input's length; an error of its weight moves the
    # result by at most the difference of two neighbours. Interpolation is continuous, so this holds
    # where a place crosses a pixel as well.
    peak = (np.abs(x.value) + x.error).max(axis=(2, 3), keepdims=True)
    error += 2 * peak * 4 * (arithmetic.accumulate + 2**-53) * (height + width)
    error += arithmetic.gamma(8) * peak
    return _stored(value, error, arithmetic)


def _neighbours(index: int, length: int, resized: int, align_corners: bool) -> list[tuple[int, float]]:
    """The two input pixels between which an output pixel lies, with their weights."""
    if align_corners:
        place = index * (length - 1) / (resized - 1) if resized > 1 else 0.0
    else:
        place = max((index + 0.5) * length / resized - 0.5, 0.0)
    low = min(int(place), length - 1)
    high = min(low + 1, length - 1)
    return [(low, 1 - (place - low)), (high, place - low)]


def _stored(value: Array, error: Array, arithmetic: Arithmetic) -> Bounded:
    return Bounded(value, error + arithmetic.store * (np.abs(value) + error))


def _relu(x: Bounded) -> Bounded:
    return Bounded(np.maximum(x.value, 0), x.error)  # 1-Lipschitz


def _concat(parts: Sequence[Bounded]) -> Bounded:
    return Bounded(np.concatenate([p.value for p in parts], 1), np.concatenate([p.error for p in parts], 1))


def joint_pyramid(
    levels: Sequence[Tensor],
    stages: Sequence[Stage],
    branches: Sequence[Branch],
    *,
    align_corners: bool,
    coarsest_first: bool,
    arithmetic: Arithmetic,
) -> Bounded:
    """A JPU (FastFCN, section 3.3, Figure 4).

    Args:
        levels: [N, C_i, H_i, W_i], finest first; taken as exact.
        stages: one per level.
        branches: one per dilation.
        align_corners: how the coarser levels are resized.
        coarsest_first: order of concatenation.
        arithmetic: the arithmetic whose error is bounded.

    Returns:
        [N, D·width, H_0, W_0] with the bound.
    """
    features = []
    for level, stage in zip(levels, stages, strict=True):
        x = conv2d(Bounded.exact(level), stage.conv, arithmetic)
        features.append(_relu(x if stage.norm is None else normalise(x, stage.norm, arithmetic)))
    height, width = features[0].value.shape[2:]
    resized = [resize(x, (height, width), align_corners, arithmetic) for x in features]
    u = _concat(resized[::-1] if coarsest_first else resized)
    outputs = []
    for branch in branches:
        z = conv2d(u, branch.depthwise, arithmetic)
        z = z if branch.norm is None else normalise(z, branch.norm, arithmetic)
        q = conv2d(z, branch.pointwise, arithmetic)
        q = q if branch.out_norm is None else normalise(q, branch.out_norm, arithmetic)
        outputs.append(_relu(q))
    return _concat(outputs)


def evaluate(module: JointPyramid, levels: Sequence[Tensor], dtype: torch.dtype) -> Bounded:
    """Evaluates a JPU module's weights by the loops, in the module's mode.

    Args:
        module: a JPU with ReLUs and batch or group norms.
        levels: the levels that it uses, finest first.
        dtype: the dtype whose rounding is bounded.
    """
    layout = module.layout
    norm = next((n for n in ("bn", "gn") if _has(module, layout.stage_path(0, "norm", n))), None)

    def conv(path: str) -> Conv:
        m: Any = module.get_submodule(path)
        return Conv(_array(m.weight), _array(m.bias), m.dilation[0], m.groups)

    def normalisation(path: str) -> Norm | None:
        return _read_norm(module.get_submodule(path)) if norm is not None else None

    name = norm or ""
    stages = [
        Stage(conv(layout.stage_path(i, "conv")), normalisation(layout.stage_path(i, "norm", name)))
        for i in range(module.num_levels)
    ]
    branches = [
        Branch(
            conv(layout.branch_path(i, "depthwise")),
            normalisation(layout.branch_path(i, "norm", name)),
            conv(layout.branch_path(i, "pointwise")),
            normalisation(layout.branch_path(i, "out_norm", name)),
        )
        for i in range(module.num_branches)
    ]
    return joint_pyramid(
        levels,
        stages,
        branches,
        align_corners=bool(module.up_kwargs["align_corners"]),
        coarsest_first=layout.coarsest_first,
        arithmetic=Arithmetic.of(dtype),
    )


def _has(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True


def _array(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.detach().double().numpy()


def _read_norm(norm: Any) -> Norm:
    weight, bias = _array(norm.weight), _array(norm.bias)
    if isinstance(norm, nn.GroupNorm):
        return Norm(weight, bias, norm.eps, groups=norm.num_groups)
    # A frozen norm (torchvision's) is no BatchNorm and always uses its buffers.
    if getattr(norm, "track_running_stats", True) and not (
        norm.training and isinstance(norm, nn.modules.batchnorm._BatchNorm)
    ):
        return Norm(weight, bias, norm.eps, _array(norm.running_mean), _array(norm.running_var))
    return Norm(weight, bias, norm.eps)
