"""Cases of norm_relu, and what its results are held to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from folds import exact
from helpers import assert_no_worse_than, assert_rounded, max_error
from strategies import LAYOUTS
from torch import Tensor

from jpu_cuda.ops._library import sum_dtype
from jpu_cuda.reference import norm_relu as by_torch


@dataclass(frozen=True)
class Norms:
    """Levels and their norms, without their values."""

    channels: tuple[int, ...] = (5, 8, 7)
    sizes: tuple[tuple[int, int], ...] = ((9, 7), (4, 6), (2, 3))
    layouts: tuple[str, ...] = ("contiguous",) * 3
    batch: int = 2
    dtype: torch.dtype = torch.float32
    wide: bool = True  # norms in the type of sums, not in that of the levels
    absent: tuple[tuple[str, int], ...] = ()  # "weight" or "bias" of a level; numbers past the last count anew
    eps: tuple[float, ...] = (1e-5, 1e-3, 0.5)
    device: str = "cpu"

    def arguments(self, seed: int = 0) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)
        kind = self.device, sum_dtype(self.dtype) if self.wide else self.dtype

        def values(low: float, high: float) -> list[Any]:
            drawn = [torch.rand(c, generator=generator, dtype=torch.float64) for c in self.channels]
            return [(x * (high - low) + low).to(*kind) for x in drawn]

        weight, bias, mean, var = values(-1.5, 1.5), values(-2, 2), values(-3, 3), values(0.01, 4)
        for name, i in self.absent:
            {"weight": weight, "bias": bias}[name][i % len(self.channels)] = None
        levels = [
            LAYOUTS[layout](
                torch.randn(self.batch, c, *size, generator=generator, dtype=torch.float64).to(self.device, self.dtype)
            )
            for c, size, layout in zip(self.channels, self.sizes, self.layouts, strict=True)
        ]
        eps = [self.eps[i % len(self.eps)] for i in range(len(levels))]
        return levels, weight, bias, mean, var, eps


def one(channels: int, size: tuple[int, int], layout: str = "contiguous", **more: Any) -> Norms:
    """A case of one level."""
    return Norms((channels,), (size,), (layout,), **more)


ALL_LAST = ("channels_last",) * 3
MIXED = (*ALL_LAST[:2], "contiguous")

# Those on which the kernel takes each of its paths, in every dtype, and where tiles end.
CASES = {
    "odd": Norms(),
    "odd, channels_last": Norms(layouts=ALL_LAST),
    "vectors of pixels": Norms((3, 5, 300), ((8, 9), (16, 16), (2, 4))),
    "vectors of channels": Norms((16, 24, 264), ((9, 7), (4, 6), (1, 1)), ALL_LAST),
    "more vectors than lanes": Norms((3, 2, 1), ((24, 33), (8, 65), (40, 32))),
    "more channels than lanes": Norms((520, 264, 1032), ((3, 1), (2, 2), (1, 1)), ALL_LAST),
    "more elements than lanes": Norms((131, 3, 260), ((3, 3), (13, 11), (1, 3)), MIXED),
    "longer than a walk": Norms((3, 8, 70), ((41, 37), (50, 41), (3, 5)), MIXED),
    "one pixel": Norms((8, 1, 5), ((1, 1),) * 3),
    "one pixel of one image": Norms((8, 1, 13), ((1, 1),) * 3, batch=1),
    "a row, a column, a pixel": Norms((3, 3, 3), ((1, 9), (9, 1), (1, 1)), ALL_LAST),
    "mixed formats": Norms((8, 8, 8), ((4, 4),) * 3, ("channels_last", "contiguous", "strided")),
    "slices": Norms((8, 8, 16), ((4, 8),) * 3, ("sliced_by_16", "sliced", "sliced_channels_last_by_16")),
    "channels that begin within a vector": Norms((8, 8, 6), ((4, 8),) * 3, ("sliced_channels_last",) * 3),
    "other strides": Norms((8, 5, 3), ((4, 8),) * 3, ("transposed", "batch_inside", "padded")),
    "repeated": Norms((8, 5, 3), ((4, 8),) * 3, ("expanded_batch", "expanded_channels", "expanded_image")),
    "an empty batch": Norms(batch=0),
    "without weights and biases": Norms(absent=(("weight", 0), ("bias", 1), ("weight", 2), ("bias", 2))),
}


def run(arguments: Sequence[Any]) -> list[Tensor]:
    return torch.ops.jpu_cuda.norm_relu(*arguments)


def true_results(*arguments: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each result in extended precision, and the sum of its terms' absolute values."""
    found = []
    for level, weight, bias, mean, var, eps in zip(*arguments, strict=True):
        column = exact(weight, 1), exact(bias), exact(mean), exact(var)
        w, b, m, v = (x if x.ndim == 0 else x[:, None, None] for x in column)
        scale = w / np.sqrt(v + np.longdouble(eps))
        x = exact(level)
        truth = np.maximum(scale * x + (b - m * scale), 0)
        found.append((truth, np.abs(scale * x) + np.abs(b) + np.abs(m * scale)))
    return found


# Half an ulp each: 3 of the scale (variance plus eps, which the root halves, root, quotient), the shift, the sum.
STEPS = 5


def check(case: Norms, draws: int = 8) -> None:
    """Each entry within its bound, altogether no worse than PyTorch's own, in the format that PyTorch gives."""
    arguments = case.arguments()
    results, truths = run(arguments), true_results(*arguments)
    expected = by_torch.norm_relu(*arguments)
    drawn = [case.arguments(seed) for seed in range(draws)]
    errors = [
        [max_error(y, truth) for y, (truth, _) in zip(by_torch.norm_relu(*a), true_results(*a), strict=True)]
        for a in drawn
    ]
    assert len(results) == len(truths)
    for i, (result, (truth, magnitude)) in enumerate(zip(results, truths, strict=True)):
        assert (result.shape, result.dtype) == (expected[i].shape, expected[i].dtype)
        assert_no_worse_than(result, truth, [row[i] for row in errors])
        if result.numel() > 0:
            assert_same_strides(result, formatted(i, arguments))
            assert_rounded(result, truth, magnitude, STEPS)


def assert_same_strides(result: Tensor, like: Tensor) -> None:
    """But for extents of one, whose strides say nothing."""
    expected, got = ([s for s, n in zip(x.stride(), x.shape, strict=True) if n > 1] for x in (like, result))
    assert got == expected, f"expected strides {expected}, got {got}"


def formatted(i: int, arguments: Sequence[Any]) -> Tensor:
    """What PyTorch's norm makes of a level on the CPU, where it goes by the format that the strides suggest."""
    level, _, _, mean, var, _ = (part[i] for part in arguments)
    like = torch.empty_strided(level.shape, level.stride(), dtype=level.dtype).zero_()
    return torch.nn.functional.batch_norm(like, mean.cpu(), var.cpu())
