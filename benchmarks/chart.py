"""Frames per second of a run as a chart: dilated backbones against those with an upsampling module."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .cases import HEADS, PAPER, UPSAMPLINGS, Case, backbone_name, has_jpu, paper_speed_up
from .providers import PROVIDERS
from .report import Measured, measured, number, speed_up
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
_PYTORCH, _COMPILED, _KERNELS = "PyTorch", "compiled", "kernels"
_SHADES = {_PYTORCH: 0.3, _COMPILED: 0.6, _KERNELS: 1.0}
_INK = "#404040"

# Inches; a bar takes one slot, and so does the gap between two groups.
_SLOT, _HEIGHT, _MIN_WIDTH = 0.62, 4.0, 8.0
_LEFT, _RIGHT, _BOTTOM, _TOP = 0.8, 0.2, 1.0, 1.0
_GAP = 0.9  # between two panels
_LABEL = 0.8  # four lines of small print above a bar


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draws one run and writes it as an image, in the format that the suffix of ``path`` says.

    A panel for each input. Of several providers the fastest of PyTorch's, of the compiler's and of the kernels' is
    drawn.

    Raises:
        ResultsError: no frames per second among the rows, or rows of another benchmark.
    """
    systems = [system for system in measured(rows) if "fps" in system[2]]
    if not systems:
        raise ResultsError("chart: expected rows of the metric fps, got none")
    served = len({kind(provider) for case, provider, _ in systems if has_jpu(case)}) > 1
    panels: dict[str, list[Measured]] = {}
    for system in fastest(systems):
        panels.setdefault(system[0].input, []).append(system)
    slots = max(len(panel) + len({case.system[:2] for case, _, _ in panel}) for panel in panels.values())
    width = max(_MIN_WIDTH, _LEFT + _SLOT * slots + _RIGHT)
    inches = _BOTTOM + _TOP + len(panels) * _HEIGHT + (len(panels) - 1) * _GAP
    figure = Figure(figsize=(width, inches), dpi=150)
    plot_width, left = width - _LEFT - _RIGHT, _LEFT / width

    handles: dict[str, Artist] = {}
    for i, (text, panel) in enumerate(panels.items()):
        top = inches - _TOP - i * (_HEIGHT + _GAP)
        axes = figure.add_axes((left, (top - _HEIGHT) / inches, plot_width / width, _HEIGHT / inches))
        _draw_panel(axes, panel, served, plot_width / _SLOT)
        handles |= {str(label): bar for bar, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        if len(panels) > 1:
            axes.set_title(text, loc="left", size="medium", color=_INK)
    figure.legend(
        [*handles.values()],
        [*handles],
        ncols=len(handles),
        loc="upper left",
        bbox_to_anchor=(left, 1 - 0.6 / inches),
        frameon=False,
        borderaxespad=0,
        borderpad=0,
    )
    figure.text(left, 1 - 0.28 / inches, "FastFCN: frames per second by upsampling module", weight="bold", size="large")
    where = [rows[0].device, *([] if len(panels) > 1 else panels)]
    figure.text(left, 1 - 0.5 / inches, "; ".join(where), color=_INK)
    note = (
        "Median of one forward pass; whiskers: 5th to 95th percentile."
        + (" JPU: fastest of each kind of provider; the others: fastest of all." if served else "")
        + f"\n×: speed-up over the dilated backbone, in brackets the paper's: {PAPER}."
    )
    figure.text(left, 0.15 / inches, note, size="small", color=_INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def kind(provider: str) -> str:
    """Which bar a provider counts for."""
    known = PROVIDERS.get(provider)
    if known is None or known.backend != "reference":
        return _KERNELS
    return _COMPILED if known.compiled else _PYTORCH


def fastest(systems: Sequence[Measured]) -> list[Measured]:
    """Of each case the fastest provider; where it has a JPU, the fastest of each kind, in the order of kinds."""
    found: dict[tuple[Case, str], Measured] = {}
    for system in systems:
        case, provider, metrics = system
        key = case, kind(provider) if has_jpu(case) else ""
        if key not in found or metrics["fps"].value > found[key][2]["fps"].value:
            found[key] = system
    # By the table's order, in which the systems are.
    places = {case: place for place, (case, _, _) in reversed([*enumerate(systems)])}
    return [found[key] for key in sorted(found, key=lambda key: (places[key[0]], [*_SHADES, ""].index(key[1])))]


def _draw_panel(axes: Axes, panel: Sequence[Measured], served: bool, slots: float) -> None:
    groups: dict[tuple[str, str], list[Measured]] = {}
    for system in panel:
        groups.setdefault((backbone_name(system[0].backbone), HEADS[system[0].head]), []).append(system)
    position, centres, seen, highest = 0, [], set[str](), 0.0
    for members in groups.values():
        centres.append(position + (len(members) - 1) / 2)
        for case, provider, metrics in members:
            label, shade = UPSAMPLINGS[case.upsampling], 1.0
            if served and has_jpu(case):
                label, shade = f"{label}, {kind(provider)}", _SHADES[kind(provider)]
            top = _bar(axes, position, metrics["fps"], (_COLOURS[case.upsampling], shade), label, label in seen)
            _annotate(axes, position, top, (case, provider, metrics), speed_up((case, provider, metrics), panel))
            seen.add(label)
            highest = max(highest, top)
            position += 1
        position += 1
    middle = (position - 2) / 2
    axes.set_xlim(middle - slots / 2, middle + slots / 2)
    axes.set_ylim(0, highest / (1 - _LABEL / _HEIGHT))
    axes.set_xticks(centres, ["\n".join(key) for key in groups])
    axes.tick_params(axis="both", length=0)
    axes.set_ylabel("frames per second")
    axes.grid(axis="y", color="#e6e6e6")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _bar(axes: Axes, position: int, row: Row, colour: tuple[str, float], label: str, known: bool) -> float:
    """Draws one system; returns how high it reaches."""
    axes.bar(position, row.value, 0.8, color=[colour], label=None if known else label)
    if row.quantiles is None:
        return row.value
    axes.vlines(position, row.quantiles["p5"], row.quantiles["p95"], color=_INK, linewidth=1)
    return max(row.value, row.quantiles["p95"])


def _annotate(axes: Axes, position: int, top: float, system: Measured, ratio: float | None) -> None:
    case, _, metrics = system
    lines = [number(metrics["fps"].value)]
    if case.upsampling != "none" and ratio is not None:
        lines.append(f"{ratio:.1f}×")
        paper = paper_speed_up(case)
        lines += [f"({paper:.1f}×)"] if paper is not None else []
    axes.annotate("\n".join(lines), (position, top), (0, 3), textcoords="offset points", ha="center", size="small")
