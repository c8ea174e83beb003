"""The tensor cores' policies of separable_pyramid, executed on the CPU: values, traffic, and which policy serves."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from policies import policies
from pyramids import (
    CASES,
    MATRIX_CASES,
    Pyramid,
    by_kernels,
    check_backward,
    check_forward,
    pyramids,
    to_tf32,
)
from strategies import needs_host
from torch import Tensor

from jpu_cuda import functional, host, use_backend

pytestmark = needs_host

POLICIES = pytest.mark.parametrize("policy", ["mma", "two-pass"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
EVERY_CASE = {**CASES, **MATRIX_CASES}
KERNELS = {"fma": ["forward"], "mma": ["mma"], "two-pass": ["normalise", "product"]}


@pytest.fixture(autouse=True, scope="module")
def _loaded() -> None:
    host.load()


def of(name: str, dtype: torch.dtype, policy: str) -> Pyramid:
    return replace(EVERY_CASE[name], dtype=dtype, policy=policy)


def launches_of(case: Pyramid) -> list[host.Launch]:
    arguments = case.arguments()
    with host.record() as launches:
        by_kernels(case, arguments)
    return launches


def names_of(launches: list[host.Launch]) -> list[str]:
    return [launch.kernel.removeprefix("separable_pyramid ") for launch in launches]


# --- values ----------------------------------------------------------------------------------------------


@DTYPES
@POLICIES
@pytest.mark.parametrize("name", EVERY_CASE)
def test_forward(name: str, policy: str, dtype: torch.dtype) -> None:
    check_forward(of(name, dtype, policy))


@settings(deadline=None, max_examples=40, derandomize=True)
@given(pyramids())
def test_forward_of_any_shape(case: Pyramid) -> None:
    outputs = [check_forward(replace(case, policy=policy)) for policy in ("mma", "two-pass")]
    assert torch.equal(*outputs), "the same sums in the same order"


@POLICIES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["many chunks", "many chunks of odd channels", "small classes"])
def test_results_are_bit_for_bit_the_same_in_every_schedule(name: str, dtype: torch.dtype, policy: str) -> None:
    case = of(name, dtype, policy)
    arguments = case.arguments()
    out = by_kernels(case, arguments)
    for seed, late in ((0, False), (1, True), (2, False)):
        with host.schedule(seed, late=late):
            assert torch.equal(by_kernels(case, arguments), out)


@DTYPES
def test_the_operand_is_that_of_plain_multiply_adds(dtype: torch.dtype) -> None:
    """One output a channel makes it visible: h itself, of a pointwise convolution that picks a channel."""
    case = Pyramid(2, (12, 20), 32, (9, 10), (1, 3), dtype, "channels_last", terms="images", relu=False)
    arguments = case.arguments()
    arguments["pointwise"] = [torch.eye(32, dtype=dtype)[..., None, None] for _ in case.dilations]
    arguments["terms"][2:] = [None, None]
    plain = by_kernels(case, arguments)
    if dtype == torch.float32:
        plain = to_tf32(plain)
    for policy in ("mma", "two-pass"):
        assert torch.equal(by_kernels(replace(case, policy=policy), arguments), plain)


@POLICIES
def test_weights_of_float32_are_rounded_to_nearest(policy: str) -> None:
    weight = torch.randn(300, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    image, taps = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 3, 3)
    taps[..., 1, 1] = 1
    options = (*[None] * 4, False, True, 80, policy, 0)
    out = torch.ops.jpu_cuda.separable_pyramid([image], [taps], [weight], [1], *options)
    assert torch.equal(out, to_tf32(weight).view(1, 300, 1, 1))


@POLICIES
def test_gradients_are_those_of_the_output_that_was_made(policy: str) -> None:
    check_backward(of("odd channels, channels last", torch.bfloat16, policy))


@POLICIES
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_and_infinity_stay_where_they_belong(policy: str, value: float) -> None:
    """Of 3 channels in a chunk of 32: those that do not exist spoil nothing."""
    case = Pyramid(1, (3,), 2, (9, 9), (2,), torch.bfloat16, terms="none", relu=False, policy=policy)
    arguments = case.arguments()
    arguments["levels"][0].zero_()[0, 1, 4, 4] = value
    out = by_kernels(case, arguments)[0, 0]
    spoilt = torch.zeros(9, 9, dtype=torch.bool)
    spoilt[2:7:2, 2:7:2] = True
    assert not out[~spoilt].any()
    kind = torch.isnan if value != value else torch.isinf
    assert kind(out[spoilt]).all()
    with_relu = by_kernels(replace(case, relu=True), arguments)[0, 0]
    assert torch.equal(with_relu, out.relu()) if value == value else torch.equal(with_relu.isnan(), spoilt)


@POLICIES
def test_an_empty_batch_has_an_empty_result(policy: str) -> None:
    case = Pyramid(0, (3, 2), 4, (5, 6), (1, 2), torch.bfloat16, policy=policy)
    assert by_kernels(case, case.arguments()).shape == (0, 8, 5, 6)


@POLICIES
@pytest.mark.parametrize("layout", ["contiguous", "sliced", "channels of more"])
def test_other_formats_cost_a_copy_and_change_nothing(layout: str, policy: str) -> None:
    case = Pyramid(2, (16, 24), 24, (6, 9), (1, 2), torch.float16, "channels_last", policy=policy)
    arguments = case.arguments()
    expected = by_kernels(case, arguments)
    other = replace(case, layout=layout)
    levels = [other.laid_out(level.double().contiguous()) for level in arguments["levels"]]
    with host.record() as launches:
        out = by_kernels(other, {**arguments, "levels": levels})
    assert torch.equal(out, expected)
    channels_last = out.is_contiguous(memory_format=torch.channels_last)
    assert channels_last == (layout == "channels of more")
    # The kernels see channels_last: no element but a term is read, or written, alone.
    assert {*launches[0].counters["global_reads"]} <= {4, 16}
    assert {*launches[-1].counters["global_writes"]} == {16}


# --- what it costs -----------------------------------------------------------------------------------------


@POLICIES
def test_how_many_launches(policy: str) -> None:
    assert names_of(launches_of(of("small classes", torch.bfloat16, policy))) == KERNELS[policy]


def test_two_passes_work_on_as_many_tiles_as_their_workspace_holds() -> None:
    """The multiprocessors of the device that stands for 8.0 are more than all tiles here, so no wave is full."""
    case = replace(MATRIX_CASES["small classes"], dtype=torch.bfloat16, policy="two-pass")
    tiles = launches_of(replace(case, policy="mma"))[0].blocks
    tile_bytes = 128 * 2 * 64  # pixels, chunks
    expected = by_kernels(case, case.arguments())
    for room in (1, 3, tiles - 1, tiles):
        part = replace(case, workspace=room * tile_bytes + tile_bytes - 1)
        launches = launches_of(part)
        assert names_of(launches) == KERNELS["two-pass"] * -(-tiles // room)
        assert sum(launch.blocks for launch in launches[1::2]) == tiles
        assert torch.equal(by_kernels(part, part.arguments()), expected)
    assert len(launches_of(replace(case, workspace=1))) == 2 * tiles, "a tile at least"


def test_rounds_are_whole_waves_of_blocks() -> None:
    """108 multiprocessors are 54 tiles of two blocks of outputs each."""
    case = Pyramid(2, (8,), 264, (1, 1), (16,), torch.bfloat16, terms="none", policy="two-pass")
    launches = launches_of(replace(case, workspace=60 * 128 * 64))
    assert [launch.blocks for launch in launches] == [54, 108, 10, 20]


@pytest.mark.parametrize(
    ("outputs", "blocks"),
    [
        (769, [2 * 20, 4 * 20, 2 * 12, 4 * 12]),  # a wave is 82 / 4 tiles of four blocks
        (1, [2 * 32, 32]),  # which a wave of 82 would hold, whatever the cache does
    ],
)
def test_rounds_take_half_of_the_cache_but_fill_a_wave(outputs: int, blocks: list[int]) -> None:
    """Of 8.6's 6 MiB, 13 chunks of h leave room for 29 tiles; it has 82 multiprocessors."""
    case = Pyramid(1, (16 * 13,), outputs, (1, 1), (16,), torch.float32, terms="none")
    a = case.arguments()
    lists = a["levels"], a["depthwise"], a["pointwise"], [16], *a["terms"], True
    with host.record() as launches:
        torch.ops.jpu_cuda.separable_pyramid(*lists, True, 86, "two-pass", 0)
    assert [launch.blocks for launch in launches] == blocks


def test_splits_of_a_tiles_chunks_fetch_what_they_make() -> None:
    case = Pyramid(1, (32 * 16,), 8, (8, 16), (1,), torch.float16, "channels_last", "none", policy="two-pass")
    normalise, product = launches_of(case)
    assert (normalise.blocks, product.blocks) == (2, 1), "8 chunks a block"
    assert normalise.counters["distinct_read_bytes"] == (128 + 9) * 512 * 2
    assert product.counters["distinct_read_bytes"] == (128 + 8) * 512 * 2


@POLICIES
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_elements_that_lie_together_are_read_together(layout: str, policy: str) -> None:
    """Odd channels are read one by one: columns of a row, or channels of a pixel.

    The other way round each element would fetch a sector of its own, of which it is an eighth; halos and the ends of
    rows leave parts of sectors unused.
    """
    case = Pyramid(1, (31,), 1, (8, 32), (1,), torch.float32, layout, "none", policy=policy)
    counters = launches_of(case)[0].counters
    assert counters["global_read_bytes"] >= 0.3 * 32 * counters["global_read_sectors"]


@pytest.mark.parametrize(
    ("channels", "outputs", "layout", "expected"),
    [
        ((8, 16), 8, "channels_last", 0),
        ((8, 16), 8, "contiguous", 3),
        ((8, 16), 8, "channels of more", 2),
        ((8, 3), 8, "contiguous", 2),
        ((3, 5), 9, "contiguous", 0),
    ],
)
def test_how_many_tensors_are_copied(channels: tuple[int, ...], outputs: int, layout: str, expected: int) -> None:
    """Levels and outputs whose channels are whole vectors, and do not lie so."""
    case = Pyramid(1, channels, outputs, (2, 3), (1,), torch.bfloat16, layout, policy="mma")
    arguments = case.arguments()
    with torch.autograd.profiler.profile() as profile:
        by_kernels(case, arguments)
    assert sum(event.name == "aten::copy_" for event in profile.function_events) == expected


@DTYPES
@pytest.mark.parametrize("size", [(60, 60), (64, 64)], ids=str)
@pytest.mark.parametrize("dilation", [1, 2, 4, 8, 16])
def test_tiles_fetch_little_more_than_their_own_pixels(
    dilation: int, size: tuple[int, int], dtype: torch.dtype
) -> None:
    """Bytes of the image that blocks fetch, each block's once, by those of the pixels that it makes."""
    channels = 64 // dtype.itemsize
    case = Pyramid(1, (channels,), 8, size, (dilation,), dtype, "channels_last", "none", policy="two-pass")
    (normalise, _product) = launches_of(case)
    weights = 9 * channels * dtype.itemsize * normalise.blocks
    inputs = normalise.counters["distinct_read_bytes"] - weights
    assert inputs <= 1.5 * size[0] * size[1] * channels * dtype.itemsize
    # The single launch fetches the same, and each block its outputs' weights.
    (single,) = launches_of(replace(case, policy="mma"))
    assert single.blocks == normalise.blocks
    pointwise = channels * case.outputs * dtype.itemsize * single.blocks
    assert single.counters["distinct_read_bytes"] - weights - pointwise == inputs


@DTYPES
@POLICIES
@pytest.mark.parametrize("dilation", [1, 2, 3, 4, 8, 16])
def test_whole_vectors_without_conflicts(dilation: int, policy: str, dtype: torch.dtype) -> None:
    """Channels that are multiples of 8 are read and written 16 bytes at a time, and no bank is asked twice at once."""
    case = Pyramid(1, (64, 32), 272, (33, 34), (dilation,), dtype, "channels_last", "images", policy=policy)
    for launch in launches_of(case):
        counters = launch.counters
        assert counters["shared_accesses"] > 0
        assert counters["bank_conflicts"] == 0
        by_width = counters["global_reads"]
        # After the main loop, a thread reads scale and shift of its 16 outputs where there are so many.
        last = 0 if launch.kernel.endswith("normalise") else by_width.get(4, 0)
        assert by_width == {16: by_width[16], **({4: last} if last else {})}
        assert last <= launch.blocks * launch.threads * 2 * 16
        # h of the first of two passes leaves by words, 64 bytes of a pixel at a time.
        width = 4 if launch.kernel.endswith("normalise") else 16
        assert {*counters["global_writes"]} == {width}
        assert counters["global_write_sectors"] * 32 == counters["global_write_bytes"]


@POLICIES
def test_the_tensor_cores_do_the_products(policy: str) -> None:
    case = Pyramid(1, (64,), 256, (16, 16), (1,), torch.bfloat16, "channels_last", "none", policy=policy)
    launches = launches_of(case)
    products = sum(launch.counters["matrix_multiply_adds"] for launch in launches)
    assert products == 256 * 64 * 256
    others = sum(launch.counters["multiply_adds"] for launch in launches)
    assert others == 256 * (64 * (9 + 1) + 256), "taps and terms alone"


# --- which policy serves -------------------------------------------------------------------------------------


def policy_of(dtype: torch.dtype, outputs: int, tf32: bool = True, arch: int = 80, asked: str = "auto") -> str:
    text: str = torch.ops.jpu_cuda.separable_pyramid_policy(torch.empty(0, dtype=dtype), outputs, tf32, arch, asked)
    return text


PADDED = "fma: tensor cores would work on 256 outputs for"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((torch.bfloat16, 512), "mma: one launch of tensor cores"),
        ((torch.float16, 512, False), "mma: one launch"),
        ((torch.float32, 512, True), "mma: one launch"),
        ((torch.float32, 512, False), "fma: float32 keeps its precision .* does not allow TF32"),
        ((torch.float64, 512), "fma: float64 keeps its precision"),
        ((torch.bfloat16, 512, True, 0), "fma: a device without tensor cores was asked for"),
        ((torch.bfloat16, 512, True, 75), "fma: expected compute capability 8.0 or newer .* got 7.5"),
        ((torch.bfloat16, 768), "mma: one launch"),
        ((torch.bfloat16, 769), "two-pass: 769 outputs are 4 blocks' work"),
        ((torch.bfloat16, 1), "mma: one launch"),
        ((torch.float32, 1), "mma: one launch"),
        ((torch.bfloat16, 1, True, 90), "mma: one launch"),
        ((torch.float32, 1, True, 90), "mma: one launch"),
        ((torch.bfloat16, 1, True, 100), "mma: one launch"),
        # GeForce, whose tensor cores are no faster for TF32, and twice as fast for the half types.
        ((torch.bfloat16, 64, True, 86), f"{PADDED} 64, plain multiply-adds on 64, and may be no more than 2 times"),
        ((torch.bfloat16, 65, True, 86), "mma: one launch"),
        ((torch.float16, 64, True, 89), f"{PADDED} 64"),
        ((torch.float16, 65, True, 120), "mma: one launch"),
        ((torch.float32, 192, True, 86), f"{PADDED} 192, plain multiply-adds on 192, and may be no more than 1 times"),
        ((torch.float32, 193, True, 89), "mma: one launch"),
        ((torch.float32, 512, True, 121), "mma: one launch"),
        ((torch.bfloat16, 512, True, 80, "fma"), "fma: asked for by name"),
        ((torch.bfloat16, 512, True, 80, "two-pass"), "two-pass: asked for by name"),
        ((torch.bfloat16, 1, True, 86, "mma"), "mma: asked for by name"),
        ((torch.float64, 512, True, 80, "mma"), "fma: float64 keeps its precision"),
        ((torch.float32, 512, False, 80, "two-pass"), "fma: float32 keeps its precision"),
    ],
    ids=str,
)
def test_the_policy_is_a_function_of_device_dtype_and_outputs(arguments: tuple[object, ...], expected: str) -> None:
    assert re.match(expected, policy_of(*arguments)), policy_of(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((108, 1000, 1, 1), 9 * 108),
        ((108, 1000, 1, 2), 18 * 54),
        ((108, 107, 1, 1), 107),
        ((108, 5, 10, 1), 1),
        ((3, 10, 1, 4), 10),
    ],
    ids=str,
)
def test_tiles_at_a_time_are_whole_waves(arguments: tuple[int, int, int, int], expected: int) -> None:
    assert policies().tiles_at_a_time(*arguments) == expected


def test_a_policy_that_does_not_exist_is_refused() -> None:
    with pytest.raises((RuntimeError, ValueError), match="policy: expected auto, fma, mma or two-pass, got 'tensor'"):
        policy_of(torch.bfloat16, 8, asked="tensor")
    case = replace(CASES["one pixel"], dtype=torch.bfloat16, policy="tensor")
    with pytest.raises((RuntimeError, ValueError), match="policy: expected auto, fma, mma or two-pass, got 'tensor'"):
        by_kernels(case, case.arguments())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_what_a_policy_cannot_take_falls_to_plain_multiply_adds(dtype: torch.dtype) -> None:
    case = of("odd channels and sizes", dtype, "fma")
    a = case.arguments()
    lists = a["levels"], a["depthwise"], a["pointwise"], list(case.dilations), *a["terms"], case.relu
    expected = by_kernels(case, a)
    for policy in ("auto", "mma", "two-pass"):
        with host.record() as launches:
            out = torch.ops.jpu_cuda.separable_pyramid(*lists, False, 80, policy)
        assert names_of(launches) == ["forward"]
        assert torch.equal(out, expected)


# --- as users call it --------------------------------------------------------------------------------------


def call(arch: int | None, policy: str = "auto", dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, list[str]]:
    case = Pyramid(1, (64, 32), 64, (9, 8), (1, 2), dtype, "channels_last", "none")
    a = case.arguments()
    weights = torch.stack(a["depthwise"]).flatten(1, 2), torch.stack(a["pointwise"]).flatten(2)
    with use_backend("host", arch=arch, policy=policy), host.record() as launches:
        out = functional.separable_pyramid(a["levels"], *weights, case.dilations)
    return out, names_of(launches)


def test_the_backend_says_which_kernels_serve() -> None:
    assert call(None)[1] == KERNELS["fma"]
    assert call(80)[1] == KERNELS["mma"]
    assert call(80, "fma")[1] == KERNELS["fma"]
    assert call(80, "two-pass")[1] == KERNELS["two-pass"]
    assert call(None, "mma")[1] == KERNELS["fma"]
    assert torch.equal(call(80, "mma")[0], call(80, "two-pass")[0])


def test_float32_becomes_tf32_where_pytorchs_convolutions_may(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernels() -> list[str]:
        return call(80, dtype=torch.float32)[1]

    cudnn = torch.backends.cudnn
    assert cudnn.conv.fp32_precision == "tf32", "PyTorch's default"
    assert kernels() == KERNELS["mma"]
    with cudnn.flags(enabled=True, allow_tf32=False):
        out, found = call(80, dtype=torch.float32)
    assert found == KERNELS["fma"]
    assert torch.equal(out, call(None, dtype=torch.float32)[0])
    with cudnn.flags(enabled=False, allow_tf32=True):  # then PyTorch's convolutions are not cuDNN's
        assert kernels() == KERNELS["fma"]
    try:
        cudnn.conv.fp32_precision = "ieee"  # allow_tf32 may not even be asked now
        assert kernels() == KERNELS["fma"]
    finally:
        cudnn.conv.fp32_precision = "tf32"
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert kernels() == KERNELS["fma"]


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_equals_eager(backend: str) -> None:
    case = Pyramid(1, (40, 24), 48, (9, 8), (1, 2), torch.bfloat16, "contiguous", "none")
    a = case.arguments()
    weights = torch.stack(a["depthwise"]).flatten(1, 2), torch.stack(a["pointwise"]).flatten(2)

    def step(*levels: Tensor) -> Tensor:
        return functional.separable_pyramid(levels, *weights, case.dilations)

    with use_backend("host", arch=80):
        expected = step(*a["levels"])
        with host.record() as launches:
            out = torch.compile(step, fullgraph=True, backend=backend)(*a["levels"])
    assert names_of(launches) == KERNELS["mma"]
    assert out.stride() == expected.stride()
    assert torch.equal(out, expected)


@POLICIES
def test_opcheck(policy: str) -> None:
    case = replace(CASES["odd channels and sizes"], dtype=torch.bfloat16, policy=policy)
    a = case.arguments()
    lists = a["levels"], a["depthwise"], a["pointwise"]
    torch.library.opcheck(torch.ops.jpu_cuda.separable_pyramid, (*lists, [1, 2], *a["terms"], True, *case.options))
