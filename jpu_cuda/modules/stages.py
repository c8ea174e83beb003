"""What a kernel takes of a JPU's stages: their norms, where a stage is no more than convolution, norm and ReLU.

The convolutions are run as the modules they are. Norms are read anew in every call, as :mod:`.branches` does it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from .parts import (
    Part,
    Proof,
    Unfit,
    add_leaves,
    check_class,
    check_norm,
    check_norm_dtypes,
    check_tensors,
    check_types,
    columns_of,
)
from .plain import hooks_everywhere, name_of


class Stages(NamedTuple):
    """A convolution and a norm a level."""

    convolutions: list[nn.Conv2d]
    weight: list[Tensor | None]
    bias: list[Tensor | None]
    mean: list[Tensor]
    var: list[Tensor]
    eps: list[float]


def read(
    stages: Sequence[tuple[str, nn.Module]], proven: Mapping[str, Proof], levels: Sequence[Tensor], like: Tensor
) -> Stages:
    """The stages' parts.

    Args:
        stages: path and module of each.
        proven: what :func:`.parts.prove` found of foreign containers, by path.
        levels: what the stages are called with.
        like: a tensor with the device and dtype of the convolutions' results.

    Raises:
        Unfit: a stage is more than its parts, a part is none that the kernel has, or something has a derivative, which
            the kernel has not.
    """
    # Inductor fuses norms and ReLUs into one pass itself, with what follows them too, and exported programs are to hold
    # the layers that other compilers know.
    if torch.compiler.is_compiling():
        raise Unfit("compilers fuse norms and ReLUs themselves")
    if torch.jit.is_tracing():
        raise Unfit("traced programs hold the layers as they are")
    if hooks_everywhere():
        raise Unfit("all modules have hooks")
    found = [parts_of(path, stage, proven) for path, stage in stages]
    convolutions = [parts[0].module for parts in found]
    norms = [parts[1] for parts in found]
    weight, bias, mean, var, eps = columns_of(norms)
    values = [value for value in (*weight, *bias, *mean, *var) if value is not None]
    check_norm_dtypes(norms, values, like)
    check_tensors(values, like)
    weights = [w for convolution in convolutions for w in (convolution.weight, convolution.bias) if w is not None]
    check_types((*levels, *weights))  # by which their results go
    if forward_ad._current_level >= 0:
        raise Unfit("forward-mode derivatives are PyTorch's")
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*levels, *weights, *values)):
        raise Unfit("gradients are PyTorch's")
    return Stages(convolutions, weight, bias, mean, var, eps)


def parts_of(path: str, stage: nn.Module, proven: Mapping[str, Proof]) -> tuple[Part, Part]:
    """Convolution and norm; a ReLU follows."""
    leaves: list[Part] = []
    add_leaves(path, stage, proven, leaves)
    if len(leaves) != 3:
        got = ", ".join(name_of(leaf.module) for leaf in leaves)
        raise Unfit(f"expected {path} to be convolution, norm and ReLU, got {got}")
    convolution, norm, relu = leaves
    check_class(convolution, nn.Conv2d)
    check_class(relu, nn.ReLU)
    check_norm(norm, convolution.module.out_channels)
    return convolution, norm
