"""The layers of a JPU's stages and branches, found in whatever containers hold them and checked to be plain ones.

They are looked for in every call and never kept, since nothing tells when a parameter, a statistic or a submodule
changes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..ops._library import sum_dtype
from .plain import name_of, oddity


class Unfit(Exception):  # noqa: N818  no error: PyTorch serves instead
    """Why the kernels do not take a stage or a branch."""


# A foreign container whose forward was seen to run its children in order: its class, and its settings then.
Proof = tuple[type, dict[str, Any]]


class Part(NamedTuple):
    name: str
    module: Any


# Of a stage or branch at a path: a convolution, its norm, and so on; a ReLU follows. Raises Unfit where it is more.
PartsOf = Callable[[str, nn.Module, Mapping[str, Proof]], Sequence[Part]]


def add_leaves(path: str, module: nn.Module, proven: Mapping[str, Proof], leaves: list[Part]) -> None:
    """Appends the modules without children in the order of execution; one that stands in two places runs twice."""
    if (odd := oddity(module)) is not None:
        raise Unfit(f"{path} {odd}")
    if not module._modules:
        leaves.append(Part(path, module))
        return
    if not _is_known(module, _CONTAINERS) and proven.get(path) != (type(module), _settings(module)):
        raise Unfit(f"{path} is a {name_of(module)}")
    for name, child in module._modules.items():
        if child is not None:
            add_leaves(f"{path}.{name}", child, proven, leaves)


def _methods(cls: type) -> tuple[Any, Any]:
    """What a class computes with."""
    return cls.forward, getattr(cls, "_conv_forward", None)  # type: ignore[attr-defined]


# The classes that are known here, with their methods as they were defined: patched ones do something else.
_CONTAINERS: dict[type, Any] = {nn.Sequential: _methods(nn.Sequential)}  # they run their children in order
_LAYERS: dict[type, Any] = {
    cls: _methods(cls) for cls in (nn.Conv2d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.GroupNorm, nn.ReLU)
}
_Module = TypeVar("_Module", bound=type[nn.Module])


def runs_children_in_order(cls: _Module) -> _Module:
    """Decorates a container of this package whose forward does that, and no more."""
    _CONTAINERS[cls] = _methods(cls)
    return cls


def _is_known(module: nn.Module, known: dict[type, Any]) -> bool:
    """Whether a module's class is known, and computes what it did when it was defined."""
    cls = type(module)
    return cls in known and _methods(cls) == known[cls]


def check_class(part: Part, *classes: type) -> None:
    if type(part.module) not in classes or not _is_known(part.module, _LAYERS):
        raise Unfit(f"{part.name} is a {name_of(part.module)}")


def check_norm(part: Part, channels: int) -> None:
    """That it is a norm of fixed statistics."""
    if not _is_frozen(part.module):
        check_class(part, nn.BatchNorm2d, nn.SyncBatchNorm)
        if takes_batch_statistics(part.module):
            raise Unfit(f"{part.name} takes batch statistics")
    check_channels(part, channels)


def check_any_norm(part: Part, channels: int) -> None:
    """That it is a norm of fixed statistics, of the batch's, or of a group's."""
    if not _is_frozen(part.module):
        check_class(part, nn.BatchNorm2d, nn.SyncBatchNorm, nn.GroupNorm)
    check_channels(part, channels)


def takes_batch_statistics(norm: nn.Module) -> bool:
    """Whether a norm does so in its present mode; of GroupNorm, which has groups', not asked."""
    if _is_frozen(norm):
        return False
    return bool(norm.training or norm.running_mean is None or norm.running_var is None)


def check_channels(part: Part, channels: int) -> None:
    if any(value is not None and value.shape != (channels,) for value in _tensors_of_norm(part)):
        raise Unfit(f"{part.name} is of other channels than {channels}")


def _is_frozen(norm: nn.Module) -> bool:
    """Torchvision's norm whose four tensors are buffers."""
    return type(norm).__module__ == "torchvision.ops.misc" and type(norm).__name__ == "FrozenBatchNorm2d"


def _tensors_of_norm(part: Part) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    norm = part.module
    if isinstance(norm, nn.GroupNorm):
        return norm.weight, norm.bias, None, None
    return norm.weight, norm.bias, norm.running_mean, norm.running_var


def columns_of(norms: Sequence[Part]) -> tuple[list[Tensor | None], list[Tensor | None], Any, Any, list[float]]:
    """Weights, biases, means, variances and eps of norms."""
    weight, bias, mean, var = (list(column) for column in zip(*map(_tensors_of_norm, norms), strict=True))
    return weight, bias, mean, var, [float(norm.module.eps) for norm in norms]


def check_norm_dtypes(norms: Sequence[Part], values: Sequence[Tensor], like: Tensor) -> None:
    """Of all norms' weights, biases and statistics: one, that of their input or that of its sums."""
    # By sets, as below, since there are some dozens of tensors and this is done in every call.
    kinds = {value.dtype for value in values}
    if len(kinds) > 1 or not kinds <= {like.dtype, sum_dtype(like.dtype)}:
        raise Unfit(f"norms have {listed(kinds)}, their input {like.dtype}")
    for norm in norms:
        # It is plain arithmetic, which promotes; PyTorch's own norms keep the dtype of their input.
        if _is_frozen(norm.module) and like.dtype not in kinds:
            raise Unfit(f"{norm.name} would make {listed(kinds)} of {like.dtype}")


def check_types(tensors: Sequence[Tensor]) -> None:
    """That none is of a package's own kind, which has operators of its own."""
    if {type(tensor) for tensor in tensors} - {Tensor, nn.Parameter}:
        for tensor in filter(is_traceable_wrapper_subclass, tensors):
            raise Unfit(f"a tensor is a {type(tensor).__name__}")


def check_tensors(tensors: Sequence[Tensor], like: Tensor) -> None:
    """That kernels can read them where they are."""
    if (devices := {tensor.device for tensor in tensors}) != {like.device}:
        raise Unfit(f"weights are on {listed(devices)}, their input on {like.device}")
    check_types(tensors)
    if not all(tensor.is_contiguous() for tensor in tensors):
        raise Unfit("a weight is not contiguous")


def prove(path: str, module: nn.Module, parts_of: PartsOf) -> dict[str, Proof]:
    """What is foreign to PyTorch and this package in a stage or branch that runs its children in order and no more.

    That is tried out with copies, on random numbers, in eval mode and, but for the norms, in training mode; nothing
    happens to the module itself. Empty where a forward does anything else, or cannot be run so.
    """
    foreign = {
        name: (type(child), _settings(child))
        for name, child in module.named_modules(prefix=path)
        if child._modules and not _is_known(child, _CONTAINERS)
    }
    if not foreign:
        return {}
    try:
        with torch.random.fork_rng(devices=[]):  # a dropout would use it
            twin = copy.deepcopy(module).to("cpu", torch.float64).eval()
            parts = [part.module for part in parts_of(path, twin, foreign)]
            runs_in_order = _runs_in_order(twin, parts)
            twin.train()
            for norm in parts[1::2]:
                norm.eval()
            return foreign if runs_in_order and _runs_in_order(twin, parts) else {}
    except Exception:  # whatever foreign code raises, it has not shown what it does
        return {}


def _runs_in_order(module: nn.Module, parts: Sequence[Any]) -> bool:
    generator = torch.Generator().manual_seed(0)
    kind: dict[str, Any] = {"generator": generator, "dtype": torch.float64, "device": "cpu"}
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, **kind) + 0.5)
        size = 2 * parts[0].dilation[0] + 2
        x = torch.randn(2, parts[0].in_channels, size, size, **kind)
    # With gradients: a forward may cut them off.
    with torch.enable_grad():
        x.requires_grad_()
        inputs = [x, *(parameter.requires_grad_() for parameter in module.parameters())]
        in_order = x
        for part in parts:
            in_order = part(in_order)
        outputs = module(x), F.relu(in_order)
        gradients = [torch.autograd.grad(out.sum(), inputs, allow_unused=True) for out in outputs]
    pairs = [(outputs[0].detach(), outputs[1].detach()), *zip(*gradients, strict=True)]
    return all(
        one is other if one is None or other is None else torch.allclose(one, other, rtol=1e-9, atol=1e-9)
        for one, other in pairs
    )


def _settings(module: nn.Module) -> dict[str, Any]:
    """Attributes that a forward may go by."""
    plain = (bool, int, float, str, type(None))
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, plain) and name != "training" and not name.startswith("_")
    }


def listed(things: set[Any]) -> str:
    return " and ".join(sorted(map(str, things)))
