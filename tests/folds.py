"""Cases of upsample_fold, and what its results are held to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from helpers import assert_no_worse_than, assert_within, max_error, to_numpy
from torch import Tensor

from jpu_cuda.ops._library import sum_dtype
from jpu_cuda.reference import norms as by_torch
from jpu_cuda.reference.loops import Bounded


@dataclass(frozen=True)
class Fold:
    """Norms of ``branches`` branches, C and O channels; levels beside them."""

    branches: int = 2
    channels: tuple[int, int] = (7, 5)
    dtype: torch.dtype = torch.float32
    wide: bool = True  # norms in the type of sums, not in that of the levels
    without: tuple[str, ...] = ()  # of the first and last norm: "weight", "bias"
    absent: tuple[tuple[str, int], ...] = ()  # the same of any norm; numbers past the last count anew
    missing: tuple[int, ...] = ()  # of the four terms, which have no gradient
    sizes: tuple[tuple[int, int], ...] = ((6, 8), (3, 4), (2, 5))
    batch: int = 2
    eps: tuple[float, ...] = (1e-5, 1e-3, 0.5)
    align_corners: bool = True
    layout: torch.memory_format = torch.contiguous_format
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
        for name, i in (*((name, i) for name in self.without for i in (0, -1)), *self.absent):
            {"weight": weight, "bias": bias}[name][i % len(norms)] = None
        levels = self._images(generator, self.sizes)
        eps = [self.eps[i % len(self.eps)] for i in range(len(norms))]
        return levels, self.align_corners, weight, bias, mean, var, eps

    def _images(self, generator: torch.Generator, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        return [
            torch.randn(self.batch, 3 + i, *size, generator=generator, dtype=torch.float64)
            .to(self.device, self.dtype)
            .contiguous(memory_format=self.layout)
            for i, size in enumerate(sizes)
        ]

    def level_gradients(self) -> tuple[Any, ...]:
        """Of the resized levels, then what else upsample_backward takes."""
        generator = torch.Generator().manual_seed(8)
        gradients = self._images(generator, [self.sizes[0]] * len(self.sizes))[1:]
        heights, widths = ([size[axis] for size in self.sizes[1:]] for axis in (0, 1))
        return gradients, heights, widths, self.align_corners

    def term_gradients(self) -> list[Any]:
        generator = torch.Generator().manual_seed(9)
        shapes = [(self.branches, c) for c in self.channels for _ in range(2)]
        terms = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
        kind = self.device, sum_dtype(self.dtype)
        return [None if i in self.missing else term.to(*kind) for i, term in enumerate(terms)]


def fold(arguments: Sequence[Any]) -> list[Tensor]:
    return torch.ops.jpu_cuda.upsample_fold(*arguments)


def leaves(case: Fold) -> tuple[tuple[Any, ...], list[Tensor]]:
    """Arguments of which all that has a gradient needs one, and those."""
    levels, align, weight, bias, *rest = case.arguments()
    needing = [t.requires_grad_() for t in (*levels[1:], *weight, *bias) if t is not None]
    return (levels, align, weight, bias, *rest), needing


def exact(tensor: Tensor | None, otherwise: float = 0) -> np.ndarray:
    return np.longdouble(otherwise) if tensor is None else to_numpy(tensor).astype(np.longdouble)


def assert_near(actual: Tensor, truth: np.ndarray, bound: np.ndarray) -> None:
    """``bound`` holds for normal numbers and leaves products of roundings out."""
    out = torch.finfo(actual.dtype)
    error = np.longdouble(1.01) * bound + out.smallest_normal * out.eps
    assert_within(actual, Bounded(truth, error))


def check_terms(case: Fold) -> None:
    """Each within its bound, and altogether no worse than PyTorch's arithmetic."""
    arguments = case.arguments()
    levels, align_corners, *norms = arguments
    out = fold(arguments)
    resized, terms = out[:-4], out[-4:]
    dtype = sum_dtype(case.dtype)
    assert {term.dtype for term in terms} == {dtype}
    assert_terms(terms, norms)
    draws = [case.arguments(seed)[2:] for seed in range(8)]
    truths = [true_terms(*draw) for draw in draws]
    baselines = [[*map(max_error, by_torch.fold(*d, dtype), t)] for d, t in zip(draws, truths, strict=True)]
    for got, truth, errors in zip(terms, truths[0], zip(*baselines, strict=True), strict=True):
        assert_no_worse_than(got, truth, errors)
    expected = torch.ops.jpu_cuda.upsample(levels[1:], *levels[0].shape[2:], align_corners) if len(levels) > 1 else []
    assert_same(resized, expected)


def assert_terms(terms: Sequence[Tensor], norms: Sequence[Any], fused: bool = True) -> None:
    """Half an ulp each for var + eps (which the root halves), eps, root, quotient, shift; its product if not fused."""
    ulp = np.longdouble(torch.finfo(terms[0].dtype).eps / 2)
    rows, right = ([*zip(*four[:2], strict=True), *zip(*four[2:], strict=True)] for four in (terms, true_terms(*norms)))
    for (scale, shift), (true_scale, true_shift), bias in zip(rows, right, norms[1], strict=True):
        assert_near(scale, true_scale, 3 * ulp * np.abs(true_scale))
        product = np.abs(exact(bias) - true_shift)
        assert_near(shift, true_shift, ulp * (np.abs(true_shift) + (3 if fused else 4) * product))


def true_terms(*norms: Any) -> list[np.ndarray]:
    """The four terms in extended precision."""
    scales, shifts = [], []
    for weight, bias, mean, var, eps in zip(*norms, strict=True):
        scales.append(exact(weight, 1) / np.sqrt(exact(var) + np.longdouble(eps)))
        shifts.append(exact(bias) - exact(mean) * scales[-1])
    half = len(scales) // 2
    return [np.stack(part) for part in (scales[:half], shifts[:half], scales[half:], shifts[half:])]


def assert_same(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert len(actual) == len(expected), f"expected {len(expected)} levels, got {len(actual)}"
    for i, (x, y) in enumerate(zip(actual, expected, strict=True)):
        assert torch.equal(x, y), f"level {i}: expected what upsample and its adjoint make of it"
        assert x.stride() == y.stride(), f"level {i}: expected strides {y.stride()}, got {x.stride()}"


def check_gradients(case: Fold) -> None:
    """Of norms within their bound; of levels upsample_backward's."""
    *_, mean, var, eps = case.arguments()
    images, terms = case.level_gradients(), case.term_gradients()
    found = torch.ops.jpu_cuda.upsample_fold_backward(*images, terms, mean, var, eps, [1] * 4 * case.branches)
    assert_gradients(found[len(images[0]) :], terms, mean, var, eps)
    assert_same(found[: len(images[0])], torch.ops.jpu_cuda.upsample_backward(*images) if images[0] else [])


def assert_gradients(
    found: Sequence[Tensor], terms: Sequence[Tensor | None], *statistics: Sequence[Any], fused: bool = True
) -> None:
    """Of all weights, half an ulp more than scales and their own, the product's if not fused; then of all biases."""
    count = len(statistics[0])
    of_terms = [[None] * (count // 2) if t is None else [*t] for t in terms]
    rows = [*zip(*of_terms[:2], strict=True), *zip(*of_terms[2:], strict=True)]
    for (scale, shift), weight, bias, m, v, e in zip(rows, found[:count], found[count:], *statistics, strict=True):
        assert weight.dtype == bias.dtype == m.dtype
        ulp = np.longdouble(torch.finfo(sum_dtype(m.dtype)).eps / 2)
        deviation = np.sqrt(exact(v) + np.longdouble(e))
        product = exact(m) * exact(shift)
        right = (exact(scale) - product) / deviation
        bound = (torch.finfo(m.dtype).eps / 2 + 4 * ulp) * np.abs(right)
        assert_near(weight, right, bound if fused else bound + ulp * np.abs(product) / deviation)
        assert torch.equal(bias, torch.zeros_like(m) if shift is None else shift.to(m.dtype))
