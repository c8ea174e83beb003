"""What the kernels take of a JPU's branches: weights, dilations and norms, where a branch is no more than these.

It is read from the submodules in every call and never kept, since nothing tells when a parameter, a statistic or a
submodule changes. Where a branch is anything else, PyTorch runs it as it stands.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .._checks import is_autocasting, same_for_convolution
from ..ops._library import sum_dtype
from .plain import hooks_everywhere, name_of, oddity


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


class Unfit(Exception):  # noqa: N818  no error: PyTorch serves instead
    """Why the kernels do not take a branch."""


def read(branches: Sequence[tuple[str, nn.Module]], proven: frozenset[type], like: Tensor) -> Branches:
    """The branches' parts.

    Args:
        branches: path and module of each.
        proven: foreign classes that :func:`foreign_classes` found to run their children in order.
        like: a tensor with the device and dtype of the branches' input.

    Raises:
        Unfit: a branch is more than its parts, or a part is none that the kernels have.
    """
    if hooks_everywhere():
        raise Unfit("all modules have hooks")
    found = [_parts(path, branch, proven) for path, branch in branches]
    depthwise = [parts[0].module.weight for parts in found]
    pointwise = [parts[2].module.weight for parts in found]
    norms = [parts[1] for parts in found] + [parts[3] for parts in found]
    statistics = [_tensors_of_norm(norm) for norm in norms]
    weight, bias, mean, var = (list(column) for column in zip(*statistics, strict=True))

    convolutions = depthwise + pointwise
    values = [value for value in (*weight, *bias, *mean, *var) if value is not None]
    # By sets, since there are some dozens of tensors and this is done in every call.
    if len({w.shape for w in convolutions}) > 2:
        raise Unfit("branches have different widths")
    kinds = {w.dtype for w in convolutions}
    if len(kinds) > 1 or not same_for_convolution(depthwise[0], like):
        raise Unfit(f"convolutions have {_listed(kinds)}, their input {like.dtype}")
    kinds, fitting = {value.dtype for value in values}, [_dtype_in_branches(like), sum_dtype(like.dtype)]
    if len(kinds) > 1 or values[0].dtype not in fitting:
        raise Unfit(f"norms have {_listed(kinds)}, their input {fitting[0]}")
    tensors = convolutions + values
    if (devices := {tensor.device for tensor in tensors}) != {like.device}:
        raise Unfit(f"weights are on {_listed(devices)}, their input on {like.device}")
    if {type(tensor) for tensor in tensors} - {Tensor, nn.Parameter}:
        for tensor in filter(is_traceable_wrapper_subclass, tensors):
            raise Unfit(f"a weight is a {type(tensor).__name__}")
    if not all(tensor.is_contiguous() for tensor in tensors):
        raise Unfit("a weight is not contiguous")
    dilations = [parts[0].module.dilation[0] for parts in found]
    eps = [float(norm.module.eps) for norm in norms]
    return Branches(depthwise, pointwise, dilations, weight, bias, mean, var, eps)


def foreign_classes(branch: nn.Module) -> frozenset[type]:
    """The classes in a branch that are foreign to PyTorch and this package, if they run their children in order.

    That is found out with copies, on random numbers, so that nothing happens to the branch itself. Empty where a class
    does anything else, or the branch cannot be run so.
    """
    foreign = {type(part) for part in branch.modules() if part._modules and not _is_transparent(part)}
    if not foreign:
        return frozenset()
    generator = torch.Generator().manual_seed(0)
    try:
        twin = copy.deepcopy(branch).to("cpu", torch.float64).eval()
        parts = [part.module for part in _parts("", twin, frozenset(foreign))]
        with torch.no_grad():
            for tensor in (*twin.parameters(), *twin.buffers()):
                if tensor.is_floating_point():
                    tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) + 0.5)
            size = 2 * parts[0].dilation[0] + 2
            x = torch.randn(2, parts[0].in_channels, size, size, generator=generator, dtype=torch.float64)
            in_order = x
            for part in parts:
                in_order = part(in_order)
            matches = torch.allclose(twin(x), F.relu(in_order), rtol=1e-9, atol=1e-9)
    except Exception:  # whatever foreign code raises, it has not shown what it does
        return frozenset()
    return frozenset(foreign) if matches else frozenset()


class _Part(NamedTuple):
    name: str
    module: Any


def _parts(path: str, branch: nn.Module, proven: frozenset[type]) -> tuple[_Part, _Part, _Part, _Part]:
    """Depthwise convolution, norm, pointwise convolution, norm; a ReLU follows."""
    leaves = []
    for name, module in branch.named_modules(prefix=path):
        if (odd := oddity(module)) is not None:
            raise Unfit(f"{name} {odd}")
        if not module._modules:
            leaves.append(_Part(name, module))
        elif not _is_transparent(module) and type(module) not in proven:
            raise Unfit(f"{name} is a {name_of(module)}")
    if len(leaves) != 5:
        got = ", ".join(name_of(leaf.module) for leaf in leaves)
        raise Unfit(f"expected {path} to be convolution, norm, convolution, norm and ReLU, got {got}")
    depthwise, norm, pointwise, out_norm, relu = leaves
    channels = depthwise.module.in_channels if type(depthwise.module) is nn.Conv2d else 0
    _check_convolution(depthwise, 3, channels, channels)
    _check_convolution(pointwise, 1, channels, 1)
    for part in (norm, out_norm):
        _check_norm(part)
    if type(relu.module) is not nn.ReLU:
        raise Unfit(f"{relu.name} is a {name_of(relu.module)}")
    return depthwise, norm, pointwise, out_norm


def _is_transparent(module: nn.Module) -> bool:
    """Whether a module is known to run its children in order, and no more."""
    return type(module) is nn.Sequential or type(module).__module__.startswith("jpu_cuda.")


def _check_convolution(part: _Part, kernel: int, channels: int, groups: int) -> None:
    conv = part.module
    if type(conv) is not nn.Conv2d:
        raise Unfit(f"{part.name} is a {name_of(conv)}")
    if conv.bias is not None:
        raise Unfit(f"{part.name} has a bias")
    padding = conv.dilation[0] * (kernel // 2)
    got = conv.kernel_size, conv.stride, conv.padding, conv.padding_mode, conv.in_channels, conv.groups
    expected = (kernel, kernel), (1, 1), (padding, padding), "zeros", channels, groups
    if got != expected or conv.dilation[0] != conv.dilation[1] or (groups > 1 and conv.out_channels != channels):
        raise Unfit(f"{part.name} is no {'pointwise' if kernel == 1 else 'depthwise 3×3'} convolution: {conv}")


def _check_norm(part: _Part) -> None:
    norm = part.module
    if _is_frozen(norm):
        return
    if type(norm) not in (nn.BatchNorm2d, nn.SyncBatchNorm):
        raise Unfit(f"{part.name} is a {name_of(norm)}")
    if norm.training or norm.running_mean is None or norm.running_var is None:
        raise Unfit(f"{part.name} takes batch statistics")


def _is_frozen(norm: nn.Module) -> bool:
    """Torchvision's norm whose four tensors are buffers."""
    return type(norm).__module__ == "torchvision.ops.misc" and type(norm).__name__ == "FrozenBatchNorm2d"


def _tensors_of_norm(part: _Part) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
    norm = part.module
    return norm.weight, norm.bias, norm.running_mean, norm.running_var


def _listed(things: set[Any]) -> str:
    return " and ".join(sorted(map(str, things)))


def _dtype_in_branches(like: Tensor) -> torch.dtype:
    if is_autocasting(like.device) and like.dtype != torch.float64:
        return torch.get_autocast_dtype(like.device.type)
    return like.dtype
