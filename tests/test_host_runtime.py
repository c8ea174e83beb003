"""Host execution runs right kernels right, in every schedule, and counts what they cost."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from faulty_kernels import THREADS, counted, matrix, run, watched

from jpu_cuda import host

ROOT = Path(__file__).resolve().parents[1]

pytestmark = watched


# --- right kernels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["reverse", "exchange"])
def test_a_right_kernel_passes_in_every_schedule(scheduled: ModuleType, name: str) -> None:
    np.testing.assert_array_equal(run(scheduled, name), matrix(3, THREADS)[:, ::-1])


def test_what_is_updated_may_be_read_before(scheduled: ModuleType) -> None:
    source, output, held = matrix(3, THREADS), matrix(3, THREADS, THREADS + 4), matrix(3, THREADS, THREADS + 8)
    expected = held + source
    scheduled.run("updated", source, output, held)
    np.testing.assert_array_equal(held, expected)
    np.testing.assert_array_equal(output, expected)


def sums_of_four(columns: int, rows: int = 3) -> np.ndarray:
    """What "copied" and "pipeline" make: zeros beyond the row, summed in the kernels' order."""
    step = 4 * THREADS
    padded = np.zeros((rows, -(-columns // step) * step), np.float32)
    padded[:, :columns] = matrix(rows, columns, columns + 8 - columns % 4)
    pieces = padded.reshape(rows, -1, THREADS, 4)[:, :, ::-1]
    total = np.zeros((rows, THREADS), np.float32)
    for piece in range(pieces.shape[1]):
        for i in range(4):
            total += pieces[:, piece, :, i]
    return total


@pytest.mark.parametrize("columns", [256, 250, 249, 4, 1])
def test_a_partial_copy_is_filled_with_zeros(scheduled: ModuleType, columns: int) -> None:
    np.testing.assert_array_equal(run(scheduled, "copied", columns), sums_of_four(columns))


def test_a_wait_for_less_takes_nothing_back(scheduled: ModuleType) -> None:
    np.testing.assert_array_equal(run(scheduled, "waits_again", 250), sums_of_four(250))


@pytest.mark.parametrize("columns", [2560, 2305, 256, 7])
def test_a_pipeline_of_three_stages_passes_in_every_schedule(scheduled: ModuleType, columns: int) -> None:
    np.testing.assert_array_equal(run(scheduled, "pipeline", columns), sums_of_four(columns))


def test_shared_memory_begins_as_nan_in_every_block(scheduled: ModuleType) -> None:
    assert np.isnan(run(scheduled, "fresh_shared")).all()


@pytest.mark.parametrize("late", [True, False])
def test_a_copy_takes_effect_at_the_wait_or_at_once(library: ModuleType, late: bool) -> None:
    with host.schedule(late=late, module=library):
        seen = run(library, "copy_under_way", rows=1)
    np.testing.assert_array_equal(seen, np.full_like(seen, np.nan) if late else matrix(1, THREADS))


def test_a_thread_has_a_deep_stack(library: ModuleType) -> None:
    assert (run(library, "deep_stack", rows=1, option=90) == 180).all()  # 90 KiB of 128


def visited(library: ModuleType, seed: int, blocks: int = 4) -> list[tuple[int, int]]:
    library.visitors()
    with host.schedule(seed, module=library):
        run(library, "visits", rows=blocks)
    return library.visitors()


def test_blocks_and_threads_ascend_without_a_seed(library: ModuleType) -> None:
    block = list(range(THREADS))
    assert visited(library, 0) == [(b, t) for b in range(4) for t in block + block]


def test_a_seed_shuffles_blocks_and_threads_anew_after_each_barrier(library: ModuleType) -> None:
    order = visited(library, 3)
    assert sorted(order) == sorted(visited(library, 0))
    blocks = [b for b, _ in order[:: 2 * THREADS]]
    assert blocks != sorted(blocks)
    before, after = ([t for _, t in order[begin : begin + THREADS]] for begin in (0, THREADS))
    assert sorted(before) == sorted(after) == list(range(THREADS))
    assert before != after


def test_a_seed_gives_the_same_order_again_and_others_another(library: ModuleType) -> None:
    assert visited(library, 3) == visited(library, 3)
    assert visited(library, 3) != visited(library, 4)


def test_schedule_restores_what_was_set_before(library: ModuleType) -> None:
    before = library.configuration()
    with host.schedule(5, late=False, module=library):
        assert library.configuration() == (5, False)
    assert library.configuration() == before


def test_schedule_is_that_of_the_calling_thread(library: ModuleType) -> None:
    inside, outside = threading.Event(), threading.Event()
    seen = []

    def other() -> None:
        with host.schedule(7, module=library):
            inside.set()
            outside.wait()  # the one here ends first
            seen.append(library.configuration())

    thread = threading.Thread(target=other)
    before = library.configuration()
    with host.schedule(5, late=False, module=library):
        thread.start()
        inside.wait()
        assert library.configuration() == (5, False)
    outside.set()
    thread.join()
    assert seen == [(7, True)]
    assert library.configuration() == before


# --- counters ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stride", "offset", "sectors"),
    [(1, 0, 8), (1, 1, 10), (2, 0, 16), (8, 0, 64), (9, 0, 64)],
    ids=["coalesced", "coalesced-off-a-sector", "every-second", "one-a-sector", "far-apart"],
)
def test_sectors_are_counted_per_warp(library: ModuleType, stride: int, offset: int, sectors: int) -> None:
    source = matrix(1, (THREADS - 1) * stride + 1, offset=offset)
    counters = counted(library, "strided_read", source, matrix(1, THREADS), option=stride)
    assert counters["global_read_sectors"] == sectors
    assert counters["global_read_bytes"] == counters["distinct_read_bytes"] == 4 * THREADS
    assert counters["global_write_sectors"] == 8
    assert counters["global_write_bytes"] == counters["distinct_write_bytes"] == 4 * THREADS
    # Parameters are not among them.
    assert counters["global_reads"] == counters["global_writes"] == {4: THREADS}


def test_what_all_threads_read_counts_once_as_distinct_bytes_and_a_sector_a_warp(library: ModuleType) -> None:
    counters = counted(library, "same_read", matrix(1, 1), matrix(1, THREADS))
    assert (counters["global_read_bytes"], counters["global_read_sectors"]) == (4 * THREADS, 2)
    assert counters["distinct_read_bytes"] == 4


def test_a_vector_is_one_access_of_sixteen_bytes(library: ModuleType) -> None:
    counters = counted(library, "vector_copy", matrix(1, 4 * THREADS), matrix(1, 4 * THREADS))
    assert counters["global_reads"] == counters["global_writes"] == {16: THREADS}
    assert counters["global_read_bytes"] == counters["global_write_bytes"] == 16 * THREADS
    assert counters["global_read_sectors"] == counters["global_write_sectors"] == 16 * THREADS // 32


@pytest.mark.parametrize(("stride", "passes"), [(1, 1), (2, 2), (16, 16), (32, 32), (33, 1)])
def test_bank_conflicts_of_strided_accesses(library: ModuleType, stride: int, passes: int) -> None:
    counters = counted(library, "strided_shared", matrix(1, 1), matrix(1, THREADS), option=stride)
    instructions = 2 * THREADS // 32  # a write and a read, in each warp
    assert counters["shared_accesses"] == instructions * passes
    assert counters["bank_conflicts"] == instructions * (passes - 1)
    assert counters["shared_read_bytes"] == counters["shared_write_bytes"] == 4 * THREADS
    assert counters["barriers"] == 1


def test_vectors_in_a_row_take_four_passes_a_warp_and_have_no_conflicts(library: ModuleType) -> None:
    counters = counted(library, "vector_shared", matrix(1, 1), matrix(1, 4 * THREADS))
    assert (counters["shared_accesses"], counters["bank_conflicts"]) == (2 * 2 * 4, 0)
    assert counters["shared_read_bytes"] == counters["shared_write_bytes"] == 16 * THREADS


def test_threads_that_sit_out_cost_no_bytes_but_their_sectors_are_fetched(library: ModuleType) -> None:
    counters = counted(library, "half_of_threads", matrix(1, THREADS), matrix(1, THREADS), option=3)
    assert counters["multiply_adds"] == 3 * THREADS // 2
    assert counters["global_read_bytes"] == 3 * 4 * THREADS // 2
    assert counters["global_read_sectors"] == 3 * 8
    assert counters["distinct_read_bytes"] == 4 * THREADS // 2


def test_an_asynchronous_copy_reads_its_source_bytes_and_writes_all_of_them(library: ModuleType) -> None:
    counters = counted(library, "copied", matrix(1, 250), matrix(1, THREADS))
    assert counters["global_reads"] == {16: 62, 8: 1}
    assert counters["global_read_bytes"] == counters["distinct_read_bytes"] == 1000
    assert counters["global_read_sectors"] == 32
    assert counters["shared_write_bytes"] == 16 * THREADS


def test_blocks_add_up(library: ModuleType) -> None:
    with host.record(library) as launches:
        run(library, "reverse", rows=5)
    (launch,) = launches
    assert (launch.blocks, launch.counters["barriers"]) == (5, 5)
    assert launch.counters["distinct_read_bytes"] == 5 * 4 * THREADS


def test_counters_do_not_depend_on_the_schedule(scheduled: ModuleType, library: ModuleType) -> None:
    with host.record(scheduled) as launches:
        run(scheduled, "pipeline", 2305)
    with host.schedule(module=library), host.record(library) as expected:
        run(library, "pipeline", 2305)
    assert [launch.counters for launch in launches] == [launch.counters for launch in expected]


def test_nothing_launched_is_nothing_recorded(library: ModuleType) -> None:
    run(library, "reverse")
    with host.record(library) as launches:
        pass
    assert launches == []


def test_recorders_nest(library: ModuleType) -> None:
    with host.record(library) as outer:
        run(library, "reverse")
        with host.record(library) as inner:
            run(library, "exchange")
        run(library, "copied")
    assert [launch.kernel for launch in inner] == ["exchange"]
    assert [launch.kernel for launch in outer] == ["reverse", "exchange", "copied"]


def test_recorders_may_close_in_any_order(library: ModuleType) -> None:
    first = library.open_recorder()
    run(library, "reverse")
    second = library.open_recorder()
    run(library, "exchange")
    assert [entry["kernel"] for entry in library.close_recorder(first)] == ["reverse", "exchange"]
    assert [entry["kernel"] for entry in library.close_recorder(second)] == ["exchange"]
    with pytest.raises(RuntimeError, match="expected an open recorder"):
        library.close_recorder(second)


def test_a_launch_that_failed_is_not_recorded(library: ModuleType) -> None:
    with host.record(library) as launches, pytest.raises(RuntimeError):
        run(library, "read_past_end")
    assert launches == []


def test_launches_of_two_threads_do_not_disturb_each_other(library: ModuleType) -> None:
    start, wrong = threading.Barrier(2), []

    def launch(name: str, columns: int, expected: np.ndarray) -> None:
        start.wait()
        for _ in range(30):
            if not np.array_equal(run(library, name, columns), expected):
                wrong.append(name)

    def fail() -> None:
        start.wait()
        for _ in range(30):
            with pytest.raises(RuntimeError, match="^no_wait: "):
                run(library, "no_wait", 250)

    for other in (lambda: launch("reverse", THREADS, matrix(3, THREADS)[:, ::-1]), fail):
        threads = [
            threading.Thread(target=lambda: launch("pipeline", 2305, sums_of_four(2305))),
            threading.Thread(target=other),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_code_around_kernels_is_not_watched_while_another_thread_executes_one(library: ModuleType) -> None:
    sums: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: sums.extend(run(library, "pipeline", 2305) for _ in range(100)))
    thread.start()
    while thread.is_alive():
        library.names()  # compiled as the kernels are
    assert len(sums) == 100
    assert all(np.array_equal(s, sums_of_four(2305)) for s in sums)


# --- conversions ------------------------------------------------------------------------------------------

ALL_BITS = np.arange(65536, dtype=np.uint16)


def same_floats(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
    numbers = ~np.isnan(a)
    np.testing.assert_array_equal(a[numbers].view(np.uint32), b[numbers].view(np.uint32))


def test_every_float16_widens_as_in_numpy(library: ModuleType) -> None:
    same_floats(library.float16_to_float(ALL_BITS), ALL_BITS.view(np.float16).astype(np.float32))


def test_every_bfloat16_widens_as_in_torch(library: ModuleType) -> None:
    expected = torch.from_numpy(ALL_BITS.view(np.int16)).view(torch.bfloat16).float().numpy()
    same_floats(library.bfloat16_to_float(ALL_BITS), expected)


def hard_to_round(widened: np.ndarray) -> np.ndarray:
    """Every value that float32 can say, the ties between neighbours, and what lies next to those; then random bits."""
    values = np.unique(widened[np.isfinite(widened)])
    ties = values[:-1] + (values[1:] - values[:-1]) / np.float32(2)
    largest = np.array([65520, 3.4e38, np.inf], np.float32)
    points = np.concatenate([values, ties, largest])
    points = np.concatenate([points, np.nextafter(points, largest[2]), np.nextafter(points, -largest[2])])
    random = np.random.default_rng(0).integers(0, 2**32, 500_000, dtype=np.uint32).view(np.float32)
    everything = np.concatenate([points, -points, random])
    return everything[~np.isnan(everything)]


def test_floats_round_to_float16_as_in_numpy_and_torch(library: ModuleType) -> None:
    floats = hard_to_round(library.float16_to_float(ALL_BITS))
    rounded = library.float_to_float16(floats)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(rounded, floats.astype(np.float16).view(np.uint16))
    np.testing.assert_array_equal(rounded, torch.from_numpy(floats).half().numpy().view(np.uint16))


def test_floats_round_to_bfloat16_as_in_torch(library: ModuleType) -> None:
    floats = hard_to_round(library.bfloat16_to_float(ALL_BITS))
    expected = torch.from_numpy(floats).bfloat16().view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(library.float_to_bfloat16(floats), expected)


@pytest.mark.parametrize("convert", ["float_to_float16", "float_to_bfloat16"])
def test_every_nan_becomes_the_one_that_the_hardware_makes(library: ModuleType, convert: str) -> None:
    nans = np.array([0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0xFF800001, 0xFFC00000, 0xFFFFFFFF], np.uint32)
    assert set(getattr(library, convert)(nans.view(np.float32))) == {0x7FFF}


# --- what the runtime cannot see --------------------------------------------------------------------------

KERNELS = [p for p in sorted((ROOT / "csrc").glob("*/*")) if p.parent.name not in ("host", "binding")]


@pytest.mark.parametrize("path", KERNELS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_kernels_call_no_function_that_touches_memory_unseen(path: Path) -> None:
    text = path.read_text()
    if path.parent.name == "device":  # between local variables only
        text = re.sub(r"std::memcpy\(&\w+, &\w+, sizeof \w+\)", "", text)
    assert re.findall(r"\b(?:memcpy|memset|memmove|std::copy|std::fill)\w*\(", text) == []


# g++ splits a struct's copy before it can be seen, so that a vector would count as its elements.
@pytest.mark.parametrize("path", KERNELS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_kernels_reach_vectors_in_memory_by_functions_alone(path: Path) -> None:
    assert re.findall(r"reinterpret_cast<(?:const )?(?:\w+::)*Vector<", path.read_text()) == []
