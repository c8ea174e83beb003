"""Chart of a run of :mod:`benchmarks.training`: speed and memory of the best of each kind of provider."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from . import bars, timings
from .bars import Bar, Group, Panel
from .results import ResultsError, Row
from .timings import Timed, latency, milliseconds
from .training_report import COMPILED, COMPILED_KERNELS, EAGER, KERNELS, kind, name_of, timed
from .training_workloads import TrainingWorkload

# Blues for PyTorch, oranges for the kernels.
COLOURS = {EAGER: "#cfe3f3", COMPILED: "#0072b2", KERNELS: "#f3b48a", COMPILED_KERNELS: "#d55e00"}
_MEMORY = {"peak_memory": "peak memory", "saved_memory": "memory saved for the backward pass"}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draws one run and writes it as an image, in the format that the suffix of ``path`` says.

    Raises:
        ResultsError: rows of another benchmark, or none of PyTorch's eager mode, which all is relative to.
    """
    panels = panels_of(rows)
    if not panels:
        raise ResultsError(f"expected rows of {EAGER}, got none")
    note = "Fastest of each kind, relative to PyTorch's eager mode; whiskers: quartiles. Above: milliseconds, MiB."
    bars.draw(panels, COLOURS, "Training", rows[0].device, note, path)


def panels_of(rows: Sequence[Row]) -> list[Panel]:
    """For each dtype, speed, peak and saved memory; none of what eager mode did not do in this run.

    Raises:
        ResultsError: rows of another benchmark.
    """
    found: dict[str, list[dict[str, Timed[TrainingWorkload]]]] = {}
    for workload, kinds in timings.fastest(timed(rows), kind).items():
        if EAGER in kinds:
            found.setdefault(workload.dtype, []).append(kinds)
    panels = []
    for dtype, calls in found.items():
        panels.append(Panel(f"{dtype}: speed", "× eager", [_speeds(kinds) for kinds in calls], 1.0))
        for metric, name in _MEMORY.items():
            groups = [group for group in (_memories(kinds, metric) for kinds in calls) if group[1]]
            if groups:
                panels.append(Panel(f"{dtype}: {name}", "share of eager's", groups, 1.0))
    return panels


def _speeds(kinds: dict[str, Timed[TrainingWorkload]]) -> Group:
    of_eager = latency(kinds[EAGER])
    drawn = {}
    for name, call in kinds.items():
        quantiles = call[2]["latency"].quantiles
        spread = (of_eager / quantiles["p75"], of_eager / quantiles["p25"]) if quantiles else None
        drawn[name] = Bar(of_eager / latency(call), milliseconds(latency(call)), spread)
    return _label(kinds), drawn


def _memories(kinds: dict[str, Timed[TrainingWorkload]], metric: str) -> Group:
    values = {name: call[2][metric].value for name, call in kinds.items() if metric in call[2]}
    of_eager = values.get(EAGER)
    drawn = {name: Bar(value / of_eager, f"{value:.0f}") for name, value in values.items()} if of_eager else {}
    return _label(kinds), drawn


def _label(kinds: dict[str, Timed[TrainingWorkload]]) -> str:
    workload = kinds[EAGER][0]
    return f"{name_of(workload)}\n{workload.height}×{workload.width}\nbatch {workload.batch}"
