"""Microbenchmarks for compute capability 9.0: what of them needs no GPU, and on one their own checks."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from functools import partial
from io import StringIO
from pathlib import Path

import compile_gate
import cute
import numpy as np
import pytest
import torch
from rich.console import Console
from strategies import needs_host

from benchmarks import __main__, results
from benchmarks.hopper import bench, budgets, program, report
from benchmarks.hopper.budgets import COPIES, DEPTHWISE, PRODUCTS, VARIANTS, Variant
from benchmarks.hopper.program import ProgramError
from benchmarks.model import binary, sass
from benchmarks.model.devices import DEVICES
from benchmarks.results import ResultsError, Row

HERE = Path(__file__).resolve().parent
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc on PATH, and there is none")

ALL = frozenset((PRODUCTS, COPIES, DEPTHWISE))


def variant(layout: str, *active: str, columns: str = "256") -> Variant:
    return Variant(layout, columns, frozenset(active))


# --- budgets -----------------------------------------------------------------------------------------------


def test_products_take_the_tensor_cores_as_the_design_has_it() -> None:
    assert budgets.cycles(variant("single", PRODUCTS))["tensor"] == 1024


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        (variant("single", PRODUCTS), 640),
        (variant("single", PRODUCTS, columns="2x128"), 768),  # the left operand twice
        (variant("single", COPIES), 256 + 180 + 20),  # weights, pixels, taps
        (variant("pair", COPIES), 256 + 90 + 10),
        (variant("single", DEPTHWISE), 288 + 160 + 128),  # pixels, taps, the operand
        (variant("pair", *ALL), 640 + 256 + 100 + 224 + 128),
    ],
    ids=["products", "products, 2x128", "copies", "copies of a pair", "depthwise", "all of a pair"],
)
def test_shared_memory_as_the_design_has_it(of: Variant, expected: int) -> None:
    assert budgets.cycles(of)["shared"] == expected


def test_the_depthwise_has_issue_slots_to_spare() -> None:
    assert budgets.cycles(variant("single", DEPTHWISE))["issue"] == 876
    assert budgets.cycles(variant("pair", DEPTHWISE))["issue"] == 876 / 2 + 8 * 16 / 4 / 2  # stores to the peer


def test_multicast_halves_what_weights_take_from_l2() -> None:
    assert budgets.l2_bytes(variant("single", COPIES)) == 32768 + 25600
    assert budgets.l2_bytes(variant("multicast", COPIES)) == 16384 + 25600
    assert budgets.l2_bytes(variant("pair", COPIES)) == 32768 + 12800


def test_a_bound_is_the_largest() -> None:
    for one in VARIANTS:
        resource, most = budgets.bound(one)
        assert most == max(budgets.cycles(one).values()) == budgets.cycles(one)[resource]


def test_every_part_says_how_many_cases_it_has() -> None:
    counts = Counter(one.layout for one in VARIANTS)
    assert {name: bench.CASES[name] for name in budgets.LAYOUTS} == counts
    assert set(bench.CASES) == set(program.PARTS)


# --- what the host computes --------------------------------------------------------------------------------


def compiled(source: str, folder: Path, *more: str) -> Path:
    """A program of tests/hopper; the kernels beside it, so that they find its device.cuh and not their own."""
    for path in [*program.FOLDER.iterdir(), *(HERE / "hopper").iterdir()]:
        shutil.copy(path, folder / path.name)
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))))
    options = ["-std=c++20", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-pthread", *more]
    target = folder / Path(source).stem
    done = subprocess.run([compiler, *options, source, "-o", str(target)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return target


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[np.ndarray]]:
    found: dict[str, list[np.ndarray]] = {}
    text = subprocess.run([compiled("expected.cpp", tmp_path_factory.mktemp("expected"))], capture_output=True).stdout
    for line in text.decode().splitlines():
        name, *numbers = line.split()
        # Numbers of descriptors are beyond float64.
        found.setdefault(name, []).append(np.array(numbers, np.uint64 if name == "descriptor" else np.float64))
    return found


def swizzled(rows: np.ndarray) -> np.ndarray:
    """[rows, 64 elements of two bytes], with unit u of 8 of a row at u ^ (row mod 8)."""
    units = rows.reshape(len(rows), 8, 8)
    result = np.empty_like(units)
    for row in range(len(rows)):
        for unit in range(8):
            result[row, unit ^ row % 8] = units[row, unit]
    return result.reshape(rows.shape)


def marks(images: int, height: int, width: int, channels: int) -> np.ndarray:
    n, y, x, c = np.indices((images, height, width, channels))
    return 0x4000 + np.choose(c % 4, [n, y, x, c // 8]) + np.where(c % 8 >= 4, 0x1000, 0)


@needs_host
def test_tiles_are_every_dth_pixel_and_zeros_beyond_the_image(expected: dict[str, list[np.ndarray]]) -> None:
    pad = 200
    tensor = np.pad(marks(2, 24, 40, 128), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    assert len(expected["tile"]) == 8
    for line in expected["tile"]:
        stride, swizzle, tile = int(line[0]), bool(line[1]), line[2:].reshape(180, 64)
        y, x = pad + 3 - stride, pad + 5 - 2 * stride
        right = tensor[1, y : y + 10 * stride : stride, x : x + 18 * stride : stride, 64:].reshape(180, 64)
        np.testing.assert_array_equal(tile, swizzled(right) if swizzle else right)


@needs_host
def test_every_stride_reads_every_pixel_once(expected: dict[str, list[np.ndarray]]) -> None:
    assert [int(line[0]) for line in expected["walk"]] == [1, 2, 4, 8]
    for line in expected["walk"]:
        stride = int(line[0])
        read = np.zeros((80, 144), int)
        for _, y, x in line[1:].reshape(-1, 3).astype(int):
            read[y : y + 10 * stride : stride, x : x + 18 * stride : stride] += 1
        assert (read == 1).all()


@needs_host
def test_the_depthwise_and_the_product_are_numpys(expected: dict[str, list[np.ndarray]]) -> None:
    box, taps, weights, operand, total = (expected[name][0] for name in ("box", "taps", "weights", "operand", "sum"))
    box, taps = box.reshape(10, 18, 64), taps.reshape(10, 64)
    right = np.broadcast_to(taps[9], (8, 16, 64)).copy()
    for tap in range(9):
        right += taps[tap] * box[tap // 3 : tap // 3 + 8, tap % 3 : tap % 3 + 16]
    np.testing.assert_array_equal(operand.reshape(8, 16, 64), right)
    np.testing.assert_array_equal(total.reshape(128, 256), right.reshape(128, 64) @ weights.reshape(256, 64).T)


@pytest.fixture(scope="module")
def cutes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[int]]]:
    try:
        cute.headers()
    except cute.CuteError as error:
        pytest.skip(f"needs CUTLASS's headers, which pip does not get: {error}")
    found: dict[str, list[list[int]]] = {}
    for line in cute.output_of(HERE / "cute" / "hopper.cpp", tmp_path_factory.mktemp("cute")).splitlines():
        name, *numbers = line.split()
        found.setdefault(name, []).append([int(number) for number in numbers])
    return found


@needs_host
def test_operands_lie_as_cute_has_it(expected: dict[str, list[np.ndarray]], cutes: dict[str, list[list[int]]]) -> None:
    np.testing.assert_array_equal(expected["swizzle"][0].reshape(64, 8), cutes["operand"])
    assert [[int(x) for x in line] for line in expected["descriptor"]] == cutes["descriptor"]


def test_results_lie_as_cute_has_it(cutes: dict[str, list[list[int]]]) -> None:
    thread, value = np.indices((128, 128))
    row = thread // 32 * 16 + thread % 32 // 4 + 8 * (value // 2 % 2)
    column = value // 4 * 8 + thread % 4 * 2 + value % 2
    np.testing.assert_array_equal(row + 64 * column, cutes["results"])


# --- the kernels, executed on the CPU ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled("emulation.cpp", tmp_path_factory.mktemp("emulation"))


EMULATED = [f"pipes/{x.layout}/{x.columns}/7" for x in VARIANTS if x.active == ALL]
EMULATED += [f"pipes/{layout}/256/{active}" for layout in ("single", "pair") for active in (1, 2, 3, 4, 5, 6)]
EMULATED += ["pipes/multicast/256/2", "pipes/multicast/2x128/3"]
EMULATED += [f"tiles/{engine}/{stride}/{halo}" for engine in ("bulk", "cp.async") for stride in (1, 8) for halo in "01"]


@needs_host
@pytest.mark.parametrize("case", EMULATED)
def test_the_kernels_end_and_make_what_the_host_expects(case: str, emulation: Path) -> None:
    done = subprocess.run([emulation, case], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, f"{case}: right\n"), done.stderr


FAULTS = {
    "products not waited for": ("wait_products<1>();", ";", "pipes/single/256/7"),
    "a wrong parity": ("operand.phase ^ 1, params.watch", "operand.phase, params.watch", "pipes/single/256/7"),
    "rows of the upper pixels alone": ("((i + down) * kTileWidth", "(i * kTileWidth", "pipes/single/256/7"),
    "a peer not asked": ("S::kMulticast ? kBoth : kWarps", "kWarps", "pipes/multicast/256/7"),
}


@needs_host
@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_kernel_is_noticed(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong, case = FAULTS[fault]
    sources = tmp_path / "sources"
    shutil.copytree(program.FOLDER, sources)
    text = (sources / "pipes.cuh").read_text()
    assert text.count(right) == 1
    (sources / "pipes.cuh").write_text(text.replace(right, wrong))
    monkeypatch.setattr(program, "FOLDER", sources)
    emulation = compiled("emulation.cpp", tmp_path, "-O1", "-DHOPPER_PATIENCE=4")
    done = subprocess.run([emulation, case], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stdout
    assert "WRONG" in done.stdout or "never ended" in done.stderr


# --- the compiled program ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built() -> Path:
    return program.build()


@needs_nvcc
def test_the_compiler_spills_nothing_and_gives_no_performance_away(built: Path) -> None:
    said = built.with_suffix(".log").read_text()
    kernels = [function for function in compile_gate.parse_ptxas(said) if function.registers is not None]
    assert len(kernels) == 6 + 3
    assert compile_gate.complaints(said) == []


@needs_nvcc
def test_without_a_device_the_program_says_so(built: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    code, said = program.run(built, "single")
    assert code == 2
    assert said.startswith("expected CUDA device 0, got 0 devices")


@pytest.fixture(scope="module")
def programs(built: Path, tmp_path_factory: pytest.TempPathFactory) -> list[sass.Program]:
    folder = tmp_path_factory.mktemp("cubins")
    try:
        disassembler = Path(binary.find_disassembler(program.load_setup()["find_nvcc"]()))
    except binary.BinaryUnavailableError as error:
        pytest.skip(str(error))
    subprocess.run([disassembler.with_name("cuobjdump"), "-xelf", "all", built], cwd=folder, check=True)
    found: list[sass.Program] = []
    for path in folder.glob("*.cubin"):
        text = subprocess.run([disassembler, "-c", path], capture_output=True, text=True, check=True).stdout
        if ".text." in text:
            found += sass.parse(text)
    return found


def opcodes(loop: sass.Loop) -> Counter[str]:
    return Counter(instruction.opcode for instruction in loop.own)


def names(of: sass.Program) -> Counter[str]:
    return Counter(instruction.name for instruction in of.instructions)


@needs_nvcc
@pytest.mark.parametrize("columns", ["256", "2x128"])
@pytest.mark.parametrize("layout", list(budgets.LAYOUTS))
def test_the_loops_have_the_instructions_that_budgets_count(
    layout: str, columns: str, programs: list[sass.Program]
) -> None:
    symbol = f"LayoutE{list(budgets.LAYOUTS).index(layout)}ELNS_7ColumnsE{list(budgets.COLUMNS).index(columns)}E"
    found = sass.find(programs, symbol)
    (products,) = [opcodes(loop) for loop in found.loops if opcodes(loop)["HGMMA"]]
    width = budgets.COLUMNS[columns]
    assert products["HGMMA"] == 4 * 256 // width
    assert names(found)[f"HGMMA.64x{width}x16.F32.BF16"] == products["HGMMA"]
    assert products["WARPGROUP"] == 2  # one fence, one wait

    (depthwise,) = [opcodes(loop) for loop in found.loops if opcodes(loop)["FFMA"]]
    assert {name: depthwise[name] for name in ("FFMA", "LDS", "STS")} == {
        name: budgets.INSTRUCTIONS[name] for name in ("FFMA", "LDS", "STS")
    }
    assert depthwise["F2FP"] == budgets.INSTRUCTIONS["pack"]
    assert depthwise["ST"] == (16 if layout == "pair" else 0)  # to the peer

    copies = names(found)
    assert copies["UTMALDG.4D"]
    assert any(name.startswith("UBLKCP") for name in copies)
    assert bool(copies["UTMALDG.2D.MULTICAST"]) == (layout == "multicast")
    assert bool(copies["UTMALDG.2D"]) == (layout != "multicast")
    assert any(name.startswith("USETMAXREG") for name in copies)


@needs_nvcc
def test_tiles_come_by_the_instructions_that_they_are_named_for(programs: list[sass.Program]) -> None:
    bulk, gather = (sass.find(programs, f"tiles_{name}") for name in ("bulk", "gather"))
    assert any("UTMALDG" in opcodes(loop) for loop in bulk.loops)
    assert max(opcodes(loop)["LDGSTS"] for loop in gather.loops) == 6  # 1440 units by 256 threads


# --- rows and tables ---------------------------------------------------------------------------------------

PIPES = {"kind": "pipes", "layout": "pair", "columns": "256", "active": "products+copies+depthwise", "wrong": ""}
PIPES |= {"reader_fence": False, "blocks": 132, "steps": 100, "cycles": [130000, 131000, 129000]}
PIPES |= {"milliseconds": [0.07, 0.08, 0.09]}
TILES = {"kind": "tiles", "engine": "bulk", "memory": "L2", "stride": 1, "wrong": "", "blocks": 132, "steps": 8}
TILES |= {"cycles": [4608.0] * 3, "milliseconds": [0.004] * 3}
ABOUT = {"kind": "about", "device": "a GPU", "multiprocessors": 132}


def fake(folder: Path, lines: list[dict], code: int) -> Path:
    path = folder / "program"
    text = "\n".join(json.dumps(line) for line in lines)
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {code}\n")
    path.chmod(0o755)
    return path


def measured(
    folder: Path, monkeypatch: pytest.MonkeyPatch, lines: list[dict], code: int = 0
) -> tuple[bench.Outcome, str]:
    """What the bench makes of a program that prints such lines."""
    monkeypatch.setattr(bench, "require", lambda device: None)
    monkeypatch.setattr(program, "build", partial(fake, folder, lines, code))
    console = Console(file=StringIO(), width=200)
    outcome = bench.run(["pair"], torch.device("cpu"), 0.1, 10.0, folder / "rows.jsonl", console)
    return outcome, console.file.getvalue()


def values(rows: list[Row]) -> dict[str, float]:
    return {row.metric: row.value for row in rows}


def test_lines_become_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, _ = measured(tmp_path, monkeypatch, [ABOUT, PIPES, TILES])
    assert outcome.code == 0
    assert results.read(tmp_path / "rows.jsonl") == outcome.rows
    pipes, tiles = (values([row for row in outcome.rows if row.case["hopper"] == kind]) for kind in ("pipes", "tiles"))
    assert pipes["cycles_per_step"] == 1300
    assert pipes["throughput"] == pytest.approx(2 * 128 * 256 * 64 * 100 * 132 / 0.08e-3 / 1e12)
    assert pipes["bytes_per_cycle"] == pytest.approx((32768 + 12800) / 1300)
    assert tiles["cycles_per_step"] == 576
    assert tiles["bytes_per_cycle"] == 40
    assert tiles["bandwidth"] == pytest.approx(23040 * 8 * 132 / 0.004e-3 / 1e9)
    assert outcome.rows[0].versions["program"] == program.key()


def test_what_is_right_is_kept_where_another_case_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {**PIPES, "columns": "2x128", "wrong": "block 1, byte 7", "cycles": None}
    failed = {"kind": "failed", "message": "waited 2 s for operands to be full"}
    outcome, _ = measured(tmp_path, monkeypatch, [PIPES, wrong, failed], code=3)
    assert outcome.code == 1
    assert {row.case["columns"] for row in outcome.rows} == {"256"}
    ((label, reason),) = outcome.failures
    assert label == "pair, held to the host's numbers"
    assert "pair 2x128 products+copies+depthwise: block 1, byte 7" in reason
    assert "waited 2 s for operands to be full" in reason


def test_a_case_that_failed_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Prints the case with the number that --first says, and fails at the second.
    texts = [
        json.dumps(PIPES),
        json.dumps({"kind": "failed", "message": "trap"}),
        json.dumps({**PIPES, "columns": "2x128"}),
    ]
    script = f"""#!/bin/sh
for word; do [ "$previous" = --first ] && first=$word; previous=$word; done
[ $first -le 0 ] && echo '{texts[0]}'
[ $first -le 1 ] && echo '{texts[1]}' && exit 3
echo '{texts[2]}'
"""
    monkeypatch.setattr(bench, "require", lambda device: None)
    path = tmp_path / "program"
    path.write_text(script)
    path.chmod(0o755)
    monkeypatch.setattr(program, "build", lambda: path)
    console = Console(file=StringIO())
    outcome = bench.run(["pair"], torch.device("cpu"), 0.1, 10.0, tmp_path / "rows.jsonl", console)
    assert {row.case["columns"] for row in outcome.rows} == {"256", "2x128"}
    assert [reason for _, reason in outcome.failures] == ["ProgramError: trap"]


def test_a_program_that_dies_without_a_word_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, _ = measured(tmp_path, monkeypatch, [ABOUT], code=3)
    assert "exit code 3" in outcome.failures[0][1]


def test_what_no_time_was_left_for_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, _ = measured(tmp_path, monkeypatch, [PIPES, {"kind": "skipped", "what": "pair copies"}])
    assert outcome.code == 0
    assert outcome.skipped[0][1] == "no time was left for pair copies"


def test_a_second_fence_that_was_needed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note = {"kind": "note", "text": "right only with a fence", "without": "block 0, sum"}
    outcome, said = measured(tmp_path, monkeypatch, [note, {**PIPES, "reader_fence": True}])
    assert "pair: right only with a fence: block 0, sum" in said
    assert "timed with it" in report.pipes(outcome.rows).to_markdown()


@pytest.mark.parametrize(("cycles", "verdict"), [(1300, "1300 at best, worth building"), (1500, "not built")])
def test_the_table_decides_about_the_pair(
    cycles: int, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome, _ = measured(tmp_path, monkeypatch, [{**PIPES, "cycles": [cycles * 100.0] * 3}])
    table = report.pipes(outcome.rows)
    assert any(verdict in note for note in table.notes)
    (line,) = [line for line in table.lines if line[:3] == ["pair", "256", "products+copies+depthwise"]]
    assert f"{cycles} ({cycles}–{cycles})" in line
    assert f"{cycles / 1348:.2f}×" in line


@pytest.mark.parametrize(("strided", "gathered", "verdict"), [(600, 700, "copy engine"), (600, 590, "cp.async")])
def test_the_table_decides_about_strided_tiles(
    strided: int, gathered: int, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [TILES, {**TILES, "stride": 8, "cycles": [8.0 * strided] * 3}]
    lines.append({**TILES, "engine": "cp.async", "stride": 8, "cycles": [8.0 * gathered] * 3})
    outcome, _ = measured(tmp_path, monkeypatch, lines)
    assert any(f"stride 8 {verdict}" in note for note in report.tiles(outcome.rows).notes)


def test_the_command_table_shows_a_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(tmp_path, monkeypatch, [PIPES, TILES])
    assert __main__.main(["table", str(tmp_path / "rows.jsonl"), "--markdown"]) == 0
    assert "| pair | 256 | products+copies+depthwise | 1024 | 1348 |" in capsys.readouterr().out


def test_without_rows_the_budgets_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["hopper", "--budgets", "--markdown"]) == 0
    shown = capsys.readouterr().out
    assert "not measured" in shown
    assert shown.count("| pair |") == 14


def test_rows_of_another_benchmark_are_refused() -> None:
    row = Row("a CPU", {"run": "now"}, "0", {"part": "jpu"}, "cuda", "latency", 1.0, None, "ms")
    with pytest.raises(ResultsError, match="expected rows of the benchmark hopper"):
        report.tables([row])


def test_budgets_are_of_the_device_that_was_measured() -> None:
    row = Row("NVIDIA H200", {"run": "now"}, "0", {"hopper": "tiles"}, "hopper", "latency", 1.0, None, "ms")
    assert report.device_of([row]) is DEVICES["h200"]


# --- the command -------------------------------------------------------------------------------------------


def test_a_cpu_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["hopper", "--device", "cpu", "--output", str(tmp_path / "rows.jsonl")]) == 2
    assert "expected a CUDA device of compute capability 9.0, got cpu" in capsys.readouterr().err


def test_another_capability_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(ProgramError, match=re.escape("compute capability 9.0, got 8.0")):
        bench.require(torch.device("cuda", 0))


def test_a_built_program_needs_no_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "OUT", tmp_path)
    monkeypatch.setattr(program, "load_setup", lambda: pytest.fail("looked for a compiler"))
    path = program.path_of_program()
    path.write_text("#!/bin/sh\necho 'expected: hopper' >&2\nexit 2\n")  # without the right to execute it
    assert program.build() == path


@pytest.mark.parametrize("there", [False, True])
def test_without_a_program_that_starts_and_nvcc_it_is_said(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "ROOT", tmp_path)
    monkeypatch.setattr(program, "OUT", tmp_path / "out")
    monkeypatch.setattr(program, "load_setup", lambda: {"find_nvcc": lambda: None})
    program.OUT.mkdir()
    if there:
        program.path_of_program().write_text("#!/bin/sh\necho 'GLIBC_9 not found' >&2\nexit 1\n")
    with pytest.raises(ProgramError, match="expected nvcc on PATH or a out/program-.* that starts, got neither"):
        program.build()


def test_sources_change_the_programs_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = program.key()
    shutil.copytree(program.FOLDER, tmp_path / "cuda")
    monkeypatch.setattr(program, "FOLDER", tmp_path / "cuda")
    assert program.key() == before
    (tmp_path / "cuda" / "pipes.cuh").write_text("")
    assert program.key() != before


@pytest.mark.gpu
@pytest.mark.parametrize("part", program.PARTS)
def test_every_case_is_right_on_a_gpu(part: str) -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs compute capability 9.0")
    try:
        path = program.build()
    except ProgramError as error:
        pytest.skip(str(error))
    lines: list[program.Line] = []
    code, errors = program.run(path, part, check=True, told=lines.append)
    assert [complaint for line in lines if (complaint := bench.complaint_of(line))] == []
    assert (code, errors) == (0, "")
    assert sum(line["kind"] in ("pipes", "tiles") for line in lines) == bench.CASES[part]
