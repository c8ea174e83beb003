"""Host execution runs what a warp does together and refuses it where lanes are missing; so also large shared memory."""

from __future__ import annotations

from fractions import Fraction
from types import ModuleType

import numpy as np
import pytest
from faulty_kernels import THREADS, counted, matrix, watched

from jpu_cuda import host

pytestmark = watched

WARPS = THREADS // 32
FLOATS = 24 * 8  # of a warp's two matrices
NO_PADDING, PADDING = 8, 12  # floats from row to row


def multiply(library: ModuleType, name: str, pitch: int = PADDING, rows: int = 2) -> np.ndarray:
    """What the kernel makes of random bits: [rows, warps, 16, 8]."""
    output = matrix(rows, 4 * THREADS, 4 * THREADS + 4)
    output[:] = np.nan
    library.run(name, operands(rows), output, option=pitch)
    # Lane 4 g + t has rows g and g + 8, columns 2 t and 2 t + 1.
    lanes = output.reshape(rows, WARPS, 8, 4, 2, 2)
    return lanes.transpose(0, 1, 4, 2, 3, 5).reshape(rows, WARPS, 16, 8)


def operands(rows: int = 2) -> np.ndarray:
    return matrix(rows, WARPS * FLOATS)


def kept() -> np.ndarray:
    """What TF32 keeps: [rows, warps, 24, 8]."""
    bits = operands().view(np.uint32) & np.uint32(0xFFFFE000)
    return bits.view(np.float32).astype(np.float64).reshape(-1, WARPS, 24, 8)


def products() -> np.ndarray:
    both = kept()
    return both[:, :, :16] @ both[:, :, 16:].swapaxes(2, 3)


def truncated(x: np.ndarray) -> np.ndarray:
    """float64 to float32, towards zero."""
    nearest = x.astype(np.float32)
    return np.where(np.abs(nearest.astype(np.float64)) > np.abs(x), np.nextafter(nearest, np.float32(0)), nearest)


# --- right kernels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pitch", [NO_PADDING, PADDING])
def test_a_warp_multiplies_in_every_schedule(scheduled: ModuleType, pitch: int) -> None:
    np.testing.assert_array_equal(multiply(scheduled, "product", pitch), truncated(products()))


def test_the_sums_of_the_test_are_exact_in_float64() -> None:
    """Or truncation would depend on the order."""
    both, sums = kept(), products()
    for row, warp, i, j in np.ndindex(sums.shape):
        terms = zip(both[row, warp, i].tolist(), both[row, warp, 16 + j].tolist(), strict=True)
        assert sum(Fraction(a) * Fraction(b) for a, b in terms) == Fraction(sums[row, warp, i, j])
    assert (truncated(sums) != sums.astype(np.float32)).any(), "nothing to truncate"


@pytest.mark.parametrize("name", ["small_shared", "large_shared", "largest_shared"])
def test_shared_memory_may_be_large(scheduled: ModuleType, name: str) -> None:
    output = matrix(3, THREADS)
    scheduled.run(name, matrix(3, THREADS).copy(), output)
    np.testing.assert_array_equal(output, matrix(3, THREADS)[:, ::-1])


# --- faults -----------------------------------------------------------------------------------------------

ONE = r"block \d, thread 5: "
DIVERGENT = ONE + r"divergent warp instruction: thread \d+ waits at one while this thread "
ANY = r"block \d, thread \d+: "
RACE = ANY + r"race: {} after the {} by {}"
NO_BARRIER = r"thread \d+, with no barrier between"
NOTHING_WROTE = "read of shared memory that nothing wrote"

FAULTS = {
    "lane_leaves": DIVERGENT + "has left the kernel",
    "lane_at_barrier": DIVERGENT + "waits at a barrier",
    # One of the two places is the other's.
    "lane_loads_elsewhere": ANY
    + r"divergent warp instruction: thread \d+ waits at one while this thread waits at anoth",
    "lane_multiplies_instead": ANY + r"divergent warp instruction: thread \d+ waits at one while .* waits at another",
    "short_warp": r"block \d, thread (3[2-9]|4[0-7]): divergent warp instruction: expected a warp of 32 threads, got",
    "no_barrier": f"({RACE.format('read of shared memory', 'write', NO_BARRIER)}|{ANY}{NOTHING_WROTE})",
    "ordered_by_instruction": RACE.format("read of shared memory", "write", NO_BARRIER),
    "overwritten_after_load": RACE.format("write to shared memory", "read", NO_BARRIER),
    "no_wait_before_load": RACE.format(
        "read of shared memory",
        "write",
        r"an asynchronous copy of thread \d+, with no wait for it",
    ),
    "row_unwritten": r"block \d, thread (3|19): " + NOTHING_WROTE,
    "row_misaligned": ONE + "misaligned row of a matrix: the address is 4 past a multiple of 16 bytes",
    "row_in_global_memory": ONE + "row of a matrix: expected an address in shared memory",
    "row_past_end": ONE + "out-of-bounds read of 16 bytes at byte 2304 of 2304 bytes of shared memory",
}

LARGE = r"shared memory of {} bytes: expected a launch with {} bytes of dynamic shared memory, got {}$"

SHARED_FAULTS = {
    "large_shared_past_end": r"block \d, thread 0: out-of-bounds read of 4 bytes at byte 65536 of 65536 bytes",
    "large_shared_not_launched": ANY + LARGE.format(65536, 65536, 0),
    "large_shared_of_less": ANY + LARGE.format(65536, 65536, 65520),
    "large_shared_of_more": ANY + LARGE.format(65536, 65536, 65552),
    "small_shared_launched": ANY + LARGE.format(49152, 0, 49152),
    "too_much_shared": "expected 0 to 232448 bytes of dynamic shared memory, got 232449",
    "negative_shared": "expected 0 to 232448 bytes of dynamic shared memory, got -1",
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_caught_and_named_in_every_schedule(scheduled: ModuleType, name: str) -> None:
    with pytest.raises(RuntimeError, match=f"^{name}: {FAULTS[name]}"):
        multiply(scheduled, name)


@pytest.mark.parametrize("name", SHARED_FAULTS)
def test_a_fault_of_large_shared_memory_is_caught(scheduled: ModuleType, name: str) -> None:
    with pytest.raises(RuntimeError, match=f"^{name}: {SHARED_FAULTS[name]}"):
        scheduled.run(name, matrix(3, THREADS).copy(), matrix(3, THREADS))


@pytest.mark.parametrize("name", ["lane_leaves", "lane_loads_elsewhere", "short_warp"])
def test_after_a_fault_the_next_launch_works(library: ModuleType, name: str) -> None:
    with pytest.raises(RuntimeError):
        multiply(library, name)
    np.testing.assert_array_equal(multiply(library, "product"), truncated(products()))


# --- counters ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pitch", "passes"), [(NO_PADDING, 2), (PADDING, 1)])
def test_loads_are_counted_with_the_conflicts_of_their_rows(library: ModuleType, pitch: int, passes: int) -> None:
    counters = counted(library, "product", operands(1), matrix(1, 4 * THREADS), option=pitch)
    # Of a warp: six stores of whole rows, then two loads of four matrices, each of which is a pass if no rows collide.
    stores = counters["shared_accesses"] - WARPS * 2 * 4 * passes
    assert counters["matrix_loads"] == WARPS * 2
    assert counters["shared_read_bytes"] == WARPS * 2 * 512
    assert counters["bank_conflicts"] == stores - WARPS * 6 + WARPS * 2 * 4 * (passes - 1)
    assert counters["barriers"] == 1


def test_multiply_adds_of_matrices_are_counted_by_themselves(library: ModuleType) -> None:
    with host.record(library) as launches:
        multiply(library, "product", rows=3)
    (launch,) = launches
    assert launch.counters["matrix_instructions"] == 3 * WARPS
    assert launch.counters["matrix_multiply_adds"] == 3 * WARPS * 16 * 8 * 8
    assert launch.counters["multiply_adds"] == 0


def test_counters_do_not_depend_on_the_schedule(scheduled: ModuleType, library: ModuleType) -> None:
    with host.record(scheduled) as launches:
        multiply(scheduled, "product")
    with host.schedule(module=library), host.record(library) as expected:
        multiply(library, "product")
    assert [launch.counters for launch in launches] == [launch.counters for launch in expected]
