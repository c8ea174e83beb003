"""Separable convolutions of several dilations over a list of levels: the operator and its derivative.

Weights are lists, one tensor a branch in the shape of its convolution's, since a model has them so: others would be
copied or viewed in every call. Affine terms are in the type of sums, float32, or float64 for float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ..reference import separable_pyramid as reference
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
    register_reference,
)

# What one launch takes (csrc/separable_pyramid/separable_pyramid.h, config.h).
MOST_LEVELS, MOST_BRANCHES, MOST_DILATION = 8, 8, 16


def why_not(levels: int, dilations: Sequence[int]) -> str | None:
    """Why the kernels do not take so many levels, or these dilations; None if they do."""
    if levels <= MOST_LEVELS and len(dilations) <= MOST_BRANCHES and max(dilations) <= MOST_DILATION:
        return None
    return (
        f"expected at most {MOST_LEVELS} levels and {MOST_BRANCHES} dilations of at most {MOST_DILATION}, got "
        f"{levels} and {tuple(dilations)}"
    )


_ARGUMENTS = (
    "Tensor[] levels, Tensor[] depthwise_weight, Tensor[] pointwise_weight, int[] dilations, "
    "Tensor? scale, Tensor? shift, Tensor? out_scale, Tensor? out_shift"
)
# What follows relu says how products are done (backend.MatrixOptions); `workspace_bytes` is what two passes may keep
# between them, 0 for half of the device's L2 cache.
define(
    f"separable_pyramid({_ARGUMENTS}, bool relu, bool allow_tf32=False, int arch=0, str policy='auto', "
    "int workspace_bytes=0) -> Tensor"
)
# "policy: reason" of a call whose branches have so many outputs, on the device and with the dtype of `like`.
define("separable_pyramid_policy(Tensor like, int outputs, bool allow_tf32, int arch, str policy) -> str")
# `output` is the forward pass's, given where ReLU ended it. `needed` has a number for each level, then for weights
# and terms in their order: 1 for what the result has a gradient of. Images are worked on in groups: what is kept
# between the kernels, D·C channels each, takes no more than `workspace_bytes` unless a single image does.
define(
    f"separable_pyramid_backward({_ARGUMENTS}, Tensor gradient, Tensor? output, int[] needed, "
    "int workspace_bytes=268435456) -> Tensor[]"
)


class SeparablePyramid(Function):
    """[N, C_i, H, W] of each level, with weights [C, 1, 3, 3] and [O, C, 1, 1] a branch, to [N, D·O, H, W]."""

    @staticmethod
    def forward(
        ctx: Any, dilations: Sequence[int], relu: bool, options: Sequence[Any], levels: int, *tensors: Tensor | None
    ) -> Tensor:
        ctx.dilations, ctx.relu, ctx.levels = dilations, relu, levels
        with torch._C._AutoDispatchBelowAutograd():
            output = torch.ops.jpu_cuda.separable_pyramid(*_grouped(tensors, levels, dilations), relu, *options)
        ctx.save_for_backward(*tensors, output if relu else None)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        *tensors, output = ctx.saved_tensors
        needed = ctx.needs_input_grad[4:]
        if torch.is_grad_enabled() or is_batched([gradient]):
            create_graph = torch.is_grad_enabled()
            gradients = _by_reference(tensors, ctx.levels, ctx.dilations, ctx.relu, gradient, needed, create_graph)
        else:
            gradients = _computed(tensors, ctx.levels, ctx.dilations, gradient, output, needed)
        return None, None, None, None, *gradients


def _grouped(tensors: Sequence[Tensor | None], levels: int, dilations: Sequence[int]) -> tuple[Any, ...]:
    """The operators' arguments, from all tensors in a row: autograd tracks no lists."""
    end = levels + len(dilations)
    weights = list(tensors[levels:end]), list(tensors[end : end + len(dilations)])
    return list(tensors[:levels]), *weights, list(dilations), *tensors[end + len(dilations) :]


def _computed(
    tensors: Sequence[Tensor | None],
    levels: int,
    dilations: Sequence[int],
    gradient: Tensor,
    output: Tensor | None,
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of those tensors that need one, by the kernels."""
    branches = len(dilations)
    ends = levels, levels + branches, levels + 2 * branches
    weights = [any(needed[ends[0] : ends[1]]), any(needed[ends[1] : ends[2]])]
    asked = [*needed[: ends[0]], *weights, *needed[ends[2] :]]
    if not any(asked):
        return [None] * len(tensors)
    found = iter(
        torch.ops.jpu_cuda.separable_pyramid_backward(
            *_grouped(tensors, levels, dilations), gradient, output, [int(wanted) for wanted in asked]
        )
    )
    parts = [next(found) if wanted else None for wanted in asked]
    gradients: list[Tensor | None] = parts[:levels]
    for stacked in parts[levels : levels + 2]:
        gradients += [None] * branches if stacked is None else list(stacked.unbind(0))
    gradients += parts[levels + 2 :]
    return [g if wanted else None for g, wanted in zip(gradients, needed, strict=True)]


def _by_reference(
    tensors: Sequence[Tensor | None],
    levels: int,
    dilations: Sequence[int],
    relu: bool,
    gradient: Tensor,
    needed: Sequence[bool],
    create_graph: bool,
) -> list[Tensor | None]:
    """The same by the reference: in batches, or with a graph of their own, for second derivatives."""

    def function(inputs: list[Tensor | None]) -> Tensor:
        return _reference(*[*_grouped(inputs, levels, dilations), relu])

    return differentiate(function, tensors, gradient, needed, create_graph)


def _reference(
    levels: list[Tensor],
    depthwise_weight: list[Tensor],
    pointwise_weight: list[Tensor],
    dilations: Sequence[int],
    scale: Tensor | None,
    shift: Tensor | None,
    out_scale: Tensor | None,
    out_shift: Tensor | None,
    relu: bool,
    *_options: Any,
) -> Tensor:
    weights = torch.stack(depthwise_weight).flatten(1, 2), torch.stack(pointwise_weight).flatten(2)
    return reference.separable_pyramid(levels, *weights, dilations, scale, shift, out_scale, out_shift, relu)


def _reference_backward(
    levels: list[Tensor],
    depthwise_weight: list[Tensor],
    pointwise_weight: list[Tensor],
    dilations: list[int],
    *rest: Any,
) -> list[Tensor]:
    *terms, gradient, output, needed, _workspace = (*rest, 0)[:8]
    count, branches = len(levels), len(dilations)
    each = [*needed[:count], *[needed[count]] * branches, *[needed[count + 1]] * branches, *needed[count + 2 :]]
    tensors = [*levels, *depthwise_weight, *pointwise_weight, *terms]
    wanted = [bool(n) for n in each]
    # Called below autograd, which is needed here.
    with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False):
        found = _by_reference(tensors, count, dilations, output is not None, gradient, wanted, create_graph=False)
    level_parts, depthwise, pointwise, term_parts = (
        [gradient for gradient in part if gradient is not None]
        for part in (
            found[:count],
            found[count : count + branches],
            found[count + branches : count + 2 * branches],
            found[count + 2 * branches :],
        )
    )
    stacked = [torch.stack(part) for part in (depthwise, pointwise) if part]
    return [*level_parts, *stacked, *term_parts]


def _autograd(levels: list[Tensor], depthwise: list[Tensor], pointwise: list[Tensor], *rest: Any) -> Tensor:
    dilations, *terms, relu = rest[:6]
    if not len(depthwise) == len(pointwise) == len(dilations):
        got = f"{len(depthwise)} and {len(pointwise)}"
        raise ValueError(f"weights: expected one of each a dilation, {len(dilations)}, got {got}")
    return SeparablePyramid.apply(dilations, relu, rest[6:], len(levels), *levels, *depthwise, *pointwise, *terms)


register("separable_pyramid", _autograd, "Autograd")
register_backward("separable_pyramid")
register_reference("separable_pyramid", _reference)
register_reference("separable_pyramid_backward", _reference_backward)


def _autocast(levels: list[Tensor], depthwise: list[Tensor], pointwise: list[Tensor], *rest: Any) -> Any:
    """As PyTorch's convolutions: everything but float64 becomes autocast's dtype, and terms stay as they are."""
    dtype = torch.get_autocast_dtype(levels[0].device.type)

    def cast(tensors: list[Tensor]) -> list[Tensor]:
        return [t if t.dtype == torch.float64 else t.to(dtype) for t in tensors]

    return cast(levels), cast(depthwise), cast(pointwise), *rest


register_autocast("separable_pyramid", _autocast)


def check_weights(levels: list[Tensor], depthwise: list[Tensor], pointwise: list[Tensor]) -> None:
    """That weights, one of each a branch, have the shapes that the levels ask for, and their dtype."""
    channels, outputs = sum(level.shape[1] for level in levels), pointwise[0].shape[0]
    for name, weights, shape in (
        ("depthwise_weight", depthwise, (channels, 1, 3, 3)),
        ("pointwise_weight", pointwise, (outputs, channels, 1, 1)),
    ):
        for i, weight in enumerate(weights):
            if tuple(weight.shape) != shape:
                raise ValueError(f"{name}[{i}]: expected shape {shape}, got {tuple(weight.shape)}")
            if weight.dtype != levels[0].dtype:
                raise ValueError(f"{name}[{i}]: expected dtype {levels[0].dtype}, got {weight.dtype}")


def _check(levels: list[Tensor], depthwise: list[Tensor], pointwise: list[Tensor]) -> None:
    """What the binding checks of levels and weights, for fake kernels; dilations, terms and strides are left to it."""
    if not 1 <= len(levels) <= MOST_LEVELS:
        raise ValueError(f"levels: expected 1 to {MOST_LEVELS}, got {len(levels)}")
    if not 1 <= len(depthwise) == len(pointwise) <= MOST_BRANCHES:
        counts = f"{len(depthwise)} and {len(pointwise)}"
        raise ValueError(f"weights: expected 1 to {MOST_BRANCHES} of each, as many of both, got {counts}")
    check_images("levels", levels)
    for i, level in enumerate(levels):
        if level.shape[2:] != levels[0].shape[2:]:
            expected, got = tuple(levels[0].shape), tuple(level.shape)
            raise ValueError(f"levels[{i}]: expected batch size and size of levels[0], {expected}, got {got}")
    check_weights(levels, depthwise, pointwise)


@register_fake("separable_pyramid")
def _(levels: list[Tensor], depthwise: list[Tensor], pointwise: list[Tensor], *rest: Any) -> Tensor:
    _check(levels, depthwise, pointwise)
    first = levels[0]
    return empty_image(first, len(depthwise) * pointwise[0].shape[0], first.shape[2], first.shape[3], levels)


@register_fake("separable_pyramid_policy")
def _(like: Tensor, outputs: int, allow_tf32: bool, arch: int, policy: str) -> str:
    return f"{policy}: decided where there are tensors, by their device"


@register_fake("separable_pyramid_backward")
def _(levels: list[Tensor], depthwise: list[Tensor], pointwise: list[Tensor], *rest: Any) -> list[Tensor]:
    dilations, *terms, gradient, _output, needed, _workspace = (*rest, 0)[:9]
    _check(levels, depthwise, pointwise)
    shape = (levels[0].shape[0], len(dilations) * pointwise[0].shape[0], *levels[0].shape[2:])
    if tuple(gradient.shape) != shape:
        raise ValueError(f"gradient: expected shape {shape}, got {tuple(gradient.shape)}")
    count = len(levels)
    results = [
        empty_image(x, x.shape[1], x.shape[2], x.shape[3], [x])
        for x, wanted in zip(levels, needed[:count], strict=True)
        if wanted
    ]
    for weights, wanted in zip((depthwise, pointwise), needed[count : count + 2], strict=True):
        if wanted:
            results.append(weights[0].new_empty((len(weights), *weights[0].shape)))
    results += [torch.empty_like(t) for t, wanted in zip(terms, needed[count + 2 :], strict=True) if wanted]
    return results


def pyramid_flops(levels: list[Any], depthwise: list[Any], pointwise: list[Any]) -> tuple[int, int]:
    """Of all depthwise convolutions, and of all pointwise ones."""
    batch, _, height, width = levels[0]
    outputs, channels = pointwise[0][:2]
    pixels = batch * height * width * len(depthwise)
    return 2 * 9 * channels * pixels, 2 * channels * outputs * pixels


@register_flops("separable_pyramid")
def _(levels: list[Any], depthwise: list[Any], pointwise: list[Any], *_rest: Any, **_options: Any) -> int:
    return sum(pyramid_flops(levels, depthwise, pointwise))


@register_flops("separable_pyramid_backward")
def _(levels: list[Any], depthwise: list[Any], pointwise: list[Any], *rest: Any, **_options: Any) -> int:
    needed = rest[7]
    for_levels, for_depthwise = any(needed[: len(levels)]), any(needed[len(levels) :][i] for i in (0, 2, 3))
    for_pointwise = any(needed[len(levels) :][i] for i in (1, 4, 5))
    small, large = pyramid_flops(levels, depthwise, pointwise)
    # Products with g for the pointwise weights, whose other side is computed anew; with the weights for the rest.
    by_weights = large * (for_levels or for_depthwise) + small * (for_levels + for_depthwise)
    return (small + large) * for_pointwise + by_weights
