"""Frames per second of a run as a chart: dilated backbones against those with an upsampling module."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .cases import HEADS, PAPER, UPSAMPLINGS, backbone_name, paper_speed_up
from .report import Measured, input_of, measured, number, speed_up
from .results import ResultsError, Row

# Grey for what is replaced, one strong colour for what replaces it (Okabe and Ito's, told apart by
# colour-blind readers too).
_COLOURS = {
    "none": "#8c8c8c",
    "bilinear": "#cfd8e3",
    "fpn": "#9ecae9",
    "jpu": "#d55e00",
    "jpu_x": "#e69f00",
}
_INK = "#404040"

# Inches; a bar takes one slot, and so does the gap between two groups.
_SLOT, _HEIGHT, _MIN_WIDTH = 0.62, 5.0, 8.0
_LEFT, _RIGHT, _BOTTOM, _TOP = 0.8, 0.2, 1.0, 1.0
_LABEL = 0.8  # four lines of small print above a bar


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draws one run and writes it as an image, in the format that the suffix of ``path`` says.

    Raises:
        ResultsError: no frames per second among the rows, or rows of another benchmark.
    """
    systems = [system for system in measured(rows) if "fps" in system[2]]
    if not systems:
        raise ResultsError("chart: expected rows of the metric fps, got none")
    groups: dict[tuple[str, ...], list[Measured]] = {}
    several_inputs = len({input_of(case) for case, _, _ in systems}) > 1
    for system in systems:
        case = system[0]
        key = (backbone_name(case.backbone), HEADS[case.head], *((input_of(case),) if several_inputs else ()))
        groups.setdefault(key, []).append(system)
    slots = len(systems) + len(groups)
    width = max(_MIN_WIDTH, _LEFT + _SLOT * slots + _RIGHT)
    figure = Figure(figsize=(width, _HEIGHT), dpi=150)
    plot_width, plot_height = width - _LEFT - _RIGHT, _HEIGHT - _BOTTOM - _TOP
    left = _LEFT / width
    axes = figure.add_axes((left, _BOTTOM / _HEIGHT, plot_width / width, plot_height / _HEIGHT))

    several_providers = len({provider for _, provider, _ in systems}) > 1
    position, centres, seen, highest = 0, [], set[str](), 0.0
    for members in groups.values():
        centres.append(position + (len(members) - 1) / 2)
        for system in members:
            label = UPSAMPLINGS[system[0].upsampling]
            top = _bar(axes, position, system, None if label in seen else label)
            _annotate(axes, position, top, system, speed_up(system, systems), several_providers)
            seen.add(label)
            highest = max(highest, top)
            position += 1
        position += 1

    middle, half = (position - 2) / 2, plot_width / _SLOT / 2
    axes.set_xlim(middle - half, middle + half)
    axes.set_ylim(0, highest / (1 - _LABEL / plot_height))
    axes.set_xticks(centres, ["\n".join(key) for key in groups])
    axes.tick_params(axis="both", length=0)
    axes.set_ylabel("frames per second")
    axes.grid(axis="y", color="#e6e6e6")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(
        ncols=len(seen),
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        frameon=False,
        borderaxespad=0,
        borderpad=0,
    )
    figure.text(left, 0.94, "FastFCN: frames per second by upsampling module", weight="bold", size="large")
    inputs = "several inputs" if several_inputs else input_of(systems[0][0])
    figure.text(left, 0.885, f"{rows[0].device}; {inputs}", color=_INK)
    note = (
        "Median of one forward pass; whiskers: 5th to 95th percentile.\n"
        f"×: speed-up over the dilated backbone, in brackets the paper's: {PAPER}."
    )
    figure.text(left, 0.03, note, size="small", color=_INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _bar(axes: Axes, position: int, system: Measured, label: str | None) -> float:
    """Draws one system; returns how high it reaches."""
    case, _, metrics = system
    row = metrics["fps"]
    axes.bar(position, row.value, 0.8, color=_COLOURS[case.upsampling], label=label)
    if row.quantiles is None:
        return row.value
    axes.vlines(position, row.quantiles["p5"], row.quantiles["p95"], color=_INK, linewidth=1)
    return max(row.value, row.quantiles["p95"])


def _annotate(
    axes: Axes, position: int, top: float, system: Measured, ratio: float | None, with_provider: bool
) -> None:
    case, provider, metrics = system
    lines = [number(metrics["fps"].value)]
    if case.upsampling != "none" and ratio is not None:
        lines.append(f"{ratio:.1f}×")
        paper = paper_speed_up(case)
        lines += [f"({paper:.1f}×)"] if paper is not None else []
    lines += [provider] if with_provider else []
    axes.annotate("\n".join(lines), (position, top), (0, 3), textcoords="offset points", ha="center", size="small")
