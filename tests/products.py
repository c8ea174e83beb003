"""Cases of training_products, and what its results are held to: q of inference, and moments in extended precision."""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from policies import CSRC
from pyramids import Pyramid
from torch import Tensor

from jpu_cuda.ops._library import sum_dtype

_PROGRAM = """
#include "separable_pyramid/config.h"

extern "C" void jpu_tiling(int dilation, int height, int width, int (&result)[5]) {
  const auto t = jpu::separable_pyramid::choose_tiling<128>(dilation, height, width);
  const int found[] = {t.shape.classes, t.shape.height, t.shape.width, t.rows, t.columns};
  for (int i = 0; i < 5; ++i) result[i] = found[i];
}
"""
# The most threads whose moments are merged into a tile's, and the most pixels that one of them has.
_GROUPS, _OWN = 32, 8


@cache
def _library() -> ctypes.CDLL:
    """Compiles config.h, which says how an image is cut."""
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "tiling.cpp"), Path(folder, "tiling.so")
        source.write_text(_PROGRAM)
        compiler = os.environ.get("CXX", "c++")
        command = [compiler, "-std=c++20", "-shared", "-fPIC", "-I", str(CSRC), str(source), "-o", str(library)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
        return ctypes.CDLL(str(library))


def tile_of_pixels(dilation: int, size: tuple[int, int]) -> np.ndarray:
    """Which tile each pixel of an image is of."""
    result = (ctypes.c_int * 5)()
    _library().jpu_tiling(dilation, *size, result)
    classes, height, width, rows, columns = result
    y, x = np.indices(size)
    group = (y % dilation * dilation + x % dilation) // classes
    return (group * rows + y // dilation // height) * columns + x // dilation // width


def number_of_tiles(dilation: int, size: tuple[int, int]) -> int:
    result = (ctypes.c_int * 5)()
    _library().jpu_tiling(dilation, *size, result)
    classes, _height, _width, rows, columns = result
    return -(-dilation * dilation // classes) * rows * columns


def statistics_like(values: Tensor, images: bool) -> Tensor:
    """The same terms [D, C] or [N, D, C] as a part of statistics [R, 5, D, C], as training passes them."""
    values = values if images else values[None]
    statistics = torch.full((values.shape[0], 5, *values.shape[1:]), torch.nan, dtype=values.dtype)
    statistics[:, 3] = values
    return statistics[:, 3] if images else statistics[0, 3]


def run(case: Pyramid, arguments: dict[str, Any]) -> list[Tensor]:
    a = arguments
    scale, shift = (statistics_like(term, case.terms == "images") for term in a["terms"][:2])
    return torch.ops.jpu_cuda.training_products(
        a["levels"], a["depthwise"], list(case.dilations), a["pointwise"], scale, shift, *case.options
    )


def by_inference(case: Pyramid, arguments: dict[str, Any]) -> Tensor:
    a = arguments
    lists = a["levels"], a["depthwise"], a["pointwise"], list(case.dilations)
    return torch.ops.jpu_cuda.separable_pyramid(*lists, *a["terms"][:2], None, None, False, *case.options)


def check(case: Pyramid, arguments: dict[str, Any] | None = None) -> list[Tensor]:
    """Holds q to the bits of inference, counts to the tiling, and each tile's moments to a bound that is derived."""
    arguments = case.arguments() if arguments is None else arguments
    results = q, moments, counts = run(case, arguments)
    assert q.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(q, by_inference(case, arguments)), "expected q of inference to the bit"
    check_moments(case, q, moments, counts)
    return results


def check_moments(case: Pyramid, q: Tensor, moments: Tensor, counts: Tensor) -> None:
    branches, outputs = len(case.dilations), case.outputs
    tiles = [number_of_tiles(dilation, case.size) for dilation in case.dilations]
    assert moments.shape == (case.batch, max(tiles), branches, 2, outputs), f"got {tuple(moments.shape)}"
    assert (moments.dtype, counts.dtype) == (sum_dtype(case.dtype), torch.int32)
    expected = np.zeros((max(tiles), branches), dtype=np.int32)
    values = q.double().numpy().astype(np.longdouble).reshape(case.batch, branches, outputs, -1)
    for d, dilation in enumerate(case.dilations):
        tile = tile_of_pixels(dilation, case.size).ravel()
        expected[:, d] = np.bincount(tile, minlength=max(tiles))
        for t in range(tiles[d]):
            check_tile(values[:, d][..., tile == t], moments[:, t, d], dilation <= min(case.size))
    assert np.array_equal(counts.numpy(), expected), f"expected counts {expected}, got {counts}"


def check_tile(values: np.ndarray, found: Tensor, filled: bool) -> None:
    """Of values [N, O, pixels] and moments [N, 2, O]. ``filled``: a tile's first pixel exists.

    With u half an ulp of the sums' type, and B the largest of the values: a thread's mean is off by no more than
    (pixels + 1) u·B. The tile's is rounded, which may be u·B, after the sum of the threads' distances from the first
    of them, u times the largest for each of as many steps. So E bounds a mean's error, and 2·E that of a distance of
    means. Hence the sum of squares is off by 4·E·√(n·M2) + 4·n·E² at most (Cauchy and Schwarz), and by its own
    roundings.
    """
    mean, squares = found.double().numpy().transpose(1, 0, 2)
    if values.shape[-1] == 0:
        assert not found.any(), "expected 0 of a tile without pixels"
        return
    count = values.shape[-1]
    true_mean = values.mean(axis=-1)
    true_squares = ((values - true_mean[..., None]) ** 2).sum(axis=-1)
    u = torch.finfo(found.dtype).eps / 2
    largest, spread = np.abs(values).max(axis=-1), np.ptp(values, axis=-1)
    distance = spread if filled else spread + largest  # from 0
    error = 1.01 * u * ((_OWN + 2) * largest + (_GROUPS + 4) * distance)
    within(mean, true_mean, error, "mean")
    bound = 4 * error * np.sqrt(count * true_squares) + 4 * count * error**2
    within(squares, true_squares, 1.01 * (bound + u * (_OWN + 8 + _GROUPS) * true_squares), "M2")


def within(got: np.ndarray, expected: np.ndarray, bound: np.ndarray, name: str) -> None:
    excess = np.abs(got - expected) - bound
    worst = np.unravel_index(int(excess.argmax()), excess.shape)
    assert np.isfinite(got).all(), f"{name}: expected finite values"
    assert excess[worst] <= 0, f"{name} at {worst}: expected {expected[worst]} ± {bound[worst]}, got {got[worst]}"


def off_centre(case: Pyramid, mean: float) -> dict[str, Any]:
    """Arguments whose q is a mean, and noise of a standard deviation of about one: h of a channel, picked out."""
    arguments = case.arguments()
    eye = torch.eye(case.outputs, sum(case.channels), dtype=case.dtype)[..., None, None]
    arguments["pointwise"] = [eye.clone() for _ in case.dilations]
    arguments["terms"][0].fill_(1)
    arguments["terms"][1].fill_(mean)
    return arguments
