"""The host bodies of matrix instructions hold matrices in registers as CuTe's layout algebra has it."""

from __future__ import annotations

from pathlib import Path

import cute
import numpy as np
import pytest
from probe import compare, inputs, matrices
from probe.inputs import THREADS, WARP, Case
from strategies import needs_host

pytestmark = needs_host

WARPS = THREADS // WARP
DTYPES = list(matrices.DEPTHS)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> cute.Tables:
    try:
        cute.headers()
    except cute.CuteError as error:
        pytest.skip(f"needs CUTLASS's headers, which pip does not get: {error}")
    return cute.tables(tmp_path_factory.mktemp("cute"))


@pytest.fixture(scope="module")
def program() -> Path:
    return compare.build_host()


def host_body(program: Path, folder: Path, name: str, items: np.ndarray) -> np.ndarray:
    """What the host body of a wrapper makes of the probe's items, [items, bytes] of both."""
    _, outputs = compare.run(program, {name: Case(name, items, lambda: items)}, folder)
    return outputs[name]


def small_integers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-32, 33, shape).astype(np.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_product_of_cutes_operands_is_cutes_sum(
    dtype: str, program: Path, tables: cute.Tables, tmp_path: Path
) -> None:
    depth = matrices.DEPTHS[dtype]
    a, b, before = (small_integers(i, WARPS, *shape) for i, shape in enumerate([(16, depth), (depth, 8), (16, 8)]))

    def registers(matrix: np.ndarray, operand: str, kind: str) -> np.ndarray:
        rows, columns = np.moveaxis(tables.operand(f"{dtype}.{operand}"), 2, 0)
        values = np.ascontiguousarray(matrix[:, rows, columns])  # [warps, threads, values]
        return inputs.as_bytes(matrices.narrowed(values, kind).reshape(THREADS, -1))

    # CuTe's B is N x K.
    parts = registers(a, "A", dtype), registers(b.swapaxes(1, 2), "B", dtype), registers(before, "C", "float")
    lanes = host_body(program, tmp_path, f"multiply_matrices<{dtype}>", np.concatenate(parts, 1)).view(np.float32)
    rows, columns = np.moveaxis(tables.operand(f"{dtype}.C"), 2, 0)
    got = np.full((WARPS, 16, 8), np.nan, np.float32)
    got[:, rows, columns] = lanes.reshape(WARPS, WARP, 4)
    np.testing.assert_array_equal(got, a @ b + before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_probes_own_layout_is_cutes(dtype: str, tables: cute.Tables) -> None:
    at = matrices.layout(dtype)
    pairs = {"A": (at.a_row, at.a_depth), "B": (at.b_column, at.b_depth), "C": (at.sum_row, at.sum_column)}
    for operand, pair in pairs.items():
        np.testing.assert_array_equal(np.stack(pair, -1).reshape(WARP, -1, 2), tables.operand(f"{dtype}.{operand}"))


@pytest.mark.parametrize("operand", ["A", "B", "C"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_lanes_hold_each_element_once(dtype: str, operand: str, tables: cute.Tables) -> None:
    """Or an error in how the tables are printed might pass for a layout."""
    depth = matrices.DEPTHS[dtype]
    shape = {"A": (16, depth), "B": (8, depth), "C": (16, 8)}[operand]
    count = np.zeros(shape, int)
    np.add.at(count, tuple(np.moveaxis(tables.operand(f"{dtype}.{operand}"), 2, 0)), 1)
    assert (count == 1).all()


def test_a_load_gives_cutes_words(program: Path, tables: cute.Tables, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = random.permutation(THREADS)  # anywhere in shared memory
    words = random.integers(0, 2**32, (THREADS, 4), dtype=np.uint32)
    items = inputs.as_bytes(np.concatenate([words, rows[:, None].astype(np.uint32)], 1))
    got = host_body(program, tmp_path, "load_matrices", items).view(np.uint32).reshape(WARPS, WARP, 4)
    giver, word = np.moveaxis(tables.load(), 2, 0)
    np.testing.assert_array_equal(got, words[rows.reshape(WARPS, WARP)[:, giver], word])


@pytest.mark.parametrize("dtype", DTYPES)
def test_loads_feed_products_as_cute_would(dtype: str, tables: cute.Tables) -> None:
    """Of a tile whose lines are contiguous, register i of a load is register i of A if lanes name its rows so."""
    each = 4 // (32 // matrices.DEPTHS[dtype])  # elements in a word
    giver, word = np.moveaxis(tables.load(), 2, 0)
    row, unit = giver % 16, giver // 16  # of A, which lane l gives as row l % 16, 16 bytes from unit l / 16
    a = tables.operand(f"{dtype}.A").reshape(WARP, 4, each, 2)
    np.testing.assert_array_equal(a[..., 0, 0], row)
    np.testing.assert_array_equal(a[..., 0, 1], (unit * 4 + word) * each)
    column, unit = giver % 8, giver // 8  # of B: two of the four matrices
    b = tables.operand(f"{dtype}.B").reshape(WARP, 2, each, 2)
    np.testing.assert_array_equal(b[..., 0, 0], column[:, :2])
    np.testing.assert_array_equal(b[..., 0, 1], ((unit * 4 + word) * each)[:, :2])


@pytest.mark.parametrize(("bits", "row_bytes"), [(3, 128), (2, 64), (1, 32)])
def test_the_hardwares_swizzles_spread_eight_rows_over_all_banks(
    bits: int, row_bytes: int, tables: cute.Tables
) -> None:
    offsets = tables.swizzle(bits, 3, row_bytes)
    row, unit = np.arange(64)[:, None], np.arange(row_bytes // 16)
    # In plain words: the unit's number, but for what the lines of 128 bytes before it say.
    np.testing.assert_array_equal(offsets, row * row_bytes + (unit ^ row * row_bytes // 128 % 2**bits) * 16)
    for first in range(0, 64, 8):
        for column in unit:
            assert len(set(offsets[first : first + 8, column] // 16 % 8)) == 8


def test_no_swizzle_leaves_rows_as_they_are(tables: cute.Tables) -> None:
    np.testing.assert_array_equal(tables.swizzle(0, 3, 64), np.arange(64 * 4).reshape(64, 4) * 16)


def test_a_program_that_does_not_compile_says_why(tables: cute.Tables, tmp_path: Path) -> None:
    source = tmp_path / "wrong.cpp"
    source.write_text("int main() { return nothing; }")
    with pytest.raises(cute.CuteError, match="nothing"):
        cute.output_of(source, tmp_path)


def test_a_program_may_hold_a_kernels_own_function_against_cute(tables: cute.Tables, tmp_path: Path) -> None:
    source = tmp_path / "both.cpp"
    source.write_text(
        '#include "device/matrix.h"\n#include <cute/swizzle.hpp>\n#include <cstdio>\n'
        "static_assert(cute::Swizzle<3, 4, 3>{}(128 + 16) == 128);\n"
        'int main() { std::printf("%d", jpu::kMatrixDepth<jpu::float16>); }\n'
    )
    assert cute.output_of(source, tmp_path) == "16"


def test_the_pyramids_operands_lie_as_cute_would_place_them(tables: cute.Tables, tmp_path: Path) -> None:
    """Its swizzle, a composition of CuTe's; and the columns that a thread's vector of outputs is the product with."""
    lines = [line.split() for line in cute.output_of(cute.HERE / "pyramid.cpp", tmp_path).splitlines()]
    assert {name: sum(line[0] == name for line in lines) for name in ("place", *DTYPES)} == {
        "place": 256 * 4,
        **dict.fromkeys(DTYPES, 32 * 64 // 4),
    }
    assert [line for line in lines if line[1] != line[2]] == []
