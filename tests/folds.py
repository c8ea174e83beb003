"""Cases of upsample_fold, and what its results are held to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from helpers import assert_within, to_numpy
from torch import Tensor

from jpu_cuda.ops._library import sum_dtype
from jpu_cuda.reference.loops import Bounded


@dataclass(frozen=True)
class Fold:
    """Norms of ``branches`` branches, C and O channels; levels beside them."""

    branches: int = 2
    channels: tuple[int, int] = (7, 5)
    dtype: torch.dtype = torch.float32
    wide: bool = True  # norms in the type of sums, not in that of the levels
    without: tuple[str, ...] = ()  # of the first and last norm: "weight", "bias"
    sizes: tuple[tuple[int, int], ...] = ((6, 8), (3, 4), (2, 5))
    batch: int = 2
    eps: tuple[float, ...] = (1e-5, 1e-3, 0.5)
    device: str = "cpu"

    def arguments(self, seed: int = 0) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)
        norms = [self.channels[i // self.branches] for i in range(2 * self.branches)]
        kind = sum_dtype(self.dtype) if self.wide else self.dtype

        def values(low: float, high: float) -> list[Any]:
            return [
                (torch.rand(c, generator=generator, dtype=torch.float64) * (high - low) + low).to(self.device, kind)
                for c in norms
            ]

        weight, bias, mean, var = values(-1.5, 1.5), values(-2, 2), values(-3, 3), values(0.01, 4)
        for name, part in (("weight", weight), ("bias", bias)):
            if name in self.without:
                part[0] = part[-1] = None
        levels = [
            torch.randn(self.batch, 3 + i, *size, generator=generator, dtype=torch.float64).to(self.device, self.dtype)
            for i, size in enumerate(self.sizes)
        ]
        return levels, True, weight, bias, mean, var, [self.eps[i % len(self.eps)] for i in range(len(norms))]

    def term_gradients(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(9)
        shapes = [(self.branches, c) for c in self.channels for _ in range(2)]
        return [
            torch.randn(*shape, generator=generator, dtype=torch.float64).to(self.device, sum_dtype(self.dtype))
            for shape in shapes
        ]


def fold(arguments: Sequence[Any]) -> list[Tensor]:
    return torch.ops.jpu_cuda.upsample_fold(*arguments)


def exact(tensor: Tensor | None, otherwise: float = 0) -> np.ndarray:
    return np.longdouble(otherwise) if tensor is None else to_numpy(tensor).astype(np.longdouble)


def assert_near(actual: Tensor, truth: np.ndarray, bound: np.ndarray) -> None:
    error = np.longdouble(1.01) * bound + torch.finfo(actual.dtype).smallest_normal
    assert_within(actual, Bounded(truth, error))


def check_terms(case: Fold) -> None:
    """Half an ulp each for var + eps (which the root halves), eps, root, quotient and the fused shift."""
    arguments = case.arguments()
    *resized, scale, shift, out_scale, out_shift = fold(arguments)
    assert scale.dtype == shift.dtype == out_scale.dtype == out_shift.dtype == sum_dtype(case.dtype)
    ulp = np.longdouble(torch.finfo(scale.dtype).eps / 2)
    rows = [*zip(scale, shift, strict=True), *zip(out_scale, out_shift, strict=True)]
    for (scale, shift), weight, bias, mean, var, eps in zip(rows, *arguments[2:], strict=True):
        right = exact(weight, 1) / np.sqrt(exact(var) + np.longdouble(eps))
        assert_near(scale, right, 3 * ulp * np.abs(right))
        centre = exact(mean) * right
        assert_near(shift, exact(bias) - centre, ulp * (np.abs(exact(bias) - centre) + 3 * np.abs(centre)))
    levels = arguments[0]
    expected = torch.ops.jpu_cuda.upsample(levels[1:], *levels[0].shape[2:], True) if len(levels) > 1 else []
    assert len(resized) == len(expected)
    assert all(map(torch.equal, resized, expected))


def check_gradients(case: Fold) -> None:
    *_, mean, var, eps = case.arguments()
    terms, count = case.term_gradients(), 2 * case.branches
    found = torch.ops.jpu_cuda.upsample_fold_backward([], [], [], True, terms, mean, var, eps, [1] * 2 * count)
    ulp = np.longdouble(torch.finfo(sum_dtype(case.dtype)).eps / 2)
    rows = [*zip(*terms[:2], strict=True), *zip(*terms[2:], strict=True)]
    for (scale, shift), weight, bias, m, v, e in zip(rows, found[:count], found[count:], mean, var, eps, strict=True):
        right = (exact(scale) - exact(m) * exact(shift)) / np.sqrt(exact(v) + np.longdouble(e))
        assert weight.dtype == bias.dtype == m.dtype
        assert_near(weight, right, (torch.finfo(m.dtype).eps / 2 + 4 * ulp) * np.abs(right))
        assert torch.equal(bias, shift.to(m.dtype))
