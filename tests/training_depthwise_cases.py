"""Cases of training's depthwise launches, and what their results are held to: PyTorch in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from jpu_cuda.ops._library import sum_dtype

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
