"""Cases of training's norms (statistics, coefficients, the pointwise gradient), and what results are held to.

Truths are of extended precision, from the same rounded inputs; bounds follow from how many results are rounded one
after the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from folds import exact
from helpers import assert_rounded
from torch import Tensor

from jpu_cuda.ops._library import sum_dtype

LONG = np.longdouble


def ceil(a: int, b: int) -> int:
    return -(-a // b)


def eps_of(dtype: torch.dtype) -> Any:
    return LONG(torch.finfo(dtype).eps)


def column(values: list[Tensor | None], default: float) -> np.ndarray:
    """[D, C] of a list of optional [C]; ``values`` has at least one."""
    size = next(x for x in values if x is not None).shape
    return np.stack([np.full(size, LONG(default)) if x is None else exact(x) for x in values])


# --- statistics -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Statistics:
    """Norms and the parts that their statistics are merged from, without values."""

    images: int = 2
    parts: int = 3
    channels: int = 20
    fixed: tuple[bool, ...] = (False, True, False)  # of each branch
    groups: int = 0
    dtype: torch.dtype = torch.float32  # of the norms
    without: tuple[tuple[str, int], ...] = (("weight", 0), ("bias", 2))
    mean: float = 1.0  # of the values, whose deviation is about 1
    most: int = 9  # pixels of a part
    empty: bool = True  # every third part, of every second branch, has no pixels

    @property
    def sums(self) -> torch.dtype:
        return sum_dtype(self.dtype)

    @property
    def depth(self) -> int:
        """How many merges one after the other."""
        parts = self.parts if self.groups else self.images * self.parts
        channels = ceil(self.channels // self.groups, 16) if self.groups else 1
        return (3 + ceil(ceil(parts, 16), 8)) * channels + 4 + (4 if self.groups else 0)

    def counts(self, generator: torch.Generator) -> Tensor:
        size = (self.parts, len(self.fixed))
        counts = torch.randint(1, self.most + 1, size, generator=generator, dtype=torch.int32)
        if self.empty:
            counts[2::3, ::2] = 0
        return counts

    def arguments(self, seed: int = 0) -> tuple[tuple[Any, ...], np.ndarray]:
        """Of the operator, and the values [images, parts, branches, most, channels], NaN where there are none."""
        generator = torch.Generator().manual_seed(seed)
        branches = len(self.fixed)
        counts = self.counts(generator)
        size = (self.images, self.parts, branches, self.most, self.channels)
        x = torch.randn(size, generator=generator, dtype=torch.float64)
        x += self.mean * (1 + torch.rand(branches, 1, self.channels, generator=generator, dtype=torch.float64))
        inside = torch.arange(self.most)[:, None] < counts[..., None, None]
        x = x.where(inside, torch.nan)
        mean = x.nanmean(3)
        squares = ((x - mean[:, :, :, None]) ** 2).nansum(3)
        moments = torch.stack([mean, squares.where(mean.isfinite(), torch.nan)], 3).to(self.sums)
        for i, fixed in enumerate(self.fixed):
            if fixed:  # nothing may be read there
                moments[:, :, i] = torch.nan
                counts[:, i] = -1

        def values(low: float, high: float) -> list[Any]:
            drawn = torch.rand(branches, self.channels, generator=generator, dtype=torch.float64)
            return list((drawn * (high - low) + low).to(self.dtype).unbind())

        norms = {"weight": values(-1.5, 1.5), "bias": values(-2, 2), "mean": values(-3, 3), "var": values(0.01, 4)}
        for name, i in self.without:
            norms[name][i % branches] = None
        for i, fixed in enumerate(self.fixed):
            if not fixed:
                norms["mean"][i] = norms["var"][i] = None
        eps = [(1e-5, 1e-3, 0.5)[i % 3] for i in range(branches)]
        return (moments, counts, *norms.values(), eps, self.groups), x.numpy().astype(LONG)


def run_statistics(arguments: tuple[Any, ...]) -> Tensor:
    return torch.ops.jpu_cuda.training_statistics(*arguments)


def check_statistics(case: Statistics, seed: int = 0) -> None:
    arguments, x = case.arguments(seed)
    result = run_statistics(arguments)
    _, _, weight, bias, mean, var, eps, groups = arguments
    branches = len(case.fixed)
    sets = case.images if groups else 1
    assert result.shape == (sets, 5, branches, case.channels)
    assert result.dtype == case.sums
    found, unit = exact(result), eps_of(case.sums) / 2
    for i, fixed in enumerate(case.fixed):
        if fixed:
            assert torch.equal(result[0, 0, i], mean[i].to(case.sums))
            assert torch.equal(result[0, 1, i], var[i].to(case.sums))
        else:
            check_moments(found[:, :2, i], x[:, :, i], case, unit)
        w, b = (LONG(d) if v[i] is None else exact(v[i]) for v, d in ((weight, 1), (bias, 0)))
        centre, spread, inverse, scale, shift = (found[:, row, i] for row in range(5))
        root = np.sqrt(spread + LONG(torch.tensor(eps[i], dtype=case.sums).item()))
        # Half an ulp each: the sum, which the root halves, root and quotient.
        assert (np.abs(inverse - 1 / root) <= 2.6 * unit / root).all()
        assert (np.abs(scale - w / root) <= 2.6 * unit * np.abs(w) / root).all()
        assert (np.abs(shift - (b - centre * scale)) <= 1.001 * unit * np.abs(shift)).all()  # a single rounding


def check_moments(found: np.ndarray, x: np.ndarray, case: Statistics, unit: Any) -> None:
    """Of a branch: mean and variance [sets, 2, channels] against all values [images, parts, most, channels]."""
    if case.groups:
        grouped = x.reshape(*x.shape[:3], case.groups, -1)
        axes: tuple[int, ...] = (1, 2, 4)
    else:
        grouped, axes = x, (0, 1, 2)

    def spread_out(values: np.ndarray) -> np.ndarray:
        return np.repeat(values, case.channels // case.groups, 1) if case.groups else values[None]

    mean = np.nanmean(grouped, axes)
    variance = np.nanmean((grouped - np.nanmean(grouped, axes, keepdims=True)) ** 2, axes)
    # A merge rounds the mean, its share and the difference of means; convex sums make no error larger. One more
    # rounding is that of the parts' own moments.
    depth, largest = case.depth, np.nanmax(np.abs(grouped))
    reach = np.nanmax(grouped) - np.nanmin(grouped)
    of_mean = unit * ((depth + 1) * largest + 2 * depth * reach)
    assert (np.abs(found[:, 0] - spread_out(mean)) <= of_mean).all()
    # Σ w · d² over merges, with Σ w of no more than the values at each depth: an error δ of d costs what
    # Cauchy-Schwarz says.
    off = 2 * of_mean + unit * reach
    bound = 2 * off * np.sqrt(variance * depth) + off**2 * depth + (depth + 6) * unit * variance
    assert (np.abs(found[:, 1] - spread_out(variance)) <= spread_out(bound)).all()


# --- coefficients ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Coefficients:
    images: int = 3
    parts: int = 5
    channels: int = 20
    batch: tuple[int, ...] = (1, 0, 1)  # of each branch
    groups: int = 0
    pixels: int = 35
    dtype: torch.dtype = torch.float32  # of the norms
    without: tuple[int, ...] = (2,)  # branches without weights

    @property
    def sums(self) -> torch.dtype:
        return sum_dtype(self.dtype)

    def arguments(self, seed: int = 0) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)
        branches = len(self.batch)
        sums = torch.randn(self.images, self.parts, 3, branches, self.channels, generator=generator, dtype=self.sums)
        sets = self.images if self.groups else 1
        statistics = torch.rand(sets, 5, branches, self.channels, generator=generator, dtype=self.sums) + 0.5
        for i in (0, 1, 3, 4):  # only 1 / √(var + eps) is asked for
            statistics[:, i] = torch.nan
        weight: list[Any] = [
            torch.randn(self.channels, generator=generator, dtype=torch.float64).to(self.dtype) for _ in range(branches)
        ]
        for i in self.without:
            weight[i] = None
        return sums, statistics, weight, list(self.batch), self.groups, self.pixels


def run_coefficients(arguments: tuple[Any, ...]) -> list[Tensor]:
    return torch.ops.jpu_cuda.training_coefficients(*arguments)


def fold_steps(parts: int, rows: int) -> int:
    """Roundings of a sum in two levels."""
    return 0 if parts == 1 else ceil(parts, rows) + rows


def check_coefficients(case: Coefficients, seed: int = 0) -> None:
    arguments = case.arguments(seed)
    coefficients, totals, gradients = run_coefficients(arguments)
    sums, statistics, weights, batch, groups, pixels = arguments
    branches, sets = len(batch), case.images if groups else 1
    assert coefficients.shape == (sets, 3, branches, case.channels)
    assert totals.shape == (case.images, branches, case.channels)
    assert gradients.shape == (2, branches, case.channels)
    assert coefficients.dtype == totals.dtype == gradients.dtype == case.sums
    weight = np.ones((branches, case.channels), LONG)
    for i, w in enumerate(weights):
        if w is not None:
            weight[i] = exact(w)
    inverse = exact(statistics)[:, 2]
    parts = exact(sums)
    image, of_image = parts.sum(1), np.abs(parts).sum(1)  # [images, 3, branches, channels]
    steps = fold_steps(case.parts, 8)
    each = steps + fold_steps(case.images, 16)
    assert_rounded(gradients, image.sum(0)[[1, 0]], of_image.sum(0)[[1, 0]], each)

    if groups:
        count = LONG(pixels) * (case.channels // groups)

        def together(x: np.ndarray) -> np.ndarray:  # of a group's channels
            shape = (case.images, branches, groups, -1)
            return np.repeat(x.reshape(shape).sum(3), case.channels // groups, 2)

        k = weight * inverse
        a, b = (inverse * together(weight * image[:, j]) / count for j in (0, 1))
        of_a, of_b = (inverse * together(np.abs(weight) * of_image[:, j]) / count for j in (0, 1))
        each = steps + ceil(case.channels // groups, 256) + 8 + 32
    else:
        k = weight * inverse
        flags = np.array(batch, LONG)[:, None] / (LONG(pixels) * case.images)
        a, b = (k * image[:, j].sum(0) * flags for j in (0, 1))
        of_a, of_b = (np.abs(k) * of_image[:, j].sum(0) * flags for j in (0, 1))
    each += 4  # k, a product, the count, the quotient
    expected = np.stack([k, a, b], 1)
    assert_rounded(coefficients, expected, np.stack([np.abs(k), of_a, of_b], 1), each)
    total = k * image[:, 0] - pixels * a - b * image[:, 2]
    of_total = np.abs(k) * of_image[:, 0] + pixels * of_a + of_b * of_image[:, 2]
    assert_rounded(totals, total, of_total, each + steps + 3)


# --- the pointwise gradient -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Pointwise:
    images: int = 3
    by_image: bool = False
    outputs: int = 37
    channels: int = 40
    branches: int = 3
    first: int = 0
    some: int = 3  # branches of those
    dtype: torch.dtype = torch.float32  # of pointwise weights
    wide: bool = True  # norms have the type of sums
    without: tuple[tuple[str, int], ...] = (("weight", 1), ("bias", 2))
    offset: int = 0  # elements that the last pointwise weight begins at within its buffer

    @property
    def sums(self) -> torch.dtype:
        return sum_dtype(self.dtype)

    def arguments(self, seed: int = 0) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator, dtype=torch.float64)

        sets = self.images if self.by_image else 1
        products = normal(self.some, sets, self.outputs, self.channels).to(self.sums)
        pointwise = [normal(self.outputs, self.channels, 1, 1).to(self.dtype) for _ in range(self.branches)]
        larger = torch.zeros(pointwise[-1].numel() + self.offset, dtype=self.dtype)
        pointwise[-1] = larger[self.offset :].view_as(pointwise[-1]).copy_(pointwise[-1])
        totals = normal(self.images, self.branches, self.outputs).to(self.sums)
        kind = self.sums if self.wide else self.dtype
        norms: dict[str, list[Any]] = {
            name: [normal(self.channels).to(kind) for _ in range(self.branches)] for name in ("weight", "bias")
        }
        for name, i in self.without:
            norms[name][i % self.branches] = None
        return products, pointwise, totals, norms["weight"], norms["bias"], self.first, self.some


def run_pointwise(arguments: tuple[Any, ...]) -> list[Tensor]:
    return torch.ops.jpu_cuda.training_pointwise_gradient(*arguments)


def check_pointwise(case: Pointwise, seed: int = 0) -> None:
    arguments = case.arguments(seed)
    gradient, sums = run_pointwise(arguments)
    products, pointwise, totals, weights, biases, first, some = arguments
    sets = products.shape[1]
    assert (gradient.shape, gradient.dtype) == ((some, case.outputs, case.channels), case.dtype)
    assert (sums.shape, sums.dtype) == ((sets, 1, 3, some, case.channels), case.sums)
    fold = fold_steps(case.images, 8)
    v = 16 // case.dtype.itemsize if case.channels % (16 // case.dtype.itemsize) == 0 else 1
    rows = 8 * v
    for g in range(some):
        p = exact(pointwise[first + g])[:, :, 0, 0]
        a, t = exact(products[g]), exact(totals[:, first + g])
        w, b = (exact(x[first + g], d) for x, d in ((weights, 1), (biases, 0)))
        truth = a.sum(0) * w + t.sum(0)[:, None] * b
        magnitude = np.abs(a).sum(0) * np.abs(w) + np.abs(t).sum(0)[:, None] * np.abs(b)
        assert_rounded(gradient[g], truth, magnitude, max(sets, fold + 1) + 1)
        for r in range(sets):
            s, of_s = (t[r], np.abs(t[r])) if case.by_image else (t.sum(0), np.abs(t).sum(0))
            steps = ceil(case.outputs, rows) + max(rows, 8) + 1
            assert_rounded(sums[r, 0, 0, g], (p * s[:, None]).sum(0), (np.abs(p) * of_s[:, None]).sum(0), steps + fold)
            assert_rounded(sums[r, 0, 1, g], (p * a[r]).sum(0), (np.abs(p) * np.abs(a[r])).sum(0), steps)
            assert not sums[r, 0, 2, g].any()
