"""What the kernels of upsample_concat move, how far they reach, and what they refuse."""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import max_error
from strategies import needs_host, plain, true_adjoint, true_upsample
from torch import Tensor

from jpu_cuda import functional, host, use_backend

pytestmark = needs_host

ops = torch.ops.jpu_cuda


@pytest.fixture(scope="module", autouse=True)
def _kernels() -> None:
    host.load()


# --- strides past 2^31 elements ----------------------------------------------------------------------

HUGE = 2**31 + 16  # elements; a multiple of every vector


def spread(x: Tensor, axis: int, memory_format: torch.memory_format) -> Tensor:
    """The same values, two entries of ``axis`` at HUGE elements from each other.

    The buffer is several GiB of address space; only the touched pages become memory.
    """
    assert x.shape[axis] == 2
    strides = list(torch.empty(x.shape).contiguous(memory_format=memory_format).stride())
    strides[axis] = HUGE
    buffer = torch.empty(sum((n - 1) * s for n, s in zip(x.shape, strides, strict=True)) + 1, dtype=x.dtype)
    return buffer.as_strided(x.shape, strides).copy_(x)


def assert_rounded_once(actual: Tensor, truth: np.ndarray) -> None:
    """Half precision: one rounding of the result, beside which those of float32 sums are nothing."""
    assert max_error(actual, truth) <= 1.01 * torch.finfo(actual.dtype).eps / 2 * float(abs(truth).max())


FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.mark.parametrize("axis", range(4), ids=["batch", "channels", "rows", "columns"])
@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
def test_levels_may_be_spread_over_more_than_2_to_31_elements(memory_format: torch.memory_format, axis: int) -> None:
    shape = [2, 8, 3, 8]
    shape[axis] = 2
    level = spread(torch.randn(shape).half(), axis, memory_format)
    first = torch.randn(2, 8, 5, 16).half().contiguous(memory_format=memory_format)
    out = ops.upsample_concat([first, level], False, False)
    assert torch.equal(out[:, :8], first)
    assert_rounded_once(out[:, 8:], true_upsample(level, (5, 16), False))


@pytest.mark.parametrize("axis", range(4), ids=["batch", "channels", "rows", "columns"])
@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
def test_gradients_may_be_spread_over_more_than_2_to_31_elements(memory_format: torch.memory_format, axis: int) -> None:
    shape = [2, 8, 5, 16]
    shape[axis] = 2
    gradient = spread(torch.randn(shape).half(), axis, memory_format)
    result = ops.upsample_backward([gradient], [3], [8], False)[0]
    assert_rounded_once(result, true_adjoint(gradient, (3, 8), False))


@pytest.mark.parametrize("axis", range(4))
@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
def test_an_offset_cut_to_32_bits_would_be_caught(memory_format: torch.memory_format, axis: int) -> None:
    """Such offsets address nothing of the spread tensor, and host execution faults outside of it."""
    x = spread(torch.zeros(2, 2, 2, 2).half(), axis, memory_format)
    index = torch.cartesian_prod(*(torch.arange(2),) * 4)
    offsets = {int(o) for o in (index * torch.tensor(x.stride())).sum(1)}
    cut = {ctypes.c_int32(o).value for o in offsets if o >= 2**31}
    assert len(cut) == 8
    assert all(o < 0 for o in cut)
    assert not cut & offsets


# --- traffic -----------------------------------------------------------------------------------------

# A fill of one channel tile each; more would be more of the same.
CHANNELS = {
    ("nchw", torch.float16): 8,
    ("nchw", torch.float32): 8,
    ("channels_last", torch.float16): 64,
    ("channels_last", torch.float32): 32,
}
SIZES = ((64, 64), (32, 32), (16, 16))
HALVES_AND_FLOATS = pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
BOTH_FORMATS = pytest.mark.parametrize("layout", FORMATS)


def images(layout: str, dtype: torch.dtype, sizes: tuple[tuple[int, int], ...]) -> list[Tensor]:
    channels = CHANNELS[layout, dtype]
    name = "contiguous" if layout == "nchw" else layout
    return plain((channels,) * len(sizes), sizes, layout=name, dtype=dtype).levels()


def measure(run: Callable[[], Any]) -> host.Launch:
    with host.record() as launches:
        run()
    (launch,) = launches
    return launch


def moved(launch: host.Launch) -> int:
    return launch.counters["distinct_read_bytes"] + launch.counters["distinct_write_bytes"]


def sectors(launch: host.Launch) -> int:
    """Of 32 bytes, as warps ask for them: what lies in a cache is asked for again."""
    return launch.counters["global_read_sectors"] + launch.counters["global_write_sectors"]


def size_of(tensors: list[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


@HALVES_AND_FLOATS
@BOTH_FORMATS
def test_forward_moves_little_more_than_its_inputs_and_output(layout: str, dtype: torch.dtype) -> None:
    levels = images(layout, dtype, SIZES)
    launch = measure(lambda: ops.upsample_concat(levels, False, True))
    output_bytes = 3 * size_of(levels[:1])
    assert launch.counters["distinct_write_bytes"] == output_bytes
    assert moved(launch) <= 1.25 * (size_of(levels) + output_bytes)
    # 16 bytes a store, and every sector of 32 bytes written by one instruction.
    assert launch.counters["global_writes"] == {16: output_bytes // 16}
    assert launch.counters["global_write_sectors"] * 32 == output_bytes
    assert set(launch.counters["global_reads"]) == {16}


@HALVES_AND_FLOATS
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("low", SIZES[1:], ids=["double", "quadruple"])
def test_forward_along_width_is_bound_by_memory(low: tuple[int, int], align_corners: bool, dtype: torch.dtype) -> None:
    (level,) = images("nchw", dtype, (low,))
    launch = measure(lambda: ops.upsample([level], *SIZES[0], align_corners))
    least = size_of([level]) + size_of(images("nchw", dtype, SIZES[:1]))
    assert set(launch.counters["global_reads"]) == {16}
    # Tiles overlap by a pixel, and 16 bytes are read where one pixel is needed.
    assert sectors(launch) * 32 <= 1.25 * least
    # Shared memory passes 128 bytes at a time; a warp stores 512. With 20 passes for it, a multiprocessor stores
    # 25 bytes a clock, more than its share of any GPU's memory bandwidth up to Hopper's.
    assert launch.counters["shared_accesses"] <= 20 * launch.counters["global_writes"][16] / 32
    # At a factor of 2 threads read every second bank, so the pixels come in two passes and the taps in one.
    assert launch.counters["bank_conflicts"] <= (0.3 if low == SIZES[1] else 0.1) * launch.counters["shared_accesses"]


def cropped(channels: int, height: int, width: int, dtype: torch.dtype) -> Tensor:
    """Rows that begin at multiples of 16 bytes, with memory between them that is not the image's."""
    return torch.randn(1, channels, height, -(-width // 8) * 8 + 8).to(dtype)[..., :width]


def reads_along_width(level: Tensor, size: tuple[int, int], align_corners: bool = False) -> dict[int, int]:
    """The global reads of a resize by 16-byte stores, whose result must be another path's, bit for bit."""
    results: list[Tensor] = []
    launch = measure(lambda: results.extend(ops.upsample([level], *size, align_corners)))
    assert results[0].is_contiguous()
    assert set(launch.counters["global_writes"]) == {16}
    other = ops.upsample([level.contiguous(memory_format=torch.channels_last)], *size, align_corners)[0]
    assert not other.is_contiguous()
    assert torch.equal(results[0], other)
    return launch.counters["global_reads"]


@HALVES_AND_FLOATS
@pytest.mark.parametrize("width", [1, 7, 9, 37, 40])
def test_the_last_vector_of_a_row_is_cut_at_its_end(width: int, dtype: torch.dtype) -> None:
    """Host execution faults where memory behind the row is read."""
    level = cropped(3, 9, width, dtype)
    size, bytes_of_rows = level.element_size(), 16 // level.element_size() * (width * level.element_size() // 16)
    widths = ({16} if bytes_of_rows else set()) | ({(width - bytes_of_rows) * size} - {0})
    reads = reads_along_width(level, (19, 64))
    assert set(reads) == widths
    if dtype == torch.float16:  # one tile: each pixel once
        assert sum(bytes_read * n for bytes_read, n in reads.items()) == size_of([level])


@HALVES_AND_FLOATS
@pytest.mark.parametrize("low", [(1, 40), (9, 1), (9, 37), (2, 2), (33, 64), (34, 24), (31, 56)], ids=str)
@pytest.mark.parametrize("align_corners", [False, True])
def test_any_size_can_be_resized_along_width(align_corners: bool, low: tuple[int, int], dtype: torch.dtype) -> None:
    # 34 and 72 are 2 and 8 more than the rows and columns of a tile of halves.
    strided = torch.randn(1, 2, low[0], 2 * low[1]).to(dtype)[..., ::2]
    for level in (cropped(3, *low, dtype), torch.randn(1, 9, *low).to(dtype), strided):
        reads_along_width(level, (34, 72), align_corners)


@HALVES_AND_FLOATS
def test_images_that_are_not_aligned_are_staged_by_elements(dtype: torch.dtype) -> None:
    size = torch.empty((), dtype=dtype).element_size()
    odd_rows = torch.randn(1, 3, 9, 31).to(dtype)
    for level in (
        odd_rows,
        cropped(3, 9, 32, dtype)[..., 1:],
        torch.randn(1, 3, 9, 64).to(dtype)[..., ::2],
        torch.randn(1, 3, 32, 9).to(dtype).transpose(2, 3),
    ):
        reads = reads_along_width(level, (18, 32))
        assert reads == {size: level.numel()}


@HALVES_AND_FLOATS
def test_what_shared_memory_cannot_hold_is_read_in_place(dtype: torch.dtype) -> None:
    size = torch.empty((), dtype=dtype).element_size()
    # 8 channels of a tile of this factor are too many, and 4 are not.
    assert set(reads_along_width(cropped(8, 31, 64, dtype), (32, 72))) >= {size}
    assert set(reads_along_width(cropped(4, 31, 64, dtype), (32, 72))) == {16}
    # Of a larger image few pixels may be used, in whichever axis it is larger.
    for low, high in [((40, 32), (20, 64)), ((20, 80), (40, 64)), ((400, 320), (4, 8))]:
        assert set(reads_along_width(cropped(8, *low, dtype), high)) == {size}


@HALVES_AND_FLOATS
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_pixels_without_weight_take_no_part_along_width(value: float, dtype: torch.dtype) -> None:
    # At a factor of 3 every third pixel is the level's own: pixel 9 of the level is column 28.
    level = cropped(2, 20, 16, dtype)
    level[:, :, 9, 9] = value
    (out,) = ops.upsample([level], 60, 48, False)
    assert set(measure(lambda: ops.upsample([level], 60, 48, False)).counters["global_reads"]) == {16}
    expected = torch.zeros(60, 48, dtype=torch.bool)
    expected[26:31, 26:31] = True
    assert torch.equal(~out.isfinite(), expected.expand_as(out))
    assert torch.equal(out[:, :, 1::3, 1::3].isfinite(), level.isfinite())


@HALVES_AND_FLOATS
@BOTH_FORMATS
def test_backward_moves_little_more_than_its_inputs_and_outputs(layout: str, dtype: torch.dtype) -> None:
    gradients = images(layout, dtype, (SIZES[0],) * 2)
    results: list[Tensor] = []
    launch = measure(lambda: results.extend(ops.upsample_backward(gradients, [32, 16], [32, 16], False)))
    assert launch.counters["distinct_write_bytes"] == size_of(results)
    assert moved(launch) <= 1.25 * (size_of(gradients) + size_of(results))
    assert set(launch.counters["global_reads"]) == {16}
    width = 16 if layout == "channels_last" else results[0].element_size()
    assert launch.counters["global_writes"] == {width: size_of(results) // width}
    assert launch.counters["global_write_sectors"] * 32 == size_of(results)


@HALVES_AND_FLOATS
def test_a_level_of_the_common_size_is_copied_by_16_bytes(dtype: torch.dtype) -> None:
    levels = images("nchw", dtype, SIZES[:1])
    launch = measure(lambda: ops.upsample_concat(levels, True, False))
    expected = {16: size_of(levels) // 16}
    assert launch.counters["global_reads"] == expected
    assert launch.counters["global_writes"] == expected
    assert moved(launch) <= 1.01 * 2 * size_of(levels)


def test_unaligned_images_are_served_by_elements() -> None:
    level = torch.randn(1, 8, 9, 17)[..., 1:]
    launch = measure(lambda: ops.upsample([level], 9, 17, False))
    assert set(launch.counters["global_writes"]) == {4}


# --- errors ------------------------------------------------------------------------------------------

X = torch.zeros(2, 3, 4, 5)
WRONG_LEVELS: dict[str, tuple[list[Tensor], str]] = {
    "integers": ([X.int()], "dtype: expected float64, float32, float16 or bfloat16, got Int"),
    "complex": ([X.to(torch.complex64)], "dtype: expected float64, float32, float16 or bfloat16, got ComplexFloat"),
    "three dimensions": ([X, X[0]], r"levels\[1\]: expected 4 dimensions \[N, C, H, W\], got 3"),
    "five dimensions": ([X[None]], r"levels\[0\]: expected 4 dimensions \[N, C, H, W\], got 5"),
    "batch": ([X, X[:1]], r"levels\[1\]: expected batch size 2, got 1"),
    "dtypes": ([X, X.half()], r"levels\[1\]: expected dtype Float as levels\[0\], got Half"),
    "no rows": ([X, X[:, :, :0]], r"levels\[1\]: expected height and width from 1 to 1073741824, got 0 and 5"),
    "no columns": ([X[..., :0]], r"levels\[0\]: expected height and width from 1 to 1073741824, got 4 and 0"),
    "devices": ([X, X.to("meta")], r"levels\[1\]: expected device cpu as levels\[0\], got meta"),
}


def assert_usable() -> None:
    out = ops.upsample_concat([torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1)], False, False)
    assert torch.equal(out, torch.ones(1, 2, 2, 2))


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("wrong", WRONG_LEVELS)
def test_the_operators_say_what_is_wrong_with_levels(wrong: str, requires_grad: bool) -> None:
    levels, message = WRONG_LEVELS[wrong]
    if requires_grad:
        levels = [x.detach().requires_grad_(x.dtype != torch.int32) for x in levels]
    with pytest.raises((RuntimeError, ValueError), match=message):
        ops.upsample_concat(levels, True, False)
    with pytest.raises((RuntimeError, ValueError), match=message):
        ops.upsample(levels, 4, 5, True)
    assert_usable()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.upsample([X], 0, 5, True), "size: expected height and width from 1 to 1073741824, got 0 and 5"),
        (lambda: ops.upsample([X], 4, -5, True), "size: expected height and width .* got 4 and -5"),
        (lambda: ops.upsample([X], 2**30 + 1, 1, True), "size: expected height and width .* got 1073741825 and 1"),
        (lambda: ops.upsample_backward([X], [1, 2], [1], True), "expected one height and width .* got 2 and 1 for 1"),
        (lambda: ops.upsample_backward([X, X], [1], [1], True), "expected one height and width .* got 1 and 1 for 2"),
        (lambda: ops.upsample_backward([X], [1], [0], True), "sizes.*: expected height and width .* got 1 and 0"),
        (
            lambda: ops.upsample_backward([X, X[:, :, :2]], [1, 1], [1, 1], True),
            r"gradients\[1\]: expected height and width 4 and 5 as gradients\[0\], got 2 and 5",
        ),
        (
            lambda: ops.upsample_backward([X, X[:1]], [1, 1], [1, 1], True),
            r"gradients\[1\]: expected batch size 2, got 1",
        ),
        (lambda: ops.upsample_backward([X.int()], [1], [1], True), "dtype: expected float64.* got Int"),
        (lambda: ops.upsample_backward([X[0]], [1], [1], True), r"gradients\[0\]: expected 4 dimensions .* got 3"),
        (lambda: ops.upsample([], 1, 1, True), "upsample: expected at least one tensor, got none"),
        (lambda: ops.upsample_concat([], True, False), "upsample_concat: expected at least one tensor, got none"),
    ],
)
def test_the_operators_say_what_is_wrong_with_arguments(call: Callable[[], Any], message: str) -> None:
    with pytest.raises((RuntimeError, ValueError), match=message):
        call()
    assert_usable()


@pytest.mark.parametrize("op", [functional.upsample, functional.upsample_concat])
@pytest.mark.parametrize("wrong", WRONG_LEVELS)
def test_the_functions_say_what_is_wrong_with_levels(wrong: str, op: Callable[..., Any]) -> None:
    levels, _ = WRONG_LEVELS[wrong]
    with use_backend("host"), pytest.raises((TypeError, ValueError), match=r"levels\[[01]\]: expected .* got "):
        op(levels, True)
    assert_usable()


@pytest.mark.parametrize("name", ["upsample", "upsample_concat"])
@pytest.mark.parametrize("wrong", sorted(set(WRONG_LEVELS) - {"devices"}))  # all are on one
def test_fake_kernels_refuse_the_levels_that_the_kernels_refuse(wrong: str, name: str) -> None:
    levels = [x.to("meta") for x in WRONG_LEVELS[wrong][0]]
    arguments = (4, 5, True) if name == "upsample" else (True, False)
    with pytest.raises(ValueError, match=r"(levels\[[01]\]|dtype): expected .* got "):
        getattr(ops, name)(levels, *arguments)


M = X.to("meta")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.upsample([M], 0, 5, True), "size: expected height and width from 1 to 1073741824, got 0 and 5"),
        (lambda: ops.upsample([M], 2**30 + 1, 1, True), "size: expected height and width .* got 1073741825 and 1"),
        (lambda: ops.upsample_backward([M], [1], [0], True), r"sizes\[0\]: expected height and width .* got 1 and 0"),
        (lambda: ops.upsample_backward([M, M], [1], [1], True), "shorter"),
        (
            lambda: ops.upsample_backward([M, M[:, :, :2]], [1, 1], [1, 1], True),
            r"gradients\[1\]: expected height and width \(4, 5\) as gradients\[0\], got \(2, 5\)",
        ),
        (lambda: ops.upsample_backward([M.int()], [1], [1], True), "dtype: expected float64.* got torch.int32"),
    ],
)
def test_fake_kernels_refuse_the_arguments_that_the_kernels_refuse(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_fake_kernels_know_the_format_of_any_strides() -> None:
    """Also of those for which Python's own rule and C++'s once differed."""
    generator = torch.Generator().manual_seed(0)
    levels = [torch.randn(2, 7, 8).permute(0, 2, 1).unsqueeze(3)]
    for _ in range(300):
        size = torch.randint(1, 4, (4,), generator=generator).tolist()
        stride = torch.randint(0, 13, (4,), generator=generator).tolist()
        levels.append(torch.zeros(200).as_strided(size, stride))
        order = torch.randperm(4, generator=generator).tolist()  # dense ones
        levels.append(torch.zeros([size[d] for d in order]).permute([order.index(d) for d in range(4)]))
    for level in levels:
        real = torch.empty_like(ops.upsample([level], 3, 2, False)[0], device="meta")
        (fake,) = ops.upsample([torch.empty_strided(level.shape, level.stride(), device="meta")], 3, 2, False)
        assert (fake.shape, fake.stride()) == (real.shape, real.stride()), (level.shape, level.stride())
