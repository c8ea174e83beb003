"""Host execution catches what a kernel does wrong, and names kernel, block and thread."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from faulty_kernels import THREADS, matrix, run, watched

ROOT = Path(__file__).resolve().parents[1]

pytestmark = watched


ANY = r"block \d+, thread \d+: "
RACE = r"race: {} after the {} by {}"
NO_BARRIER = r"thread \d+, with no barrier between"
UNFINISHED = r"an asynchronous copy of thread \d+, with no wait for it, or no barrier after that"
NOTHING_WROTE = "read of {} that nothing wrote"
SCRATCH, SCRATCH_READ = "'scratch'", "read of 'scratch'"
READ, WRITE = r"out-of-bounds read of \d+ bytes", r"out-of-bounds write of \d+ bytes"

REVERSE_FAULTS = {
    # A thread that runs before its neighbour finds nothing there; after it, a value that it may not rely on.
    "dropped_barrier": ANY + f"({RACE.format('read of shared memory', 'write', NO_BARRIER)}|"
    f"{NOTHING_WROTE.format('shared memory')})",
    "race_without_trace": ANY
    + f"({RACE.format('read of shared memory', 'write', NO_BARRIER)}|"
    + RACE.format("write to shared memory", "read", NO_BARRIER)
    + ")",
    # Without a seed the thread that writes is the last of those that read.
    "race_with_earlier_reader": ANY + r"race: (write to|read of) shared memory after the (read|write) by " + NO_BARRIER,
    "shared_write_write": ANY + RACE.format("write to shared memory", "write", NO_BARRIER),
    "leaves_before_barrier": r"block \d, thread 5: divergent barrier: thread 0 waits at one while this thread has left",
    "two_barriers": r"block \d, thread 1: divergent barrier: thread 0 waits at one while this thread waits at another",
    "misaligned_vector": r"block \d, thread 0: misaligned read of 16 bytes: the address is 4 past a multiple of that",
    "misaligned_vector_store": r"block \d, thread 0: misaligned write of 16 bytes: the address is 8 past",
    "read_past_end": rf"block \d, thread 63: {READ}, 0 bytes past the end of 'input'",
    "read_before_start": rf"block \d, thread 0: {READ}, 4 bytes before the start of 'input'",
    "read_of_gap": rf"block 0, thread 63: {READ}, between the elements of 'input'",
    "write_past_end": rf"block \d, thread 63: {WRITE}, 0 bytes past the end of 'output'",
    "write_before_start": rf"block \d, thread 0: {WRITE}, 4 bytes before the start of 'output'",
    "write_of_gap": rf"block 0, thread 63: {WRITE}, between the elements of 'output'",
    "shared_read_past_end": rf"block \d, thread 63: {READ} at byte 256 of 256 bytes of shared memory",
    "shared_write_past_end": rf"block \d, thread 63: {WRITE} at byte 256 of 256 bytes of shared memory",
    "shared_unwritten": r"block \d, thread 58: " + NOTHING_WROTE.format("shared memory"),
    "shared_byte": ANY + "access of 1 byte to shared memory: expected at least 2",
    "shared_twice": ANY + r"shared memory of \d+ bytes: too much, or asked for twice",
    "shared_twice_alike": ANY + r"shared memory of \d+ bytes: too much, or asked for twice",
    "too_many_threads": "expected 1 to 1024 threads a block, got 1025",
    "no_threads": "expected 1 to 1024 threads a block, got 0",
    "output_read_early": ANY + NOTHING_WROTE.format("'output'"),
    "input_written": r"block \d, thread 7: write to 'input', which this launch only reads",
    # No thread did this, so none is named.
    "output_unwritten": "left 12 bytes of 'output' unwritten",
    "global_race": ANY + f"({RACE.format(SCRATCH_READ, 'write', NO_BARRIER)}|{NOTHING_WROTE.format(SCRATCH)})",
    "global_write_write": ANY + RACE.format("write to 'scratch'", "write", NO_BARRIER),
    "blocks_race": ANY + r"(race: read of 'scratch' after the write by block \d, and nothing orders blocks|"
    "read of 'scratch' that nothing wrote)",
    "blocks_write_write": ANY + r"race: write to 'scratch' after the write by block \d, and nothing orders blocks",
    "update_unwritten": "left 12 bytes of 'scratch' unwritten",
    # Whoever comes second.
    "update_of_others": ANY + r"race: (read of 'scratch' after the write by block \d|write to 'scratch' after the read "
    "by another block), and nothing orders blocks",
    "scratch_unwritten": r"block \d, thread 58: " + NOTHING_WROTE.format("'scratch'"),
}

COPY_FAULTS = {
    "no_wait": ANY + RACE.format("read of shared memory", "write", UNFINISHED),
    "no_commit": ANY + RACE.format("read of shared memory", "write", UNFINISHED),
    "no_barrier_after_wait": ANY + f"({RACE.format('read of shared memory', 'write', UNFINISHED)}|"
    f"{NOTHING_WROTE.format('shared memory')})",
    "waits_for_all_but_one": ANY + RACE.format("read of shared memory", "write", UNFINISHED),
    "too_many_source_bytes": r"block \d, thread 2: asynchronous copy: expected 0 to 16 source bytes, got 20",
    "negative_source_bytes": r"block \d, thread 2: asynchronous copy: expected 0 to 16 source bytes, got -4",
    "source_bytes_past_end": rf"block \d, thread 6[23]: {READ}, (between the elements of|\d+ bytes past the end of)",
    "misaligned_source": r"block \d, thread 2: misaligned asynchronous copy of 16 bytes: the source is 4 past",
    "misaligned_destination": r"block \d, thread 2: misaligned asynchronous copy of 16 bytes: .* the destination 4",
    "copy_to_global": r"block \d, thread 2: asynchronous copy: expected a destination in shared memory",
    "copy_from_shared": r"block \d, thread 2: asynchronous copy: expected a source in global memory",
}

# These copy whole rows.
OVERWRITING_FAULTS = {
    "source_overwritten": r"block \d, thread 2: race: write to 'scratch' after the read by an asynchronous copy of "
    "thread 2, with no wait for it$",
    "destination_overwritten": r"block \d, thread 2: race: write to shared memory after the write by an asynchronous "
    "copy of thread 2, with no wait for it$",
}

PIPELINE_FAULTS = {
    "stage_reused_early": ANY
    + f"({RACE.format('read of shared memory', 'write', UNFINISHED)}|"
    + RACE.format("write to shared memory by an asynchronous copy", "read", NO_BARRIER)
    + ")",
    "waits_for_too_few": ANY + RACE.format("read of shared memory", "write", UNFINISHED),
}

FAULTS = {
    **{name: (THREADS, text) for name, text in REVERSE_FAULTS.items()},
    **{name: (250, text) for name, text in COPY_FAULTS.items()},
    **{name: (4 * THREADS, text) for name, text in OVERWRITING_FAULTS.items()},
    **{name: (2500, text) for name, text in PIPELINE_FAULTS.items()},
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_caught_and_named_in_every_schedule(scheduled: ModuleType, name: str) -> None:
    columns, text = FAULTS[name]
    with pytest.raises(RuntimeError, match=f"^{name}: {text}"):
        run(scheduled, name, columns)


def test_every_kernel_of_the_library_is_tested(library: ModuleType) -> None:
    here = "".join((ROOT / "tests" / f"test_host_{what}.py").read_text() for what in ("faults", "runtime", "matrix"))
    assert [name for name in library.names() if f'"{name}"' not in here] == []


def test_an_output_over_the_input_is_refused(library: ModuleType) -> None:
    image = matrix(2, THREADS + 8)
    with pytest.raises(RuntimeError, match="^reverse: 'output' overlaps 'input', and one is written"):
        library.run("reverse", image[:, :THREADS], image[:, 8:])


def test_an_output_beside_the_input_in_the_same_rows_is_not(library: ModuleType) -> None:
    image = matrix(2, 2 * THREADS)
    library.run("reverse", image[:, :THREADS], image[:, THREADS:])
    np.testing.assert_array_equal(image[:, THREADS:], image[:, THREADS - 1 :: -1])


def test_an_output_whose_rows_are_one_is_refused(library: ModuleType) -> None:
    output = np.lib.stride_tricks.as_strided(matrix(1, THREADS), (2, THREADS), (0, 4))
    with pytest.raises(RuntimeError, match="^reverse: 'output' is written and has elements that share memory"):
        library.run("reverse", matrix(2, THREADS), output)


def test_an_input_whose_rows_are_one_is_read(library: ModuleType) -> None:
    row, output = matrix(1, THREADS), matrix(2, THREADS)
    library.run("reverse", np.lib.stride_tricks.as_strided(row, (2, THREADS), (0, 4)), output)
    np.testing.assert_array_equal(output, np.repeat(row[:, ::-1], 2, 0))


@pytest.mark.parametrize("name", ["read_past_end", "output_unwritten", "leaves_before_barrier", "no_wait", "reverse"])
def test_after_a_fault_the_next_launch_works(library: ModuleType, name: str) -> None:
    image = matrix(2, FAULTS.get(name, (THREADS,))[0])
    with pytest.raises(RuntimeError):
        library.run(name, image, image if name == "reverse" else matrix(2, THREADS), image.copy())
    np.testing.assert_array_equal(run(library, "reverse"), matrix(3, THREADS)[:, ::-1])
