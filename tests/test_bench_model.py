"""The cost sheet's arithmetic: sizes, floors, occupancy, predictions, the rows that it shows."""

from dataclasses import replace

import pytest

from benchmarks import results
from benchmarks.environment import ROOT
from benchmarks.model import kernels, predict, sheet, tiles
from benchmarks.model.binary import Compiled, Resources
from benchmarks.model.devices import DEVICES
from benchmarks.model.kernels import KERNELS, Kernel, rounds
from benchmarks.model.occupancy import occupancy
from benchmarks.model.sass import Instruction, Loop, Program
from benchmarks.model.work import Work, select, stage_floor

H100, A100 = DEVICES["h100"], DEVICES["a100"]
NORM_RELU, FOLD, CONCAT, KERNEL, MMA, NORMALISE, PRODUCT_OF_TWO = KERNELS


@pytest.mark.parametrize(
    ("batch", "flops", "moved", "seconds"), [(1, 25.8e9, 29e6, 32e-6), (16, 412e9, 362e6, 0.52e-3)]
)
def test_stage_b_at_512_pixels_needs_what_the_design_says(batch, flops, moved, seconds):
    work = Work(batch, 64, 64, "bfloat16")
    assert 2 * work.pointwise_multiply_adds() == pytest.approx(flops, rel=2e-3)
    assert work.stage_bytes() == pytest.approx(moved, rel=2e-2)
    assert stage_floor(H100, work) == pytest.approx(seconds, rel=2e-2)


def test_depthwise_multiply_adds_of_stage_b():
    assert Work(16, 64, 64, "bfloat16").depthwise_multiply_adds() == pytest.approx(3.6e9, rel=1e-2)


def test_levels_halve_and_round_up():
    work = Work(1, 61, 60, "float32")
    assert [work.level_size(i) for i in range(3)] == [(61, 60), (31, 30), (16, 15)]
    assert work.level_bytes() == (61 * 60 + 31 * 30 + 16 * 15) * 512 * 4
    assert work.level_bytes(1) == (31 * 30 + 16 * 15) * 512 * 4


def test_float32_has_its_floor_by_fp32_units():
    half, single = (Work(16, 64, 64, dtype) for dtype in ("bfloat16", "float32"))
    assert stage_floor(A100, half) == pytest.approx(412.3e9 / 312e12, rel=1e-2)
    assert stage_floor(A100, single) == pytest.approx(412.3e9 / 19.5e12, rel=1e-2)


# What NVIDIA states, in TFLOP/s.
@pytest.mark.parametrize(
    ("device", "tensor", "tf32", "fp32"),
    [
        ("a100", 312, 156, 19.5),
        ("h200", 989.4, 494.7, 61.8),  # FP32 is stated at a higher clock, 67
        ("rtx4090", 165.2, 82.6, 82.6),
        ("rtx3090", 71, 35.6, 35.6),
        ("l4", 121, 60.5, 30.3),
    ],
)
def test_clocks_and_units_make_the_stated_peaks(device, tensor, tf32, fp32):
    assert DEVICES[device].tensor_flops("bfloat16") / 1e12 == pytest.approx(tensor, rel=1e-2)
    assert DEVICES[device].tensor_flops("float32") / 1e12 == pytest.approx(tf32, rel=1e-2)
    assert DEVICES[device].fp32_flops() / 1e12 == pytest.approx(fp32, rel=1e-2)


def test_a_measured_peak_takes_the_place_of_the_stated_one():
    assert H100.tensor_flops("float16") == 798e12
    assert H100.tensor_flops("float32") == 399e12
    assert H100.bandwidth == 3.0e12
    stated = replace(H100, measured_tensor=None, measured_dram=None)
    assert stated.tensor_flops("float16") == pytest.approx(989.4e12, rel=1e-3)
    assert stated.bandwidth == 3.35e12


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_names_its_sources(device):
    assert any("Programming Guide" in source for source in DEVICES[device].sources)
    assert len(DEVICES[device].sources) >= 2


# By hand: a warp's registers in portions of 256, each quarter of an SM with 16384 of them; shared memory in portions
# of 128 bytes, of which the system takes 1024 a block.
@pytest.mark.parametrize(
    ("device", "threads", "registers", "shared", "blocks", "limit"),
    [
        ("a100", 256, 128, 49136, 2, "registers"),  # 4096 a warp: 16 warps
        ("a100", 256, 32, 49136, 3, "shared memory"),  # 50176 of 167936
        ("h100", 256, 32, 49136, 4, "shared memory"),  # 50176 of 233472
        ("a100", 256, 24, 0, 8, "threads"),  # 768 a warp: 21 warps a quarter
        ("rtx3090", 256, 40, 0, 6, "registers"),  # 1280 a warp: 12 warps a quarter, as threads allow too
        ("rtx4090", 256, 24, 0, 6, "threads"),  # 1536 of 256 each
        ("rtx3090", 32, 24, 0, 16, "blocks"),
        ("a100", 32, 24, 0, 32, "blocks"),
        ("a100", 96, 255, 0, 2, "registers"),  # 8192 a warp: 2 warps a quarter, 8 in all, 3 a block
        ("a100", 128, 72, 0, 7, "registers"),  # 2304 a warp: 7 warps a quarter, 28 in all
        ("rtx3090", 128, 32, 101376, 1, "shared memory"),  # all that a block may have
        ("rtx3090", 128, 32, 101377, 0, "shared memory"),  # one byte more
        ("a100", 40, 64, 0, 16, "registers"),  # two warps, the second not full
        ("a100", 128, 73, 0, 6, "registers"),  # 2336 a warp, of which 2560 are handed out: 6 warps a quarter
        ("a100", 64, 40, 0, 24, "registers"),  # 12 warps a quarter are 48, although 51 fit the SM
    ],
)
def test_occupancy_is_that_of_nvidias_rules(device, threads, registers, shared, blocks, limit):
    found = occupancy(DEVICES[device], threads, registers, shared)
    assert (found.blocks, found.limit) == (blocks, limit)
    assert found.warps == blocks * -(-threads // 32)


@pytest.mark.parametrize(("blocks", "expected"), [(132, 1.0), (133, 2 * 132 / 133), (66, 2.0), (1320, 1.0)])
def test_the_busiest_sm_has_a_whole_number_of_blocks(blocks, expected):
    assert predict.imbalance(blocks, 132) == pytest.approx(expected)


COUNTS = {
    "blocks": 1320,
    "multiply_adds": 10,
    "matrix_multiply_adds": 10,
    "shared_accesses": 10,
    "distinct_read_bytes": 10,
    "distinct_write_bytes": 10,
}
NEGLIGIBLE = replace(KERNEL, moved=lambda work: 1, moved_again=lambda work, device: 0, main_multiply_adds=None)
WORK = Work(1, 64, 64, "bfloat16")


@pytest.mark.parametrize(
    ("counter", "value", "resource", "seconds"),
    [
        ("shared_accesses", 132 * 1.83e9, "shared", 1.0),
        ("distinct_read_bytes", 5120 * 1.83e9, "L2", 1.0),
        ("distinct_write_bytes", 5120 * 1.83e9, "L2", 1.0),
        ("multiply_adds", 132 * 128 * 1.83e9, "FP32", 1.0),
        ("matrix_multiply_adds", 399e12, "tensor", 1.0),
    ],
)
def test_the_resource_that_is_busy_longest_binds(counter, value, resource, seconds):
    found = predict.predict(H100, NEGLIGIBLE, WORK, {**COUNTS, counter: int(value)})
    assert found.binding == resource
    assert found.total == pytest.approx(seconds + predict.LAUNCH, rel=1e-6)


def test_dram_binds_a_kernel_that_only_moves():
    found = predict.predict(H100, replace(NEGLIGIBLE, moved=lambda work: 3 * 10**12), WORK, COUNTS)
    assert (found.binding, found.seconds["DRAM"]) == ("DRAM", pytest.approx(1.0))


def test_every_launch_costs():
    one, four = (predict.predict(H100, replace(NEGLIGIBLE, launches=lambda *_, n=n: n), WORK, COUNTS) for n in (1, 4))
    assert four.total - one.total == pytest.approx(3 * predict.LAUNCH, rel=1e-3)


def test_fewer_blocks_than_sms_leave_the_rest_idle():
    full, half = (
        predict.predict(H100, NEGLIGIBLE, WORK, {**COUNTS, "shared_accesses": 10**9, "blocks": blocks})
        for blocks in (132, 66)
    )
    assert half.seconds["shared"] == pytest.approx(2 * full.seconds["shared"])


def test_sms_are_idle_at_the_end_of_every_launch():
    counts = {**COUNTS, "shared_accesses": 10**9, "blocks": 132}
    one, two = (predict.predict(H100, replace(NEGLIGIBLE, launches=lambda *_, n=n: n), WORK, counts) for n in (1, 2))
    assert two.seconds["shared"] == pytest.approx(2 * one.seconds["shared"])


def test_l2_is_left_out_where_nothing_is_known_of_it():
    assert "L2" not in predict.predict(DEVICES["l4"], NEGLIGIBLE, WORK, COUNTS).seconds


def test_without_counts_only_what_the_work_needs_is_known():
    found = predict.predict(A100, KERNEL, WORK)
    assert set(found.seconds) == {"DRAM", "FP32"}
    assert found.seconds["FP32"] == pytest.approx(2 * KERNEL.multiply_adds(WORK) / 19.5e12, rel=1e-2)
    assert set(predict.predict(A100, MMA, WORK).seconds) == {"DRAM", "tensor"}


def test_levels_of_an_image_that_the_cache_does_not_hold_are_read_once_for_each_dilation():
    work = Work(16, 64, 64, "bfloat16")
    levels = work.resized_bytes()
    large, small = (replace(H100, l2=levels // 16 - short) for short in (0, 1))
    assert KERNEL.moved_again(work, large) == 0
    assert KERNEL.moved_again(work, small) == 3 * levels
    slow, fast = (predict.predict(device, KERNEL, work) for device in (small, large))
    assert slow.seconds["DRAM"] - fast.seconds["DRAM"] == pytest.approx(3 * levels / 3.0e12)


def _code(**counts: int) -> tuple[Instruction, ...]:
    return tuple(Instruction(opcode) for opcode, count in counts.items() for _ in range(count))


PRODUCT = Loop(0, _code(FFMA=64, LDS=6, BRA=2))
# Its multiply-adds stand in a branch; beside it is one for another layout.
DEPTHWISE = Loop(100, _code(ISETP=5, BRA=5), (_code(FFMA=40, LDS=20), _code(LDG=100)))
COPY = Loop(200, _code(LDG=4))


@pytest.mark.parametrize(
    ("main", "fused", "expected"),
    [
        (32 * 640, 32 * 640, 720),  # ten times around
        (32 * 640, 32 * 680, 720 + 70),  # and once around the other
    ],
)
def test_instructions_of_loops_are_issued_as_often_as_their_multiply_adds_are_counted(main, fused, expected):
    assert predict.warp_instructions((PRODUCT, DEPTHWISE, COPY), PRODUCT, main, fused, 0) == pytest.approx(expected)


MATRIX = tuple(Instruction("HMMA", ".16816.F32.BF16") for _ in range(8))


def _issued(loop: Loop, trips: int, fused: int) -> float:
    return predict.warp_instructions((loop, DEPTHWISE), loop, 0, 32 * fused, trips * 8 * 16 * 8 * 16)


def test_a_loop_with_tensor_cores_goes_around_as_often_as_those_say():
    # Of 80 multiply-adds a thread its own 4 make 40; the other loop, of 40 a time, makes the rest.
    assert _issued(Loop(0, MATRIX + _code(FFMA=4, LDSM=4)), 10, 80) == pytest.approx(10 * 16 + 70)


def test_a_block_that_half_of_the_warps_pass_by_counts_half():
    loop = Loop(0, MATRIX, (_code(FFMA=10, LDS=10), _code(LDG=100)))
    assert _issued(loop, 10, 50) == pytest.approx(10 * (8 + 20 / 2))


def test_multiply_adds_beyond_all_blocks_of_the_main_loop_are_those_of_another():
    loop = Loop(0, MATRIX, (_code(FFMA=10, LDS=10),))
    assert _issued(loop, 10, 100 + 40) == pytest.approx(10 * 28 + 70)


def test_issue_slots_are_those_of_four_schedulers_on_each_sm():
    program = Program("k", PRODUCT.own, (PRODUCT,))
    compiled = Compiled(Resources(registers=64, shared=0, spills=0), program, PRODUCT)
    counts = {**COUNTS, "multiply_adds": 32 * 64 * 132 * 4 * 1000}
    found = predict.predict(H100, NEGLIGIBLE, WORK, counts, compiled)
    assert found.seconds["issue"] == pytest.approx(72 * 1000 / 1.83e9)
    assert found.binding == "issue"
    # 8 warps of 64 registers a thread: 32 warps, 4 blocks.
    assert found.occupancy is not None
    assert (found.occupancy.blocks, found.waves) == (4, pytest.approx(1320 / (132 * 4)))


def test_dynamic_shared_memory_limits_blocks_too():
    compiled = Compiled(Resources(registers=32, shared=0, spills=0), Program("k", PRODUCT.own, ()), None)
    found = predict.predict(A100, replace(NEGLIGIBLE, dynamic_shared=80 * 1024), WORK, COUNTS, compiled)
    assert found.occupancy is not None
    assert (found.occupancy.blocks, found.occupancy.limit) == (2, "shared memory")
    assert "issue" not in found.seconds


ROW = results.Row(
    device="NVIDIA H100 80GB HBM3",
    versions={"run": "2026-01-02T03:04:05.678Z"},
    source_hash="a" * 64,
    case=sheet.case_of(KERNEL, WORK),
    provider="cuda",
    metric="latency",
    value=1.5,
    quantiles=None,
    unit="ms",
)


def test_a_measurement_of_these_sources_is_found():
    later = replace(ROW, versions={"run": "2026-01-03T00:00:00.000Z"}, value=1.25)
    assert sheet.measured([later, ROW], H100, KERNEL, WORK, "a" * 64) == 1.25


@pytest.mark.parametrize(
    "changes",
    [
        {"device": "NVIDIA A100-SXM4-80GB"},
        {"device": "NVIDIA H100 PCIe"},
        {"source_hash": "b" * 64},
        {"metric": "fps", "unit": "1/s"},
        {"case": {**ROW.case, "batch": 2}},
        {"case": {**ROW.case, "kernel": "another"}},
        {"case": {**ROW.case, "dtype": "float16"}},
    ],
)
def test_a_measurement_of_something_else_is_not_shown(changes):
    assert sheet.measured([replace(ROW, **changes)], H100, KERNEL, WORK, "a" * 64) is None


def test_files_that_hold_no_measurements_are_passed_by(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"run": "another form"}\n')
    results.append(tmp_path / "b.jsonl", [ROW])
    assert sheet.read_results(tmp_path) == [ROW]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0323, "0.0323"), (1234.5, "1234"), (9.996, "10.00"), (12.34, "12.3"), (0, "0"), (None, "–"), (1, "1.00")],
)
def test_figures_have_three_digits(value, expected):
    assert sheet.figure(value) == expected


def _line(kernel: Kernel, milliseconds: float | None) -> sheet.Line:
    return sheet.Line(kernel, WORK, 1e-3, predict.predict(H100, kernel, WORK), measured=milliseconds)


def _cells(*lines: sheet.Line) -> list[dict[str, str]]:
    table = sheet.times(H100, lines)
    return [dict(zip(table.columns, cells, strict=True)) for cells in table.lines]


def test_a_policy_is_the_sum_of_its_launches():
    rows = _cells(_line(FOLD, 0.25), _line(CONCAT, 10.0), _line(KERNEL, 1.0), _line(MMA, 0.5))
    names = ["stage (b)", FOLD.row, CONCAT.row, KERNEL.row, MMA.row, "fma: all launches", "mma: all launches"]
    assert [row["kernel"] for row in rows] == names
    assert rows[0]["floor"] == "0.0323"
    assert [row["measured"] for row in rows[-2:]] == ["1.25", "0.750"]
    total = sum(predict.predict(H100, kernel, WORK).total for kernel in (FOLD, KERNEL)) * 1e3
    assert float(rows[-2]["predicted"]) == pytest.approx(total, rel=1e-2)


def test_norms_of_stage_a_move_its_results_twice_and_are_in_no_sum():
    assert NORM_RELU.moved(WORK) == pytest.approx(2 * WORK.level_bytes(), rel=1e-2)
    rows = _cells(_line(NORM_RELU, 9.0), _line(FOLD, 0.25), _line(KERNEL, 1.0))
    assert rows[1]["kernel"] == "norm_relu forward"
    assert [row["measured"] for row in rows if "all launches" in row["kernel"]] == ["1.25"]


def test_a_sum_with_an_unmeasured_part_is_not_measured():
    assert _cells(_line(FOLD, None), _line(KERNEL, 1.0))[-1]["measured"] == "–"


def test_a_binary_is_shown_once_with_all_its_shared_memory():
    program = Program("k", PRODUCT.own + COPY.own, (PRODUCT, COPY))
    compiled = Compiled(Resources(registers=64, shared=1000, spills=4), program, PRODUCT)
    kernel = replace(MMA, dynamic_shared=2000)
    works = [replace(WORK, batch=batch) for batch in (1, 4)]
    lines = [
        sheet.Line(kernel, work, 1e-3, predict.predict(A100, kernel, work, COUNTS, compiled), COUNTS, compiled)
        for work in works
    ]
    table = sheet.binaries(A100, lines)
    rows = [dict(zip(table.columns, cells, strict=True)) for cells in table.lines]
    assert [row["part"] for row in rows] == ["all", "main loop"]
    expected = {"registers": "64", "spilled B": "4", "shared B": "3000", "blocks/SM": "4", "instr.": "76", "fp32": "64"}
    assert {name: rows[0][name] for name in expected} == expected
    assert (rows[1]["instr."], rows[1]["shared"], rows[1]["a product"]) == ("72", "6", "1.12")
    assert "tensor" not in table.columns


def test_counts_are_shown_in_their_units():
    counts = {**COUNTS, "blocks": 2, "barriers": 5, "shared_accesses": 4_000_000, "bank_conflicts": 1_000_000}
    counts |= {"global_read_bytes": 3_000_000, "global_read_sectors": 10**6, "distinct_read_bytes": 2_000_000}
    counts |= {"global_write_bytes": 500_000, "multiply_adds": 2 * 10**9, "matrix_multiply_adds": 3 * 10**9}
    table = sheet.counted([replace(_line(MMA, None), counts=counts), _line(FOLD, None)])
    assert len(table.lines) == 1
    assert table.lines[0][4:] == ["2", "3.00", "32.0", "2.00", "0.500", "4.00", "25.0", "2.50", "2.00", "3.00"]


def test_tf32_has_its_floor_by_tensor_cores():
    work = replace(WORK, dtype="float32")
    lines = [sheet.Line(kernel, work, 1e-3, predict.predict(H100, kernel, work)) for kernel in (KERNEL, MMA)]
    floors = {row["kernel"]: float(row["floor"]) for row in _cells(*lines)}
    assert floors["mma: all launches"] == pytest.approx(25.77e9 / 399e12 * 1e3, rel=1e-2)
    assert floors["fma: all launches"] == pytest.approx(25.77e9 / (132 * 128 * 2 * 1.83e9) * 1e3, rel=1e-2)


# h of a tile is 128 pixels of 1536 channels: 393,216 bytes in bfloat16, twice that in float32.
@pytest.mark.parametrize(
    ("device", "dtype", "tiles", "expected"),
    [
        ("h100", "bfloat16", 128, 2),  # 66 tiles in 25 MiB, which are one wave of 132 blocks
        ("h100", "bfloat16", 132, 2),
        ("h100", "bfloat16", 133, 3),
        ("h100", "float32", 132, 2),  # 33 tiles are less than a wave, which is taken all the same
        ("rtx4090", "bfloat16", 129, 3),  # 96 in 36 MiB, of which 64 are whole waves
        ("rtx3090", "bfloat16", 9, 1),  # 8 in 3 MiB, but 41 are a wave
        ("rtx3090", "bfloat16", 42, 2),
    ],
)
def test_two_passes_go_round_as_often_as_half_of_the_cache_or_a_wave_says(device, dtype, tiles, expected):
    assert rounds(Work(1, 64, 64, dtype), DEVICES[device], tiles) == expected


def test_h_of_a_wave_that_exceeds_the_cache_passes_through_dram():
    work = Work(16, 64, 64, "bfloat16")
    h = 16 * 64 * 64 * 4 * 1536 * 2
    assert [kernels.normalised_again(work, DEVICES[name]) for name in ("h100", "rtx4090", "rtx3090")] == [0, 0, h]
    # A wave of 66 tiles is 66 · 393,216 bytes.
    fits, exceeds = (replace(H100, l2=66 * 393_216 - short) for short in (0, 1))
    for kernel in (NORMALISE, PRODUCT_OF_TWO):
        assert kernel.moved_again(work, exceeds) - kernel.moved_again(work, fits) == h
    # Fewer tiles than a wave: one image of 8 × 16 pixels has 4.
    assert kernels.normalised_again(Work(1, 8, 16, "bfloat16"), replace(H100, l2=4 * 393_216)) == 0


def test_both_passes_are_launched_in_every_round():
    work = Work(16, 64, 64, "bfloat16")
    assert NORMALISE.launches(work, H100, {"blocks": 2048 * 6}) == 32
    assert PRODUCT_OF_TWO.launches(work, H100, {"blocks": 2048 * 2}) == 32


@pytest.mark.parametrize(
    "line",
    [
        f"kThreads = {tiles.THREADS};",
        f"kWalk = {kernels.WALK};",
        f"kVectorLanes = {tiles.VECTOR_LANES},",
    ],
)
def test_constants_are_those_of_norm_relu(line):
    assert line in (ROOT / "csrc" / "norm_relu" / "config.h").read_text()


@pytest.mark.parametrize(
    ("header", "line"),
    [
        ("config.h", f"kPixels = {kernels.TILE_PIXELS};"),
        ("config.h", f"kColumns = {kernels.FMA_OUTPUTS};"),
        ("config.h", f"kChunk = {kernels.CHUNK_BYTES} / ElementBytes;"),
        ("matrix_config.h", f"kMatrixColumns = {kernels.MATRIX_OUTPUTS};"),
        ("matrix_config.h", f"kSplitChunks = {kernels.SPLIT_CHUNKS};"),
        ("matrix_config.h", f"kMmaSharedBytes = {kernels.MMA_SHARED // 1024} * 1024;"),
        ("matrix_config.h", f"kTwoPassSharedBytes = {kernels.TWO_PASS_SHARED // 1024} * 1024;"),
    ],
)
def test_constants_are_those_of_the_kernels(header, line):
    assert line in (ROOT / "csrc" / "separable_pyramid" / header).read_text()


def test_calls_are_those_asked_for():
    works = select(sizes=[(8, 9)], batches=[1, 2], dtypes=["float16"])
    assert works == [Work(1, 8, 9, "float16"), Work(2, 8, 9, "float16")]
    assert len(select()) == 12
