"""Chart of a run of :mod:`benchmarks.inference`: the best of each kind of provider, against the ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .ceilings import Ceilings
from .inference_report import Timed, is_yardstick, latency, milliseconds, timed
from .providers import PROVIDERS
from .results import ResultsError, Row
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
_INK = "#404040"

# Inches; a bar takes one slot, and so does the gap between two groups.
_SLOT, _MIN_WIDTH = 0.2, 8.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.9, 0.2, 1.0, 0.5
_PANEL, _GAP = 2.4, 0.9


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


def fastest(calls: Sequence[Timed]) -> dict[Workload, dict[str, Timed]]:
    """The fastest call of each kind, by workload in any format."""
    found: dict[Workload, dict[str, Timed]] = {}
    for call in calls:
        kinds = found.setdefault(call[0].in_any_format, {})
        name = kind(call[1])
        if name not in kinds or latency(call) < latency(kinds[name]):
            kinds[name] = call
    return found


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draws one run and writes it as an image, in the format that the suffix of ``path`` says.

    Raises:
        ResultsError: rows of another benchmark, or none of throughput.
    """
    calls = [call for call in timed(rows) if "throughput" in call[2]]
    if not calls:
        raise ResultsError("chart: expected rows of the metric throughput, got none")
    panels: dict[tuple[str, str], list[dict[str, Timed]]] = {}
    for workload, kinds in fastest(calls).items():
        panels.setdefault((workload.part, workload.dtype), []).append(kinds)
    slots = max(sum(len(kinds) + 1 for kinds in groups) for groups in panels.values())
    width = max(_MIN_WIDTH, _LEFT + _SLOT * slots + _RIGHT)
    height = _TOP + len(panels) * (_PANEL + _GAP) - _GAP + _BOTTOM + 0.5
    figure = Figure(figsize=(width, height), dpi=150)
    ceilings = Ceilings.of(rows)
    top = height - _TOP
    seen: set[str] = set()
    for (part, dtype), groups in panels.items():
        extent = (_LEFT / width, (top - _PANEL) / height, (width - _LEFT - _RIGHT) / width, _PANEL / height)
        axes = figure.add_axes(extent)
        seen |= _panel(axes, groups, ceilings.products.get(dtype))
        axes.set_title(f"{PARTS[part]}, {dtype}", loc="left", color=_INK, size="medium")
        top -= _PANEL + _GAP
    handles = [figure.axes[0].bar(0, 0, color=COLOURS[name], label=name) for name in COLOURS if name in seen]
    figure.legend(handles=handles, ncols=3, loc="upper right", frameon=False, fontsize="small", bbox_to_anchor=(1, 1))
    left = _LEFT / width
    figure.text(left, 1 - 0.3 / height, "Inference: throughput", weight="bold", size="large")
    figure.text(left, 1 - 0.55 / height, rows[0].device, color=_INK)
    note = "Fastest of each kind: median; whiskers: quartiles; above: milliseconds. Dashed: large matrix products."
    figure.text(left, 0.12 / height, note, size="small", color=_INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _panel(axes: Axes, groups: Sequence[dict[str, Timed]], ceiling: float | None) -> set[str]:
    """Draws the workloads of a part and dtype; returns which kinds there are."""
    position, ticks, labels, highest = 0, [], [], ceiling or 0.0
    for kinds in groups:
        names = [name for name in COLOURS if name in kinds]
        workload = kinds[names[0]][0]
        ticks.append(position + (len(names) - 1) / 2)
        labels.append(f"{workload.height}×{workload.width}\nbatch {workload.batch}")
        for name in names:
            row = kinds[name][2]["throughput"]
            reach = row.value
            axes.bar(position, row.value, 0.85, color=COLOURS[name])
            if row.quantiles is not None:
                axes.vlines(position, row.quantiles["p25"], row.quantiles["p75"], color=_INK, linewidth=1)
                reach = max(reach, row.quantiles["p75"])
            text = milliseconds(latency(kinds[name]))
            axes.annotate(
                text, (position, reach), (0, 3), textcoords="offset points", ha="center", size="x-small", rotation=90
            )
            highest = max(highest, reach)
            position += 1
        position += 1
    if ceiling:
        axes.axhline(ceiling, color=_INK, linewidth=1, linestyle="--")
    axes.set_xlim(-1, position - 1)
    axes.set_ylim(0, 1.25 * highest)
    axes.set_xticks(ticks, labels, size="small")
    axes.tick_params(axis="both", length=0)
    axes.set_ylabel("TFLOP/s")
    axes.grid(axis="y", color="#e6e6e6")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return {name for kinds in groups for name in kinds}
