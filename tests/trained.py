"""JPUs in training, by PyTorch and by the kernels, side by side."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from helpers import pyramid, randomise
from torch import Tensor, nn

from jpu_cuda import JPU, JPU_X, host, mmseg, use_backend
from jpu_cuda.modules.fastfcn import TramacJPU
from jpu_cuda.modules.sssegmentation import SSSegmentationJPU

CHANNELS = (4, 8, 16)
X_CHANNELS = (8, 128, 16)  # JPU_X: the second is twice the width

GROUP_NORM = {"type": "GN", "num_groups": 4, "requires_grad": True}

MODULES: dict[str, Callable[[], nn.Module]] = {
    "JPU": lambda: JPU(CHANNELS, width=8),
    "JPU without aligned corners": lambda: JPU(
        CHANNELS, width=8, up_kwargs={"mode": "bilinear", "align_corners": False}
    ),
    "TramacJPU": lambda: TramacJPU(CHANNELS, width=8),
    "JPU_X": lambda: JPU_X(X_CHANNELS, width=64),
    "mmseg.JPU": lambda: mmseg.JPU(CHANNELS, 8),
    "mmseg.JPU with GroupNorm": lambda: mmseg.JPU(CHANNELS, 8, norm_cfg=GROUP_NORM),
    "SSSegmentationJPU": lambda: SSSegmentationJPU(CHANNELS, 8),
}


def levels_for(module: nn.Module, **kwargs: Any) -> list[Tensor]:
    if isinstance(module, JPU_X):  # whose dilations take many tiles of an image
        return pyramid(X_CHANNELS, batch=1, **kwargs)
    return pyramid(CHANNELS, **kwargs)


def call(module: nn.Module, levels: list[Tensor]) -> Tensor:
    if isinstance(module, JPU_X):
        return module(levels[0], *levels)[-1]
    if isinstance(module, JPU) and not isinstance(module, mmseg.JPU | SSSegmentationJPU):
        return module(*levels)[-1]
    return module(levels)[-1]


def results(
    module: nn.Module, levels: list[Tensor], backend: str, gradient: Tensor | None = None, **options: Any
) -> tuple[dict[str, Tensor | None], list[str]]:
    """Of a copy of the module: output, gradients, buffers afterwards; and what was launched."""
    module = copy.deepcopy(module)
    module.zero_grad()
    levels = [level.detach().requires_grad_(level.requires_grad) for level in levels]
    with use_backend(backend, **options), host.record() as launches:
        out = call(module, levels)
        found: dict[str, Tensor | None] = {"out": out.detach()}
        if out.requires_grad:
            if gradient is None:
                gradient = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).to(out.dtype).view_as(out)
            out.backward(gradient)
    found |= {f"level{i}": level.grad for i, level in enumerate(levels)}
    found |= {name: p.grad for name, p in module.named_parameters()}
    found |= dict(module.named_buffers())
    return found, [launch.kernel for launch in launches]


def assert_alike(module: nn.Module, levels: list[Tensor], **options: Any) -> list[str]:
    """That float64 differs by the order of additions only; returns what was launched."""
    expected, none = results(module, levels, "reference")
    found, kernels = results(module, levels, "host", **options)
    assert none == []
    # A bias before batch statistics has a gradient that is zero but for rounding, so the scale is that of all.
    scale = max(float(x.abs().max()) for x in expected.values() if x is not None and x.numel() > 0)
    for name, right in expected.items():
        assert (right is None) == (found[name] is None), name
        if right is not None:
            torch.testing.assert_close(
                found[name], right, rtol=1e-9, atol=1e-12 * scale, msg=lambda m, name=name: f"{name}: {m}"
            )
    return kernels


def made(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomise(MODULES[name](), seed).double()
