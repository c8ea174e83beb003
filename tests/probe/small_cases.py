"""Runs every kernel on small tensors of every dtype and layout; compute-sanitizer watches.

Data are made on the CPU and copied over, so that hardly any kernels but this project's run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from unittest.mock import patch

import torch
from pyramids import Pyramid, by_kernels
from torch import Tensor
from trained_cases import Trained

from jpu_cuda import functional, use_backend
from jpu_cuda.backend import requested_backend
from jpu_cuda.ops import trained_pyramid, upsample_fold
from jpu_cuda.ops._library import sum_dtype
from jpu_cuda.reference import norm_relu
from jpu_cuda.reference.trained_pyramid import trained_pyramid as trained_reference

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


def results_of(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """The output and the gradients of all inputs, on the CPU in float64."""
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    out = function(*inputs)
    # The output's own bits, laid out as it is, for a gradient: no kernel is needed to make it.
    gradients = torch.autograd.grad(out, inputs, out.detach())
    return [x.detach().cpu().double() for x in (out, *gradients)]


def assert_as_in_float64(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], device: str, steps: int, tf32: bool = False
) -> None:
    """Asserts that output and gradients are PyTorch's in float64, but for so many roundings."""
    with use_backend("cuda" if device == "cuda" else "host"):
        results = results_of(function, inputs)
    with use_backend("reference"):
        expected = results_of(function, [tensor.cpu().double() for tensor in inputs])
    dtype = inputs[0].dtype
    eps = max(torch.finfo(dtype).eps, 72 * torch.finfo(torch.float32).eps if dtype != torch.float64 else 0)
    eps = 2**-10 if tf32 else eps
    for result, truth in zip(results, expected, strict=True):
        torch.testing.assert_close(result, truth, rtol=0, atol=steps * eps * float(truth.abs().max()))


def resize(layout: str, sizes: Sequence[tuple[int, int]], dtype: torch.dtype, align_corners: bool, device: str) -> None:
    """upsample_concat, whose gradients are sums of up to a few dozen outputs, each with its own rounding."""
    levels = levels_of(layout, sizes, dtype, device)
    assert_as_in_float64(
        lambda *x: functional.upsample_concat(x, align_corners, reverse=True), levels, device, steps=32
    )


def convolve(layout: str, dtype: torch.dtype, device: str) -> None:
    """separable_pyramid, every gradient. Where rounding decides what passes the ReLU, the gradient is next to 0."""
    levels = levels_of(layout, ((9, 10), (9, 10)), dtype, device)
    channels, generator = sum(level.shape[1] for level in levels), torch.Generator().manual_seed(1)

    def normal(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) / 3).to(kind).to(device)

    terms = [normal(2, width, kind=sum_dtype(dtype)) for width in (channels, channels, 20, 20)]
    weights = normal(2, channels, 3, 3), normal(2, 20, channels)

    def pyramid(first: Tensor, second: Tensor, depthwise: Tensor, pointwise: Tensor, *terms: Tensor) -> Tensor:
        names = ("scale", "shift", "out_scale", "out_shift")
        named = dict(zip(names, terms, strict=True))
        return functional.separable_pyramid((first, second), depthwise, pointwise, (1, 3), **named)

    assert_as_in_float64(pyramid, [*levels, *weights, *terms], device, steps=64)


def fold(layout: str, dtype: torch.dtype, device: str) -> None:
    """upsample_fold, a level beside the norms; levels and terms as one result."""
    first, second = levels_of(layout, SIZES[0], dtype, device)
    generator = torch.Generator().manual_seed(2)
    counts = (300, 300, 7, 7)
    vectors = [
        [(torch.rand(c, generator=generator, dtype=torch.float64) + 0.5).to(dtype).to(device) for c in counts]
        for _ in ("weight", "bias", "mean", "var")
    ]

    def folded(first: Tensor, second: Tensor, *norms: Tensor) -> Tensor:
        parts = [list(norms[k : k + 4]) for k in range(0, 8, 4)]
        statistics = [[x.detach().to(first) for x in part] for part in vectors[2:]]
        # Host execution serves CPU tensors of any dtype, once it is loaded, if the operator is called.
        by_torch = requested_backend() == "reference"
        run = upsample_fold._reference if by_torch else torch.ops.jpu_cuda.upsample_fold
        results = run([first, second], True, *parts, *statistics, [1e-5] * 4)
        return torch.cat([first.flatten()] + [x.flatten().to(first) for x in results])

    assert_as_in_float64(folded, [first, second, *vectors[0], *vectors[1]], device, steps=64)


def rectify(layout: str, dtype: torch.dtype, device: str) -> None:
    """norm_relu, whose results have no gradient."""
    levels = levels_of(layout, SIZES[0], dtype, device)
    generator = torch.Generator().manual_seed(3)
    values = [
        [torch.rand(x.shape[1], generator=generator, dtype=torch.float64) + 0.5 for x in levels]
        for _ in ("weight", "bias", "mean", "var")
    ]
    eps = [1e-5] * len(levels)
    found = torch.ops.jpu_cuda.norm_relu(levels, *([x.to(device, dtype) for x in part] for part in values), eps)
    rounded = ([x.to(dtype).double() for x in part] for part in values)
    expected = norm_relu.norm_relu([x.cpu().double() for x in levels], *rounded, eps)
    for result, truth in zip(found, expected, strict=True):
        atol = 8 * torch.finfo(dtype).eps * float(truth.abs().max())
        torch.testing.assert_close(result.cpu().double(), truth, rtol=0, atol=atol)


def group(dtype: torch.dtype, device: str) -> None:
    """The gradients of a pyramid of several chunks and tiles: one image at a time, and both together."""
    case = Pyramid(2, (40, 8), 70, (5, 6), (1, 3), dtype, "channels_last", terms="images", device=device)
    a = case.arguments()
    lists = a["levels"], a["depthwise"], a["pointwise"], list(case.dilations), *a["terms"]
    with use_backend("cuda" if device == "cuda" else "host"):
        every = (*lists, case.gradient(), by_kernels(case, a), [1] * 8)
        together = torch.ops.jpu_cuda.separable_pyramid_backward(*every)
        one_by_one = torch.ops.jpu_cuda.separable_pyramid_backward(*every, 1)
    for got, expected in zip(one_by_one, together, strict=True):
        torch.testing.assert_close(got.cpu(), expected.cpu(), rtol=0, atol=0)


def train(layout: str, dtype: torch.dtype, norms: tuple[str, str], policy: str, workspace: int, device: str) -> None:
    """trained_pyramid, every gradient but those that are 0 but for rounding: of biases before a batch's statistics."""
    sizes = (9, 10), (5, 4)
    case = Trained(2, LAYOUTS[layout][1], 20, sizes, (1, 3), norms, dtype, groups=(1, 2), policy=policy)
    _, align, reverse, *parts, dilations, weight, bias, mean, var, eps, groups = case.arguments()
    levels = levels_of(layout, sizes, dtype, device)
    needing = [x.to(device) for part in (*parts, weight, bias if norms[1] == "fixed" else bias[2:]) for x in part]

    def trained(first: Tensor, second: Tensor, *tensors: Tensor) -> Tensor:
        kept = sum_dtype(first.dtype)
        fixed = [[x if x is None else x.to(first.device, kept) for x in part] for part in (mean, var)]
        given = tensors[8:]
        biases = [*(x.to(first.device, kept) for x in bias[: 4 - len(given)]), *given]
        arguments = (
            *([first, second], align, reverse, list(tensors[:2]), list(tensors[2:4]), dilations),
            *(list(tensors[4:8]), biases, *fixed, eps, groups),
        )
        if requested_backend() == "reference":
            return trained_reference(*arguments)
        return torch.ops.jpu_cuda.trained_pyramid(*arguments, *case.options)[0]

    with patch.object(trained_pyramid, "WORKSPACE_BYTES", workspace):
        assert_as_in_float64(trained, [*levels, *needing], device, steps=64, tf32=case.tf32)


# Statistics of every kind, and every policy, for which float64 has one; branches together, and one by one.
TRAINED = (
    (("batch", "batch"), "mma", 1 << 28),
    (("group", "group"), "two-pass", 1),
    (("mixed", "fixed"), "fma", 1),
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: by host execution")
    options = parser.parse_args(arguments)
    count = 0
    for layout in LAYOUTS:
        for dtype in DTYPES:
            for align_corners, sizes in zip((False, True), SIZES, strict=True):
                resize(layout, sizes, dtype, align_corners, options.device)
            convolve(layout, dtype, options.device)
            fold(layout, dtype, options.device)
            rectify(layout, dtype, options.device)
            for norms, policy, workspace in TRAINED:
                train(layout, dtype, norms, policy, workspace, options.device)
            count += 5 + len(TRAINED)
        print(f"{layout}: as PyTorch in float64", flush=True)
    for dtype in DTYPES:
        group(dtype, options.device)
        count += 1
    print(f"{count} cases")
    return 0


if __name__ == "__main__":
    sys.exit(main())
