"""Runs the parts of the program and makes rows of what they print."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from .. import environment, measure, runner
from ..environment import Environment
from ..results import Row, make_row
from ..runner import Job, Outcome, Skipped, Tick
from . import budgets, program
from .budgets import Variant
from .program import Line, ProgramError

PROVIDER = "hopper"
# After a case that failed; its process can run no other.
RESTARTS = 3
CASES = {"single": 14, "pair": 14, "multicast": 6, "bulk": 12, "gather": 12}


def require(device: torch.device) -> None:
    """Refuses a device that cannot run any of it.

    Raises:
        ProgramError: no CUDA device, or none of compute capability 9.0.
    """
    if device.type != "cuda":
        raise ProgramError(f"expected a CUDA device of compute capability 9.0, got {device.type}")
    capability = torch.cuda.get_device_capability(device)
    if capability != (9, 0):
        raise ProgramError(f"expected a CUDA device of compute capability 9.0, got {capability[0]}.{capability[1]}")


def variant_of(case: dict[str, Any]) -> Variant:
    """What a row of pipes is of."""
    return Variant(case["layout"], case["columns"], frozenset(case["active"].split("+")))


def rows_of(line: Line, where: Environment) -> list[Row]:
    """Rows of a line of the program; none of a line that has no timings."""
    if line["kind"] not in ("pipes", "tiles") or not line.get("cycles"):
        return []
    steps, blocks = line["steps"], line["blocks"]
    cycles = [value / steps for value in line["cycles"]]
    names = ("layout", "columns", "active", "reader_fence", "engine", "memory", "stride")
    case = {"hopper": line["kind"], **{name: line[name] for name in names if name in line}}
    case |= {"steps": steps, "blocks": blocks}

    def row(metric: str, samples: Sequence[float]) -> Row:
        return make_row(where, case, PROVIDER, metric, statistics.median(samples), measure.quantiles(samples))

    rows = [row("cycles_per_step", cycles), row("latency", line["milliseconds"])]
    bytes_ = float(budgets.TILE_BYTES)
    if line["kind"] == "pipes":
        variant = variant_of(case)
        bytes_ = budgets.copied_bytes(variant)
        flops = budgets.flops(variant) * steps * blocks
        if flops:
            rows.append(row("throughput", [flops / ms / 1e9 for ms in line["milliseconds"]]))
    if bytes_:
        rows.append(row("bytes_per_cycle", [bytes_ / value for value in cycles]))
        rows.append(row("bandwidth", [bytes_ * steps * blocks / ms / 1e6 for ms in line["milliseconds"]]))
    return rows


def label_of(line: Line) -> str:
    """Names a line's case for a reader."""
    names = ("layout", "columns", "active", "engine", "memory", "stride")
    return " ".join(str(line[name]) for name in names if name in line) or str(line["kind"])


def complaint_of(line: Line) -> str | None:
    """What a line says is wrong; None where nothing is."""
    if line["kind"] == "failed":
        return str(line["message"])
    return f"{label_of(line)}: {line['wrong']}" if line.get("wrong") else None


def run(
    parts: Sequence[str],
    device: torch.device,
    case_seconds: float,
    budget: float,
    output: Path,
    console: Console,
    check: bool = False,
) -> Outcome:
    """Builds the program and runs parts of it; what is right is kept even where other cases were wrong.

    Args:
        parts: of :data:`benchmarks.hopper.program.PARTS`.
        device: of compute capability 9.0.
        case_seconds: for timing each case.
        budget: seconds in which the last case should begin.
        output: file to append rows to.
        console: where progress is shown.
        check: compare with the host only.

    Raises:
        ProgramError: there is no program, or no such device.
    """
    require(device)
    path = program.build()
    started = time.monotonic()  # a compiler's time does not count: the program is there the next time
    where = environment.describe(device)
    where = replace(where, versions={**where.versions, "program": program.key()})
    console.print(f"program: {path}", highlight=False, markup=False, soft_wrap=True)
    jobs: list[Job] = []
    for part in parts:
        complaints: list[str] = []
        skipped: list[str] = []

        def measured(
            tick: Tick,
            part: str = part,
            complaints: list[str] = complaints,
            skipped: list[str] = skipped,
        ) -> list[Row]:
            left = budget - (time.monotonic() - started)
            if left <= 0:
                raise Skipped(f"the budget of {budget:g} s was spent")
            rows: list[Row] = []
            done = [0]

            def told(line: Line) -> None:
                done[0] += line["kind"] in ("pipes", "tiles")
                tick(min(1.0, done[0] / CASES[part]))
                if (complaint := complaint_of(line)) is not None:
                    complaints.append(complaint)
                elif line["kind"] == "skipped":
                    skipped.append(line["what"])
                elif line["kind"] == "note":
                    console.print(f"{part}: {line['text']}: {line['without']}", markup=False, soft_wrap=True)
                rows.extend(rows_of(line, where))

            for _ in range(1 + RESTARTS):
                left = budget - (time.monotonic() - started)
                code, errors = program.run(
                    *(path, part),
                    device=device.index or 0,
                    check=check,
                    seconds=max(left, 0.0),
                    case_seconds=case_seconds,
                    first=done[0],
                    told=told,
                )
                if code not in (0, 1) and not complaints:
                    complaints.append(f"exit code {code}; {errors}")
                done[0] += 1  # the case that failed
                if code != 3 or done[0] >= CASES[part]:
                    break
            return rows

        jobs.append(Job(part, measured))
        jobs.append(Job(f"{part}, held to the host's numbers", _verdict(complaints, skipped)))
    return runner.run(jobs, output, console, describe)


def _verdict(complaints: list[str], skipped: list[str]) -> Callable[[Tick], list[Row]]:
    """A job that fails where a part had complaints: a job that fails keeps no rows, and the part's are right."""

    def verdict(tick: Tick) -> list[Row]:
        if complaints:
            raise ProgramError("; ".join(complaints))
        if skipped:
            raise Skipped("no time was left for " + ", ".join(skipped))
        return []

    return verdict


def describe(rows: list[Row]) -> str:
    """A finished job's line."""
    cases = {str(row.case) for row in rows}
    return f"{len(cases)} cases timed" if cases else "done"
