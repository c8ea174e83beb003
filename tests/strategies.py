"""What tests of resizing share: layouts, random cases, and the truth of bilinear interpolation.

The truth is worked out in extended precision from exact rational weights, so that it can judge float64
results too. It shares nothing with the kernels or with PyTorch.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_no_worse_than, assert_rounded, assert_within, max_error
from hypothesis import strategies as st
from torch import Tensor

from jpu_cuda.reference import loops

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

needs_host = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))),
    reason="needs a C++ compiler to build the kernels for the CPU, and there is none",
)

# --- layouts -----------------------------------------------------------------------------------------


def _sliced(x: Tensor, memory_format: torch.memory_format, margin: int) -> Tensor:
    """The same values as a slice of a larger buffer, ``margin`` in from each end of the innermost dimension."""
    margins = [1, 1, 1, 1]
    margins[1 if memory_format == torch.channels_last else 3] = margin
    larger = torch.full([n + 2 * m for n, m in zip(x.shape, margins, strict=True)], torch.nan, dtype=x.dtype)
    inner = larger.to(x.device).contiguous(memory_format=memory_format)[tuple(slice(m, -m) for m in margins)]
    return inner.copy_(x)


def _padded(x: Tensor) -> Tensor:
    """The same values in rows that begin at multiples of 16 elements, whatever their width."""
    larger = torch.full((*x.shape[:3], -(-x.shape[3] // 16) * 16), torch.nan, dtype=x.dtype, device=x.device)
    return larger[..., : x.shape[3]].copy_(x)


# Each takes a contiguous [N, C, H, W]. All keep the values, but for the expanded ones, which repeat some.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": lambda x: _sliced(x, torch.contiguous_format, 1),
    "sliced_by_16": lambda x: _sliced(x, torch.contiguous_format, 16),
    "sliced_channels_last": lambda x: _sliced(x, torch.channels_last, 1),
    "sliced_channels_last_by_16": lambda x: _sliced(x, torch.channels_last, 16),
    "padded": _padded,
    "strided": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "batch_inside": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "expanded_batch": lambda x: x[:1].expand_as(x),
    "expanded_channels": lambda x: x[:, :1].expand_as(x),
    "expanded_image": lambda x: x[:, :, :1, :1].expand_as(x),
}

# --- truth -------------------------------------------------------------------------------------------


@cache
def taps(small: int, large: int, align_corners: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each position of the large image: its two small pixels [2, large] and the second's weight [large]."""
    first, weight = np.zeros(large, dtype=np.int64), np.zeros(large, dtype=np.longdouble)
    for r in range(large):
        if align_corners:
            place = Fraction(r * (small - 1), large - 1) if large > 1 else Fraction(0)
        else:
            place = min(max(Fraction(2 * r + 1, 2) * Fraction(small, large) - Fraction(1, 2), Fraction(0)), small - 1)
        first[r] = int(place)
        rest = place - int(place)
        weight[r] = np.longdouble(rest.numerator) / np.longdouble(rest.denominator)
    return first, np.minimum(first + 1, small - 1), weight


def true_upsample(x: Tensor, size: tuple[int, int], align_corners: bool) -> np.ndarray:
    """The bilinear resize of [N, C, H, W] to ``size``."""
    value = x.detach().double().cpu().numpy().astype(np.longdouble)
    for axis, large in zip((2, 3), size, strict=True):
        first, second, weight = taps(value.shape[axis], large, align_corners)
        weight = weight[:, None] if axis == 2 else weight
        value = np.take(value, first, axis) * (1 - weight) + np.take(value, second, axis) * weight
    return value


def true_adjoint(gradient: Tensor, size: tuple[int, int], align_corners: bool) -> np.ndarray:
    """The gradient of an image of ``size``, from that of its resize."""
    value = gradient.detach().double().cpu().numpy().astype(np.longdouble)
    for axis, small in zip((2, 3), size, strict=True):
        first, second, weight = taps(small, value.shape[axis], align_corners)
        moved = np.moveaxis(value, axis, 0)
        result = np.zeros((small, *moved.shape[1:]), dtype=np.longdouble)
        np.add.at(result, first, moved * (1 - weight)[:, None, None, None])
        np.add.at(result, second, moved * weight[:, None, None, None])
        value = np.moveaxis(result, 0, axis)
    return value


def torch_adjoint(gradient: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """PyTorch's own gradient of its own resize, in the dtype of ``gradient``."""
    x = torch.zeros(*gradient.shape[:2], *size, dtype=gradient.dtype, device=gradient.device)
    if x.numel() == 0:
        return x
    if x.device.type == "cpu" and gradient.is_contiguous(memory_format=torch.channels_last):
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    y = F.interpolate(x, gradient.shape[2:], mode="bilinear", align_corners=align_corners)
    return torch.autograd.grad(y, x, gradient)[0]


# --- random cases ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Levels to resize, without their values."""

    batch: int
    channels: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    layouts: tuple[str, ...]
    dtype: torch.dtype
    align_corners: bool
    reverse: bool

    def levels(self, seed: int = 0, device: str = "cpu") -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return [
            LAYOUTS[layout](
                torch.randn(self.batch, c, *size, generator=generator, dtype=torch.float64).to(device, self.dtype)
            )
            for c, size, layout in zip(self.channels, self.sizes, self.layouts, strict=True)
        ]

    def gradients(self, seed: int = 0, device: str = "cpu") -> list[Tensor]:
        """One for each level, at the common size, in that level's layout."""
        common = Case(
            *(self.batch, self.channels, (self.sizes[0],) * len(self.sizes), self.layouts),
            *(self.dtype, self.align_corners, self.reverse),
        )
        return common.levels(seed + 1000, device)

    @property
    def elements(self) -> int:
        """How many elements a launch touches."""
        areas = [h * w + self.sizes[0][0] * self.sizes[0][1] for h, w in self.sizes]
        return max(self.batch, 1) * sum(c * area for c, area in zip(self.channels, areas, strict=True))


# One pixel, primes, and what lies around the tiles of the kernels: 8, 16, 32 and 64 pixels.
_SIDES = (1, 2, 3, 5, 7, 8, 9, 11, 13, 15, 16, 17, 23, 31, 32, 33, 63, 64, 65)
_MOST_ELEMENTS = 70_000  # 8 channels of 65 by 65 pixels, and their resize

# Layouts that serve 16-byte accesses along one axis, and all.
_ALIKE = (("contiguous", "sliced_by_16", "padded"), ("channels_last", "sliced_channels_last_by_16"), tuple(LAYOUTS))


@st.composite
def cases(draw: Any, most_levels: int = 5) -> Case:
    """Any levels that the ops take, of any layouts, small enough for host execution."""
    count = draw(st.integers(1, most_levels))
    side = st.sampled_from(_SIDES)
    # Half of the cases qualify for 16-byte accesses of channels, where their layouts do.
    channels = draw(st.sampled_from([st.integers(1, 40), st.sampled_from([8, 16, 24, 32, 40]), st.integers(0, 3)]))
    layout = st.sampled_from(draw(st.sampled_from(_ALIKE)))
    case = Case(
        batch=draw(st.integers(0, 3)),
        channels=tuple(draw(st.lists(channels, min_size=count, max_size=count))),
        sizes=tuple(draw(st.lists(st.tuples(side, side), min_size=count, max_size=count))),
        layouts=tuple(draw(st.lists(layout, min_size=count, max_size=count))),
        dtype=draw(st.sampled_from(DTYPES)),
        align_corners=draw(st.booleans()),
        reverse=draw(st.booleans()),
    )
    return _shrunk(case)


def _shrunk(case: Case) -> Case:
    """Fewer samples, then fewer levels, then smaller ones, until host execution takes milliseconds."""
    batch, channels, sizes, layouts = case.batch, case.channels, case.sizes, case.layouts
    while True:
        case = Case(batch, channels, sizes, layouts, case.dtype, case.align_corners, case.reverse)
        if case.elements <= _MOST_ELEMENTS:
            return case
        if batch > 1:
            batch = 1
        elif len(sizes) > 1:
            channels, sizes, layouts = channels[:-1], sizes[:-1], layouts[:-1]
        else:
            channels = (8,) if channels[0] % 8 == 0 else (1,)


def plain(
    channels: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    *,
    batch: int = 1,
    layout: str = "contiguous",
    dtype: torch.dtype = torch.float32,
    align_corners: bool = False,
    reverse: bool = False,
) -> Case:
    """A case of one layout."""
    layouts = (layout,) * len(sizes)
    return Case(batch, tuple(channels), tuple(sizes), layouts, dtype, align_corners, reverse)


# Those on which the kernels take each of their paths, in every dtype: along channels, along width, along
# width without resizing it, and element by element.
PATHS = {
    "channels": plain((40, 8), ((9, 17), (4, 5)), layout="channels_last"),
    "channels_sliced": plain((16, 24), ((9, 17), (4, 5)), layout="sliced_channels_last_by_16"),
    "width": plain((3, 9), ((17, 72), (9, 31))),
    "width_padded": plain((3, 8), ((33, 72), (9, 21)), layout="padded"),
    "width_near": plain((2, 8), ((33, 72), (32, 64))),
    "width_sliced": plain((2, 2), ((17, 40), (5, 23)), layout="sliced_by_16"),
    "same_width": plain((2, 9), ((17, 40), (5, 40))),
    "elements": plain((9, 3), ((17, 33), (4, 70)), layout="strided"),
    "elements_channels_last": plain((9, 3), ((17, 33), (4, 70)), layout="channels_last"),
    "downsampling": plain((5, 8), ((4, 8), (33, 65))),
    "one_pixel": plain((5, 8), ((1, 1), (7, 9))),
    "from_one_pixel": plain((5, 8), ((33, 16), (1, 1))),
}

# --- comparisons ---------------------------------------------------------------------------------------

DRAWS = 16


def baseline_errors(
    draw: Callable[[int], Sequence[Tensor]],
    by_torch: Callable[[Tensor], Tensor],
    truth: Callable[[Tensor], np.ndarray],
) -> list[list[float]]:
    """How far PyTorch's own path is off, for each tensor that ``draw`` makes of a seed: one error a draw."""
    draws = [[max_error(by_torch(x), truth(x)) for x in draw(seed)] for seed in range(DRAWS)]
    return [list(errors) for errors in zip(*draws, strict=True)]


def interpolate(x: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    if x.numel() == 0:  # which F.interpolate refuses
        return x.new_zeros(*x.shape[:2], *size)
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)


def check_forward(case: Case, device: str = "cpu") -> None:
    """Asserts that upsample and upsample_concat are no worse than PyTorch, level by level."""
    levels, size = case.levels(device=device), case.sizes[0]
    out = torch.ops.jpu_cuda.upsample_concat(levels, case.align_corners, case.reverse)
    assert out.shape == (case.batch, sum(case.channels), *size)
    assert out.dtype == case.dtype
    assert torch.equal(out, concat(torch.ops.jpu_cuda.upsample(levels, *size, case.align_corners), case.reverse))

    errors = baseline_errors(
        lambda seed: case.levels(seed, device),
        lambda x: interpolate(x, size, case.align_corners),
        lambda x: true_upsample(x, size, case.align_corners),
    )
    order = range(len(levels))
    parts = out.split([case.channels[i] for i in (reversed(order) if case.reverse else order)], dim=1)
    for part, level, error in zip(reversed(parts) if case.reverse else parts, levels, errors, strict=True):
        assert_no_worse_than(part, true_upsample(level, size, case.align_corners), error)
        if level.numel() and part.numel() < 10_000:  # the loops are slow
            exact, arithmetic = loops.Bounded.exact(level.cpu()), loops.Arithmetic.of(case.dtype)
            assert_within(part.cpu(), loops.resize(exact, size, case.align_corners, arithmetic))


def concat(parts: Sequence[Tensor], reverse: bool) -> Tensor:
    return torch.cat(list(reversed(parts)) if reverse else list(parts), dim=1)


def check_backward(case: Case, device: str = "cpu") -> None:
    """Asserts that upsample_backward is no worse than PyTorch, level by level."""
    gradients = case.gradients(device=device)
    heights, widths = zip(*case.sizes, strict=True)
    results = torch.ops.jpu_cuda.upsample_backward(gradients, heights, widths, case.align_corners)
    for i, (result, gradient, size) in enumerate(zip(results, gradients, case.sizes, strict=True)):
        assert result.shape == (case.batch, case.channels[i], *size)
        assert result.dtype == case.dtype
        errors = baseline_errors(
            lambda seed, i=i: [case.gradients(seed, device)[i]],
            lambda g, size=size: torch_adjoint(g, size, case.align_corners),
            lambda g, size=size: true_adjoint(g, size, case.align_corners),
        )
        truth = true_adjoint(gradient, size, case.align_corners)
        assert_no_worse_than(result, truth, errors[0])
        if gradient.numel() and result.numel():
            magnitude = true_adjoint(gradient.abs(), size, case.align_corners)
            # A product and two weights of three roundings each, then a sum over the support.
            assert_rounded(result, truth, magnitude, 8 + sum(gradient.shape[2:]))
