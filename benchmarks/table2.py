"""The paper's Table 2, measured: every case is checked, then timed, weighed and counted."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text
from torch import Tensor, nn

from jpu_cuda import use_backend

from . import environment, measure, results, systems
from .cases import Case
from .environment import Environment
from .memory import PeakMemory
from .results import Row


@dataclass
class Outcome:
    """What a run gave: rows, and the cases that failed with the reason.

    Attributes:
        rows: of the finished cases.
        failures: (label, error) of each case that failed.
        interrupted: whether Ctrl-C ended the run early.
    """

    rows: list[Row] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    interrupted: bool = False


def measure_case(
    case: Case,
    provider: str,
    device: torch.device,
    seconds: float,
    where: Environment,
    tick: Callable[[float], None] = lambda done: None,
) -> list[Row]:
    """Measures one case: latency, frames per second, peak memory, parameters and multiply-adds.

    As in the paper's protocol the model is in eval mode and computes its auxiliary head. Latency has no
    part of moving the image to the device. Frames per second are batch / median latency.

    Args:
        case: what to measure.
        provider: the backend that serves the JPU, as in :func:`jpu_cuda.use_backend`.
        device: ``cpu`` or ``cuda``.
        seconds: for timing, see :func:`benchmarks.measure.time_calls`.
        where: goes into every row.
        tick: told the share of the timing that is done.

    Raises:
        ValueError: the model's output is not finite or not of the right shape; nothing was timed then.
    """
    images = systems.build_input(case, device)
    with use_backend(provider):
        model, peak = _build_and_check(case, images, device)
        with torch.inference_mode():
            samples = measure.time_calls(lambda: model(images), device, seconds, tick)

    def row(metric: str, value: float, quantiles: dict[str, float] | None = None) -> Row:
        measured = (case.as_dict(), provider, metric, value, quantiles, results.METRICS[metric].unit)
        return Row(where.device, where.versions, where.source_hash, *measured)

    def fps(milliseconds: float) -> float:
        return case.batch * 1000 / milliseconds

    latency, spread = statistics.median(samples), measure.quantiles(samples)
    # The slowest twentieth of the latencies are the lowest frame rates.
    fps_spread = {f"p{100 - int(name[1:])}": fps(value) for name, value in spread.items()}
    rows = [row("latency", latency, spread), row("fps", fps(latency), fps_spread)]
    if peak is not None:
        rows.append(row("peak_memory", peak))
    rows.append(row("parameters", measure.parameters(model)))
    rows.append(row("multiply_adds", measure.multiply_adds(model, images)))
    return rows


def _build_and_check(case: Case, images: Tensor, device: torch.device) -> tuple[nn.Module, float | None]:
    """Builds a case's model and checks its output; returns it with the peak memory of both in MiB."""
    with PeakMemory(device) as memory:
        model = systems.build_model(case, device)
        memory.reset()
        with torch.inference_mode():
            output = model(images)
        peak = memory.mib()
        systems.check_output(output, case)
    return model, peak


def run(
    cases: Sequence[Case],
    providers: Sequence[str],
    device: torch.device,
    seconds: float,
    output: Path,
    console: Console,
    more: Callable[[Case], bool] = lambda case: True,
) -> Outcome:
    """Measures cases one after the other; rows reach ``output`` as each is finished.

    A case that fails is reported and the others go on; Ctrl-C ends the run and keeps what is measured.

    Args:
        cases: what to measure.
        providers: each case is measured with each.
        device: ``cpu`` or ``cuda``.
        seconds: for timing each case.
        output: file to append to.
        console: where progress is shown: a bar on a terminal, a line for each case anywhere.
        more: asked before each case; the case is left out where it says False.
    """
    where = environment.describe(device)
    outcome = Outcome()
    jobs = [(case, provider) for case in cases for provider in providers]
    with _progress(console) as progress:
        whole = progress.add_task("cases", total=len(jobs))
        part = progress.add_task("")
        try:
            for case, provider in jobs:
                if more(case):
                    label = case.label if len(providers) == 1 else f"{case.label} · {provider}"
                    progress.reset(part, total=1, description=label)
                    tick = partial(_show, progress, part)
                    try:
                        _prepare(case, device, first=not outcome.rows)
                        rows = measure_case(case, provider, device, seconds, where, tick)
                    except Exception as error:  # out of memory, say: must not cost the other cases
                        outcome.failures.append((label, f"{type(error).__name__}: {error}".splitlines()[0]))
                        console.print(Text(f"{label}: failed, {outcome.failures[-1][1]}", style="red"))
                    else:
                        results.append(output, rows)
                        outcome.rows += rows
                        latency, fps = rows[0].value, rows[1].value
                        console.print(Text(f"{label}: {latency:.4g} ms, {fps:.4g} frames/s"))
                progress.advance(whole)
        except KeyboardInterrupt:
            outcome.interrupted = True
            console.print(Text("interrupted; what was measured is kept", style="yellow"))
    return outcome


def _progress(console: Console) -> Progress:
    """Bars on a terminal, nothing elsewhere: a line for each case is printed anyway."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _show(progress: Progress, task: TaskID, done: float) -> None:
    progress.update(task, completed=done)


def _prepare(case: Case, device: torch.device, first: bool) -> None:
    """Gets out of the way what would count as the case's memory and is not its own."""
    if first:  # code and buffers that PyTorch maps when it is first used
        small = replace(case, size=64, batch=1)
        _build_and_check(small, systems.build_input(small, device), device)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
