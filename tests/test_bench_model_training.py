"""The cost sheet's training: how launches are cut, and counts that are those of the operator as a whole."""

from collections import Counter as Tally
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from products import number_of_tiles, tile_of_pixels

from benchmarks.environment import ROOT
from benchmarks.model import predict, sheet, tiles, training
from benchmarks.model.counts import CALLS, Counter, execute, total
from benchmarks.model.devices import DEVICES
from benchmarks.model.kernels import Kernel, levels_of
from benchmarks.model.tiles import Rows, Tiling, fetched_by_parts, parts, tiling
from benchmarks.model.training import KERNELS
from benchmarks.model.training_calls import Sample, groups
from benchmarks.model.work import Work, backward_floor, stage_floor
from jpu_cuda import host, use_backend
from jpu_cuda.host import Launch

H100 = DEVICES["h100"]
STEP = Work(16, 60, 60, "bfloat16")
COUNTED = [kernel for kernel in KERNELS if not kernel.vendor]


# How work is cut.

SIZES = [(60, 60), (12, 10), (64, 128), (3, 5), (33, 47)]


@pytest.mark.parametrize(("dilation", "size"), list(product((1, 2, 3, 4, 8, 16), SIZES)))
def test_images_are_cut_as_the_kernels_cut_them(dilation, size):
    found = tiling(dilation, size)
    assert found.tiles == number_of_tiles(dilation, size)
    # A tile fetches its own pixels, and all of them fetch the image.
    assert found.fetched(0, found.tiles) == size[0] * size[1]
    first = int((tile_of_pixels(dilation, size) == 0).sum())
    assert first <= found.fetched(0, 1)


def test_a_tile_fetches_a_pixel_more_on_each_side():
    dense = Tiling(1, (24, 48), (1, 8, 16))
    assert [dense.fetched(i, i + 1) for i in (0, 1, 4)] == [9 * 17, 9 * 18, 10 * 18]
    assert dense.fetched(3, 5) == 10 * 33
    # Of four classes a tile has two: those with even rows.
    packed = Tiling(2, (16, 16), (2, 8, 8))
    assert packed.fetched(0, 1) == 8 * 16


def test_parts_fetch_what_lies_between_them_twice():
    dense = tiling(1, (8, 128))
    assert (dense.shape, dense.tiles) == ((1, 8, 16), 8)
    assert [fetched_by_parts(dense, n) for n in (1, 2)] == [8 * 128, 8 * 130]


def test_parts_are_enough_for_a_large_gpu_or_have_four_tiles():
    map_of = [tiling(d, (60, 60)) for d in (1, 8)]
    assert [t.tiles for t in map_of] == [32, 32]
    assert parts(map_of, 16 * 4 * 48) == [1, 1]
    assert parts(map_of, 16 * 48) == [3, 3]
    assert parts(map_of, 1) == [8, 8]


def test_rows_are_cut_by_vectors_rounds_and_parts():
    rows = Rows(2048, 2)
    assert (rows.vector, rows.lanes, rows.rows, rows.tiles) == (8, 32, 8, 8)
    assert rows.blocks(57600, 8) == 8 * 300  # 7200 of 64 pixels: three rounds
    assert Rows(512, 2).blocks(57600, 4) == 2 * 1800
    assert rows.parts(16, 3600) == 16
    # 225 pixels in 8 rows: 28 or 29, so one run beside the first.
    assert rows.later_runs(16, 3600) == 16 * 16 * 8 * 8
    assert Rows(24, 4).lanes == 6


def test_a_branch_at_a_time_where_two_exceed_the_workspace():
    assert groups(STEP) == [1, 1, 1, 1]
    assert groups(replace(STEP, batch=1)) == [4]
    assert groups(replace(STEP, batch=4)) == [2, 2]
    assert groups(Sample(**vars(STEP), at_once=3)) == [3, 1]


@pytest.mark.parametrize(
    ("header", "line"),
    [
        ("separable_pyramid/launch_training.h", f"kTrainingBlocks = {tiles.ENOUGH_BLOCKS};"),
        ("separable_pyramid/launch_training.h", f"kLeastTiles = {tiles.LEAST_TILES};"),
        ("norm_relu/rows_config.h", f"kEnoughBlocks = {tiles.ENOUGH_BLOCKS};"),
        ("norm_relu/rows_config.h", f"kMostRounds = {tiles.MOST_ROUNDS};"),
        ("norm_relu/rows_config.h", f"kRun = {tiles.RUN};"),
        ("norm_relu/rows_config.h", f"kLeastPixels = {tiles.LEAST_PIXELS};"),
        (
            "norm_relu/rows_config.h",
            f"kOutputPixels = {training.OUTPUT_PIXELS}, kGradientPixels = {training.GRADIENT_PIXELS};",
        ),
    ],
)
def test_constants_are_those_of_the_kernels(header, line):
    assert line in (ROOT / "csrc" / header).read_text()


# Counts of the operator as a whole.

# Channels and outputs are whole tiles of every launch, pixels of none.
WHOLE = Sample(2, 20, 18, "bfloat16", levels=2, channels=128, outputs=256, dilations=(1, 4))
SINGLE = Sample(2, 12, 10, "float32", levels=2, channels=128, outputs=128, dilations=(1, 4), at_once=1)
RUNS = [("mma", replace(WHOLE, at_once=1)), ("two-pass", WHOLE), ("fma", SINGLE)]


@cache
def launches_of_step(policy: str, work: Sample) -> tuple[list[Launch], list[Launch]]:
    """What jpu_cuda::trained_pyramid and its gradient launch."""
    dtype = getattr(torch, work.dtype)
    levels = levels_of(work, resized=False)
    depthwise = [torch.ones(work.all_channels, 1, 3, 3, dtype=dtype)] * work.branches
    pointwise = [torch.ones(work.outputs, work.all_channels, 1, 1, dtype=dtype)] * work.branches
    widths = [n for n in (work.all_channels, work.outputs) for _ in work.dilations]
    weights, biases = ([torch.ones(n) for n in widths] for _ in range(2))
    none, count = [None] * len(widths), len(widths)
    arguments: tuple[Any, ...] = (levels, False, False, depthwise, pointwise, list(work.dilations))
    arguments += (weights, biases, none, none, [1e-5] * count, [0, 0])
    of_branch = work.pixels * (2 * work.all_channels + work.outputs) * work.element_bytes
    workspace = of_branch * (work.at_once or work.branches)
    ops = torch.ops.jpu_cuda
    with use_backend("host"), torch.no_grad():
        with host.record() as forward:
            output, *saved = ops.trained_pyramid(*arguments, True, 80 if policy != "fma" else 0, policy)
        needed = [1] * (work.levels + 6)
        with host.record() as backward:
            ops.trained_pyramid_backward(*arguments, torch.ones_like(output), saved, needed, workspace)
    return forward, backward


def _kernels_of(policy: str, direction: str) -> list[Kernel]:
    return [k for k in COUNTED if k.policy in ("any", policy) and k.direction == direction]


@pytest.mark.parametrize(("policy", "work"), RUNS, ids=lambda value: getattr(value, "dtype", value))
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_the_sheet_has_every_launch_of_a_step(direction, policy, work):
    launches = launches_of_step(policy, work)[direction == "backward"]
    expected = {
        k.name: k.launches(work, DEVICES["a100"], total(launches, k.name)) for k in _kernels_of(policy, direction)
    }
    assert Tally(launch.kernel for launch in launches) == expected
    for kernel in _kernels_of(policy, direction):
        assert {launch.threads for launch in launches if launch.kernel == kernel.name} == {kernel.threads}


@pytest.mark.parametrize(("policy", "work"), RUNS, ids=lambda value: getattr(value, "dtype", value))
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_counts_are_those_of_a_step(direction, policy, work, tmp_path):
    launches, counter = launches_of_step(policy, work)[direction == "backward"], Counter(tmp_path)
    for kernel in _kernels_of(policy, direction):
        assert counter.counts(kernel, work) == total(launches, kernel.name), kernel.row


@pytest.mark.parametrize("tiles_in_a_row", [6, 9, 13])
def test_a_part_costs_the_same_however_many_there_are(tiles_in_a_row, tmp_path):
    work = Sample(2, 8, 16 * tiles_in_a_row, "bfloat16", levels=1, channels=64, dilations=(1,), strip=True)
    found = execute(CALLS["training walks"], work)
    for kernel in (k for k in COUNTED if k.call == "training walks"):
        assert Counter(tmp_path).counts(kernel, work) == found[kernel.name], kernel.row


# Predictions and tables.


def _lines(device: Any = H100, kernels: Any = KERNELS) -> list[sheet.Line]:
    return sheet.lines(device, kernels, [STEP], None, None)[0]


def test_backward_needs_twice_what_forward_needs():
    assert stage_floor(H100, STEP) == pytest.approx(2 * 181.2e9 / 798e12, rel=1e-3)
    assert backward_floor(H100, STEP) == pytest.approx(2 * stage_floor(H100, STEP))
    # Of a single image with few channels bytes are more.
    small = replace(STEP, channels=32, outputs=32)
    assert backward_floor(H100, small) == pytest.approx(2 * small.stage_bytes() / 3.0e12)
    # PyTorch leaves float32 at full precision.
    assert backward_floor(H100, replace(STEP, dtype="float32")) > 10 * backward_floor(H100, STEP)


def test_matrix_products_of_pytorch_are_bound_by_tensor_cores():
    products = [k for k in KERNELS if k.name.startswith("torch.bmm")]
    assert len(products) == 2
    for kernel in products:
        found = predict.predict(H100, kernel, STEP)
        assert (found.binding, found.launches) == ("tensor", 4)
        assert found.seconds["tensor"] == pytest.approx(stage_floor(H100, STEP))
        assert found.total == pytest.approx(stage_floor(H100, STEP) + 4 * predict.LAUNCH)
        assert predict.predict(H100, kernel, replace(STEP, dtype="float32")).binding == "FP32"


def test_groups_read_the_levels_anew_unless_l2_holds_them():
    normalised = next(k for k in KERNELS if k.name.endswith("training normalised"))
    level = next(k for k in KERNELS if k.name.endswith("training level gradient"))
    resized = STEP.resized_bytes()
    assert normalised.moved_again(STEP, H100) == 3 * resized
    assert level.moved_again(STEP, H100) == 6 * resized
    roomy = replace(H100, l2=resized)
    assert normalised.moved_again(STEP, roomy) == level.moved_again(STEP, roomy) == 0
    assert normalised.moved_again(replace(STEP, batch=1), H100) == 0


def test_a_step_is_the_sum_of_both_passes():
    table = sheet.training_times(H100, _lines())
    rows = [dict(zip(table.columns, cells, strict=True)) for cells in table.lines]
    named = {row["kernel"]: row for row in rows if "all launches" in row["kernel"] or "step" in row["kernel"]}
    policies = ["fma", "mma", "two-pass"]
    expected = [f"{p}: all launches forward" for p in policies] + ["backward: all launches"]
    assert list(named) == expected + [f"{p}: step" for p in policies]
    for column in ("floor", "predicted", "MB"):
        parts = float(named["mma: all launches forward"][column]) + float(named["backward: all launches"][column])
        assert float(named["mma: step"][column]) == pytest.approx(parts, rel=1e-2)
    assert [row["kernel"] for row in rows[:2]] == ["stage (b): forward", "stage (b): backward"]
    assert float(rows[1]["MB"]) == pytest.approx(2 * STEP.stage_bytes() / 1e6, rel=1e-2)
    # Both passes resize the levels.
    assert [row["kernel"] for row in rows].count("training upsample") == 2


def test_sums_of_one_part_of_one_image_are_not_folded():
    tiny = Work(1, 8, 8, "bfloat16")
    rows = {line.kernel.name for line in sheet.lines(H100, KERNELS, [tiny], None, None)[0]}
    assert {kernel.name for kernel in KERNELS} - rows == {"norm_statistics fold"}


def test_policies_differ_in_products_alone():
    shared = [k for k in KERNELS if k.policy == "any"]
    assert {k.direction for k in KERNELS} == {"forward", "backward"}
    assert all(k.policy == "any" for k in KERNELS if k.direction == "backward")
    assert {k.policy: k.name for k in KERNELS if k not in shared} == {
        "fma": "separable_pyramid forward with moments",
        "mma": "separable_pyramid mma with moments",
        "two-pass": "separable_pyramid product with moments",
    }


def test_what_pytorch_does_is_neither_counted_nor_compiled():
    vendor = [k for k in KERNELS if k.vendor]
    counter = Counter()

    class Refusing:
        def compiled(self, *_: object) -> None:
            raise AssertionError

    lines, missing = sheet.lines(H100, vendor, [STEP], counter, Refusing())  # type: ignore[arg-type]
    assert missing == []
    assert [(line.counts, line.compiled) for line in lines] == [(None, None)] * len(vendor)
