"""What every result is held to before it is timed: nearly the error of PyTorch's own path in the same dtype."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jpu_cuda import use_backend

from .providers import settings
from .systems import FORMATS

FACTOR = 1.25


class WrongResultError(ValueError):
    """A result that is further from the truth than it may be."""


@dataclass(frozen=True)
class Truth:
    """What a result should be, and how far from it PyTorch's own is.

    Attributes:
        value: float64 arithmetic on the same rounded inputs and weights.
        dtype: of the results.
        error: greatest error of PyTorch's results.
        root_mean_square: likewise, of the error over the whole tensor by this measure.
    """

    value: Tensor
    dtype: torch.dtype
    error: float
    root_mean_square: float

    @property
    def roundoff(self) -> float:
        """The relative error of storing a result."""
        return torch.finfo(self.dtype).eps / 2

    @staticmethod
    def of(value: Tensor, baselines: Sequence[Tensor]) -> Truth:
        """The truth, and what PyTorch makes of it in the dtype under test; of several ways the least exact counts."""
        errors, squares = [], []
        for baseline in baselines:
            _check_finite("PyTorch's result", baseline)
            difference = baseline.double() - value
            errors.append(float(difference.abs().max()))
            squares.append(root_mean_square(difference))
        return Truth(value, baselines[0].dtype, max(errors), max(squares))


def find_truth(model: nn.Module, inputs: Sequence[Tensor], pick: Callable[[Any], Tensor], tf32: bool = False) -> Truth:
    """What a model's result should be, and PyTorch's own error in the current settings.

    That is of plain eager NCHW and channels_last: they sum in other orders, and neither is the one that is meant.

    Args:
        model: in eval mode, in the dtype under test.
        inputs: of one image, or of few.
        pick: what of a result is compared.
        tf32: whether convolutions may round their operands to TF32. cuDNN may, and need not: which it does goes by
            what is fastest for a shape, so the error of eager with operands that are TF32 counts too.
    """
    with torch.no_grad(), use_backend("reference"):
        with settings(benchmark=False):
            value = pick(copy.deepcopy(model).double()(*(x.double() for x in inputs)))
        baselines = []
        for layout in FORMATS.values():
            baseline = copy.deepcopy(model).to(memory_format=layout)
            baselines.append(pick(baseline(*(x.contiguous(memory_format=layout) for x in inputs))))
        if tf32:
            baselines.append(pick(with_tf32_operands(model)(*inputs)))
    return Truth.of(value, baselines)


def with_tf32_operands(model: nn.Module) -> nn.Module:
    """A copy whose dense convolutions see what tensor cores do: 10 of the 23 bits, the others cut off.

    In a backward pass too: what is a convolution's operand there is its input, its weight and the gradient.
    """
    model = copy.deepcopy(model)
    for conv in model.modules():
        if isinstance(conv, nn.Conv2d) and conv.groups == 1:
            conv.weight.data = _cut(conv.weight.data)
            conv.register_forward_pre_hook(lambda _, arguments: (_CutValue.apply(arguments[0]), *arguments[1:]))
            conv.register_forward_hook(lambda _, arguments, result: _CutGradient.apply(result))
    return model


def _cut(x: Tensor) -> Tensor:
    return (x.view(torch.int32) & -(2**13)).view(torch.float32)


class _CutValue(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _cut(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class _CutGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _cut(gradient)


def assert_no_worse(actual: Tensor, truth: Truth, deep: bool = False, factor: float = FACTOR) -> None:
    """Raises WrongResultError unless max|actual − truth| ≤ factor · PyTorch's + eps/2 · max|truth|.

    Args:
        actual: the result under test.
        truth: what to hold it to.
        deep: whether the result is that of a network of many layers. There the greatest error is one draw out of
            millions and of a chain of roundings, each path its own: the bound holds for the root mean square, and
            the greatest error may be twice as large.
        factor: see above.
    """
    if actual.shape != truth.value.shape or actual.dtype != truth.dtype:
        expected = f"expected {truth.dtype} {tuple(truth.value.shape)}"
        raise WrongResultError(f"result: {expected}, got {actual.dtype} {tuple(actual.shape)}")
    _check_finite("result", actual)
    errors = actual.double() - truth.value
    rounding = truth.roundoff * float(truth.value.abs().max())
    _check("error", float(errors.abs().max()), (2 if deep else 1) * factor * truth.error + rounding)
    if deep:
        rounding = truth.roundoff * root_mean_square(truth.value)
        _check("root mean square error", root_mean_square(errors), factor * truth.root_mean_square + rounding)


def root_mean_square(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def _check_finite(name: str, tensor: Tensor) -> None:
    wrong = tensor.numel() - int(torch.isfinite(tensor).sum())
    if wrong:
        raise WrongResultError(f"{name}: expected finite values, got {wrong} of {tensor.numel()} that are not")


def _check(name: str, error: float, allowed: float) -> None:
    if not error <= allowed:
        raise WrongResultError(f"{name}: expected at most {allowed:.3e}, got {error:.3e}")
