"""The paper's Table 2, measured: every case is checked, then timed, weighed and counted."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from jpu_cuda import use_backend
from jpu_cuda.backend import BackendUnavailableError, matrix_options

from . import environment, measure, runner, systems, verify
from .cases import Case
from .environment import Environment
from .memory import PeakMemory
from .providers import PROVIDERS, chosen, serve, why_not
from .results import Row, make_row
from .runner import Job, Outcome, Skipped, Tick


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
        provider: a key of :data:`benchmarks.providers.PROVIDERS`, in the case's memory format.
        device: ``cpu`` or ``cuda``.
        seconds: for timing, see :func:`benchmarks.measure.time_calls`.
        where: goes into every row.
        tick: told the share of the timing that is done.

    Raises:
        ValueError: the model's output is not finite or not of the right shape; nothing was timed then.
    """
    known = PROVIDERS[provider]
    images = systems.build_input(case, device)
    with chosen(known):  # before graphs and compilers, which hold what they like beside the model
        model, peak = _build_and_check(case, images, device)
    with serve(known, model, [images]) as call:
        if provider != "reference":
            tf32 = images.is_cuda and case.dtype == "float32" and matrix_options().allow_tf32
            truth = verify.find_truth(model, [images[-1:]], lambda result: result[0], tf32)
            verify.assert_no_worse(call()[0][-1:], truth, deep=True)
        samples = measure.time_calls(call, device, seconds, tick)

    def row(metric: str, value: float, quantiles: dict[str, float] | None = None) -> Row:
        return make_row(where, case.as_dict(), provider, metric, value, quantiles)

    def fps(milliseconds: float) -> float:
        return case.batch * 1000 / milliseconds

    latency, spread = statistics.median(samples), measure.quantiles(samples)
    # The slowest twentieth of the latencies are the lowest frame rates.
    fps_spread = {f"p{100 - int(name[1:])}": fps(value) for name, value in spread.items()}
    rows = [row("latency", latency, spread), row("fps", fps(latency), fps_spread)]
    if peak is not None:
        rows.append(row("peak_memory", peak))
    rows.append(row("parameters", measure.parameters(model)))
    with use_backend("reference"):  # kernels are no convolutions to whoever counts
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
    warm = False

    def measured(case: Case, provider: str, tick: Tick) -> list[Row]:
        nonlocal warm
        if not more(case):
            raise Skipped("left out")
        if (reason := why_not(PROVIDERS[provider], device)) is not None:
            raise BackendUnavailableError(reason)
        _prepare(case, device, first=not warm)
        rows = measure_case(case, provider, device, seconds, where, tick)
        warm = True
        return rows

    jobs = []
    for case in cases:
        for provider in providers:
            label = case.label if len(providers) == 1 else f"{case.label} · {provider}"
            jobs.append(Job(label, partial(measured, case, provider)))
    return runner.run(jobs, output, console, lambda rows: f"{rows[0].value:.4g} ms, {rows[1].value:.4g} frames/s")


def _prepare(case: Case, device: torch.device, first: bool) -> None:
    """Gets out of the way what would count as the case's memory and is not its own."""
    if first:  # code and buffers that PyTorch maps when it is first used
        small = replace(case, size=64, batch=1)
        _build_and_check(small, systems.build_input(small, device), device)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
