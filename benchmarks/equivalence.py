"""Before anything is timed: do the modules compute what a JPU is?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn

import jpu_cuda
from jpu_cuda import mmseg
from jpu_cuda.modules.core import JointPyramid
from jpu_cuda.reference import loops

_CHANNELS = (12, 16, 24)
# No level is a multiple of the next, so that resizing has real work; wide enough for every dilation.
_SIZES = ((19, 17), (9, 8), (5, 4))


@dataclass(frozen=True)
class Check:
    """A module's output against explicit loops.

    Attributes:
        name: of the module.
        dtype: that the module computed in; the loops are float64.
        error: greatest absolute difference.
        bound: the greatest that the dtype's rounding can explain anywhere.
        holds: whether every entry of the output is within its own bound.
    """

    name: str
    dtype: torch.dtype
    error: float
    bound: float
    holds: bool


def check_all() -> list[Check]:
    """Checks the JPUs of both families, with random weights and statistics, in float64 and float32."""
    torch.manual_seed(0)
    modules: dict[str, JointPyramid] = {
        "jpu_cuda.JPU": jpu_cuda.JPU(_CHANNELS, width=8),
        "jpu_cuda.mmseg.JPU": mmseg.JPU(_CHANNELS, mid_channels=8),
    }
    checks = []
    for name, module in modules.items():
        randomise_norms(module.eval())
        for dtype in (torch.float64, torch.float32):
            levels = [torch.randn(1, c, *size, dtype=dtype) for c, size in zip(_CHANNELS, _SIZES, strict=True)]
            checks.append(check(name, module.to(dtype), levels))
    return checks


def check(name: str, module: JointPyramid, levels: Sequence[Tensor]) -> Check:
    """Runs a JPU and the loops of :mod:`jpu_cuda.reference.loops` on the same weights and levels."""
    with torch.no_grad():
        outputs = module(levels) if isinstance(module, mmseg.LevelledJPU) else module(*levels)
    expected = loops.evaluate(module, levels, levels[0].dtype)
    error = np.abs(outputs[-1].double().numpy() - expected.value)
    holds = bool(np.all(error <= expected.error))
    return Check(name, levels[0].dtype, float(error.max()), float(expected.error.max()), holds)


def render(checks: Sequence[Check]) -> Table:
    """A line for each check."""
    table = Table(title="Modules against explicit loops in float64")
    for heading in ("module", "dtype"):
        table.add_column(heading)
    for heading in ("greatest error", "bound of rounding"):
        table.add_column(heading, justify="right")
    table.add_column("every entry within its bound")
    for c in checks:
        cells = (c.name, str(c.dtype).removeprefix("torch."), f"{c.error:.1e}", f"{c.bound:.1e}")
        table.add_row(*cells, "yes" if c.holds else "NO", style=None if c.holds else "bold red")
    return table


def randomise_norms(module: nn.Module) -> None:
    """Weights, biases and statistics that are not 1 and 0, so that leaving one out shows."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
