"""training_products, executed on the CPU: q to the bit of inference, its moments tile by tile, and what they cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from products import by_inference, check, number_of_tiles, off_centre, run, statistics_like, tile_of_pixels
from pyramids import DTYPES, Pyramid, pyramids
from strategies import needs_host
from torch import Tensor

from jpu_cuda import host

pytestmark = needs_host

KERNELS = {
    "fma": ["forward with moments"],
    "mma": ["mma with moments"],
    "two-pass": ["normalise", "product with moments"],
}
# Every dtype by plain multiply-adds, and those that tensor cores take by both of their policies.
WAYS = [("fma", dtype) for dtype in DTYPES] + [
    (policy, dtype) for policy in ("mma", "two-pass") for dtype in DTYPES if dtype != torch.float64
]
EVERY_WAY = pytest.mark.parametrize(("policy", "dtype"), WAYS, ids=lambda value: str(value).removeprefix("torch."))


@pytest.fixture(autouse=True, scope="module")
def _loaded() -> None:
    host.load()


def case_of(*arguments: Any, **more: Any) -> Pyramid:
    return Pyramid(*arguments, **{"layout": "channels_last", **more})


# Every shape of tile; blocks of outputs, the last not full; elements and vectors; more chunks than a pipeline has.
CASES = {
    "small": case_of(2, (8, 8), 8, (5, 7), (1, 2)),
    "odd outputs": case_of(1, (5, 3), 7, (9, 11), (1, 2), terms="images"),
    "three images": case_of(3, (16,), 16, (6, 5), (2, 1), terms="images"),
    "dilations beyond the image": case_of(1, (8,), 8, (5, 7), (8, 16, 1)),
    "packed classes": case_of(1, (16, 8), 24, (16, 16), (1, 2, 4, 8)),
    "two blocks of outputs": case_of(1, (8,), 72, (9, 17), (1, 3)),
    "two blocks of many outputs": case_of(1, (16,), 264, (8, 9), (1, 2), terms="images"),
    "odd outputs of two blocks": case_of(1, (10,), 259, (7, 8), (1,)),
    "many tiles": case_of(2, (8,), 8, (33, 34), (1, 2, 3)),
    "wide": case_of(1, (8,), 8, (4, 66), (1, 2)),
    "tall": case_of(1, (8,), 8, (66, 4), (1, 2)),
    "many chunks": case_of(1, (72, 72), 8, (5, 9), (2,)),
    "one pixel": case_of(2, (3,), 2, (1, 1), (1, 5)),
    "eight levels, one without channels": case_of(1, (3, 1, 0, 2, 8, 1, 1, 5), 6, (5, 7), (1,)),
}


def of(name: str, policy: str, dtype: torch.dtype) -> Pyramid:
    return replace(CASES[name], policy=policy, dtype=dtype)


def launches_of(case: Pyramid) -> list[host.Launch]:
    arguments = case.arguments()
    with host.record() as launches:
        run(case, arguments)
    return launches


# --- values ----------------------------------------------------------------------------------------------


@EVERY_WAY
@pytest.mark.parametrize("name", CASES)
def test_products_and_moments(name: str, policy: str, dtype: torch.dtype) -> None:
    check(of(name, policy, dtype))


@settings(deadline=None, max_examples=10, derandomize=True)
@given(pyramids())
def test_any_shape(case: Pyramid) -> None:
    case = replace(case, layout="channels_last", batch=max(case.batch, 1))
    case = replace(case, terms="channels") if case.terms == "none" else case
    for policy in ("fma", "mma", "two-pass"):
        if policy == "fma" or case.dtype != torch.float64:
            check(replace(case, policy=policy))


@EVERY_WAY
@pytest.mark.parametrize("mean", [30.0, 1e4])
def test_a_mean_that_is_large_against_the_spread(mean: float, policy: str, dtype: torch.dtype) -> None:
    """Where E[q²] − E[q]² would be noise."""
    case = case_of(2, (8,), 8, (9, 14), (1, 2), dtype, policy=policy)
    arguments = off_centre(case, mean)
    q, moments, counts = check(case, arguments)
    assert (q.double().mean() - mean).abs() < 0.1 * mean
    if dtype == torch.float32 and policy == "fma":
        # The bound itself is loose there; the result is not.
        first = q[:, :8].double()
        exact = ((first - first.mean(dim=(2, 3), keepdim=True)) ** 2).sum(dim=(2, 3))
        n, m, s = counts[:, 0].double(), moments[:, :, 0, 0].double(), moments[:, :, 0, 1].double()
        centre = (n[:, None] * m).sum(dim=1) / n.sum()
        merged = (s + n[:, None] * (m - centre[:, None]) ** 2).sum(dim=1)
        torch.testing.assert_close(merged, exact, rtol=2e-3, atol=0)


@EVERY_WAY
def test_equal_values_have_no_spread(policy: str, dtype: torch.dtype) -> None:
    case = case_of(1, (8,), 8, (9, 14), (1, 2), dtype, policy=policy)
    arguments = off_centre(case, 3.0)
    for level in arguments["levels"]:
        level.zero_()
    q, moments, counts = run(case, arguments)
    assert (q == 3).all()
    for d in range(2):
        there = counts[:, d] > 0
        assert (moments[:, there, d, 0] == 3).all()
        assert not moments[:, there, d, 1].any()


@EVERY_WAY
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_concerns_its_tile_or_its_output_alone(
    value: float, policy: str, dtype: torch.dtype
) -> None:
    case = case_of(2, (8,), 8, (8, 40), (1,), dtype, policy=policy)
    arguments = off_centre(case, 1.0)
    before = run(case, arguments)[1].clone()

    def assert_spoilt(expected: Tensor) -> None:
        moments = run(case, arguments)[1]
        assert torch.equal(moments.isfinite(), ~expected)
        assert torch.equal(moments[~expected], before[~expected])

    kept = arguments["pointwise"][0][2, 2, 0, 0].item()
    arguments["pointwise"][0][2, 2, 0, 0] = value
    spoilt = torch.zeros_like(before, dtype=torch.bool)
    spoilt[..., 2] = True
    assert_spoilt(spoilt)
    arguments["pointwise"][0][2, 2, 0, 0] = kept
    arguments["levels"][0][1, 2, 3, 1] = value
    tiles = np.unique(tile_of_pixels(1, (8, 40))[2:5, :3])
    spoilt = torch.zeros_like(before, dtype=torch.bool)
    spoilt[1, tiles.tolist()] = True  # of every output, since 0 · ∞ is NaN
    assert_spoilt(spoilt)


@EVERY_WAY
def test_any_schedule_gives_the_same(policy: str, dtype: torch.dtype) -> None:
    case = replace(of("packed classes", policy, dtype), workspace=5 * 128 * 64)
    arguments = case.arguments()
    expected = run(case, arguments)
    for seed, late in ((0, False), (1, True), (2, False)):
        with host.schedule(seed, late=late):
            found = run(case, arguments)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[2], expected[2])
        there = expected[2].bool()
        for a, b in zip(found[1], expected[1], strict=True):
            assert torch.equal(a[there], b[there])


def test_two_passes_in_rounds_keep_all_moments() -> None:
    case = of("many tiles", "two-pass", torch.bfloat16)
    for tiles in (1, 5):
        check(replace(case, workspace=tiles * 128 * 64))


def test_terms_of_images_that_lie_anywhere() -> None:
    """An odd distance from one image to the next, though each begins with whole vectors; and one image for all."""
    case = case_of(3, (8,), 8, (5, 7), (1, 2), torch.bfloat16, terms="images", policy="mma")
    arguments = case.arguments()
    scale, shift = arguments["terms"][:2]
    options = case.options
    lists = arguments["levels"], arguments["depthwise"], list(case.dilations), arguments["pointwise"]
    expected = by_inference(case, arguments)
    far = [torch.zeros(3, 17).copy_(torch.cat([t.flatten(1), t[:, 0, :1]], dim=1)) for t in (scale, shift)]
    spread = [t.as_strided((3, 2, 8), (17, 8, 1)) for t in far]
    assert torch.equal(torch.ops.jpu_cuda.training_products(*lists, *spread, *options)[0], expected)
    one = [t[:1].expand(3, 2, 8) for t in (scale, shift)]
    arguments["terms"][:2] = [t.contiguous() for t in one]
    assert torch.equal(torch.ops.jpu_cuda.training_products(*lists, *one, *options)[0], by_inference(case, arguments))


# --- what it costs -----------------------------------------------------------------------------------------


@EVERY_WAY
def test_the_launches_and_their_policy(policy: str, dtype: torch.dtype) -> None:
    launches = launches_of(of("small", policy, dtype))
    assert [launch.kernel.removeprefix("separable_pyramid ") for launch in launches] == KERNELS[policy]


def test_what_tensor_cores_do_not_take_is_done_by_multiply_adds() -> None:
    for dtype, tf32 in ((torch.float64, True), (torch.float32, False)):
        case = replace(CASES["small"], dtype=dtype)
        a = case.arguments()
        lists = a["levels"], a["depthwise"], list(case.dilations), a["pointwise"], *a["terms"][:2]
        with host.record() as launches:
            q, *_ = torch.ops.jpu_cuda.training_products(*lists, tf32, 80, "auto")
        assert [launch.kernel for launch in launches] == ["separable_pyramid forward with moments"]
        assert torch.equal(q, by_inference(case, a))


@EVERY_WAY
@pytest.mark.parametrize("outputs", [64, 272])
def test_whole_vectors_without_conflicts(outputs: int, policy: str, dtype: torch.dtype) -> None:
    """Of q 16 bytes leave at a time, of moments whole sectors, and no bank is asked twice at once for them."""
    case = case_of(2, (16,), outputs, (9, 18), (1, 4), dtype, terms="images", policy=policy)
    launch = launches_of(case)[-1]
    counters = launch.counters
    tiles = [number_of_tiles(d, case.size) for d in case.dilations]
    size = 8 if dtype == torch.float64 else 4
    moments = 2 * sum(tiles) * 2 * outputs
    writes = {16: 2 * 2 * outputs * 9 * 18 * dtype.itemsize // 16}
    for width, number in ((size, moments), (4, 2 * max(tiles))):
        writes[width] = writes.get(width, 0) + number
    assert counters["global_writes"] == writes
    arguments = case.arguments()
    with host.record() as launches:
        by_inference(case, arguments)
    inference = launches[-1].counters
    sectors = inference["global_write_sectors"] + moments * size // 32
    assert sectors < counters["global_write_sectors"] <= sectors + 2 * max(tiles), "and one each of the counts"
    assert counters["bank_conflicts"] == inference["bank_conflicts"]
    assert counters["global_read_bytes"] == inference["global_read_bytes"]
    assert counters["barriers"] == inference["barriers"] + 2 * launch.blocks


# --- refusals -------------------------------------------------------------------------------------------


def twice(x: Tensor) -> Tensor:
    return torch.cat([x, x], dim=1).contiguous(memory_format=torch.channels_last)


def changed(index: int, change: Callable[[Any], Any], **case: Any) -> Callable[[], Any]:
    def call() -> Any:
        base = replace(CASES["three images"], **case)
        a = base.arguments()
        terms = a["terms"][:2]
        arguments = [a["levels"], a["depthwise"], list(base.dilations), a["pointwise"], *terms, False, 0, "fma", 0]
        arguments[index] = change(arguments[index])
        return torch.ops.jpu_cuda.training_products(*arguments)

    return call


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (changed(0, lambda x: []), "levels: expected 1 to 8, got 0"),
        (
            changed(0, lambda x: [x[0].contiguous()]),
            r"levels\[0\]: expected a dense channels_last image, got stride 30",
        ),
        (
            changed(0, lambda x: [twice(x[0])[:, :16]]),
            r"levels\[0\]: expected a dense channels_last image, got stride 32",
        ),
        (changed(0, lambda x: [x[0][:, :, ::2]]), r"levels\[0\]: expected a dense channels_last image, got stride 160"),
        (changed(0, lambda x: [x[0][:0]], terms="channels"), "levels: expected at least one image, got none"),
        (changed(1, lambda x: x[1:]), "weights: expected one of each a dilation, 2, got 1 and 2"),
        (changed(2, lambda x: [2, 17]), r"dilations\[1\]: expected 1 to 16, got 17"),
        (changed(3, lambda x: [x[0], x[1][:, :8]]), r"pointwise_weight\[1\]: expected shape"),
        (changed(4, lambda x: x[:, :1]), r"scale: expected shape \[3, 2, 16\], got \[3, 1, 16\]"),
        (changed(4, lambda x: x[0, :1]), r"scale: expected shape \[2, 16\], got \[1, 16\]"),
        (changed(4, lambda x: x.double()), "scale: expected dtype Float, got Double"),
        (changed(5, lambda x: x[:2]), r"shift: expected shape \[3, 2, 16\], got \[2, 2, 16\]"),
        (changed(5, lambda x: x.transpose(1, 2).contiguous().transpose(1, 2)), "shift: expected channels and branches"),
        (changed(5, lambda x: x.repeat(1, 2, 1)[:, ::2]), "shift: expected channels and branches that lie together"),
        (changed(8, lambda _: "tensor"), "policy: expected auto, fma, mma or two-pass, got 'tensor'"),
        (changed(9, lambda _: -1), "workspace_bytes: expected 0 or more, got -1"),
    ],
)
def test_wrong_arguments_are_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises((RuntimeError, ValueError), match=message):
        call()


def test_extents_of_one_may_have_any_stride() -> None:
    case = case_of(1, (1,), 2, (1, 3), (1,))
    arguments = case.arguments()
    expected = run(case, arguments)
    arguments["levels"] = [level.as_strided((1, 1, 1, 3), (5, 7, 11, 1)) for level in arguments["levels"]]
    for found, wanted in zip(run(case, arguments), expected, strict=True):
        assert torch.equal(found, wanted)


def test_a_tile_of_each_pixel() -> None:
    """What moments are held to: each pixel of an image is in one tile, of at most 128."""
    for dilation in (1, 2, 3, 8, 16):
        for size in ((5, 7), (33, 34), (60, 60)):
            tile = tile_of_pixels(dilation, size)
            assert 0 <= tile.min() <= tile.max() < number_of_tiles(dilation, size)
            assert np.bincount(tile.ravel()).max() <= 128


def test_statistics_are_passed_as_they_lie() -> None:
    values = torch.arange(24.0).view(2, 3, 4)
    assert torch.equal(statistics_like(values, True), values)
    assert statistics_like(values, True).stride(0) == 5 * 12
    first: Tensor = statistics_like(values[0], False)
    assert torch.equal(first, values[0])
