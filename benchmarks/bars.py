"""Charts of grouped bars: a panel below the other, in each a group for every call and a bar for every kind of provider.

Drawn for readers who do not tell all colours apart (Okabe and Ito's).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#404040"

# Inches; a bar takes one slot, and so does the gap between two groups.
_SLOT, _MIN_WIDTH = 0.2, 8.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.9, 0.2, 1.0, 0.5
_PANEL, _GAP = 2.4, 0.9


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        value: its height.
        text: above it.
        spread: lower and upper end of its whisker, or None for no whisker.
    """

    value: float
    text: str
    spread: tuple[float, float] | None = None

    @property
    def reach(self) -> float:
        return max(self.value, self.spread[1] if self.spread else 0.0)


# What stands below it, and bars by kind.
Group = tuple[str, Mapping[str, Bar]]


@dataclass(frozen=True)
class Panel:
    """Groups on one scale.

    Attributes:
        title: above it.
        unit: of the scale.
        groups: from left to right.
        line: where a dashed line is; None for none.
    """

    title: str
    unit: str
    groups: Sequence[Group]
    line: float | None = None


def draw(panels: Sequence[Panel], colours: Mapping[str, str], title: str, subtitle: str, note: str, path: Path) -> None:
    """Draws panels and writes them as an image, in the format that the suffix of ``path`` says.

    Args:
        panels: from top to bottom.
        colours: of every kind, in the order of bars and legend.
        title: of the whole.
        subtitle: below it.
        note: at the foot.
        path: its folder is made if it is not there.
    """
    slots = max(sum(len(bars) + 1 for _, bars in panel.groups) for panel in panels)
    width = max(_MIN_WIDTH, _LEFT + _SLOT * slots + _RIGHT)
    height = _TOP + len(panels) * (_PANEL + _GAP) - _GAP + _BOTTOM + 0.5
    figure = Figure(figsize=(width, height), dpi=150)
    top = height - _TOP
    for panel in panels:
        extent = (_LEFT / width, (top - _PANEL) / height, (width - _LEFT - _RIGHT) / width, _PANEL / height)
        axes = figure.add_axes(extent)
        _draw_panel(axes, panel, colours)
        axes.set_title(panel.title, loc="left", color=INK, size="medium")
        top -= _PANEL + _GAP
    seen = {kind for panel in panels for _, bars in panel.groups for kind in bars}
    handles = [figure.axes[0].bar(0, 0, color=colours[kind], label=kind) for kind in colours if kind in seen]
    figure.legend(handles=handles, ncols=3, loc="upper right", frameon=False, fontsize="small", bbox_to_anchor=(1, 1))
    left = _LEFT / width
    figure.text(left, 1 - 0.3 / height, title, weight="bold", size="large")
    figure.text(left, 1 - 0.55 / height, subtitle, color=INK)
    figure.text(left, 0.12 / height, note, size="small", color=INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _draw_panel(axes: Axes, panel: Panel, colours: Mapping[str, str]) -> None:
    position, ticks, labels, highest = 0, [], [], panel.line or 0.0
    for label, bars in panel.groups:
        kinds = [kind for kind in colours if kind in bars]
        ticks.append(position + (len(kinds) - 1) / 2)
        labels.append(label)
        for kind in kinds:
            bar = bars[kind]
            axes.bar(position, bar.value, 0.85, color=colours[kind])
            if bar.spread is not None:
                axes.vlines(position, *bar.spread, color=INK, linewidth=1)
            where = position, bar.reach
            axes.annotate(bar.text, where, (0, 3), textcoords="offset points", ha="center", size="x-small", rotation=90)
            highest = max(highest, bar.reach)
            position += 1
        position += 1
    if panel.line:
        axes.axhline(panel.line, color=INK, linewidth=1, linestyle="--")
    axes.set_xlim(-1, position - 1)
    axes.set_ylim(0, 1.25 * highest)
    axes.set_xticks(ticks, labels, size="small")
    axes.tick_params(axis="both", length=0)
    axes.set_ylabel(panel.unit)
    axes.grid(axis="y", color="#e6e6e6")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
