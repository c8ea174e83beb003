"""The ops of this project as functions, checked here and served by the kernels or the reference.

Each is defined by its counterpart in :mod:`jpu_cuda.reference`, which serves whatever no kernel takes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import ops  # noqa: F401  defines torch.ops.jpu_cuda
from ._checks import check_flag, check_levels, same_for_convolution
from .backend import BackendUnavailableError, choose, matrix_options, requested_backend
from .ops._library import sum_dtype
from .ops.separable_pyramid import why_not
from .reference import separable_pyramid as _separable_pyramid
from .reference import upsample_concat as _upsample_concat

__all__ = ["separable_pyramid", "upsample", "upsample_concat"]


def upsample(levels: Sequence[Tensor], align_corners: bool) -> list[Tensor]:
    """Resizes every level bilinearly to the size of the first (FastFCN, section 3.3, Figure 4b).

    Args:
        levels: 1 or more feature maps [N, C_i, H_i, W_i] of one batch size, dtype and device; any sizes.
        align_corners: as in :func:`torch.nn.functional.interpolate`.

    Returns:
        A list of [N, C_i, H_0, W_0]; its first entry is ``levels[0]`` itself, not a copy. Where a neighbour's
        weight is 0, kernels leave it out, so that an infinite or NaN one does not spoil the pixel; PyTorch
        multiplies it by 0 and gets NaN.

    Raises:
        TypeError, ValueError: levels that do not fit; the message says expected and got.
        BackendUnavailableError: a backend was asked for by name that cannot serve these tensors.
    """
    check_levels(levels)
    check_flag("align_corners", align_corners)
    if choose(levels[0]).backend == "reference":
        return _upsample_concat.upsample(levels, align_corners)
    first, *others = levels
    height, width = first.shape[2:]
    if len({level.dtype for level in others}) > 1:  # under autocast, which leaves each its own
        return [first, *(torch.ops.jpu_cuda.upsample([x], height, width, align_corners)[0] for x in others)]
    return [first, *(torch.ops.jpu_cuda.upsample(others, height, width, align_corners) if others else ())]


def upsample_concat(levels: Sequence[Tensor], align_corners: bool, reverse: bool = False) -> Tensor:
    """Resizes every level bilinearly to the size of the first and concatenates the channels.

    Args:
        levels: 1 or more feature maps [N, C_i, H_i, W_i] of one batch size, dtype and device; any sizes.
        align_corners: as in :func:`torch.nn.functional.interpolate`.
        reverse: concatenate last to first, as FastFCN does (c5, c4, c3) where mmsegmentation goes
            first to last.

    Returns:
        [N, ΣC_i, H_0, W_0] in the dtype of the levels, under autocast the widest of them; channels_last if all
        levels are. Of infinite and NaN neighbours as :func:`upsample`.

    Raises:
        TypeError, ValueError: levels that do not fit; the message says expected and got.
        BackendUnavailableError: a backend was asked for by name that cannot serve these tensors.
    """
    check_levels(levels)
    check_flag("align_corners", align_corners)
    check_flag("reverse", reverse)
    if choose(levels[0]).backend == "reference":
        return _upsample_concat.upsample_concat(levels, align_corners, reverse)
    return torch.ops.jpu_cuda.upsample_concat(list(levels), align_corners, reverse)


def separable_pyramid(
    levels: Sequence[Tensor],
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    dilations: Sequence[int],
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_shift: Tensor | None = None,
    relu: bool = True,
) -> Tensor:
    """Separable convolutions of several dilations over one concatenated input (FastFCN, Figure 4c).

    For each dilation d: depthwise 3×3 with padding d → ``scale · z + shift`` → pointwise 1×1 →
    ``out_scale · q + out_shift`` → ReLU. The results are concatenated. Affine terms are applied in
    float32 (float64 for float64) and rounded once to the dtype of the levels.

    Args:
        levels: 1 or more feature maps [N, C_i, H, W] of one size; C = ΣC_i.
        depthwise_weight: [D, C, 3, 3].
        pointwise_weight: [D, O, C].
        dilations: D integers ≥ 1.
        scale: [D, C], or [N, D, C] for one per sample, or None for 1.
        shift: as ``scale``; None for 0.
        out_scale: [D, O] or None for 1.
        out_shift: [D, O] or None for 0.
        relu: whether to end with ReLU.

    Returns:
        [N, D·O, H, W] in the dtype of the levels, channels_last if all of them are. Kernels take up to 8 levels and 8
        dilations of at most 16, and images of fewer than 2³¹ pixels. Their products are done as
        :class:`jpu_cuda.use_backend` says; float32 becomes TF32 where PyTorch's setting for its own convolutions
        allows it (``torch.backends.cudnn.conv.fp32_precision``, ``allow_tf32`` before torch 2.9; a compiled function
        keeps the setting that held when it was compiled). Second derivatives, forward mode and torch.func are
        PyTorch's on any backend.

    Raises:
        TypeError, ValueError: arguments that do not fit; the message says expected and got.
        BackendUnavailableError: a backend was asked for by name that cannot serve these tensors.
    """
    check_levels(levels)
    first = levels[0]
    for i, level in enumerate(levels[1:], start=1):
        if level.shape[2:] != first.shape[2:]:
            raise ValueError(
                f"levels[{i}]: expected size {tuple(first.shape[2:])} as levels[0], got {tuple(level.shape[2:])}"
            )
    check_flag("relu", relu)
    dilations = tuple(dilations)
    if not dilations or not all(isinstance(d, int) and not isinstance(d, bool) and d >= 1 for d in dilations):
        raise ValueError(f"dilations: expected one or more integers >= 1, got {dilations}")
    for name, weight in (("depthwise_weight", depthwise_weight), ("pointwise_weight", pointwise_weight)):
        _check_tensor(name, weight, first, same_dtype=True)
    affine = {"scale": scale, "shift": shift, "out_scale": out_scale, "out_shift": out_shift}
    for name, term in affine.items():
        if term is not None:
            _check_tensor(name, term, first, same_dtype=False)
    batch, branches, channels = first.shape[0], len(dilations), sum(level.shape[1] for level in levels)
    _check_shape("depthwise_weight", depthwise_weight, (branches, channels, 3, 3))
    outputs = pointwise_weight.shape[1] if pointwise_weight.dim() == 3 else -1
    if channels == 0 or outputs == 0:
        got = f"{channels} and {outputs}"
        raise ValueError(f"separable_pyramid: expected at least one channel and one output, got {got}")
    _check_shape("pointwise_weight", pointwise_weight, (branches, outputs, channels))
    for name, term in (("scale", scale), ("shift", shift)):
        if term is not None:
            _check_shape(name, term, (branches, channels), (batch, branches, channels))
    for name, term in (("out_scale", out_scale), ("out_shift", out_shift)):
        if term is not None:
            _check_shape(name, term, (branches, outputs))
    if _serves_pyramid(first, len(levels), dilations):
        terms = [None if term is None else term.to(sum_dtype(first.dtype)).contiguous() for term in affine.values()]
        shaped = depthwise_weight[:, :, None], pointwise_weight[..., None, None]
        weights = (list(weight.contiguous().unbind(0)) for weight in shaped)
        return torch.ops.jpu_cuda.separable_pyramid(
            list(levels), *weights, list(dilations), *terms, relu, *matrix_options()
        )
    return _separable_pyramid.separable_pyramid(
        levels, depthwise_weight, pointwise_weight, dilations, scale, shift, out_scale, out_shift, relu
    )


def _serves_pyramid(level: Tensor, levels: int, dilations: Sequence[int]) -> bool:
    """Whether kernels serve these arguments.

    Raises:
        BackendUnavailableError: a backend was asked for by name that cannot serve them.
    """
    answer = choose(level)
    if answer.backend == "reference":
        return False
    if forward_ad._current_level >= 0:  # whatever was asked for, as the docstring says
        return False
    if (reason := why_not(levels, dilations)) is None:
        return True
    if requested_backend() != "auto":
        raise BackendUnavailableError(f"backend {answer.backend!r} cannot serve this call: {reason}")
    return False


def _check_tensor(name: str, tensor: Tensor, like: Tensor, same_dtype: bool) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a Tensor, got {type(tensor).__name__}")
    if tensor.device != like.device:
        raise ValueError(f"{name}: expected device {like.device} as the levels, got {tensor.device}")
    if same_dtype and not same_for_convolution(tensor, like):
        raise ValueError(f"{name}: expected dtype {like.dtype} as the levels, got {tensor.dtype}")


def _check_shape(name: str, tensor: Tensor, *expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) not in expected:
        shapes = " or ".join("(" + ", ".join("any" if n < 0 else str(n) for n in e) + ")" for e in expected)
        raise ValueError(f"{name}: expected shape {shapes}, got {tuple(tensor.shape)}")
