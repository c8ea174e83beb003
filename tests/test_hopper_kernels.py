"""Kernels of the microbenchmarks for compute capability 9.0: executed on the CPU, and as the compiler makes them."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from pathlib import Path

import compile_gate
import cute
import numpy as np
import pytest
import torch
from strategies import needs_host

from benchmarks.hopper import budgets, program
from benchmarks.hopper.budgets import COPIES, DEPTHWISE, PRODUCTS, VARIANTS
from benchmarks.model import binary, sass

HERE = Path(__file__).resolve().parent
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc on PATH, and there is none")

ALL = frozenset((PRODUCTS, COPIES, DEPTHWISE))


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
