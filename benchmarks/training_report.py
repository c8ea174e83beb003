"""Table of a run of :mod:`benchmarks.training`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from . import timings
from .providers import TRAINING
from .report import Report, number
from .results import Row
from .timings import Timed, latency
from .training_workloads import NORMS, PARTS, TRAINED_DTYPES, TrainingWorkload

EAGER, COMPILED, KERNELS, COMPILED_KERNELS = "PyTorch, eager", "PyTorch, compiled", "kernels", "kernels, compiled"

MEMORY = {"peak_memory": "peak MiB", "saved_memory": "saved MiB", "saved_inputs": "inputs MiB"}


def timed(rows: Sequence[Row]) -> list[Timed[TrainingWorkload]]:
    """Groups the rows of a run by call, in the order of parts, dtypes, norms, batches and sizes; fastest first in each.

    Raises:
        ResultsError: rows of another benchmark.
    """
    return sorted(timings.group(rows, TrainingWorkload), key=_place)


def _place(call: Timed[TrainingWorkload]) -> tuple[float, ...]:
    workload = call[0]
    orders = (workload.part, PARTS), (workload.dtype, TRAINED_DTYPES), (workload.norms, NORMS)
    place = [[*order].index(name) for name, order in orders]
    return *place, workload.batch, workload.height * workload.width, latency(call)


def kind(provider: str) -> str:
    """What a provider counts for where the fastest of each kind is taken."""
    known = TRAINING.get(provider)
    if known is None or known.backend != "reference":
        return COMPILED_KERNELS if known is not None and known.compiled else KERNELS
    return COMPILED if known.compiled else EAGER


def name_of(workload: TrainingWorkload) -> str:
    """Its part, and its norms where they are not the usual ones."""
    return workload.part + ("" if workload.norms == NORMS[0] else f", {workload.norms}")


def table(rows: Sequence[Row]) -> Report:
    """The table of one run.

    Raises:
        ResultsError: rows of another benchmark, or none that were timed.
    """
    calls = timed(rows)
    best = timings.fastest(calls, kind)
    words = ["part", "stride 8", "batch", "dtype", "layout", "provider"]
    numbers = ["ms (p25–p75)", "forward ms", "images/s", "× eager", "× compiled", "× dilated", *MEMORY.values()]
    lines = []
    for call in calls:
        workload, provider, metrics = call
        rivals, twins = best[workload.in_any_format], {}
        if workload.part == "step":
            twins = best.get(replace(workload.in_any_format, part="dilated"), {})
        lines.append(
            [
                name_of(workload),
                *timings.words_of(call)[1:],
                provider,
                timings.with_quartiles(metrics["latency"]),
                timings.milliseconds(metrics["forward_latency"].value) if "forward_latency" in metrics else "",
                number(metrics["fps"].value) if "fps" in metrics else "",
                _times(rivals.get(EAGER), call),
                _times(rivals.get(COMPILED), call),
                _times(min(twins.values(), key=latency, default=None), call),
                *(number(metrics[name].value) if name in metrics else "" for name in MEMORY),
            ]
        )
    return Report(f"{rows[0].device}: training", _notes(rows), words + numbers, len(words), lines)


def _times(rival: Timed[TrainingWorkload] | None, call: Timed[TrainingWorkload]) -> str:
    return "" if rival is None else f"{latency(rival) / latency(call):.2f}×"


def _notes(rows: Sequence[Row]) -> list[str]:
    return [
        *timings.origin(rows),
        "bfloat16: autocast, weights in float32; tf32: float32 whose products and convolutions may round operands",
        "ms: median of a forward and a backward pass (quartiles), of step and dilated with SGD's step, on a GPU with "
        "its L2 cache flushed before each; forward ms: the first part of it; images/s: batch / median",
        "step: ResNet-50 with JPU, Encoding head without its loss of presence, auxiliary head, no dropout; dilated: "
        "the same without JPU on the dilated backbone",
        "× eager, × compiled: latency of the fastest of PyTorch without this package's kernels, whatever layout and "
        "setting, over this one's; × dilated: likewise of the dilated twin, eager or compiled",
        "peak: of forward and backward pass above the level before, which has weights, inputs and the optimizer's "
        "state (CPU: resident memory of the process; GPU: PyTorch's allocator); not of max-autotune, whose graphs keep "
        "their memory",
        "saved: storages that autograd keeps for the backward pass, casts of weights and the output among them; "
        "inputs: those of inputs, parameters and buffers, which are there anyway and do not count as saved",
    ]
