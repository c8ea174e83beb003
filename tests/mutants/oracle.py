"""Holds the kernels, executed on the CPU, to independent answers.

``PYTHONPATH=tests python -m mutants.oracle`` runs every check in one process, in seconds, and stops at the first that
fails. The answers come from ``torch.nn.functional.interpolate`` in float64 and from rational arithmetic.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import torch
import torch.nn.functional as F
from helpers import assert_refused
from torch import Tensor

from jpu_cuda import host, ops  # noqa: F401  ops defines torch.ops.jpu_cuda

from . import (
    fold_oracle,
    matrix_oracle,
    norm_relu_oracle,
    pyramid_oracle,
    training_depthwise_oracle,
    training_norms_oracle,
    training_products_oracle,
    training_rows_oracle,
)

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

CHECKS: dict[str, Callable[[], None]] = {}

Size = tuple[int, int]


def check(function: Callable[[], None]) -> Callable[[], None]:
    CHECKS[function.__name__] = function
    return function


def load(library: Path | None) -> None:
    """Loads the kernels: a library that was built elsewhere, or this checkout's."""
    if library is None:
        host.load()
    else:
        if host._CHECK != "address":  # which reserves terabytes of addresses
            # A fault may ask for any amount of memory.
            resource.setrlimit(resource.RLIMIT_AS, (32 << 30, 32 << 30))
        host._module = host.load_module(library)


# --- inputs and bounds --------------------------------------------------------------------------------


def image(*shape: int, dtype: torch.dtype, layout: str = "contiguous", **gaps: int) -> Tensor:
    """Random [N, C, H, W]; ``gaps`` leaves elements out after each step of an axis, or at the start (``offset``)."""
    generator = torch.Generator().manual_seed(sum(shape))
    values = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    order = {"contiguous": "wchn", "channels_last": "cwhn", "transposed": "hwcn"}[layout]
    strides, step = {}, 1
    for axis in order:
        strides[axis] = step + gaps.get(axis, 0)
        step = strides[axis] * max(1, shape["nchw".index(axis)])
    storage = torch.full((step + gaps.get("offset", 0),), torch.nan, dtype=dtype)
    return storage.as_strided(shape, [strides[axis] for axis in "nchw"], gaps.get("offset", 0)).copy_(values)


def resize(x: Tensor, size: Size, align_corners: bool) -> Tensor:
    return F.interpolate(x.double(), tuple(size), mode="bilinear", align_corners=align_corners)


def adjoint(gradient: Tensor, size: Size, align_corners: bool) -> Tensor:
    gradient = gradient.double()
    level = torch.zeros(*gradient.shape[:2], *size, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(resize(level, gradient.shape[2:], align_corners), level, gradient)[0]


def assert_close(what: str, actual: Tensor, expected: Tensor, magnitude: Tensor, steps: int) -> None:
    """The output's own rounding, and ``steps`` of what is accumulated, of which float64 itself makes as many."""
    assert actual.shape == expected.shape, f"{what}: expected {tuple(expected.shape)}, got {tuple(actual.shape)}"
    accumulated = torch.finfo(torch.float64 if actual.dtype == torch.float64 else torch.float32).eps
    out = torch.finfo(actual.dtype)
    bound = out.eps / 2 * expected.abs() + steps * accumulated * magnitude + out.smallest_normal * out.eps
    excess = (actual.double() - expected).abs() - bound
    worst = int(excess.nan_to_num(torch.inf).argmax())
    got, right = actual.reshape(-1)[worst].item(), expected.reshape(-1)[worst].item()
    assert excess.reshape(-1)[worst] <= 0, f"{what}: expected {right} at {worst}, got {got}"


def assert_resized(what: str, actual: Tensor, level: Tensor, size: Size, align_corners: bool) -> None:
    expected, magnitude = (resize(x, size, align_corners) for x in (level, level.abs()))
    assert_close(what, actual, expected, magnitude, 8 + 2 * max(*size, *level.shape[2:]))


def assert_adjoint(what: str, actual: Tensor, gradient: Tensor, size: Size, align_corners: bool) -> None:
    expected, magnitude = (adjoint(x, size, align_corners) for x in (gradient, gradient.abs()))
    assert_close(what, actual, expected, magnitude, 8 + 2 * sum(gradient.shape[2:]) + 2 * max(size))


def upsample(level: Tensor, size: Size, align_corners: bool) -> Tensor:
    return torch.ops.jpu_cuda.upsample([level], *size, align_corners)[0]


def backward(gradient: Tensor, size: Size, align_corners: bool) -> Tensor:
    return torch.ops.jpu_cuda.upsample_backward([gradient], [size[0]], [size[1]], align_corners)[0]


# --- the checks ---------------------------------------------------------------------------------------

# Channels, level, common size; larger than a tile of some path on every axis, and not multiples of it.
FORWARD = [
    ("contiguous", 11, (5, 9), (19, 72)),  # kWidth
    ("contiguous", 5, (5, 16), (35, 72)),  # kWidth by 16 bytes
    ("contiguous", 9, (7, 16), (18, 16)),  # kSameWidth
    ("contiguous", 9, (4, 6), (9, 35)),  # kElements
    ("contiguous", 3, (13, 40), (4, 8)),
    ("channels_last", 72, (5, 7), (10, 18)),  # kChannels
    ("channels_last", 9, (4, 6), (9, 35)),  # kElements
    ("channels_last", 8, (1, 3), (2, 1)),
    ("transposed", 3, (5, 4), (7, 8)),
]
BACKWARD = [
    ("contiguous", 3, (9, 33), (11, 208)),  # kWidth, more than one chunk of columns
    ("contiguous", 2, (5, 3), (9, 8)),
    ("contiguous", 9, (9, 18), (10, 19)),  # kElements
    ("contiguous", 2, (8, 11), (3, 5)),
    ("channels_last", 40, (9, 17), (12, 20)),  # kChannels
    ("channels_last", 9, (9, 18), (10, 19)),  # kElements
    ("channels_last", 8, (3, 1), (1, 2)),
    ("transposed", 3, (5, 4), (7, 8)),
]


@check
def forward_is_interpolate() -> None:
    for (layout, channels, low, high), dtype, align_corners in itertools.product(FORWARD, DTYPES, (False, True)):
        level = image(1, channels, *low, dtype=dtype, layout=layout)
        out = upsample(level, high, align_corners)
        assert_resized(f"{layout} {low} to {high} {dtype} {align_corners}", out, level, high, align_corners)


@check
def backward_is_its_adjoint() -> None:
    for (layout, channels, low, high), dtype, align_corners in itertools.product(BACKWARD, DTYPES, (False, True)):
        gradient = image(1, channels, *high, dtype=dtype, layout=layout)
        out = backward(gradient, low, align_corners)
        assert_adjoint(f"{layout} {high} to {low} {dtype} {align_corners}", out, gradient, low, align_corners)


def _gaps() -> Iterator[tuple[str, dict[str, int]]]:
    """Each spoils one of the conditions under which 16 bytes can be accessed, and no other."""
    for layout in ("contiguous", "channels_last"):
        for gap in ("offset", "n", "c", "h", "w"):
            yield layout, {gap: 1}


@check
def any_strides_do() -> None:
    for (layout, gaps), dtype in itertools.product(_gaps(), DTYPES):
        what = f"{layout} with a gap at {gaps} {dtype}"
        level = image(2, 8, 8, 8, dtype=dtype, layout=layout, **gaps)
        assert_resized(what, upsample(level, (12, 8), False), level, (12, 8), False)
        assert_adjoint(what, backward(level, (5, 3), False), level, (5, 3), False)


@check
def windows_may_be_too_large() -> None:
    # F.interpolate's own coordinates are too inexact for images that do not fit into shared memory.
    for dtype, low in itertools.product(DTYPES, [(31, 64), (33, 64), (31, 80)]):
        level = image(1, 9, *low, dtype=dtype)
        expected = upsample(level.contiguous(memory_format=torch.channels_last), (32, 72), False)
        same = torch.equal(upsample(level.contiguous(), (32, 72), False), expected)
        assert same, f"{low} {dtype}: expected what another path gives"


@check
def divisibility_is_looked_at() -> None:
    # Every stride is a multiple of 16 bytes here, and the axis that would be vectorised is not.
    for dtype, layout in itertools.product(DTYPES, ("contiguous", "channels_last")):
        axes = {"w": 1, "h": 2} if layout == "channels_last" else {"h": 2}
        padded = image(2, 16, 8, 16, dtype=dtype, layout=layout)
        if layout == "contiguous":  # kWidth, whose last 16 bytes of a row hold something else
            level = padded[..., :9]
            assert_resized(f"{layout} {dtype} rows of 9", upsample(level, (11, 16), True), level, (11, 16), True)
        level = padded[:, :9] if layout == "channels_last" else padded[..., :9]
        assert_resized(f"{layout} {dtype} {axes}", upsample(level, (11, 9), True), level, (11, 9), True)
        assert_adjoint(f"{layout} {dtype} {axes}", backward(level, (5, 4), True), level, (5, 4), True)
        # Here it is that of the middle level alone: 3 channels of pixels that are 16 apart, on either side.
        if layout == "channels_last":
            levels = [image(2, c, 5, 6, dtype=dtype, layout=layout) for c in (8, 16, 5)]
            levels[1] = levels[1][:, :3]
            out = torch.ops.jpu_cuda.upsample_concat(levels, False, False)
            assert torch.equal(out, torch.cat(levels, 1)), f"channels 8, 3 and 5 {dtype}: expected a copy"
            low = torch.ops.jpu_cuda.upsample_backward([out[:, 8:11]], [4], [3], True)[0]
            assert_adjoint(f"channels 8, 3 and 5 {dtype}", low, out[:, 8:11], (4, 3), True)


@check
def levels_are_concatenated() -> None:
    sizes = [(9, 8), (5, 8), (3, 2), (12, 7)]
    for dtype, align_corners, reverse in itertools.product(DTYPES, (False, True), (False, True)):
        # Channels: the level of 16 begins amid 16 bytes where pixels are contiguous.
        for layouts, channels in [
            (["contiguous"] * 4, (3, 16, 5, 8)),
            (["channels_last"] * 4, (2, 16, 8, 6)),
            (["contiguous", "channels_last", "transposed", "channels_last"], (3, 8, 2, 3)),
        ]:
            what = f"{layouts} {dtype} {align_corners} {reverse}"
            levels = [
                image(2, c, *size, dtype=dtype, layout=layout)
                for c, size, layout in zip(channels, sizes, layouts, strict=True)
            ]
            out = torch.ops.jpu_cuda.upsample_concat(levels, align_corners, reverse)
            last = all(layout == "channels_last" for layout in layouts)
            wanted = torch.channels_last if last else torch.contiguous_format
            assert out.is_contiguous(memory_format=wanted), f"{what}: expected {wanted}, got strides {out.stride()}"
            parts = out.split([x.shape[1] for x in (reversed(levels) if reverse else levels)], 1)
            for level, part in zip(reversed(levels) if reverse else levels, parts, strict=True):
                assert_resized(what, part, level, sizes[0], align_corners)
            # Slices of one gradient, as autograd makes them.
            gradients = torch.ops.jpu_cuda.upsample_backward(
                list(parts), [h for h, _ in sizes], [w for _, w in sizes], align_corners
            )
            for gradient, part, size in zip(gradients, parts, sizes, strict=True):
                assert_adjoint(what, gradient, part, size, align_corners)


@check
def lists_may_be_longer_than_a_launch() -> None:
    levels = [image(1, 1 + i % 3, 1 + i % 4, 2 + i % 2, dtype=torch.float32) for i in range(53)]
    for level, out in zip(levels, torch.ops.jpu_cuda.upsample(levels, 3, 4, False), strict=True):
        assert_resized("53 levels", out, level, (3, 4), False)


def _weights(small: int, large: int, align_corners: bool) -> list[list[Fraction]]:
    """What large pixel r takes from small pixel y, exactly."""
    rows = []
    for r in range(large):
        if align_corners:
            p = Fraction(r * (small - 1), large - 1) if large > 1 else Fraction(0)
        else:
            p = Fraction((2 * r + 1) * small, 2 * large) - Fraction(1, 2)
        p = min(max(p, Fraction(0)), Fraction(small - 1))
        rows.append([max(Fraction(0), 1 - abs(p - y)) for y in range(small)])
    return rows


@check
def weights_are_rounded_once() -> None:
    # 49 · (1 / 49) is less than 1 in floating point; 3, 7 and 41 divide nothing.
    pairs = [(7, 41), (41, 7), (49, 49), (50, 50), (3, 8), (1, 5), (5, 1), (13, 12)]
    for (small, large), align_corners, dtype in itertools.product(pairs, (False, True), (torch.float32, torch.float64)):
        what = f"{small} to {large} {align_corners} {dtype}"
        exact = _weights(small, large, align_corners)
        denominator = Fraction(2 * large) if not align_corners else Fraction(max(1, large - 1))
        rounded = torch.tensor([[float(w * denominator) for w in row] for row in exact], dtype=dtype)
        rounded = rounded / torch.tensor(float(denominator), dtype=dtype)
        level = torch.eye(small, dtype=dtype)[None, :, None, :]
        out = upsample(level, (1, large), align_corners)[0, :, 0]
        assert torch.equal(out, rounded.T), f"{what}: forward's weights are not rounded once"
        gradient = torch.eye(large, dtype=dtype)[None, :, None, :]
        out = backward(gradient, (1, small), align_corners)[0, :, 0]
        assert torch.equal(out, rounded), f"{what}: backward's weights are not those of forward"


@check
def weights_of_zero_take_no_part() -> None:
    for dtype, layout in itertools.product((torch.float32, torch.float16), ("contiguous", "channels_last")):
        level = image(1, 8, 3, 4, dtype=dtype, layout=layout)
        level[:, :, 1, 1] = torch.inf
        for size in [(5, 8), (5, 4), (3, 4), (5, 7)]:
            out = upsample(level, size, True)
            expected = resize(level.double().nan_to_num(posinf=1e30), size, True) >= 1e20
            same = torch.equal(~out.isfinite(), expected)
            assert same, f"{layout} {dtype} {size}: expected the infinite pixel in {expected.sum()} others"
    # 49 · (1 / 49) rounds to less than 1, so that floating point would put pixels between two others.
    for size, align_corners in [(49, False), (50, True)]:
        level = image(1, 2, 2, size, dtype=torch.float32)
        level[..., ::5] = torch.inf
        same = torch.equal(upsample(level, (2, size), align_corners), level)
        assert same, f"a copy of {size} columns, {align_corners}: expected the level itself"


@check
def long_sides_do_not_overflow() -> None:
    for align_corners in (False, True):
        level = image(1, 1, 1, 35_000, dtype=torch.float32)
        out = upsample(level, (1, 40_000), align_corners)
        assert_resized("35000 to 40000", out, level, (1, 40_000), align_corners)
        assert_adjoint("40000 to 35000", backward(out, (1, 35_000), align_corners), out, (1, 35_000), align_corners)


@check
def far_strides_do_not_overflow() -> None:
    far = 2**31 + 64
    storage = torch.empty(far + 64, dtype=torch.float16)  # of which only the pages that are written exist
    for axis, layout in itertools.product(range(3), ("contiguous", "transposed")):
        shape = [1, 1, 2, 4]
        shape[axis] = 2
        strides = [8, 8, 4, 1] if layout == "contiguous" else [8, 8, 1, 2]
        strides[axis] = far
        level = storage.as_strided(shape, strides).copy_(image(*shape, dtype=torch.float16))
        what = f"stride {far} on axis {axis}"
        assert_resized(what, upsample(level, (3, 8), False), level.clone(), (3, 8), False)
        assert_adjoint(what, backward(level, (1, 3), False), level.clone(), (1, 3), False)


@check
def orders_of_execution_agree() -> None:
    for layout, channels, low, high in [("contiguous", 2, (9, 33), (18, 208)), ("channels_last", 8, (3, 4), (5, 6))]:
        level = image(1, channels, *low, dtype=torch.float16, layout=layout)
        gradient = image(1, channels, *high, dtype=torch.float16, layout=layout)
        results = []
        for seed, late in [(0, True), (1, False), (2, True)]:
            with host.schedule(seed, late=late):
                results.append((upsample(level, high, False), backward(gradient, low, False)))
        for other in results[1:]:
            assert all(map(torch.equal, results[0], other)), f"{layout}: expected one result in every order"


@check
def accesses_are_as_wide_as_they_can_be() -> None:
    if host._CHECK == "address":
        return  # nothing counts accesses in that build

    def widths(function: Callable[[], object]) -> tuple[dict[int, int], dict[int, int], int]:
        """Reads and writes of global memory by their bytes, and how many sectors were written."""
        with host.record() as launches:
            function()
        counters = launches[0].counters
        return counters["global_reads"], counters["global_writes"], counters["global_write_sectors"]

    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        last = image(1, 16, 5, 8, dtype=dtype, layout="channels_last")
        plane = image(1, 3, 5, 16, dtype=dtype)
        odd = image(1, 7, 5, 9, dtype=dtype, layout="channels_last")  # one tile
        size = last.element_size()
        for what, function, wide_reads, wide_writes in [
            ("kChannels", lambda x=last: upsample(x, (7, 9), False), True, True),
            ("kWidth", lambda x=plane: upsample(x, (7, 32), False), True, True),
            ("kSameWidth", lambda x=plane: upsample(x, (7, 16), False), True, True),
            ("backward kChannels", lambda x=last: backward(x, (3, 4), False), True, True),
            ("backward kWidth", lambda x=plane: backward(x, (3, 9), False), True, False),
        ]:
            reads, writes, _ = widths(function)
            got = (set(reads) == {16}, set(writes) == {16})
            expected = (wide_reads, wide_writes)
            assert got == expected, f"{what} {dtype}: expected 16 bytes {expected}, got {reads} and {writes}"
        # A level that is only copied is read once, and neighbours in memory are written together.
        for what, x in [("kChannels", last), ("kSameWidth", plane), ("kElements", odd)]:
            reads, _, sectors = widths(lambda x=x: upsample(x, tuple(x.shape[2:]), False))
            expected, got = x.numel() * size, sum(width * count for width, count in reads.items())
            assert got == expected, f"copy by {what} {dtype}: expected {expected} bytes read, got {got}"
            assert sectors <= expected / 20, f"copy by {what} {dtype}: expected whole sectors, got {sectors}"
        _, _, sectors = widths(lambda x=odd: backward(x, (5, 9), False))
        expected = odd.numel() * size
        assert sectors <= expected / 20, f"backward kElements {dtype}: expected whole sectors, got {sectors}"


@check
def empty_levels_are_left_out() -> None:
    levels = [torch.ones(2, 3, 4, 5), torch.ones(2, 0, 2, 2), torch.full((2, 1, 2, 3), 2.0)]
    out = torch.ops.jpu_cuda.upsample_concat(levels, True, False)
    assert out.shape == (2, 4, 4, 5), f"expected (2, 4, 4, 5), got {tuple(out.shape)}"
    assert torch.equal(out.amax((0, 2, 3)), torch.tensor([1.0, 1.0, 1.0, 2.0])), "expected the levels themselves"
    assert torch.ops.jpu_cuda.upsample_concat([torch.ones(0, 3, 4, 5)], True, False).shape == (0, 3, 4, 5)


@check
def formats_are_those_of_torch() -> None:
    shapes = [(1, 4, 3, 5), (2, 1, 3, 5), (1, 4, 1, 1), (2, 4, 1, 1), (2, 4, 3, 1), (1, 1, 1, 1), (2, 1, 1, 1)]
    shapes += [(0, 4, 3, 5), (2, 0, 3, 5)]
    for shape, layout in itertools.product(shapes, ("contiguous", "channels_last", "transposed")):
        level = image(*shape, dtype=torch.float32, layout=layout)
        wanted = torch._prims_common.suggest_memory_format(level)
        expected = torch.empty(shape[0], shape[1], 4, 6).to(memory_format=wanted)
        for out in (upsample(level, (4, 6), False), backward(level, (4, 6), False)):
            assert out.stride() == expected.stride(), f"{layout} {shape}: {expected.stride()}, got {out.stride()}"


@check
def too_many_blocks_are_refused() -> None:
    level = torch.ones(1, 1, 1, 1, dtype=torch.float16).expand(2**30, 1, 1, 1)
    for call in (
        lambda: torch.ops.jpu_cuda.upsample([level] * 3, 1, 1, False),
        lambda: torch.ops.jpu_cuda.upsample_backward([level] * 3, [1] * 3, [1] * 3, False),
    ):
        try:
            call()
            got = "no error"
        except RuntimeError as error:
            got = str(error)
        assert "expected at most 2147483647 blocks, got" in got, f"expected too many blocks to be refused, got {got}"


@check
def wrong_arguments_are_refused() -> None:
    level, op = torch.ones(2, 3, 4, 5), torch.ops.jpu_cuda
    refusals: Sequence[tuple[str, Callable[[], object]]] = [
        ("levels[1]: expected 4 dimensions", lambda: op.upsample_concat([level, level[0]], True, False)),
        ("levels[1]: expected", lambda: op.upsample_concat([level, level.double()], True, False)),
        ("levels[1]: expected batch size 2", lambda: op.upsample_concat([level, level[:1]], True, False)),
        ("expected height and width from 1", lambda: op.upsample_concat([level, level[:, :, :0]], True, False)),
        ("levels[1]: expected batch size 2", lambda: op.upsample([level, level[:1]], 4, 5, True)),
        ("expected height and width from 1", lambda: op.upsample([level], 0, 5, True)),
        ("expected height and width from 1", lambda: op.upsample([level], 4, 2**30 + 1, True)),
        ("expected height and width from 1", lambda: op.upsample([level[..., :0]], 4, 5, True)),
        ("expected float64, float32, float16 or bfloat16", lambda: op.upsample([level.int()], 4, 5, True)),
        ("expected one height and width a gradient", lambda: op.upsample_backward([level], [4, 4], [5], True)),
        ("expected one height and width a gradient", lambda: op.upsample_backward([level], [4], [], True)),
        ("expected height and width from 1", lambda: op.upsample_backward([level], [4], [0], True)),
        (
            "gradients[1]: expected",
            lambda: op.upsample_backward([level, level[..., 1:]], [4, 4], [5, 5], True),
        ),
        (
            "gradients[1]: expected batch size 2",
            lambda: op.upsample_backward([level, level[:1]], [4, 4], [5, 5], True),
        ),
    ]
    assert_refused(refusals)


CHECKS.update(fold_oracle.CHECKS)
CHECKS.update(norm_relu_oracle.CHECKS)
CHECKS.update(training_rows_oracle.CHECKS)
CHECKS.update(pyramid_oracle.CHECKS)
CHECKS.update(matrix_oracle.CHECKS)
CHECKS.update(training_norms_oracle.CHECKS)
CHECKS.update(training_depthwise_oracle.CHECKS)
CHECKS.update(training_products_oracle.CHECKS)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=Path, help="a library for host execution; this checkout's if left out")
    parser.add_argument("--only", choices=CHECKS, help="one check")
    parser.add_argument("--verbose", action="store_true", help="print how long each takes")
    options = parser.parse_args(arguments)
    load(options.library)
    torch.set_num_threads(1)  # the tensors are tiny
    for name, function in CHECKS.items():
        if options.only not in (None, name):
            continue
        started = time.monotonic()
        try:
            function()
        except (AssertionError, RuntimeError) as error:
            print(f"oracle: {name}: {error}")
            return 1
        if options.verbose:
            print(f"oracle: {name}: {time.monotonic() - started:.2f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
