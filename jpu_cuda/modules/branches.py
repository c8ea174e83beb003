"""What the kernels take of a JPU's branches: weights, dilations and norms, where a branch is no more than these.

It is read from the submodules in every call and never kept, since nothing tells when a parameter, a statistic or a
submodule changes. Where a branch is anything else, PyTorch runs it as it stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .._checks import same_for_convolution
from .parts import (
    Part,
    Proof,
    Unfit,
    add_leaves,
    check_class,
    check_norm,
    check_norm_dtypes,
    check_tensors,
    columns_of,
    listed,
)
from .plain import hooks_everywhere, name_of


class Branches(NamedTuple):
    """D branches. Norms are 2·D: those after the depthwise convolutions, then those after the pointwise ones."""

    depthwise: list[Tensor]  # [C, 1, 3, 3] each
    pointwise: list[Tensor]  # [O, C, 1, 1] each
    dilations: list[int]
    weight: list[Tensor | None]
    bias: list[Tensor | None]
    mean: list[Tensor]
    var: list[Tensor]
    eps: list[float]


def read(branches: Sequence[tuple[str, nn.Module]], proven: Mapping[str, Proof], like: Tensor) -> Branches:
    """The branches' parts.

    Args:
        branches: path and module of each.
        proven: what :func:`.parts.prove` found of foreign containers, by path.
        like: a tensor with the device and dtype of the branches' input.

    Raises:
        Unfit: a branch is more than its parts, or a part is none that the kernels have.
    """
    if hooks_everywhere():
        raise Unfit("all modules have hooks")
    if torch.jit.is_tracing():  # for which sizes are tensors, and norms without weights no list
        raise Unfit("traced programs hold the layers as they are")
    found = [parts_of(path, branch, proven) for path, branch in branches]
    depthwise = [parts[0].module.weight for parts in found]
    pointwise = [parts[2].module.weight for parts in found]
    norms = [parts[1] for parts in found] + [parts[3] for parts in found]
    weight, bias, mean, var, eps = columns_of(norms)
    convolutions = depthwise + pointwise
    values = [value for value in (*weight, *bias, *mean, *var) if value is not None]
    if len({w.shape for w in convolutions}) > 2:
        raise Unfit("branches have different widths")
    kinds = {w.dtype for w in convolutions}
    if len(kinds) > 1 or not same_for_convolution(depthwise[0], like):
        raise Unfit(f"convolutions have {listed(kinds)}, their input {like.dtype}")
    check_norm_dtypes(norms, values, like)
    if torch.is_grad_enabled() and any(value.requires_grad for value in (*mean, *var)):
        raise Unfit("statistics need a gradient")
    check_tensors(convolutions + values, like)
    dilations = [parts[0].module.dilation[0] for parts in found]
    return Branches(depthwise, pointwise, dilations, weight, bias, mean, var, eps)


def parts_of(path: str, branch: nn.Module, proven: Mapping[str, Proof]) -> tuple[Part, Part, Part, Part]:
    """Depthwise convolution, norm, pointwise convolution, norm; a ReLU follows."""
    leaves: list[Part] = []
    add_leaves(path, branch, proven, leaves)
    if len(leaves) != 5:
        got = ", ".join(name_of(leaf.module) for leaf in leaves)
        raise Unfit(f"expected {path} to be convolution, norm, convolution, norm and ReLU, got {got}")
    depthwise, norm, pointwise, out_norm, relu = leaves
    for part in (depthwise, pointwise):
        check_class(part, nn.Conv2d)
    check_class(relu, nn.ReLU)
    channels = depthwise.module.in_channels
    _check_convolution(depthwise, 3, channels, channels)
    _check_convolution(pointwise, 1, channels, 1)
    check_norm(norm, channels)
    check_norm(out_norm, pointwise.module.out_channels)
    return depthwise, norm, pointwise, out_norm


def _check_convolution(part: Part, kernel: int, channels: int, groups: int) -> None:
    conv = part.module
    if conv.bias is not None:
        raise Unfit(f"{part.name} has a bias")
    dilation = conv.dilation[0] if isinstance(conv.dilation, tuple) else 0
    padding = dilation * (kernel // 2)
    got = conv.kernel_size, conv.stride, conv.dilation, conv.padding, conv.padding_mode, conv.in_channels, conv.groups
    expected = (kernel, kernel), (1, 1), (dilation, dilation), (padding, padding), "zeros", channels, groups
    if got != expected or dilation < 1 or (groups > 1 and conv.out_channels != channels):
        raise Unfit(f"{part.name} is no {'pointwise' if kernel == 1 else 'depthwise 3×3'} convolution of stride 1")
