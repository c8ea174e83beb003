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

    @staticmethod
    def of(value: Tensor, baselines: Sequence[Tensor]) -> Truth:
        """The truth, and what PyTorch makes of it in the dtype under test; of several ways the least exact counts."""
        errors, squares = [], []
        for baseline in baselines:
            _check_finite("PyTorch's result", baseline)
            difference = baseline.double() - value
            errors.append(float(difference.abs().max()))
            squares.append(float(difference.square().mean().sqrt()))
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
            baselines.append(pick(_with_tf32_operands(model)(*inputs)))
    return Truth.of(value, baselines)


def _with_tf32_operands(model: nn.Module) -> nn.Module:
    """A copy whose dense convolutions see what tensor cores do: 10 of the 23 bits, the others cut off."""
    model = copy.deepcopy(model)

    def cut(x: Tensor) -> Tensor:
        return (x.view(torch.int32) & -(2**13)).view(torch.float32)

    for conv in model.modules():
        if isinstance(conv, nn.Conv2d) and conv.groups == 1:
            conv.weight.data = cut(conv.weight.data)
            conv.register_forward_pre_hook(lambda _, arguments: (cut(arguments[0]), *arguments[1:]))
    return model


def assert_no_worse(actual: Tensor, truth: Truth, deep: bool = False) -> None:
    """Raises WrongResultError unless max|actual − truth| ≤ 1.25 · PyTorch's + eps/2 · max|truth|.

    Args:
        actual: the result under test.
        truth: what to hold it to.
        deep: whether the result is that of a network of many layers. There the greatest error is one draw out of
            millions and of a chain of roundings, each path its own: the bound holds for the root mean square, and
            the greatest error may be twice as large.
    """
    if actual.shape != truth.value.shape or actual.dtype != truth.dtype:
        expected = f"expected {truth.dtype} {tuple(truth.value.shape)}"
        raise WrongResultError(f"result: {expected}, got {actual.dtype} {tuple(actual.shape)}")
    _check_finite("result", actual)
    errors = actual.double() - truth.value
    rounding = torch.finfo(truth.dtype).eps / 2 * float(truth.value.abs().max())
    _check("error", float(errors.abs().max()), (2 if deep else 1) * FACTOR * truth.error + rounding)
    if deep:
        _check("root mean square error", float(errors.square().mean().sqrt()), FACTOR * truth.root_mean_square)


def _check_finite(name: str, tensor: Tensor) -> None:
    wrong = tensor.numel() - int(torch.isfinite(tensor).sum())
    if wrong:
        raise WrongResultError(f"{name}: expected finite values, got {wrong} of {tensor.numel()} that are not")


def _check(name: str, error: float, allowed: float) -> None:
    if not error <= allowed:
        raise WrongResultError(f"{name}: expected at most {allowed:.3e}, got {error:.3e}")
