"""Cases of training's depthwise launches, and what their results are held to: PyTorch in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from helpers import assert_within, to_numpy
from torch import Tensor

from jpu_cuda.ops._library import sum_dtype
from jpu_cuda.reference.loops import Bounded

ops: Any = torch.ops.jpu_cuda
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Case:
    """Shapes of a call's arguments; ``sets`` is whether statistics and coefficients are each image's."""

    batch: int
    channels: tuple[int, ...]
    size: tuple[int, int]
    dilations: tuple[int, ...]
    sets: bool = False
    dtype: torch.dtype = torch.float32

    @property
    def total(self) -> int:
        return sum(self.channels)

    @property
    def pixels(self) -> int:
        return self.size[0] * self.size[1]

    def normal(self, *shape: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed + sum(shape))
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def levels(self, seed: int = 0) -> list[Tensor]:
        images = [self.normal(self.batch, c, *self.size, seed=seed + i) for i, c in enumerate(self.channels)]
        return [x.to(self.dtype).contiguous(memory_format=torch.channels_last) for x in images]

    def depthwise(self, seed: int = 50) -> list[Tensor]:
        weights = [self.normal(self.total, 1, 3, 3, seed=seed + i) for i in range(len(self.dilations))]
        return [(w / 3).to(self.dtype) for w in weights]

    def arguments(self, seed: int = 0) -> tuple[list[Tensor], list[Tensor], list[int]]:
        return self.levels(seed), self.depthwise(50 + seed), list(self.dilations)

    def of_sets(self, arrays: int, branches: int, seed: int = 100) -> Tensor:
        """Positive numbers [R, arrays, branches, C], none of which is another."""
        sets = self.batch if self.sets else 1
        values = self.normal(sets, arrays, branches, self.total, seed=seed)
        return (values.abs() + 0.25).to(sum_dtype(self.dtype))

    def rows(self, branches: int, seed: int = 200) -> Tensor:
        return self.normal(branches, self.batch * self.pixels, self.total, seed=seed).to(self.dtype)


def joined(levels: Sequence[Tensor], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.cat([x.to(dtype) for x in levels], dim=1)


def shifted(u: Tensor, dilation: int) -> list[Tensor]:
    """What each of the nine taps sees, zero beyond the edges."""
    height, width = u.shape[2:]
    padded = F.pad(u, (dilation,) * 4)
    steps = (0, dilation, 2 * dilation)
    return [padded[..., y : y + height, x : x + width] for y in steps for x in steps]


def _of_taps(weight: Tensor) -> list[Tensor]:
    """Each tap of all channels, as what multiplies an image."""
    return [tap[:, None, None] for tap in weight.double().flatten(1).unbind(1)]


def depthwise_sums(u: Tensor, weight: Tensor, dilation: int) -> Tensor:
    return sum(tap * x for tap, x in zip(_of_taps(weight), shifted(u, dilation), strict=True))


def weight_gradient(u: Tensor, dz: Tensor, dilation: int) -> Tensor:
    """[C, 1, 3, 3]."""
    sums = [(dz * x).sum((0, 2, 3)) for x in shifted(u, dilation)]
    return torch.stack(sums, 1).reshape(-1, 1, 3, 3)


def input_gradient(dz: Tensor, weight: Tensor, dilation: int) -> Tensor:
    taps = reversed(_of_taps(weight))
    return sum(tap * x for tap, x in zip(taps, shifted(dz, dilation), strict=True))


def as_rows(image: Tensor) -> Tensor:
    return image.permute(0, 2, 3, 1).reshape(-1, image.shape[1])


def as_image(rows: Tensor, case: Case) -> Tensor:
    return rows.reshape(case.batch, *case.size, -1).permute(0, 3, 1, 2)


def each_row(sets: Tensor, case: Case) -> Tensor:
    """[R, C] as [N·HW, C] or what broadcasts to it."""
    return sets.repeat_interleave(case.pixels, 0) if len(sets) > 1 else sets


def merged(moments: Tensor, counts: Tensor, branch: int) -> tuple[Tensor, Tensor, int]:
    """Mean and biased variance of a branch's channels over all images and parts, in float64, and of how many values."""
    n = counts[:, branch].double()[None, :, None]
    used = moments[:, :, branch].double()
    mean, squares = (torch.where(n > 0, used[:, :, i], 0) for i in range(2))
    total = int(counts[:, branch].sum()) * len(moments)
    whole = (n * mean).sum((0, 1)) / total
    return whole, (squares + n * (mean - whole) ** 2).sum((0, 1)) / total, total


def sum_eps(dtype: torch.dtype) -> float:
    return torch.finfo(sum_dtype(dtype)).eps


# --- checks -----------------------------------------------------------------------------------------


def assert_near(actual: Tensor, truth: Tensor, bound: Tensor) -> None:
    """Asserts that each entry is within its bound, which higher orders and subnormal numbers widen."""
    error = 1.01 * bound + torch.finfo(actual.dtype).smallest_normal
    assert_within(actual, Bounded(to_numpy(truth), to_numpy(error)))


def check_moments(case: Case, wanted: list[int] | None = None) -> None:
    levels, depthwise, dilations = case.arguments()
    wanted = [1] * len(dilations) if wanted is None else wanted
    moments, counts = ops.training_moments(levels, depthwise, dilations, wanted)
    parts = counts.shape[0]
    assert moments.shape == (case.batch, parts, len(dilations), 2, case.total)
    assert counts.dtype == torch.int32
    u = joined(levels)
    eps = sum_eps(case.dtype)
    for d, dilation in enumerate(dilations):
        if not wanted[d]:
            assert not counts[:, d].any()
            continue
        assert int(counts[:, d].sum()) == case.pixels
        z = as_rows(depthwise_sums(u, depthwise[d], dilation))
        magnitude = as_rows(depthwise_sums(u.abs(), depthwise[d].abs(), dilation)).amax(0)
        mean, variance, _ = merged(moments, counts, d)
        # A z is off by 9 roundings; a mean by one for each value and each merge, which moves squares too.
        off = (9 + 2 * case.pixels) * eps / 2 * magnitude
        assert_near(mean, z.mean(0), off)
        true = z.var(0, unbiased=False)
        assert_near(variance, true, 4 * off * true.sqrt() + off**2 + (16 + 2 * case.pixels) * eps * true)


def check_normalised(case: Case, first: int, count: int) -> None:
    levels, depthwise, dilations = case.arguments()
    statistics = case.of_sets(5, len(dilations))
    rows = ops.training_normalised(levels, depthwise, dilations, statistics, first, count)
    assert (rows.shape, rows.dtype) == ((count, case.batch * case.pixels, case.total), case.dtype)
    u = joined(levels)
    for g in range(count):
        d = first + g
        mean, inverse = (each_row(statistics[:, i, d].double(), case) for i in (0, 2))
        z = as_rows(depthwise_sums(u, depthwise[d], dilations[d]))
        magnitude = as_rows(depthwise_sums(u.abs(), depthwise[d].abs(), dilations[d])) + mean
        truth = (z - mean) * inverse
        bound = 12 * sum_eps(case.dtype) / 2 * magnitude * inverse + torch.finfo(case.dtype).eps / 2 * truth.abs()
        assert_near(rows[g], truth, bound)


def check_gradient(case: Case, first: int, count: int) -> None:
    levels, depthwise, dilations = case.arguments()
    coefficients, normalised, dh = case.of_sets(3, count), case.rows(count), case.rows(count, seed=300)
    dz, rows_alone = dh.clone(), dh.clone()
    (weights,) = ops.training_depthwise_gradient(
        levels, depthwise, dilations, coefficients, normalised, dz, first, count, True
    )
    assert (weights.shape, weights.dtype) == ((count, case.total, 1, 3, 3), case.dtype)
    assert (
        ops.training_depthwise_gradient(
            levels, depthwise, dilations, coefficients, normalised, rows_alone, first, count, False
        )
        == []
    )
    assert torch.equal(rows_alone, dz)  # one expression, whichever kernel
    u, eps, own = joined(levels), sum_eps(case.dtype), torch.finfo(case.dtype).eps
    for g in range(count):
        k, a, b = (each_row(coefficients[:, i, g].double(), case) for i in range(3))
        truth = k * dh[g].double() - a - b * normalised[g].double()
        magnitude = k * dh[g].double().abs() + a + b * normalised[g].double().abs()
        assert_near(dz[g], truth, 3 * eps / 2 * magnitude + own / 2 * truth.abs())
        rounded, dilation = as_image(dz[g].double(), case), dilations[first + g]
        steps = 16 + case.batch * case.pixels
        true, magnitude = weight_gradient(u, rounded, dilation), weight_gradient(u.abs(), rounded.abs(), dilation)
        assert_near(weights[g], true, steps * eps / 2 * magnitude + own / 2 * true.abs())


def check_levels(case: Case, first: int, count: int, add: bool) -> None:
    _, depthwise, dilations = case.arguments()
    dz = case.rows(count, seed=400)
    gradients = case.levels(seed=20)
    before = joined(gradients) * add
    ops.training_level_gradient(dz, depthwise, dilations, gradients, add, first, count)
    truth, magnitude = before, before.abs()
    for g in range(count):
        weight, dilation = depthwise[first + g], dilations[first + g]
        image = as_image(dz[g].double(), case)
        truth = truth + input_gradient(image, weight, dilation)
        magnitude = magnitude + input_gradient(image.abs(), weight.abs(), dilation)
    steps = 9 + count + 1
    bound = steps * sum_eps(case.dtype) / 2 * magnitude + torch.finfo(case.dtype).eps / 2 * truth.abs()
    assert_near(torch.cat(gradients, 1), truth, bound)


# --- cases ------------------------------------------------------------------------------------------

CASES = {
    "vectors, several levels": Case(2, (16, 40, 8), (10, 12), (1, 2, 4)),
    "odd channels and sizes": Case(3, (5, 3), (9, 11), (1, 2), sets=True),
    "odd level among whole vectors": Case(1, (8, 9, 16), (5, 6), (3,)),
    "several chunks": Case(2, (40, 72), (6, 5), (2, 1), sets=True),
    "many tiles": Case(1, (8,), (45, 50), (1, 3)),
    "wide": Case(1, (8,), (4, 70), (1, 2)),
    "tall": Case(2, (9,), (70, 4), (1, 2)),
    "dilations beyond the image": Case(2, (8, 8), (5, 7), (8, 16)),
    "one pixel": Case(2, (3,), (1, 1), (1, 5), sets=True),
    "packed classes": Case(1, (8,), (33, 31), (4, 16, 5)),
    "eight branches": Case(1, (3, 1, 0, 8), (5, 7), (1, 2, 3, 4, 5, 7, 8, 16)),
}
