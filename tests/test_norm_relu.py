"""norm_relu, executed on the CPU: norms of fixed statistics and ReLUs of a list of levels in one launch."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from norm_cases import CASES, Norms, check, one, run
from strategies import DTYPES, LAYOUTS, needs_host
from test_separable_pyramid_limits import FAR, spread
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_map

from jpu_cuda import host
from jpu_cuda.reference import norm_relu as by_torch

pytestmark = needs_host


@pytest.fixture(autouse=True, scope="module")
def _loaded() -> None:
    """So that the operators are those of the kernels, for CPU tensors too."""
    host.load()


EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
WIDE = pytest.mark.parametrize("wide", [True, False], ids=["norms in sums' type", "norms in levels' type"])

# --- values ---------------------------------------------------------------------------------------------


@WIDE
@EVERY_DTYPE
@pytest.mark.parametrize("name", CASES)
def test_each_entry_is_within_its_bound_and_no_worse_than_pytorchs(name: str, dtype: torch.dtype, wide: bool) -> None:
    check(replace(CASES[name], dtype=dtype, wide=wide))


@st.composite
def cases(draw: Any) -> Norms:
    count = draw(st.integers(1, 4))
    channels = draw(st.sampled_from([st.integers(1, 40), st.sampled_from([8, 16, 40, 264])]))
    side = st.sampled_from([1, 2, 3, 5, 7, 8, 9, 15, 16, 17])

    def each(strategy: Any) -> tuple[Any, ...]:
        return tuple(draw(st.lists(strategy, min_size=count, max_size=count)))

    return Norms(
        each(channels),
        each(st.tuples(side, side)),
        each(st.sampled_from([*LAYOUTS])),
        batch=draw(st.integers(0, 3)),
        dtype=draw(st.sampled_from(DTYPES)),
        wide=draw(st.booleans()),
        absent=tuple(draw(st.lists(st.tuples(st.sampled_from(["weight", "bias"]), st.integers(0, 3)), max_size=3))),
        eps=tuple(draw(st.lists(st.floats(1e-6, 2), min_size=1, max_size=3))),
    )


@settings(deadline=None, max_examples=60, derandomize=True)
@given(cases())
def test_levels_of_any_number_size_and_strides(case: Norms) -> None:
    check(case, draws=4)


@EVERY_DTYPE
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_what_is_not_finite_is_so_in_pytorch_too(layout: str, dtype: torch.dtype) -> None:
    """NaN passes the ReLU, whether it is in the level, in the norm, or comes of ∞ − ∞."""
    inf, nan = torch.inf, torch.nan
    columns = {
        "weight": [1, 1, 1, 1, 1, 1, inf, 0, nan],
        "bias": [2, 2, 2, 2, 2, 2, 2, 2, inf],
        "mean": [0, 1, -1, 0, 1, 1, -1, inf, 1],
        "var": [1, -1, 0, 0, inf, nan, 1, 1, 1],
    }
    norms = [[torch.tensor(column, dtype=dtype)] for column in columns.values()]
    values = torch.tensor([1, -9, nan, inf, -inf, 0], dtype=dtype).repeat(2, 9, 1, 1)
    arguments = ([LAYOUTS[layout](values)], *norms, [0.0])
    # As the kernel has it: scale · x + shift, which for finite terms is what PyTorch's form gives.
    (found,), (expected,) = run(arguments), by_torch.norm_relu(*arguments)
    assert found[:, 0].isnan().any()
    torch.testing.assert_close(found[:, :2], expected[:, :2], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(found.isnan(), expected.isnan())


@EVERY_DTYPE
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "sliced_channels_last"])
def test_any_schedule_gives_the_same(layout: str, dtype: torch.dtype) -> None:
    case = Norms((16, 300), ((9, 8), (2, 4)), (layout,) * 2, dtype=dtype)
    expected = run(case.arguments())
    for seed in (1, 2, 3):
        with host.schedule(seed):
            assert all(map(torch.equal, run(case.arguments()), expected))


# --- launches -------------------------------------------------------------------------------------------


def measured(case: Norms) -> tuple[list[Tensor], host.Launch]:
    arguments = case.arguments()
    with host.record() as launches:
        run(arguments)
    (launch,) = launches
    return arguments[0], launch


@pytest.mark.parametrize(("levels", "launches"), [(1, 1), (3, 1), (8, 1), (9, 2), (17, 3)])
def test_one_launch_serves_up_to_eight_levels(levels: int, launches: int) -> None:
    case = Norms((3,) * levels, ((4, 5),) * levels, ("contiguous",) * levels)
    arguments = case.arguments()
    with host.record() as recorded:
        run(arguments)
    assert [launch.kernel for launch in recorded] == ["norm_relu forward"] * launches
    check(case)


def test_empty_levels_cost_nothing() -> None:
    with host.record() as launches:
        run(Norms(batch=0).arguments())
    assert launches == []
    arguments = Norms((0, 3, 0)).arguments()  # which PyTorch's norm refuses
    with host.record() as launches:
        results = run(arguments)
    assert [x.shape for x in results] == [x.shape for x in arguments[0]]
    assert [launch.blocks for launch in launches] == [2]  # an image each


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_levels_are_read_and_written_once_by_16_bytes(layout: str, dtype: torch.dtype) -> None:
    """As the stages of a JPU have them: channels of whole tiles, pixels of whole tiles."""
    (level,), launch = measured(one(256, (16, 16), layout, batch=1, dtype=dtype))
    size, counters = level.numel() * level.element_size(), launch.counters
    assert counters["global_writes"] == {16: size // 16}
    assert counters["distinct_write_bytes"] == size
    assert counters["global_write_sectors"] * 32 == size
    assert counters["global_reads"].keys() == {4, 16}
    assert counters["global_reads"][16] == size // 16
    assert launch.blocks == size // (16 * 256 * 8)  # each thread has eight vectors
    # Four vectors of 4 bytes a channel, for which a block of channels_last has 128 or 256, one of pixels 64.
    channels = {"contiguous": 64, "channels_last": 32 * 16 // level.element_size()}[layout]
    assert counters["global_reads"][4] == 4 * channels * launch.blocks
    assert counters["global_read_sectors"] * 32 == size + 16 * channels * launch.blocks
    assert counters["barriers"] == launch.blocks
    # Terms of halves are two vectors a lane, of which neighbours read every second one.
    assert counters["bank_conflicts"] <= 0.5 * counters["shared_accesses"]
    assert counters["shared_accesses"] <= counters["global_read_sectors"]


WIDTHS = {
    "channels": (one(16, (3, 5), "channels_last"), 16),
    "pixels": (one(3, (4, 8)), 16),
    "odd channels": (one(7, (3, 5), "channels_last"), 2),
    "odd pixels": (one(8, (3, 5)), 2),
    "pixels that begin off": (one(3, (4, 8), "sliced"), 2),
    "channels that begin off": (one(16, (3, 5), "sliced_channels_last"), 2),
    "channels of a wider buffer": (one(16, (3, 5), "sliced_channels_last_by_16"), 16),
    "pixels of wider rows": (one(3, (4, 8), "sliced_by_16"), 2),
    "pixels apart": (one(3, (4, 8), "strided"), 2),
    "one pixel an image": (one(8, (1, 1)), 16),
    "a column": (one(3, (16, 1)), 16),
}


@pytest.mark.parametrize("name", WIDTHS)
def test_what_is_not_aligned_is_served_by_elements(name: str) -> None:
    case, width = WIDTHS[name]
    (level,), launch = measured(replace(case, dtype=torch.float16))
    expected = {width: level.numel() * 2 // width}
    assert launch.counters["global_writes"] == expected
    assert {n: count for n, count in launch.counters["global_reads"].items() if n != 4} == expected


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_runs_by_elements_share_few_sectors(layout: str) -> None:
    """Of 131 channels or 13 · 11 pixels; their rows begin at odd multiples of two bytes."""
    shape = (131, (5, 7)) if layout == "channels_last" else (33, (13, 11))
    (level,), launch = measured(one(*shape, layout, dtype=torch.float16))
    assert launch.counters["global_write_sectors"] * 32 <= 1.75 * level.numel() * 2


def test_images_whose_pixels_go_on_from_one_to_the_next_share_blocks() -> None:
    one_image, sixteen = (measured(one(64, (2, 2), "channels_last", batch=n))[1] for n in (1, 16))
    assert sixteen.blocks == one_image.blocks == 1


# --- reach ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("axis", range(4), ids=["images", "channels", "rows", "columns"])
def test_levels_may_reach_past_2_to_31_elements(axis: int, layout: str) -> None:
    """Host execution faults where an offset is cut to 32 bits: nothing of the tensor is there."""
    channels, columns = 16 if layout == "channels_last" and axis != 1 else 2, 2 if axis == 3 else 8
    arguments = one(channels, (2, columns), layout, dtype=torch.float16).arguments()
    (near,), (level,) = run(arguments), arguments[0]
    far = spread(level, axis)
    assert far.stride(axis) >= FAR
    with host.record() as launches:
        (result,) = run(([far], *arguments[1:]))
    assert torch.equal(result, near)
    # Other strides no longer suggest channels_last, or pixels no longer lie in a line.
    by_vectors = axis == 0 if layout == "channels_last" else axis < 2
    assert (16 in launches[0].counters["global_reads"]) == by_vectors


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 2**16, 2**15), r"levels\[0\]: expected 1 to 2147483647 pixels, got 65536 and 32768 a side"),
        ((1, 1, 0, 3), r"levels\[0\]: expected 1 to 2147483647 pixels, got 0 and 3 a side"),
        ((1, 1, 3, 0), r"levels\[0\]: expected 1 to 2147483647 pixels, got 3 and 0 a side"),
        ((2**31, 1, 1, 1), r"levels\[0\]: expected at most 2147483647 samples and channels"),
    ],
    ids=["pixels", "no rows", "no columns", "samples"],
)
def test_more_than_indices_hold_is_refused(shape: tuple[int, ...], message: str) -> None:
    level = torch.empty(1, dtype=torch.float16).expand(shape)
    with pytest.raises(RuntimeError, match=message):
        run(([level], [None], [None], [torch.zeros(1)], [torch.ones(1)], [0.0]))


def test_more_blocks_than_a_launch_takes_are_refused() -> None:
    """Of images that share their memory; their result is reserved and never touched."""
    level = torch.ones(1, 1, 1, 2, dtype=torch.float16).expand(2**31 - 1, 1, 1, 2)
    ones = [torch.ones(1)] * 2
    with pytest.raises(RuntimeError, match="norm_relu forward: expected at most 2147483647 blocks, got 4294967294"):
        run(([level] * 2, ones, ones, ones, ones, [0.0] * 2))


# --- without kernels ------------------------------------------------------------------------------------


def on_meta(arguments: Any) -> list[Any]:
    return tree_map(lambda x: x.to("meta") if isinstance(x, Tensor) else x, list(arguments))


@EVERY_DTYPE
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fake_results_look_like_real_ones(layout: str, dtype: torch.dtype) -> None:
    levels, *norms = Norms(layouts=(layout,) * 3, dtype=dtype).arguments()
    fakes = [torch.empty_strided(x.shape, x.stride(), dtype=dtype, device="meta") for x in levels]
    real, fake = run((levels, *norms)), run((fakes, *on_meta(norms)))
    assert [(x.shape, x.stride(), x.dtype) for x in fake] == [(x.shape, x.stride(), x.dtype) for x in real]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_opcheck(layout: str) -> None:
    case = Norms(layouts=(layout,) * 3, absent=(("weight", 0), ("bias", 1)))
    torch.library.opcheck(torch.ops.jpu_cuda.norm_relu.default, case.arguments())


@pytest.mark.parametrize("dynamic", [None, True])
def test_compiled_equals_eager(dynamic: bool | None) -> None:
    arguments = Norms().arguments()
    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    assert all(map(torch.equal, compiled(arguments), run(arguments)))


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_leaves_it_alone(low: torch.dtype) -> None:
    for dtype in (low, torch.float32):
        arguments = Norms(dtype=dtype).arguments()
        expected = run(arguments)
        with torch.autocast("cpu", low):
            found, torchs = run(arguments), by_torch.norm_relu(*arguments)
        assert all(map(torch.equal, found, expected))
        assert [x.dtype for x in found] == [x.dtype for x in torchs] == [dtype] * 3


def test_without_kernels_the_operator_is_the_reference(tmp_path: Path) -> None:
    arguments = Norms(dtype=torch.float64, absent=(("weight", 1),)).arguments()
    torch.save((arguments, run(arguments)), tmp_path / "tensors.pt")
    code = """
import sys, torch, jpu_cuda
arguments, expected = torch.load(sys.argv[1])
for x, y in zip(torch.ops.jpu_cuda.norm_relu(*arguments), expected, strict=True):
    torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "tensors.pt")], check=True)


# --- refusals -------------------------------------------------------------------------------------------


def changed(index: int, change: Callable[[Any], Any], **case: Any) -> Callable[[], Any]:
    def call() -> Any:
        arguments = list(Norms(**case).arguments())
        arguments[index] = change(arguments[index])
        return run(arguments)

    return call


def _first(tensor: Tensor) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [tensor, *values[1:]]


@pytest.mark.parametrize("mode", ["grad mode", "inference mode"])
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (changed(0, lambda _: []), "levels: expected at least one, got none"),
        (changed(0, lambda x: [x[0][0], *x[1:]]), r"levels\[0\]: expected 4 dimensions \[N, C, H, W\], got 3"),
        (changed(0, lambda x: [x[0], x[1].double(), x[2]]), r"levels\[1\]: expected dtype Float as .*, got Double"),
        (changed(0, lambda x: [x[0], x[1], x[2][:1]]), r"levels\[2\]: expected batch size 2, got 1"),
        (changed(0, lambda x: x[:2]), "norms: expected 2 weights, .*, one a level, got 3, 3, 3, 3 and 3"),
        (changed(1, lambda x: x[1:]), "norms: expected 3 weights, .* got 2, 3, 3, 3 and 3"),
        (changed(2, lambda x: x[1:]), "norms: expected 3 weights, .* got 3, 2, 3, 3 and 3"),
        (changed(3, lambda x: x[1:]), "norms: expected 3 weights, .* got 3, 3, 2, 3 and 3"),
        (changed(4, lambda x: x[1:]), "norms: expected 3 weights, .* got 3, 3, 3, 2 and 3"),
        (changed(5, lambda x: x[1:]), "norms: expected 3 weights, .* got 3, 3, 3, 3 and 2"),
        (changed(1, _first(torch.ones(6))), r"weight\[0\]: expected shape \[5\], got \[6\]"),
        (changed(1, _first(torch.ones(5).double())), r"weight\[0\]: expected dtype Float, got Double"),
        (changed(2, _first(torch.ones(10)[::2])), r"bias\[0\]: expected a contiguous tensor"),
        (changed(2, _first(torch.ones(5).half())), r"bias\[0\]: expected dtype Float, got Half"),
        (changed(3, lambda x: [*x[:2], torch.ones(1, 7)]), r"mean\[2\]: expected shape \[7\], got \[1, 7\]"),
        (changed(3, lambda x: [x[0], x[1].half(), x[2]]), r"mean\[1\]: expected dtype Float, got Half"),
        (changed(3, _first(torch.ones(5).half())), "expected dtype Float or that of levels.*, got Half"),
        (
            changed(3, _first(torch.ones(5).double()), dtype=torch.float16),
            "expected dtype Float or that of levels.*, Half, got Double",
        ),
        (changed(4, lambda x: [x[0].double(), *x[1:]]), r"var\[0\]: expected dtype Float, got Double"),
        (changed(4, lambda x: [*x[:2], torch.ones(14)[::2]]), r"var\[2\]: expected a contiguous tensor"),
    ],
)
def test_the_operator_says_what_is_wrong(call: Callable[[], Any], message: str, mode: str) -> None:
    with torch.inference_mode(mode == "inference mode"), pytest.raises((RuntimeError, ValueError), match=message):
        call()


@pytest.mark.parametrize("kind", [torch.int32, torch.complex64], ids=str)
def test_other_dtypes_are_refused(kind: torch.dtype) -> None:
    levels, *norms, eps = Norms().arguments()
    cast = [[x.to(kind) for x in part] for part in (levels, *norms)]
    with pytest.raises(RuntimeError, match="expected dtype Float or|float64, float32, float16 or bfloat16, got"):
        run((*cast, eps))


@pytest.mark.parametrize("part", range(3), ids=["level", "weight", "bias"])  # statistics have none in PyTorch
def test_what_needs_a_gradient_has_the_references(part: int) -> None:
    arguments = Norms().arguments()
    expected = run(arguments)
    leaf = arguments[part][1].requires_grad_()
    with host.record() as launches:
        out = run(arguments)
    assert launches == []
    (got,) = torch.autograd.grad(out[1].sum(), leaf)
    (wanted,) = torch.autograd.grad(by_torch.norm_relu(*arguments)[1].sum(), leaf)
    assert torch.equal(got, wanted)
    assert got.any()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode(), host.record() as launches:
            assert all(map(torch.equal, run(arguments), expected))
        assert len(launches) == 1


def test_tangents_are_the_references() -> None:
    levels, *norms = Norms().arguments()
    with forward_ad.dual_level():
        assert all(map(torch.equal, run((levels, *norms)), run((levels, *norms))))
        dual = forward_ad.make_dual(levels[0], torch.ones_like(levels[0]))
        out, expected = (f(([dual, *levels[1:]], *norms))[0] for f in (run, lambda a: by_torch.norm_relu(*a)))
        tangents = [forward_ad.unpack_dual(x).tangent for x in (out, expected)]
    assert torch.equal(*tangents)
    assert tangents[0].any()


def test_fake_kernels_refuse_what_the_binding_refuses() -> None:
    for index, change, message in (
        (0, lambda x: [x[0][0], *x[1:]], r"levels\[0\]: expected 4 dimensions"),
        (0, lambda x: [x[0], x[1][:, :, :0], x[2]], r"levels\[1\]: expected height and width"),
        (1, lambda x: x[1:], "norms: expected 3 weights, .* got 2, 3, 3, 3 and 3"),
        (2, lambda x: [torch.ones(6), *x[1:]], r"bias\[0\]: expected shape \(5,\), got \(6,\)"),
        (3, lambda x: [x[0], torch.ones(1, 8), x[2]], r"mean\[1\]: expected shape \(8,\), got \(1, 8\)"),
    ):
        arguments = list(Norms().arguments())
        arguments[index] = change(arguments[index])
        with pytest.raises(ValueError, match=message):
            run(on_meta(arguments))
