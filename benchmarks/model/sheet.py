"""The tables: times, counts, binaries."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import results
from ..report import Report
from . import predict, sass
from .binary import BinaryUnavailableError, Compiled, Compiler
from .counts import Counter, CountsUnavailableError
from .devices import ASSUMED, Device
from .kernels import Counts, Kernel
from .predict import LAUNCH, RESOURCES, Prediction
from .work import Work, floor, stage_floor

ABSENT = "–"


@dataclass(frozen=True)
class Line:
    """A kernel in a call, and all that is known of it.

    Attributes:
        kernel, work: which, in which.
        floor: seconds of this kernel's work, as :func:`.work.floor` has them.
        prediction: of this implementation.
        counts: None where host execution is not to be had.
        compiled: None where a compiler is not to be had.
        measured: milliseconds; None if nobody has.
    """

    kernel: Kernel
    work: Work
    floor: float
    prediction: Prediction
    counts: Counts | None = None
    compiled: Compiled | None = None
    measured: float | None = None


def case_of(kernel: Kernel, work: Work) -> dict[str, Any]:
    """As a row of results names what it measured, for rows that the sheet is to show."""
    return {
        "kernel": kernel.row,
        "batch": work.batch,
        "height": work.height,
        "width": work.width,
        "dtype": work.dtype,
        "channels": work.channels,
        "dilations": list(work.dilations),
    }


def read_results(folder: Path) -> list[results.Row]:
    """All rows of measurements in a folder; what is none is passed by."""
    rows: list[results.Row] = []
    for path in sorted(folder.glob("*.jsonl")):
        try:
            rows += results.read(path)
        except results.ResultsError:
            continue
    return rows


def measured(rows: Iterable[results.Row], device: Device, kernel: Kernel, work: Work, source_hash: str) -> float | None:
    """Milliseconds of the last row of this device, kernel, call and of these sources; None if there is none."""
    case = case_of(kernel, work)
    fitting = [
        row
        for row in rows
        if row.case == case
        and row.metric == "latency"
        and row.source_hash == source_hash
        and row.device == device.reported
    ]
    return max(fitting, key=lambda row: row.run).value if fitting else None


def lines(
    device: Device,
    kernels: Sequence[Kernel],
    works: Sequence[Work],
    counter: Counter | None,
    compiler: Compiler | None,
    rows: Sequence[results.Row] = (),
    source_hash: str = "",
) -> tuple[list[Line], list[str]]:
    """What is known of each kernel in each call.

    Returns:
        The lines, and why something is missing, each reason once.
    """
    found: list[Line] = []
    missing: dict[str, None] = {}
    for work in works:
        for kernel in kernels:
            counts: Counts | None = None
            compiled: Compiled | None = None
            try:
                counts = counter.counts(kernel, work) if counter is not None else None
            except CountsUnavailableError as error:
                missing[f"not counted: {error}"] = None
            try:
                compiled = compiler.compiled(kernel, work.dtype, device.arch) if compiler is not None else None
            except BinaryUnavailableError as error:
                missing[f"not compiled: {error}"] = None
            tensor = kernel.tensor or work.dtype != "float32"
            least = floor(device, work.dtype, kernel.multiply_adds(work), kernel.moved(work), tensor)
            prediction = predict.predict(device, kernel, work, counts, compiled)
            value = measured(rows, device, kernel, work, source_hash)
            found.append(Line(kernel, work, least, prediction, counts, compiled, value))
    return found, list(missing)


def figure(value: float | None) -> str:
    """Three significant digits, never in powers of ten."""
    if value is None:
        return ABSENT
    if value == 0:
        return "0"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def _where(work: Work) -> list[str]:
    return [work.size, str(work.batch), work.dtype]


def times(device: Device, found: Sequence[Line]) -> Report:
    """Floors, what each resource needs, the prediction, the measurement."""
    columns = ["map", "batch", "dtype", "kernel", "bound by", "G multiply-adds", "MB", "floor"]
    columns += [*RESOURCES, "waves", "predicted", "× floor", "measured"]
    cells: list[list[str]] = []
    for work in dict.fromkeys(line.work for line in found):
        mine = [line for line in found if line.work == work]
        least = stage_floor(device, work)
        needs = [figure(work.pointwise_multiply_adds() / 1e9), figure(work.stage_bytes() / 1e6), figure(least * 1e3)]
        cells.append([*_where(work), "stage (b)", "", *needs, *[""] * (len(RESOURCES) + 4)])
        cells += [_time(line) for line in mine]
        for policy in dict.fromkeys(line.kernel.policy for line in mine if line.kernel.policy not in ("any", None)):
            parts = [line for line in mine if line.kernel.policy in ("any", policy)]
            total = sum(line.prediction.total for line in parts)
            known = [line.measured for line in parts if line.measured is not None]
            value = sum(known) if len(known) == len(parts) else None
            least = stage_floor(device, work, any(line.kernel.tensor for line in parts))
            empty = ["", "", "", figure(least * 1e3), *[""] * (len(RESOURCES) + 1)]
            ends = [figure(total * 1e3), figure(total / least), figure(value)]
            cells.append([*_where(work), f"{policy}: all launches", *empty, *ends])
    return Report(f"{device.name}: milliseconds", _time_notes(device), columns, 5, cells)


def _time(line: Line) -> list[str]:
    prediction = line.prediction
    needs = [line.kernel.multiply_adds(line.work) / 1e9, line.kernel.moved(line.work) / 1e6, line.floor * 1e3]
    busy = [prediction.seconds[name] * 1e3 if name in prediction.seconds else None for name in RESOURCES]
    total = prediction.total
    ends = [prediction.waves, total * 1e3, total / line.floor, line.measured]
    return [*_where(line.work), line.kernel.row, prediction.binding, *map(figure, [*needs, *busy, *ends])]


def _time_notes(device: Device) -> list[str]:
    return [
        "floor: multiply-adds at the tensor peak (FP32 peak for float32), or MB, each byte once, at DRAM's bandwidth; "
        "rates are the sources' below: where one was measured, a device that clocks higher may be faster",
        "DRAM … tensor: time for which each is busy; predicted: the longest, as if the others were free, and "
        f"{LAUNCH * 1e6:g} µs a launch (assumed): without what waits for something, so no estimate",
        "DRAM: of floors too, as if L2 held nothing of the launch before, which is too much where a call's tensors fit "
        "it, as at small batches; h of two passes counts only where a round's exceeds L2",
        "norm_relu forward: of stage (a), the norms and ReLUs of its three results; part of no sum",
        "waves: blocks over those that reside at once; shared … tensor are those of the SM with the most blocks",
        *("source: " + source for source in device.sources),
        *("assumed: " + assumption for assumption in ASSUMED),
    ]


def counted(found: Sequence[Line]) -> Report:
    """What host execution counted, scaled to the whole call."""
    columns = ["map", "batch", "dtype", "kernel", "blocks", "MB read", "in sectors", "distinct", "MB written"]
    columns += ["M shared passes", "conflicts %", "barriers/block", "G multiply-adds", "G of tensor cores"]
    cells = []
    for line in found:
        if (c := line.counts) is None:
            continue
        read = [
            c["global_read_bytes"],
            c["global_read_sectors"] * 32,
            c["distinct_read_bytes"],
            c["global_write_bytes"],
        ]
        conflicts = 100 * c["bank_conflicts"] / c["shared_accesses"] if c["shared_accesses"] else 0
        values = [*(n / 1e6 for n in read), c["shared_accesses"] / 1e6, conflicts, c["barriers"] / c["blocks"]]
        values += [c["multiply_adds"] / 1e9, c.get("matrix_multiply_adds", 0) / 1e9]
        cells.append([*_where(line.work), line.kernel.row, str(c["blocks"]), *map(figure, values)])
    notes = [
        "counted by executing the kernels on the CPU, on maps of this size but one image, one tile of outputs and two "
        "small numbers of channels (norm_relu: all channels, two small maps); all else by the number of blocks and of "
        "their steps",
        "MB read: requested by threads; in sectors: of 32 bytes, by warps; distinct: within a block, which is what L2 "
        "delivers if L1 keeps what a block reads again",
        "shared passes: of 128 bytes, those that conflicts add included",
    ]
    return Report("Counted", notes, columns, 4, cells)


def binaries(device: Device, found: Sequence[Line]) -> Report:
    """Registers, occupancy and instructions of each compiled kernel."""
    parts: list[tuple[list[str], Sequence[sass.Instruction]]] = []
    seen = set()
    for line in found:
        compiled, resident = line.compiled, line.prediction.occupancy
        key = (line.kernel.source, line.kernel.symbol, line.work.dtype)
        if compiled is None or resident is None or key in seen:
            continue
        seen.add(key)
        has = compiled.resources
        shared = has.shared + line.kernel.dynamic_shared
        numbers = [has.registers, has.spills, shared, resident.blocks, resident.warps]
        head = [line.kernel.name, line.work.dtype, "all", *map(str, numbers), resident.limit]
        parts.append((head, compiled.program.instructions))
        if compiled.loop is not None:
            parts.append(([*head[:2], "main loop", *[""] * (len(numbers) + 1)], compiled.loop.own))
    mixes = [sass.mix(instructions) for _, instructions in parts]
    shown = [pipe for pipe in sass.PIPES if any(mix[pipe] for mix in mixes)]
    cells = []
    for (head, instructions), mix in zip(parts, mixes, strict=True):
        products = mix["tensor"] or sass.fused(instructions)
        ratio = len(instructions) / products if products else None
        cells.append([*head, str(len(instructions)), *(str(mix[pipe]) for pipe in shown), figure(ratio)])
    columns = ["kernel", "dtype", "part", "registers", "spilled B", "shared B", "blocks/SM", "warps/SM", "limited by"]
    columns += ["instr.", *shown, "a product"]
    notes = [
        "instructions as they stand in the binary, each once; main loop: the one with the most tensor core "
        "instructions, or else FFMA, without loops in it",
        "a product: instructions for each tensor core instruction, or else FFMA",
        "blocks/SM: as registers, shared memory and threads allow, of which the scarcest is named; shared: at most",
    ]
    return Report(f"Compiled for sm_{device.arch}", notes, columns, 3, cells)
