"""What the kernels take of a JPU's branches: weights, dilations and norms, where a branch is no more than these.

It is read from the submodules in every call and never kept, since nothing tells when a parameter, a statistic or a
submodule changes. Where a branch is anything else, PyTorch runs it as it stands.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .._checks import same_for_convolution
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


# A foreign container whose forward was seen to run its children in order: its class, and its settings then.
Proof = tuple[type, dict[str, Any]]


def read(branches: Sequence[tuple[str, nn.Module]], proven: Mapping[str, Proof], like: Tensor) -> Branches:
    """The branches' parts.

    Args:
        branches: path and module of each.
        proven: what :func:`prove` found of foreign containers, by path.
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
    kinds = {value.dtype for value in values}
    if len(kinds) > 1 or values[0].dtype not in (like.dtype, sum_dtype(like.dtype)):
        raise Unfit(f"norms have {_listed(kinds)}, their input {like.dtype}")
    if torch.is_grad_enabled() and any(value.requires_grad for value in (*mean, *var)):
        raise Unfit("statistics need a gradient")
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


def prove(path: str, branch: nn.Module) -> dict[str, Proof]:
    """What is foreign to PyTorch and this package in a branch, if it runs its children in order and does no more.

    That is tried out with copies, on random numbers, in eval mode and, but for the norms, in training mode; nothing
    happens to the branch itself. Empty where a forward does anything else, or cannot be run so.
    """
    foreign = {
        name: (type(module), _settings(module))
        for name, module in branch.named_modules(prefix=path)
        if module._modules and not _is(module, _CONTAINERS)
    }
    if not foreign:
        return {}
    try:
        twin = copy.deepcopy(branch).to("cpu", torch.float64).eval()
        parts = [part.module for part in _parts(path, twin, foreign)]
        runs_in_order = _runs_in_order(twin, parts)
        twin.train()
        for norm in (parts[1], parts[3]):
            norm.eval()
        return foreign if runs_in_order and _runs_in_order(twin, parts) else {}
    except Exception:  # whatever foreign code raises, it has not shown what it does
        return {}


def _runs_in_order(branch: nn.Module, parts: Sequence[Any]) -> bool:
    generator = torch.Generator().manual_seed(0)
    kind: dict[str, Any] = {"generator": generator, "dtype": torch.float64, "device": "cpu"}
    with torch.no_grad():
        for tensor in (*branch.parameters(), *branch.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, **kind) + 0.5)
        size = 2 * parts[0].dilation[0] + 2
        x = torch.randn(2, parts[0].in_channels, size, size, **kind)
        in_order = x
        for part in parts:
            in_order = part(in_order)
        return torch.allclose(branch(x), F.relu(in_order), rtol=1e-9, atol=1e-9)


def _settings(module: nn.Module) -> dict[str, Any]:
    """Attributes that a forward may go by."""
    plain = (bool, int, float, str, type(None))
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, plain) and name != "training" and not name.startswith("_")
    }


class _Part(NamedTuple):
    name: str
    module: Any


def _parts(path: str, branch: nn.Module, proven: Mapping[str, Proof]) -> tuple[_Part, _Part, _Part, _Part]:
    """Depthwise convolution, norm, pointwise convolution, norm; a ReLU follows."""
    leaves: list[_Part] = []
    _add_leaves(path, branch, proven, leaves)
    if len(leaves) != 5:
        got = ", ".join(name_of(leaf.module) for leaf in leaves)
        raise Unfit(f"expected {path} to be convolution, norm, convolution, norm and ReLU, got {got}")
    depthwise, norm, pointwise, out_norm, relu = leaves
    for part in (depthwise, pointwise):
        _check_class(part, nn.Conv2d)
    _check_class(relu, nn.ReLU)
    channels = depthwise.module.in_channels
    _check_convolution(depthwise, 3, channels, channels)
    _check_convolution(pointwise, 1, channels, 1)
    _check_norm(norm, channels)
    _check_norm(out_norm, pointwise.module.out_channels)
    return depthwise, norm, pointwise, out_norm


def _add_leaves(path: str, module: nn.Module, proven: Mapping[str, Proof], leaves: list[_Part]) -> None:
    """Appends the modules without children in the order of execution; one that stands in two places runs twice."""
    if (odd := oddity(module)) is not None:
        raise Unfit(f"{path} {odd}")
    if not module._modules:
        leaves.append(_Part(path, module))
        return
    if not _is(module, _CONTAINERS) and proven.get(path) != (type(module), _settings(module)):
        raise Unfit(f"{path} is a {name_of(module)}")
    for name, child in module._modules.items():
        if child is not None:
            _add_leaves(f"{path}.{name}", child, proven, leaves)


def _methods(cls: type) -> tuple[Any, Any]:
    """What a class computes with."""
    return cls.forward, getattr(cls, "_conv_forward", None)  # type: ignore[attr-defined]


# The classes that are known here, with their methods as they were defined: patched ones do something else.
_CONTAINERS: dict[type, Any] = {nn.Sequential: _methods(nn.Sequential)}  # they run their children in order
_LAYERS: dict[type, Any] = {cls: _methods(cls) for cls in (nn.Conv2d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.ReLU)}
_Module = TypeVar("_Module", bound=type[nn.Module])


def runs_children_in_order(cls: _Module) -> _Module:
    """Decorates a container of this package whose forward does that, and no more."""
    _CONTAINERS[cls] = _methods(cls)
    return cls


def _is(module: nn.Module, known: dict[type, Any]) -> bool:
    """Whether a module's class is known, and computes what it did when it was defined."""
    cls = type(module)
    return cls in known and _methods(cls) == known[cls]


def _check_class(part: _Part, *classes: type) -> None:
    if type(part.module) not in classes or not _is(part.module, _LAYERS):
        raise Unfit(f"{part.name} is a {name_of(part.module)}")


def _check_convolution(part: _Part, kernel: int, channels: int, groups: int) -> None:
    conv = part.module
    if conv.bias is not None:
        raise Unfit(f"{part.name} has a bias")
    dilation = conv.dilation[0] if isinstance(conv.dilation, tuple) else 0
    padding = dilation * (kernel // 2)
    got = conv.kernel_size, conv.stride, conv.dilation, conv.padding, conv.padding_mode, conv.in_channels, conv.groups
    expected = (kernel, kernel), (1, 1), (dilation, dilation), (padding, padding), "zeros", channels, groups
    if got != expected or dilation < 1 or (groups > 1 and conv.out_channels != channels):
        raise Unfit(f"{part.name} is no {'pointwise' if kernel == 1 else 'depthwise 3×3'} convolution of stride 1")


def _check_norm(part: _Part, channels: int) -> None:
    norm = part.module
    if not _is_frozen(norm):
        _check_class(part, nn.BatchNorm2d, nn.SyncBatchNorm)
        if norm.training or norm.running_mean is None or norm.running_var is None:
            raise Unfit(f"{part.name} takes batch statistics")
    if any(value is not None and value.shape != (channels,) for value in _tensors_of_norm(part)):
        raise Unfit(f"{part.name} is of other channels than {channels}")


def _is_frozen(norm: nn.Module) -> bool:
    """Torchvision's norm whose four tensors are buffers."""
    return type(norm).__module__ == "torchvision.ops.misc" and type(norm).__name__ == "FrozenBatchNorm2d"


def _tensors_of_norm(part: _Part) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
    norm = part.module
    return norm.weight, norm.bias, norm.running_mean, norm.running_var


def _listed(things: set[Any]) -> str:
    return " and ".join(sorted(map(str, things)))
