"""Cases of training's kernels of rows, and what their results are held to.

The truth is worked out in extended precision from the formulas, and shares nothing with the kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from helpers import assert_rounded
from torch import Tensor

from jpu_cuda import host
from jpu_cuda.ops._library import sum_dtype


def rows_of(x: Tensor, offset: int = 0) -> Tensor:
    """The same values as a dense image in channels_last, which begins ``offset`` elements into its buffer."""
    _, c, h, w = x.shape
    buffer = torch.full((offset + x.numel(),), torch.nan, dtype=x.dtype)
    return buffer[offset:].as_strided(x.shape, (c * h * w, 1, w * c, c)).copy_(x)


@dataclass(frozen=True)
class Rows:
    """q of some branches, without its values."""

    images: int = 2
    branches: int = 3
    width: int = 5  # of a branch
    size: tuple[int, int] = (4, 7)
    dtype: torch.dtype = torch.float32
    by_image: bool = False  # statistics of each image
    offset: int = 0  # of q in its buffer, and of the gradient

    @property
    def channels(self) -> int:
        return self.branches * self.width

    def arguments(self, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradient, q, statistics and coefficients, of which each channel has others, and each image."""
        generator = torch.Generator().manual_seed(seed)
        sets = self.images if self.by_image else 1
        terms, kind = (sets, self.branches, self.width), sum_dtype(self.dtype)

        def values(low: float, high: float) -> Tensor:
            return torch.rand(terms, generator=generator, dtype=torch.float64) * (high - low) + low

        mean, var, weight, bias = values(-6, 6), values(0.1, 4), values(-1.5, 1.5), values(-1, 1)
        rstd = (var + 1e-5).rsqrt()
        statistics = torch.stack([mean, var, rstd, weight * rstd, bias - mean * weight * rstd], 1)
        coefficients = torch.stack([values(-2, 2), values(-1, 1), values(-1, 1)], 1)
        shape = (self.images, self.channels, *self.size)
        q, gradient = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
        q = q * var.sqrt().flatten(1)[..., None, None] + mean.flatten(1)[..., None, None]
        return (
            rows_of(gradient.to(self.dtype), self.offset),
            rows_of(q.to(self.dtype), self.offset),
            statistics.to(kind),
            coefficients.to(kind),
        )


# Those on which the kernels take each of their paths, in every dtype, and where tiles, parts and runs end.
CASES = {
    "odd": Rows(),
    "one pixel": Rows(1, 1, 8, (1, 1)),
    "one channel": Rows(3, 1, 1, (5, 9)),
    "vectors": Rows(2, 2, 16, (5, 3)),
    "vectors of images": Rows(3, 2, 16, (5, 3), by_image=True),
    "elements of images": Rows(3, 2, 9, (3, 5), by_image=True),
    "more vectors than lanes": Rows(2, 2, 264, (3, 3), by_image=True),
    "more elements than lanes": Rows(2, 1, 387, (2, 4)),
    "vectors of all branches but not of one": Rows(2, 8, 3, (3, 4)),
    "many parts": Rows(1, 2, 128, (17, 21)),
    "several runs of rows": Rows(1, 1, 8, (40, 29)),
    "begins within a vector": Rows(2, 2, 16, (3, 5), offset=1),
    "without images": Rows(0),
}


def exact(x: Tensor) -> np.ndarray:
    return x.detach().double().cpu().numpy().astype(np.longdouble)


def by_channel(terms: Tensor, index: int) -> np.ndarray:
    """One row of statistics or coefficients, [sets, D·O, 1, 1]."""
    return exact(terms[:, index].flatten(1)[..., None, None])


def passed(gradient: Tensor, q: Tensor, statistics: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The gradient behind the ReLU, and ŷ."""
    value = by_channel(statistics, 3) * exact(q) + by_channel(statistics, 4)
    narrow = np.float64 if q.dtype == torch.float64 else np.float32
    rounded = torch.from_numpy(value.astype(narrow)).to(q.dtype).double().numpy()
    g = np.where(rounded <= 0, np.longdouble(0), exact(gradient))
    return g, (exact(q) - by_channel(statistics, 0)) * by_channel(statistics, 2)


def check_output(q: Tensor, statistics: Tensor) -> None:
    out = torch.ops.jpu_cuda.training_output(q, statistics)
    assert (out.shape, out.dtype) == (q.shape, q.dtype)
    assert out.is_contiguous(memory_format=torch.channels_last) or 0 in out.shape
    if out.numel() > 0:
        product, shift = by_channel(statistics, 3) * exact(q), by_channel(statistics, 4)
        assert_rounded(out, np.maximum(product + shift, 0), np.abs(product) + np.abs(shift), 1)


def parts_of(pixels: int, parts: int) -> list[slice]:
    """As even as they come, the longer ones first."""
    ends = [(s * (pixels // parts) + min(s, pixels % parts)) for s in range(parts + 1)]
    return [slice(*ends[s : s + 2]) for s in range(parts)]


def check_sums(gradient: Tensor, q: Tensor, statistics: Tensor) -> Tensor:
    """Returns the sums."""
    (n, c, height, columns), (branches, width) = q.shape, statistics.shape[2:]
    pixels = height * columns
    sums = torch.ops.jpu_cuda.training_output_sums(gradient, q, statistics)
    parts = sums.shape[1]
    assert sums.dtype == sum_dtype(q.dtype)
    assert sums.shape == (n, parts, 3, branches, width)
    assert sums.is_contiguous()
    assert 1 <= parts <= pixels
    if n == 0:
        return sums
    g, normalised = (x.reshape(n, c, pixels) for x in passed(gradient, q, statistics))
    terms = np.stack([g, g * normalised, normalised], 1)
    truth, magnitude = (
        np.stack([x[..., part].sum(-1) for part in parts_of(pixels, parts)], 1) for x in (terms, np.abs(terms))
    )
    # A term has three roundings; then a run of 16, all runs, which are at most every 16th pixel, the same of rows.
    steps = 3 + 16 + -(-pixels // parts) // 16 + 1 + 16 + 16
    assert_rounded(sums, truth.reshape(sums.shape), magnitude.reshape(sums.shape), steps)
    return sums


def check_gradient(
    gradient: Tensor, q: Tensor, statistics: Tensor, coefficients: Tensor, first: int, branches: int
) -> None:
    dq = torch.ops.jpu_cuda.training_output_gradient(gradient, q, statistics, coefficients, first, branches)
    width, rows = statistics.shape[3], q.shape[0] * q.shape[2] * q.shape[3]
    assert (dq.shape, dq.dtype) == ((branches, rows, width), q.dtype)
    assert dq.is_contiguous()
    if dq.numel() == 0:
        return
    g, normalised = passed(gradient, q, statistics)
    k, a, b = (by_channel(coefficients, i) for i in range(3))
    parts = k * g, -a + 0 * g, -b * normalised

    def as_rows(x: np.ndarray) -> np.ndarray:
        by_branch = x.transpose(0, 2, 3, 1).reshape(rows, -1, width).transpose(1, 0, 2)
        return by_branch[first : first + branches]

    truth, magnitude = as_rows(sum(parts)), as_rows(sum(map(np.abs, parts)))
    assert_rounded(dq, truth, magnitude, 4)  # difference and product of ŷ, two sums


def check(case: Rows, seed: int = 0) -> None:
    """Each entry of all three within its bound, and of each group of branches."""
    gradient, q, statistics, coefficients = case.arguments(seed)
    check_output(q, statistics)
    check_sums(gradient, q, statistics)
    for first in range(case.branches):
        for branches in {1, case.branches - first}:
            check_gradient(gradient, q, statistics, coefficients, first, branches)


def results(case: Rows) -> list[Tensor]:
    """Of all three, of the first branch where some are chosen."""
    gradient, q, statistics, coefficients = case.arguments()
    op = torch.ops.jpu_cuda
    return [
        op.training_output(q, statistics),
        op.training_output_sums(gradient, q, statistics),
        op.training_output_gradient(gradient, q, statistics, coefficients, 0, 1),
    ]


# --- threads that walk on -------------------------------------------------------------------------------

FLOAT32 = torch.finfo(torch.float32)


def many_images(images: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """As ``Rows.arguments``, three tiles of 86 channels, which as elements are two rows; and what widens a tensor."""
    gradient, q, statistics, coefficients = Rows(1, 2, 129, (2, 17)).arguments()
    shift = torch.arange(images).view(-1, 1, 1, 1) / 4096
    gradient, q = (rows_of(x.expand(images, -1, -1, -1) + shift) for x in (gradient, q))
    return gradient, q, statistics, coefficients, lambda x: x.double().permute(0, 2, 3, 1).reshape(images, 34, 2, 129)


def check_rounds_of_output() -> None:
    """Of 4356 tiles of one round."""
    _, q, statistics, _, wide = many_images(683)
    with host.record() as launches:
        out = torch.ops.jpu_cuda.training_output(q, statistics)
    assert [launch.blocks for launch in launches] == [3 * -(-683 * 34 // 32)]
    scale, shift = statistics[0, 3:].double()
    # One rounding, and the reference's own, which is none beside it.
    assert torch.allclose(wide(out), (scale * wide(q) + shift).relu(), rtol=FLOAT32.eps, atol=0)


def check_runs_of_sums() -> None:
    """Where blocks are enough without parts, so that a thread has 17 pixels."""
    gradient, q, statistics, _, wide = many_images(683)
    sums = torch.ops.jpu_cuda.training_output_sums(gradient, q, statistics)
    assert sums.shape == (683, 1, 3, 2, 129)
    mean, _, rstd, scale, shift = statistics[0].double()
    normalised = (wide(q) - mean) * rstd
    g = torch.where((scale * wide(q) + shift).float() <= 0, 0, wide(gradient))
    for i, terms in enumerate((g, g * normalised, normalised)):
        # Three roundings of a term, 15 of a run, one of two runs, one of two rows.
        bound = 20 * FLOAT32.eps / 2 * terms.abs().sum(1)
        assert ((sums[:, 0, i].double() - terms.sum(1)).abs() <= bound).all(), "expected each sum within its bound"


def check_rounds_of_gradient() -> None:
    """Of 4209 tiles of one round."""
    gradient, q, statistics, coefficients, wide = many_images(330)
    with host.record() as launches:
        dq = torch.ops.jpu_cuda.training_output_gradient(gradient, q, statistics, coefficients, 0, 2)
    assert [launch.blocks for launch in launches] == [3 * -(-330 * 34 // 16)]
    mean, _, rstd, scale, shift = statistics[0].double()
    k, a, b = coefficients[0].double()
    g = torch.where((scale * wide(q) + shift).float() <= 0, 0, wide(gradient))
    parts = k * g, -a, -b * (wide(q) - mean) * rstd
    truth = parts[0] + parts[1] + parts[2]
    bound = 5 * FLOAT32.eps / 2 * (parts[0].abs() + parts[1].abs() + parts[2].abs())  # as of check_gradient
    found = dq.double().transpose(0, 1).reshape(truth.shape)
    assert ((found - truth).abs() <= bound).all(), "expected each entry within its bound"
