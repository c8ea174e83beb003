"""All that follows a JPU's stages, with norms of any statistics, and gradients that take tensor cores.

Levels come as the stages leave them: resizing is part of the operator, so that what it keeps for the gradient are these
and the products q alone. Weights and norms are lists, one tensor each as a model has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .. import _extension
from ..reference import trained_pyramid as reference
from . import _training
from ._library import (
    check_images,
    define,
    differentiate,
    empty_image,
    is_batched,
    register,
    register_autocast,
    register_backward,
    register_fake,
    register_flops,
    sum_dtype,
    without_autocast,
)
from ._training import Needed, needed_of, sides
from .separable_pyramid import check_weights, pyramid_flops

_LEVELS = (
    "Tensor[] levels, bool align_corners, bool reverse, Tensor[] depthwise_weight, Tensor[] pointwise_weight, "
    "int[] dilations, Tensor?[] weight, Tensor?[] bias, Tensor?[] mean, Tensor?[] var, float[] eps, int[] groups"
)
# 2·D norms: those before the pointwise convolutions, then those after. mean and var are None where the statistics are
# the batch's, or a group's; `groups` has two numbers, of GroupNorm on either side, or 0. The rest is as for
# separable_pyramid. Results: the output; then q, the products, in channels_last; and the statistics of the norms on
# either side, [R, 5, D, channels] in the type of sums: mean, biased variance, 1 / √(variance + eps), scale and shift,
# of all images together (R = 1) or of each.
define(
    f"trained_pyramid({_LEVELS}, bool allow_tf32=False, int arch=0, str policy='auto', int workspace_bytes=0) "
    "-> Tensor[]"
)
# `saved`: all results of the forward pass but the output. `needed` has a number for each level, then for depthwise and
# pointwise weights, weights and biases of the norms before, and those of the norms after: 1 for what the result has a
# gradient of, [D, ...] of weights, in the type of sums of norms. Branches are worked on in groups: what is kept of
# them at a time takes no more than `workspace_bytes` unless a single branch does.
define(
    f"trained_pyramid_backward({_LEVELS}, Tensor gradient, Tensor[] saved, int[] needed, int workspace_bytes) "
    "-> Tensor[]"
)


# What the intermediates of a group of branches may take: all of a small problem at once, of a large one a branch.
WORKSPACE_BYTES = 1 << 28


class TrainedPyramid(Function):
    """Levels, then D depthwise weights, D pointwise ones, and 2·D weights, biases, means and variances of norms."""

    @staticmethod
    def forward(
        ctx: Any,
        align_corners: bool,
        reverse: bool,
        dilations: Sequence[int],
        eps: Sequence[float],
        groups: Sequence[int],
        options: Sequence[Any],
        levels: int,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.settings = align_corners, reverse, dilations, eps, groups
        ctx.levels = levels
        with torch._C._AutoDispatchBelowAutograd():
            arguments = _arguments(tensors, levels, *ctx.settings)
            output, *rest = torch.ops.jpu_cuda.trained_pyramid(*arguments, *options)
        ctx.mark_non_differentiable(*rest)
        # Fixed statistics are among those of the results. As they were given, they may be running ones, which a pass
        # in training mode moves before this one's gradient is asked for; PyTorch's norms allow that.
        kept = len(tensors) - 4 * len(dilations)
        ctx.fixed = [None if mean is None else mean.dtype for mean in tensors[kept : kept + 2 * len(dilations)]]
        ctx.save_for_backward(*tensors[:kept], *rest)
        return output, *rest

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, *_: Any) -> tuple[Any, ...]:
        needed = ctx.needs_input_grad[7:]
        if gradient is None or not any(needed):
            return (None,) * (7 + len(needed))
        *tensors, q, before, after = ctx.saved_tensors
        tensors += _fixed_statistics(ctx.fixed, before, after)
        if torch.is_grad_enabled() or is_batched([gradient]):

            def function(inputs: list[Tensor | None]) -> Tensor:
                return reference.trained_pyramid(*_arguments(inputs, ctx.levels, *ctx.settings))

            gradients = differentiate(function, tensors, gradient, needed, torch.is_grad_enabled())
        else:
            arguments = _arguments(tensors, ctx.levels, *ctx.settings)
            gradients = _computed(arguments, tensors, gradient, [q, before, after], needed)
        return (None,) * 7 + tuple(gradients)


def _fixed_statistics(dtypes: Sequence[torch.dtype | None], before: Tensor, after: Tensor) -> list[Tensor | None]:
    """Means, then variances, of those norms that had some given."""
    half = len(dtypes) // 2
    return [
        None if dtype is None else (before, after)[i // half][0, row, i % half].to(dtype)
        for row in (0, 1)
        for i, dtype in enumerate(dtypes)
    ]


def _arguments(
    tensors: Sequence[Tensor | None],
    levels: int,
    align_corners: bool,
    reverse: bool,
    dilations: Sequence[int],
    eps: Sequence[float],
    groups: Sequence[int],
) -> tuple[Any, ...]:
    """The operators' arguments, from all tensors in a row: autograd tracks no lists."""
    parts = _split(tensors, levels, len(dilations))
    images, depthwise, pointwise, *norms = (list(part) for part in parts)
    return images, align_corners, reverse, depthwise, pointwise, list(dilations), *norms, list(eps), list(groups)


def _split(values: Sequence[Any], levels: int, branches: int) -> list[Sequence[Any]]:
    """Into those of levels, depthwise weights, pointwise ones, and of norms the weights, biases, means, variances."""
    parts, start = [], 0
    for count in (levels, branches, branches, *[2 * branches] * 4):
        parts.append(values[start : start + count])
        start += count
    return parts


def _computed(
    arguments: tuple[Any, ...],
    tensors: Sequence[Tensor | None],
    gradient: Tensor,
    saved: list[Tensor],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of those tensors that need one, by the kernels."""
    branches = len(arguments[5])
    levels, depthwise, pointwise, weight, bias, *fixed = _split(needed, len(arguments[0]), branches)
    kinds = [depthwise, pointwise, weight[:branches], bias[:branches], weight[branches:], bias[branches:]]
    flags = [int(wanted) for wanted in levels] + [int(any(kind)) for kind in kinds]
    found = iter(torch.ops.jpu_cuda.trained_pyramid_backward(*arguments, gradient, saved, flags, WORKSPACE_BYTES))
    gradients: list[Tensor | None] = [next(found) if wanted else None for wanted in levels]
    of_kind = [list(next(found).unbind(0)) if any(kind) else [None] * branches for kind in kinds]
    # Weights of the norms on both sides come before their biases.
    for kind in (0, 1, 2, 4, 3, 5):
        gradients += of_kind[kind]
    gradients += [None] * sum(map(len, fixed))
    rows = zip(gradients, tensors, needed, strict=True)
    return [_alike(g, t) if wanted and g is not None and t is not None else None for g, t, wanted in rows]


def _alike(gradient: Tensor, tensor: Tensor) -> Tensor:
    """In the dtype of a tensor and, of weights whose strides differ where there is one entry, with its strides."""
    gradient = gradient.to(tensor.dtype)
    if tensor.is_contiguous() and gradient.is_contiguous() and gradient.stride() != tensor.stride():
        return gradient.as_strided(tensor.shape, tensor.stride())
    return gradient


def _has_kernels(device: torch.device) -> bool:
    """Whether there are any for a device; an exported program may be the first to ask for the GPU's."""
    if device.type == "cuda":
        return _extension.load().available
    return device.type == "cpu" and torch._C._dispatch_has_kernel_for_dispatch_key("jpu_cuda::training_products", "CPU")


def _forward(levels: list[Tensor], align_corners: bool, reverse: bool, *rest: Any) -> list[Tensor]:
    depthwise, pointwise, dilations, *norms = rest[:9]
    _check(levels, depthwise, pointwise, dilations, norms)
    options = rest[9:]
    arguments = levels, align_corners, reverse, depthwise, pointwise, dilations
    with without_autocast(levels[0].device):
        if _has_kernels(levels[0].device):
            complete = *options, *(False, 0, "auto", 0)[len(options) :]
            return _training.forward(*arguments, *sides(*norms), complete)
        output = reference.trained_pyramid(*arguments, *norms)
        q, *statistics = reference.products(*arguments, *norms)
        return [output, _training.by_channels(q), *statistics]


def _backward(levels: list[Tensor], align_corners: bool, reverse: bool, *rest: Any) -> list[Tensor]:
    depthwise, pointwise, dilations, *norms, gradient, saved, needed, workspace_bytes = rest
    arguments = levels, align_corners, reverse, depthwise, pointwise, dilations
    flags = needed_of(needed, len(levels))
    if _has_kernels(levels[0].device):
        with without_autocast(levels[0].device):
            return _training.backward(*arguments, *sides(*norms), gradient, saved, flags, workspace_bytes)
    return _backward_by_reference((*arguments, *norms), gradient, flags)


def _backward_by_reference(arguments: tuple[Any, ...], gradient: Tensor, needed: Needed) -> list[Tensor]:
    levels, align_corners, reverse, depthwise, pointwise, dilations, *norms, eps, groups = arguments
    tensors = [*levels, *depthwise, *pointwise, *(tensor for part in norms for tensor in part)]
    branches = len(dilations)
    sides_needed = [needed.weight] * branches + [needed.out_weight] * branches
    sides_needed += [needed.bias] * branches + [needed.out_bias] * branches
    each = [*needed.levels, *[needed.depthwise] * branches, *[needed.pointwise] * branches, *sides_needed]
    wanted = [n and t is not None for n, t in zip(each + [False] * 4 * branches, tensors, strict=True)]
    settings = align_corners, reverse, dilations, eps, groups

    def function(inputs: Sequence[Tensor | None]) -> Tensor:
        return reference.trained_pyramid(*_arguments(inputs, len(levels), *settings))

    # Called below autograd, which is needed here.
    with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False):
        found = differentiate(function, tensors, gradient, wanted, create_graph=False)
    images, of_depthwise, of_pointwise, weight, bias, *_ = _split(found, len(levels), branches)
    dtype = sum_dtype(gradient.dtype)
    of_norms = [part[start : start + branches] for start in (0, branches) for part in (weight, bias)]
    kinds = [of_depthwise, of_pointwise, *of_norms]
    results = [image for image in images if image is not None]
    for kind, (parts, flag) in enumerate(zip(kinds, needed[1:], strict=True)):
        if flag:
            # A norm without a weight among others that have one.
            like = next(part for part in parts if part is not None)
            stacked = torch.stack([torch.zeros_like(like) if part is None else part for part in parts])
            results.append(stacked if kind < 2 else stacked.to(dtype))
    return results


def _autograd(levels: list[Tensor], align_corners: bool, reverse: bool, *rest: Any) -> list[Tensor]:
    depthwise, pointwise, dilations, *norms, eps, groups = rest[:9]
    _check(levels, depthwise, pointwise, dilations, [*norms, eps, groups])
    tensors = [*levels, *depthwise, *pointwise, *(tensor for part in norms for tensor in part)]
    settings = align_corners, reverse, dilations, eps, groups, rest[9:], len(levels)
    return list(TrainedPyramid.apply(*settings, *tensors))


register("trained_pyramid", _autograd, "Autograd")
register_backward("trained_pyramid")
register("trained_pyramid", _forward, "CompositeExplicitAutograd")
register("trained_pyramid_backward", _backward, "CompositeExplicitAutograd")


def _autocast(levels: list[Tensor], align_corners: bool, reverse: bool, *rest: Any) -> Any:
    """As PyTorch's convolutions: all but float64 becomes autocast's dtype, and norms stay as they are."""
    dtype = torch.get_autocast_dtype(levels[0].device.type)
    depthwise, pointwise, *others = rest

    def cast(tensors: list[Tensor]) -> list[Tensor]:
        return [t if t.dtype == torch.float64 else t.to(dtype) for t in tensors]

    return cast(levels), align_corners, reverse, cast(depthwise), cast(pointwise), *others


register_autocast("trained_pyramid", _autocast)


def _check(
    levels: list[Tensor],
    depthwise: list[Tensor],
    pointwise: list[Tensor],
    dilations: Sequence[int],
    norms: Sequence[Any],
) -> None:
    """What the launches do not check, since each sees a part; for fake kernels too."""
    check_images("levels", levels)
    weight, bias, mean, var, eps, groups = norms
    branches = len(dilations)
    if not len(depthwise) == len(pointwise) == branches >= 1:
        got = f"{len(depthwise)} and {len(pointwise)}"
        raise ValueError(f"weights: expected one of each a dilation, {branches}, got {got}")
    counts = [len(part) for part in (weight, bias, mean, var, eps)]
    if set(counts) != {2 * branches}:
        got = ", ".join(map(str, counts))
        raise ValueError(f"norms: expected {2 * branches} weights, biases, means, variances and eps, got {got}")
    if len(groups) != 2:
        raise ValueError(f"groups: expected two numbers, got {len(groups)}")
    check_weights(levels, depthwise, pointwise)
    channels, outputs = pointwise[0].shape[1], pointwise[0].shape[0]
    for i in range(2 * branches):
        width = channels if i < branches else outputs
        if (mean[i] is None) != (var[i] is None):
            raise ValueError(f"norms: expected both mean[{i}] and var[{i}] or none, got one")
        if groups[i // branches] and (mean[i] is not None or width % groups[i // branches]):
            raise ValueError(f"groups: expected a divisor of {width} and no fixed statistics, got {list(groups)}")
        for name, part in (("weight", weight), ("bias", bias), ("mean", mean), ("var", var)):
            if part[i] is not None and tuple(part[i].shape) != (width,):
                raise ValueError(f"{name}[{i}]: expected shape {(width,)}, got {tuple(part[i].shape)}")


@register_fake("trained_pyramid")
def _(levels: list[Tensor], align_corners: bool, reverse: bool, *rest: Any) -> list[Tensor]:
    depthwise, pointwise, dilations, *norms = rest[:9]
    _check(levels, depthwise, pointwise, dilations, norms)
    first, branches = levels[0], len(dilations)
    channels, outputs = pointwise[0].shape[1], pointwise[0].shape[0]
    groups, dtype = norms[-1], sum_dtype(first.dtype)
    size = branches * outputs, first.shape[2], first.shape[3]
    q = torch.empty((first.shape[0], *size), dtype=first.dtype, device=first.device, memory_format=torch.channels_last)
    statistics = [
        first.new_empty((first.shape[0] if count else 1, 5, branches, width), dtype=dtype)
        for count, width in zip(groups, (channels, outputs), strict=True)
    ]
    return [empty_image(first, *size, levels), q, *statistics]


@register_fake("trained_pyramid_backward")
def _(levels: list[Tensor], align_corners: bool, reverse: bool, *rest: Any) -> list[Tensor]:
    depthwise, pointwise, dilations, *_norms, gradient, _saved, needed, _workspace = rest
    shape = (levels[0].shape[0], len(dilations) * pointwise[0].shape[0], *levels[0].shape[2:])
    if tuple(gradient.shape) != shape:
        raise ValueError(f"gradient: expected shape {shape}, got {tuple(gradient.shape)}")
    branches, dtype = len(dilations), sum_dtype(levels[0].dtype)
    flags = needed_of(needed, len(levels))
    results = [
        torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        for x, wanted in zip(levels, flags.levels, strict=True)
        if wanted
    ]
    for weights, wanted in ((depthwise, flags.depthwise), (pointwise, flags.pointwise)):
        if wanted:
            results.append(weights[0].new_empty((branches, *weights[0].shape)))
    widths = [pointwise[0].shape[1]] * 2 + [pointwise[0].shape[0]] * 2
    return results + [
        levels[0].new_empty((branches, width), dtype=dtype)
        for width, wanted in zip(widths, flags[3:], strict=True)
        if wanted
    ]


@register_flops("trained_pyramid")
def _(levels: list[Any], *rest: Any, **_options: Any) -> int:
    depthwise, pointwise = rest[2:4]
    small, large = pyramid_flops(levels, depthwise, pointwise)
    fixed = all(mean is not None for mean in rest[7][: len(depthwise)])
    return (small if fixed else 2 * small) + large  # statistics take depthwise sums of their own


@register_flops("trained_pyramid_backward")
def _(levels: list[Any], *rest: Any, **_options: Any) -> int:
    depthwise, pointwise, needed = rest[2], rest[3], needed_of(rest[13], len(levels))
    small, large = pyramid_flops(levels, depthwise, pointwise)
    inputs = any(needed.levels) or needed.depthwise
    fixed = all(mean is not None for mean in rest[7][: len(depthwise)])
    products = needed.pointwise or needed.weight or needed.bias or (inputs and not fixed)
    return small * products + large * (products + inputs) + small * (any(needed.levels) + needed.depthwise)
