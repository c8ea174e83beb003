"""Runs upsample_concat and its gradients on small tensors of every dtype and layout; compute-sanitizer watches.

Data are made on the CPU and copied over, so that hardly any kernels but this project's run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from jpu_cuda import functional, use_backend

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Memory format, channels, and how far a slice lies from the ends of its buffer: 0 or 16 keep 16-byte accesses.
LAYOUTS = {
    "contiguous": (torch.contiguous_format, (8, 16), 0),
    "channels_last": (torch.channels_last, (8, 16), 0),
    "odd": (torch.contiguous_format, (3, 5), 0),
    "sliced": (torch.contiguous_format, (8, 3), 1),
    "sliced_by_16": (torch.contiguous_format, (8, 16), 16),
    "sliced_channels_last": (torch.channels_last, (8, 16), 1),
    "sliced_channels_last_by_16": (torch.channels_last, (8, 16), 16),
}
# Levels wider than a tile, not multiples of each other; the second pair resizes rows alone.
SIZES = (((17, 72), (9, 31)), ((40, 24), (7, 24)))


def levels_of(layout: str, sizes: Sequence[tuple[int, int]], dtype: torch.dtype, device: str) -> list[Tensor]:
    memory_format, channels, margin = LAYOUTS[layout]
    generator = torch.Generator().manual_seed(0)
    inner = 1 if memory_format == torch.channels_last else 3
    levels = []
    for c, (height, width) in zip(channels, sizes, strict=True):
        shape = [2, c, height, width]
        shape[inner] += 2 * margin
        values = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        buffer = values.contiguous(memory_format=memory_format).to(device)
        levels.append(buffer.narrow(inner, margin, shape[inner] - 2 * margin))
    return levels


def results_of(levels: Sequence[Tensor], align_corners: bool) -> list[Tensor]:
    """The output and the gradients of all levels, on the CPU in float64."""
    inputs = [level.detach().requires_grad_() for level in levels]
    out = functional.upsample_concat(inputs, align_corners, reverse=True)
    # The output's own bits, laid out as it is, for a gradient: no kernel is needed to make it.
    gradients = torch.autograd.grad(out, inputs, out.detach())
    return [x.detach().cpu().double() for x in (out, *gradients)]


def run(layout: str, sizes: Sequence[tuple[int, int]], dtype: torch.dtype, align_corners: bool, device: str) -> None:
    """Runs one case.

    Raises:
        AssertionError: the results are not those of PyTorch in float64.
    """
    levels = levels_of(layout, sizes, dtype, device)
    with use_backend("cuda" if device == "cuda" else "host"):
        results = results_of(levels, align_corners)
    with use_backend("reference"):
        expected = results_of([level.cpu().double() for level in levels], align_corners)
    # The gradient of the output is the output, so its own rounding is passed on. A pixel of a small level collects
    # up to a few dozen of them.
    eps = max(torch.finfo(dtype).eps, 72 * torch.finfo(torch.float32).eps if dtype != torch.float64 else 0)
    for result, truth in zip(results, expected, strict=True):
        torch.testing.assert_close(result, truth, rtol=0, atol=32 * eps * float(truth.abs().max()))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: by host execution")
    options = parser.parse_args(arguments)
    count = 0
    for layout in LAYOUTS:
        for dtype in DTYPES:
            for align_corners, sizes in zip((False, True), SIZES, strict=True):
                run(layout, sizes, dtype, align_corners, options.device)
                count += 1
        print(f"{layout}: as PyTorch in float64", flush=True)
    print(f"{count} cases")
    return 0


if __name__ == "__main__":
    sys.exit(main())
