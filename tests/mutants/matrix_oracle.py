"""The oracle's checks of separable_pyramid by tensor cores: values, orders, traffic, and which policy serves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from policies import CSRC, policies
from pyramids import (
    Pyramid,
    assert_bounded,
    by_kernels,
    by_torch,
    changed,
    operands_of,
    steps_of,
    tensors_of,
    to_tf32,
)
from torch import Tensor

from jpu_cuda import host

POLICIES = ("mma", "two-pass")
HALF, BRAIN, FULL = torch.float16, torch.bfloat16, torch.float32

# More chunks than twice a pipeline's stages, in several splits; two blocks of outputs, the last not full; odd channels
# and outputs; vectors, elements, and copies in between; packed classes, and slots without a pixel.
CASES = (
    Pyramid(2, (32 * 9, 8), 8, (5, 6), (2,), BRAIN, "channels_last", terms="images"),
    Pyramid(1, (125, 39), 9, (5, 6), (1,), FULL),  # the second split begins with the second level
    Pyramid(2, (39, 3), 7, (6, 5), (1,), HALF, "channels_last", terms="images"),
    Pyramid(1, (16,), 264, (4, 9), (1, 2), FULL, "channels_last"),
    Pyramid(1, (10,), 259, (7, 8), (1, 2), HALF, terms="none", relu=False),
    Pyramid(2, (8, 8), 8, (9, 17), (16, 8, 4), HALF, "channels_last", terms="images"),
    Pyramid(1, (8, 0, 16, 3), 72, (9, 34), (2, 1), BRAIN, "transposed", relu=False),
    Pyramid(1, (8, 24), 16, (5, 9), (1, 3), HALF, "sliced"),
)


def check(case: Pyramid) -> Tensor:
    """Holds every entry to a bound that is derived."""
    arguments = case.arguments()
    tensors = tensors_of(arguments)
    truth = by_torch(case, changed(tensors, Tensor.double), case.relu)
    magnitude = by_torch(case, changed(tensors, lambda t: t.double().abs()), False)
    out = by_kernels(case, arguments)
    assert_bounded(out, truth, magnitude, steps=steps_of(case), operands=operands_of(case))
    return out


def matrices_of_any_shape() -> None:
    for case in CASES:
        outputs = [check(replace(case, policy=policy)) for policy in POLICIES]
        assert torch.equal(*outputs), f"{case}: expected the same sums in the same order"


def matrices_in_any_order() -> None:
    for case in (CASES[0], CASES[1]):
        for policy in POLICIES:
            results = []
            for seed, late in ((1, True), (2, False)):
                with host.schedule(seed, late=late):
                    one = replace(case, policy=policy, batch=1)
                    results.append(by_kernels(one, one.arguments()))
            assert torch.equal(*results), f"{policy}: expected one result in every order"


def matrices_of_a_unit() -> None:
    """A pointwise convolution that picks a channel shows h itself, which plain multiply-adds make too."""
    for dtype in (HALF, BRAIN, FULL):
        case = Pyramid(1, (12, 12), 24, (7, 9), (1,), dtype, "channels_last", terms="images", relu=False)
        arguments = case.arguments()
        arguments["pointwise"] = [torch.eye(24, dtype=dtype)[..., None, None]]
        arguments["terms"][2:] = [None, None]
        plain = by_kernels(case, arguments)
        expected = to_tf32(plain) if dtype == FULL else plain
        for policy in POLICIES:
            same = torch.equal(by_kernels(replace(case, policy=policy), arguments), expected)
            assert same, f"{policy} {dtype}: expected h, rounded once"


def matrices_round_weights() -> None:
    weight = torch.randn(300, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    image, taps = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 3, 3)
    taps[..., 1, 1] = 1
    for policy in POLICIES:
        out = torch.ops.jpu_cuda.separable_pyramid(
            [image], [taps], [weight], [1], *[None] * 4, False, True, 80, policy, 0
        )
        assert torch.equal(out, to_tf32(weight).view(1, 300, 1, 1)), f"{policy}: expected weights to nearest"


def matrices_keep_infinities_apart() -> None:
    """What does not exist is 0, whatever stands first or next in memory."""
    for channels, layout in ((8, "channels_last"), (3, "contiguous")):
        case = Pyramid(2, (channels,), 8, (2, 3), (1,), BRAIN, layout, terms="none")
        for policy in POLICIES:
            one = replace(case, policy=policy)
            arguments = one.arguments()
            expected = by_kernels(one, arguments)
            arguments["pointwise"][0][0] = torch.inf
            same = torch.equal(by_kernels(one, arguments)[:, 1:], expected[:, 1:])
            assert same, f"{policy}: expected an output's weights to concern no other"
            arguments = one.arguments()
            arguments["levels"][0][0].fill_(torch.nan)
            out = by_kernels(one, arguments)
            assert out[0].isnan().all(), f"{policy}: expected NaN to pass the ReLU"
            assert torch.equal(out[1], expected[1]), f"{policy}: expected an image to concern no other"


# --- what it costs -------------------------------------------------------------------------------------


def launches_of(case: Pyramid, arguments: dict[str, Any] | None = None) -> list[host.Launch]:
    arguments = case.arguments() if arguments is None else arguments
    with host.record() as launches:
        by_kernels(case, arguments)
    return launches


def counted() -> bool:
    return host._CHECK != "address"  # which counts nothing


def matrices_without_conflicts() -> None:
    if not counted():
        return
    for dtype, dilation in ((HALF, 16), (BRAIN, 4), (FULL, 8), (FULL, 1)):
        case = Pyramid(1, (32, 16), 272, (16, 17), (dilation,), dtype, "channels_last", "images")
        for policy in POLICIES:
            for launch in launches_of(replace(case, policy=policy)):
                counters, what = launch.counters, f"{launch.kernel} {dtype} {dilation}"
                repeats = counters["bank_conflicts"] / counters["shared_accesses"]
                assert repeats <= 0.05, f"{what}: expected no conflicts, got {repeats:.3f} of the accesses"
                width = 4 if launch.kernel.endswith("normalise") else 16
                writes = counters["global_writes"]
                assert {*writes} == {width}, f"{what}: expected writes of {width} bytes, got {writes}"
                reads = counters["global_reads"]
                fours = 0 if launch.kernel.endswith("normalise") else launch.blocks * launch.threads * 2 * 16
                assert {*reads} <= {4, 16}, f"{what}: expected vectors and terms, got {reads}"
                assert reads.get(4, 0) <= fours, f"{what}: expected terms of outputs alone, got {reads}"
                whole = counters["global_write_sectors"] * 32 == counters["global_write_bytes"]
                assert whole, f"{what}: expected whole sectors"


def matrices_read_what_lies_together() -> None:
    if not counted():
        return
    for layout in ("contiguous", "channels_last"):
        case = Pyramid(1, (31,), 1, (8, 32), (1,), FULL, layout, "none")
        for policy in POLICIES:
            counters = launches_of(replace(case, policy=policy))[0].counters
            share = counters["global_read_bytes"] / (32 * counters["global_read_sectors"])
            assert share >= 0.3, f"{policy} {layout}: expected a third of the sectors' bytes, got {share:.2f}"


def matrices_of_little_tiles() -> None:
    """Bytes of the image that blocks fetch by those of its pixels, and slots of tiles by its pixels."""
    for size, dilation in (((60, 64), 1), ((60, 60), 8), ((64, 64), 16), ((8, 24), 1), ((33, 8), 2), ((65, 65), 8)):
        case = Pyramid(1, (32,), 8, size, (dilation,), HALF, "channels_last", "none", policy="two-pass")
        (normalise, _product) = launches_of(case)
        pixels = size[0] * size[1]
        most = pixels * (1.6 if size[0] != 65 else 2.2) + 128
        assert normalise.blocks * 128 <= most, f"{case}: expected {most} slots, got {normalise.blocks * 128}"
        if counted():
            inputs = normalise.counters["distinct_read_bytes"] - 9 * 32 * 2 * normalise.blocks
            times = inputs / pixels / 64
            assert size[0] == 65 or times <= 1.5, f"{case}: expected little halo, got {times:.2f} of its pixels"


def matrices_fetch_each_chunk_once() -> None:
    """Of 16 chunks, two splits of 8; each block fetches its own, and what the outputs take."""
    case = Pyramid(1, (32 * 16,), 8, (8, 16), (1,), HALF, "channels_last", "none")
    pixels, rows = 128 * 512 * 2, 8 * 512 * 2
    for policy, blocks, read in (("mma", [1], [pixels + rows]), ("two-pass", [2, 1], [pixels, pixels + rows])):
        launches = launches_of(replace(case, policy=policy))
        assert [launch.blocks for launch in launches] == blocks
        if counted():
            taps = [9 * 512 * 2, 0]
            expected = [a + b for a, b in zip(read, taps, strict=False)]
            got = [launch.counters["distinct_read_bytes"] for launch in launches]
            assert got == expected, f"{policy}: expected {expected} bytes, got {got}"


def copies(case: Pyramid) -> int:
    """Of tensors, that a call makes."""
    arguments = case.arguments()
    with torch.autograd.profiler.profile() as profile:
        by_kernels(case, arguments)
    return sum(event.name == "aten::copy_" for event in profile.function_events)


def matrices_copy_what_they_must() -> None:
    case = Pyramid(1, (8, 16), 8, (2, 3), (1,), BRAIN, "channels_last", policy="mma")
    for one, expected in (
        (case, 0),
        (replace(case, layout="contiguous"), 3),
        (replace(case, layout="channels of more"), 2),
        (replace(case, layout="contiguous", channels=(8, 3)), 2),
        (replace(case, layout="contiguous", channels=(3, 5), outputs=9), 0),
    ):
        got = copies(one)
        assert got == expected, f"{one}: expected {expected} copies, got {got}"
    launches = launches_of(replace(case, layout="contiguous"))
    if counted():
        writes = launches[0].counters["global_writes"]
        assert {*writes} == {16}, f"expected writes of 16 bytes, got {writes}"


# --- where tensors begin and reach ---------------------------------------------------------------------


def beginning_late(tensor: Tensor) -> Tensor:
    """The same, an element past 16 bytes."""
    storage = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    return storage[1:].view(tensor.shape).copy_(tensor)


def matrices_of_tensors_that_begin_anywhere() -> None:
    case = Pyramid(1, (8, 16), 8, (2, 3), (1, 2), BRAIN, "channels_last")
    for policy in POLICIES:
        one = replace(case, policy=policy)
        arguments = one.arguments()
        expected = by_kernels(one, arguments)
        for name, i in (("depthwise", 1), ("pointwise", 0), ("terms", 0), ("terms", 1), ("terms", 2), ("terms", 3)):
            late = [beginning_late(t) if j == i else t for j, t in enumerate(arguments[name])]
            out = by_kernels(one, {**arguments, name: late})
            assert torch.equal(out, expected), f"{policy}: {name}[{i}] begins elsewhere, and the result is another"


def matrices_reach_far() -> None:
    """Rows 2³¹ elements apart, and such that only the last of a tile are."""
    for rows, step in ((2, 2**31 + 64), (17, 2**27)):
        case = Pyramid(1, (8,), 8, (rows, 4), (1,), HALF, "channels_last", terms="none")
        arguments = case.arguments()
        (level,) = arguments["levels"]
        storage = torch.empty((rows - 1) * step + 64, dtype=HALF)  # of which only what is written exists
        far = storage.as_strided(level.shape, (8, 1, step, 8)).copy_(level)
        for policy in POLICIES:
            one = replace(case, policy=policy)
            out = by_kernels(one, {**arguments, "levels": [far]})
            assert torch.equal(out, by_kernels(one, arguments)), f"{policy}: rows {step} apart give another result"


def matrices_in_rounds() -> None:
    """Tiles and images change from round to round; whole waves fit, of blocks, not of tiles."""
    case = Pyramid(2, (8, 40), 8, (5, 4), (8, 1), BRAIN, "channels_last", terms="images", policy="two-pass")
    tiles, tile_bytes = 18, 128 * 3 * 64
    expected = by_kernels(replace(case, policy="mma"), case.arguments())
    for bytes_, rounds in (
        (1, [1] * tiles),
        (5 * tile_bytes, [5, 5, 5, 3]),
        (18 * tile_bytes - 1, [17, 1]),
        (18 * tile_bytes, [18]),
    ):
        one = replace(case, workspace=bytes_)
        with host.record() as launches:
            out = by_kernels(one, one.arguments())
        got = [launch.blocks for launch in launches]
        assert got == [blocks for blocks in rounds for _ in range(2)], f"expected tiles {rounds}, got {got}"
        assert torch.equal(out, expected), f"{rounds}: expected what the single launch gives"
    # 108 multiprocessors are 54 tiles of two blocks.
    waves = Pyramid(2, (8,), 264, (1, 1), (16,), BRAIN, policy="two-pass", terms="none", workspace=60 * 128 * 64)
    got = [launch.blocks for launch in launches_of(waves)]
    assert got == [54, 108, 10, 20], f"expected waves of 54 tiles, got {got}"
    # Half of 6 MiB are 29 tiles of 13 chunks. Of 82 multiprocessors a wave is 20 tiles of four blocks, or 82 of one.
    for outputs, rounds in ((769, [40, 80, 24, 48]), (1, [64, 32])):
        a = replace(waves, channels=(16 * 13,), dtype=FULL, batch=1, outputs=outputs).arguments()
        with host.record() as launches:
            torch.ops.jpu_cuda.separable_pyramid(
                a["levels"], a["depthwise"], a["pointwise"], [16], *a["terms"], False, True, 86, "two-pass", 0
            )
        got = [launch.blocks for launch in launches]
        assert got == rounds, f"expected blocks {rounds} for {outputs} outputs, got {got}"


# --- which policy serves -------------------------------------------------------------------------------


def sources() -> Path:
    """csrc/ that the loaded library was built from; a copy's lies beside its build."""
    module = host.load()
    beside = Path(str(module.__file__)).parent.parent / "csrc"
    return beside if (beside / "separable_pyramid" / "policy.cpp").exists() else CSRC


def matrices_are_chosen() -> None:
    """By the operator, for the devices that host execution knows."""
    older = "expected compute capability 8.0 or newer for tensor cores"
    padded = "fma: tensor cores would work on 256 outputs for"
    calls: Sequence[tuple[tuple[Any, ...], str]] = [
        ((BRAIN, 512, False, 80, "auto"), "mma: one launch of tensor cores"),
        ((FULL, 512, True, 90, "auto"), "mma: one launch of tensor cores"),
        ((FULL, 512, False, 80, "auto"), "fma: float32 keeps its precision in plain"),
        ((torch.float64, 512, True, 80, "auto"), "fma: float64 keeps its precision"),
        ((torch.float64, 512, True, 80, "mma"), "fma: float64 keeps its precision"),
        ((BRAIN, 512, True, 0, "auto"), "fma: a device without tensor cores was asked for"),
        ((BRAIN, 512, True, 75, "auto"), f"fma: {older}, got 7.5"),
        ((BRAIN, 768, True, 80, "auto"), "mma: one launch"),
        ((BRAIN, 769, True, 80, "auto"), "two-pass: 769 outputs are 4 blocks' work"),
        ((BRAIN, 1, True, 80, "auto"), "mma: one launch"),
        ((FULL, 1, True, 90, "auto"), "mma: one launch"),
        ((FULL, 1, True, 100, "auto"), "mma: one launch"),
        ((BRAIN, 64, True, 86, "auto"), f"{padded} 64, plain multiply-adds on 64, and may be no more than 2 times"),
        ((BRAIN, 65, True, 86, "auto"), "mma: one launch"),
        ((FULL, 192, True, 89, "auto"), f"{padded} 192, plain multiply-adds on 192, and may be no more than 1 times"),
        ((FULL, 193, True, 89, "auto"), "mma: one launch"),
        ((BRAIN, 512, True, 80, "fma"), "fma: asked for by name"),
        ((BRAIN, 512, True, 80, "two-pass"), "two-pass: asked for by name"),
        ((BRAIN, 1, True, 86, "mma"), "mma: asked for by name"),
    ]
    for (dtype, *arguments), expected in calls:
        got = torch.ops.jpu_cuda.separable_pyramid_policy(torch.empty(0, dtype=dtype), *arguments)
        assert got.startswith(expected), f"{dtype} {arguments}: expected {expected!r}, got {got!r}"
    for policy, kernels in (("mma", ["mma"]), ("two-pass", ["normalise", "product"]), ("fma", ["forward"])):
        case = Pyramid(1, (8,), 8, (1, 1), (1,), BRAIN, policy=policy)
        got = [launch.kernel.removeprefix("separable_pyramid ") for launch in launches_of(case)]
        assert got == kernels, f"{policy}: expected {kernels}, got {got}"


def matrices_fit_other_devices() -> None:
    """By the function itself, for tiles of any size."""
    p = policies(sources())
    for arguments, tiles in (
        ((108, 1000, 1, 1), 9 * 108),
        ((108, 1000, 1, 2), 18 * 54),
        ((108, 107, 1, 1), 107),
        ((108, 5, 10, 1), 1),
        ((3, 10, 1, 4), 10),
    ):
        got = p.tiles_at_a_time(*arguments)
        assert got == tiles, f"tiles_at_a_time{arguments}: expected {tiles}, got {got}"


CHECKS: dict[str, Callable[[], None]] = {
    function.__name__: function
    for function in (
        matrices_are_chosen,
        matrices_fit_other_devices,
        matrices_of_any_shape,
        matrices_in_any_order,
        matrices_of_a_unit,
        matrices_round_weights,
        matrices_keep_infinities_apart,
        matrices_without_conflicts,
        matrices_read_what_lies_together,
        matrices_of_little_tiles,
        matrices_fetch_each_chunk_once,
        matrices_copy_what_they_must,
        matrices_of_tensors_that_begin_anywhere,
        matrices_reach_far,
        matrices_in_rounds,
    )
}
