"""Chart of a run of :mod:`benchmarks.inference`: the best of each kind of provider, against the ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from . import bars, timings
from .bars import Bar, Group, Panel
from .ceilings import Ceilings
from .inference_report import is_yardstick, timed
from .providers import PROVIDERS
from .results import ResultsError, Row
from .timings import Timed, latency, milliseconds, quartiles
from .workloads import PARTS, Workload

# Grey for the yardstick, blues for PyTorch, orange for the kernels (Okabe and Ito's, told apart by colour-blind
# readers too).
COLOURS = {
    "matrix products alone": "#8c8c8c",
    "PyTorch, eager": "#cfe3f3",
    "PyTorch, CUDA graph": "#7db7df",
    "PyTorch, compiled": "#0072b2",
    "kernels": "#f3b48a",
    "kernels, CUDA graph": "#d55e00",
}


def kind(provider: str) -> str:
    """Which bar a provider counts for: the fastest of each kind is drawn."""
    if is_yardstick(provider):
        return "matrix products alone"
    known = PROVIDERS.get(provider)
    if known is None or known.backend != "reference":
        return "kernels, CUDA graph" if known is not None and known.graphed else "kernels"
    if known.compiled:
        return "PyTorch, compiled"
    return "PyTorch, CUDA graph" if known.graphed else "PyTorch, eager"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draws one run and writes it as an image, in the format that the suffix of ``path`` says.

    Raises:
        ResultsError: rows of another benchmark, or none of throughput.
    """
    calls = [call for call in timed(rows) if "throughput" in call[2]]
    if not calls:
        raise ResultsError("chart: expected rows of the metric throughput, got none")
    groups: dict[tuple[str, str], list[Group]] = {}
    for workload, kinds in timings.fastest(calls, kind).items():
        label = f"{workload.height}×{workload.width}\nbatch {workload.batch}"
        drawn = {name: _bar(call) for name, call in kinds.items()}
        groups.setdefault((workload.part, workload.dtype), []).append((label, drawn))
    ceilings = Ceilings.of(rows).products
    panels = [
        Panel(f"{PARTS[part]}, {dtype}", "TFLOP/s", found, ceilings.get(dtype))
        for (part, dtype), found in groups.items()
    ]
    note = "Fastest of each kind: median; whiskers: quartiles; above: milliseconds. Dashed: large matrix products."
    bars.draw(panels, COLOURS, "Inference: throughput", rows[0].device, note, path)


def _bar(call: Timed[Workload]) -> Bar:
    row = call[2]["throughput"]
    return Bar(row.value, milliseconds(latency(call)), quartiles(row))
