"""Training, measured: every provider is held to the truth, then timed and weighed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from jpu_cuda.backend import BackendUnavailableError

from . import measure, passes, session
from .ceilings import timing_rows
from .memory import PeakMemory, SavedMemory
from .passes import Pass
from .providers import TRAINING, Provider
from .results import Row, make_row
from .runner import Outcome, Skipped, Tick
from .session import CALLS, Session
from .training_workloads import Prepared, TrainingWorkload, prepare


def jobs_in_order(workloads: Sequence[TrainingWorkload], names: Sequence[str]) -> list[tuple[TrainingWorkload, str]]:
    """What is measured, workload by workload; all that is compiled, which takes minutes, comes last.

    But for the first workload, which is there to be held against the compiler too: a budget that is spent on the others
    must not have left that out.

    Args:
        workloads: in any format, the most important first.
        names: keys of :data:`benchmarks.providers.TRAINING`.
    """
    found = []
    for workload in workloads:
        for name in names:
            provider = TRAINING[name]
            if provider.backend == "reference" or workload.part != "dilated":  # which has no JPU
                found += [(replace(workload, memory_format=layout), name) for layout in provider.formats]
    return sorted(found, key=lambda job: TRAINING[job[1]].compiled and job[0].in_any_format != workloads[0])  # stable


def run(
    workloads: Sequence[TrainingWorkload],
    names: Sequence[str],
    device: torch.device,
    seconds: float,
    budget: float,
    output: Path,
    console: Console,
    resume: bool = False,
) -> Outcome:
    """Measures every workload by every provider; rows reach ``output`` as each is finished.

    As :func:`benchmarks.inference.run`, whose arguments these are; there are no ceilings.
    """
    where, before = session.begin(device, output, resume)
    here = _Session(TRAINING, device, seconds, budget, where)
    return session.run(here, jobs_in_order(workloads, names), before, output, console, _describe)


def _describe(rows: list[Row]) -> str:
    found = {row.metric: row.value for row in rows}
    text = f"{found['latency']:.4g} ms, forward {found['forward_latency']:.4g} ms"
    text += f", peak {found['peak_memory']:.4g} MiB" if "peak_memory" in found else ""
    return text + (f", saved {found['saved_memory']:.4g} MiB" if "saved_memory" in found else "")


class _Session(Session[TrainingWorkload, Prepared]):
    def _verify_and_time(self, workload: TrainingWorkload, name: str, provider: Provider, tick: Tick) -> list[Row]:
        base = workload.in_any_format
        prepared = self._prepare_once(base, lambda: prepare(base, self._device))
        model, inputs, gradient = prepared.in_format(workload.memory_format)
        options = workload.autocast, workload.dtype == "tf32", prepared.optimizer(model)
        try:
            with passes.serve(provider, model, inputs, gradient, *options) as step:
                for _ in range(CALLS[provider.compiled]):
                    results = step.results()
                prepared.assert_right(results)
                del results  # before memory is measured
                # The optimizer makes its state in its first step.
                step.forward()
                step.backward()
                memory = {} if _has_graphs(provider) else _weigh(step, self._device)
                samples = measure.time_stages([step.forward, step.backward], self._device, self._seconds, tick)
        except BackendUnavailableError as error:
            raise Skipped(str(error)) from error
        case = workload.as_dict()
        rows = [*timing_rows([end for _, end in samples], 1000.0 * workload.batch, "fps", case, name, self._where)]
        forward = [end for end, _ in samples]
        spread = measure.quantiles(forward)
        rows.append(make_row(self._where, case, name, "forward_latency", statistics.median(forward), spread))
        return [*rows, *(make_row(self._where, case, name, metric, value) for metric, value in memory.items())]


def _has_graphs(provider: Provider) -> bool:
    """Whether memory is that of graphs, which keep theirs from one pass to the next: no pass has a peak then."""
    return provider.compiled and provider.mode == "max-autotune"


def _weigh(step: Pass, device: torch.device) -> dict[str, float]:
    """By metric: the peak of a pass above what is there before, and what is kept between its two halves."""
    found = {}
    with PeakMemory(device) as memory:
        memory.reset()
        step.forward()
        step.backward()
        if (peak := memory.mib()) is not None:
            found["peak_memory"] = peak
    with SavedMemory(step.known) as saved:
        step.forward()
        found |= {"saved_memory": saved.mib(), "saved_inputs": saved.inputs_mib()}
    step.backward()
    return found
