"""What the kernels take of a JPU's branches: weights, dilations and norms, where a branch is no more than these.

It is read from the submodules in every call and never kept, since nothing tells when a parameter, a statistic or a
submodule changes. Where a branch is anything else, PyTorch runs it as it stands.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .._checks import same_for_convolution
from .parts import (
    Part,
    Proof,
    Unfit,
    add_leaves,
    check_any_norm,
    check_class,
    check_norm_dtypes,
    check_tensors,
    columns_of,
    listed,
    takes_batch_statistics,
)
from .plain import hooks_everywhere, name_of


class Branches(NamedTuple):
    """D branches. Norms are 2·D: those after the depthwise convolutions, then those after the pointwise ones."""

    depthwise: list[Tensor]  # [C, 1, 3, 3] each
    pointwise: list[Tensor]  # [O, C, 1, 1] each
    dilations: list[int]
    weight: list[Tensor | None]
    bias: list[Tensor | None]
    mean: list[Tensor | None]  # None where the statistics are the batch's, or a group's
    var: list[Tensor | None]
    eps: list[float]
    groups: list[int]  # of GroupNorm on either side of the pointwise convolutions; 0 for others
    norms: list[nn.Module]

    @property
    def fixed(self) -> bool:
        """Whether no norm's statistics depend on what it normalises."""
        return all(mean is not None for mean in self.mean)

    def needs_gradient(self, inputs: Iterable[Tensor]) -> bool:
        """Whether anything does, of these inputs or the branches' own."""
        norms = (value for value in (*self.weight, *self.bias) if value is not None)
        tensors = itertools.chain(inputs, self.depthwise, self.pointwise, norms)
        return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


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
    groups = [_groups_of(norms[: len(found)]), _groups_of(norms[len(found) :])]
    for i, norm in enumerate(norms):
        if groups[i // len(found)] == 0 and takes_batch_statistics(norm.module):
            _check_batch_norm(norm)
            mean[i] = var[i] = None
    of_batch = [id(n.module) for i, n in enumerate(norms) if mean[i] is None and groups[i // len(found)] == 0]
    if len(set(of_batch)) < len(of_batch):
        raise Unfit("a norm that takes batch statistics is shared")
    convolutions = depthwise + pointwise
    values = [value for value in (*weight, *bias, *mean, *var) if value is not None]
    if len({w.shape for w in convolutions}) > 2:
        raise Unfit("branches have different widths")
    kinds = {w.dtype for w in convolutions}
    if len(kinds) > 1 or not same_for_convolution(depthwise[0], like):
        raise Unfit(f"convolutions have {listed(kinds)}, their input {like.dtype}")
    check_norm_dtypes(norms, values, like)
    if torch.is_grad_enabled() and any(value.requires_grad for value in (*mean, *var) if value is not None):
        raise Unfit("statistics need a gradient")
    check_tensors(convolutions + values, like)
    dilations = [parts[0].module.dilation[0] for parts in found]
    modules = [norm.module for norm in norms]
    return Branches(depthwise, pointwise, dilations, weight, bias, mean, var, eps, groups, modules)


def check_counts(branches: Branches, shape: Sequence[int]) -> None:
    """That statistics which features [N, _, H, W] of this shape ask for exist; PyTorch says what it makes of others.

    Raises:
        Unfit: they do not.
    """
    if branches.fixed:
        return
    images, _, height, width = shape
    if images == 0:
        raise Unfit("no image has no statistics")
    widths = branches.pointwise[0].shape[1], branches.pointwise[0].shape[0]
    for channels, groups in zip(widths, branches.groups, strict=True):
        if (images if groups == 0 else channels // groups) * height * width == 1:
            raise Unfit("a single value has no variance")


def _groups_of(norms: Sequence[Part]) -> int:
    """Of GroupNorm, in which all norms of one side must agree; 0 if they are others."""
    found = {norm.module.num_groups if isinstance(norm.module, nn.GroupNorm) else 0 for norm in norms}
    if len(found) > 1:
        raise Unfit(f"{norms[0].name} and its like have groups of different kinds, {listed(found)}")
    (groups,) = found
    return groups


def _check_batch_norm(norm: Part) -> None:
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    synchronised = several and isinstance(norm.module, nn.SyncBatchNorm)
    if synchronised and torch.distributed.get_world_size(norm.module.process_group) > 1:
        raise Unfit(f"{norm.name} takes the statistics of several processes")


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
    check_any_norm(norm, channels)
    check_any_norm(out_norm, pointwise.module.out_channels)
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
