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
from .work import Work, backward_floor, floor, stage_floor

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
    return case_of_row(kernel.row, work)


def case_of_row(row: str, work: Work) -> dict[str, Any]:
    """The same, of a kernel as the sheet calls it, or of something else in the same call."""
    return {
        "kernel": row,
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
            if not kernel.launched(work):
                continue
            counts: Counts | None = None
            compiled: Compiled | None = None
            try:
                counts = counter.counts(kernel, work) if counter is not None and not kernel.vendor else None
            except CountsUnavailableError as error:
                missing[f"not counted: {error}"] = None
            try:
                known = compiler is not None and not kernel.vendor
                compiled = compiler.compiled(kernel, work.dtype, device.arch) if compiler and known else None
            except BinaryUnavailableError as error:
                missing[f"not compiled: {error}"] = None
            tensor = kernel.by_tensor_cores(work) or work.dtype != "float32"
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
    cells: list[list[str]] = []
    for work in dict.fromkeys(line.work for line in found):
        mine = [line for line in found if line.work == work]
        products, moved = work.pointwise_multiply_adds(), work.stage_bytes()
        cells.append(_needs(work, "stage (b)", products, moved, stage_floor(device, work)))
        cells += [_time(line) for line in mine]
        for policy in dict.fromkeys(line.kernel.policy for line in mine if line.kernel.policy not in ("any", None)):
            parts = [line for line in mine if line.kernel.policy in ("any", policy)]
            least = stage_floor(device, work, any(line.kernel.tensor for line in parts))
            cells.append(_sum(device, f"{policy}: all launches", parts, least))
    return Report(f"{device.name}: milliseconds", _time_notes(device), _TIME_COLUMNS, 5, cells)


def training_times(device: Device, found: Sequence[Line]) -> Report:
    """The same of training, with sums of the forward pass, the backward pass and both."""
    cells: list[list[str]] = []
    for work in dict.fromkeys(line.work for line in found):
        mine = [line for line in found if line.work == work]
        forward, backward = ([line for line in mine if line.kernel.direction == d] for d in ("forward", "backward"))
        products, moved, least = work.pointwise_multiply_adds(), work.stage_bytes(), backward_floor(device, work)
        cells.append(_needs(work, "stage (b): forward", products, moved, stage_floor(device, work)))
        cells.append(_needs(work, "stage (b): backward", 2 * products, 2 * moved, least))
        cells += [_time(line) for line in forward]
        sums: list[list[str]] = []
        for policy in dict.fromkeys(line.kernel.policy for line in forward if line.kernel.policy not in ("any", None)):
            parts = [line for line in forward if line.kernel.policy in ("any", policy)]
            own = stage_floor(device, work, any(line.kernel.tensor for line in parts))
            cells.append(_sum(device, f"{policy}: all launches forward", parts, own))
            sums.append(_sum(device, f"{policy}: step", [*parts, *backward], own + least))
        cells += [_time(line) for line in backward]
        cells += [_sum(device, "backward: all launches", backward, least)] if backward else []
        cells += sums
    return Report(f"{device.name}: milliseconds of training", _training_notes(device), _TIME_COLUMNS, 5, cells)


_TIME_COLUMNS = ["map", "batch", "dtype", "kernel", "bound by", "G multiply-adds", "MB", "floor", *RESOURCES]
_TIME_COLUMNS += ["waves", "predicted", "× floor", "measured", "× predicted"]


def _needs(work: Work, name: str, multiply_adds: int, moved: int, least: float) -> list[str]:
    needs = map(figure, [multiply_adds / 1e9, moved / 1e6, least * 1e3])
    return [*_where(work), name, "", *needs, *[""] * (len(RESOURCES) + 5)]


def _sum(device: Device, name: str, parts: Sequence[Line], least: float) -> list[str]:
    total = sum(line.prediction.total for line in parts)
    known = [line.measured for line in parts if line.measured is not None]
    value = sum(known) if len(known) == len(parts) else None
    moved = sum(line.kernel.moved(line.work) + line.kernel.moved_again(line.work, device) for line in parts)
    needs = ["", figure(moved / 1e6), figure(least * 1e3), *[""] * (len(RESOURCES) + 1)]
    ends = [total * 1e3, total / least, value, over(value, total)]
    return [*_where(parts[0].work), name, "", *needs, *map(figure, ends)]


def over(milliseconds: float | None, predicted: float) -> float | None:
    """What was measured over what was predicted, in seconds."""
    return None if milliseconds is None else milliseconds / (predicted * 1e3)


def _time(line: Line) -> list[str]:
    prediction = line.prediction
    needs = [line.kernel.multiply_adds(line.work) / 1e9, line.kernel.moved(line.work) / 1e6, line.floor * 1e3]
    busy = [prediction.seconds[name] * 1e3 if name in prediction.seconds else None for name in RESOURCES]
    total = prediction.total
    ends = [prediction.waves, total * 1e3, total / line.floor, line.measured, over(line.measured, total)]
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
        "MB of all launches: with what DRAM moves beyond each byte once",
        *("source: " + source for source in device.sources),
        *("assumed: " + assumption for assumption in ASSUMED),
    ]


def _training_notes(device: Device) -> list[str]:
    return [
        "as above; stage (b): backward: two matrix products for each of the forward pass; levels, weights and results, "
        "each read for one gradient or written as one, and read as such again",
        "of norms with the batch's statistics, every gradient asked for; rows of several launches are their sum",
        "torch.bmm: at the tensor peak, or its operands and result at DRAM's bandwidth, as if PyTorch's library lost "
        "nothing; torch.cat likewise",
        f"DRAM: as if it kept nothing of {device.name}'s L2 between launches, but all within one",
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
        "small numbers of channels (norm_relu: all channels, two small maps; training's launches without pixels: all "
        "images and parts); all else by the number of blocks and of their steps",
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
