"""Tables of a run, for the terminal and for the README."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from .cases import (
    BACKBONES,
    HEADS,
    PAPER,
    UPSAMPLINGS,
    Case,
    backbone_name,
    dilated_twin,
    paper_fps,
    paper_speed_up,
)
from .providers import GRAPH
from .results import ResultsError, Row

# One measured system: its case, its provider and its rows by metric.
Measured = tuple[Case, str, dict[str, Row]]


@dataclass(frozen=True)
class Report:
    """A table as text, before it is drawn.

    Attributes:
        title: what was measured, and on what.
        notes: what the columns mean and where figures come from.
        columns: headings; the first ``words`` columns hold words, the others numbers.
        words: see above.
        lines: cells, one list for each line.
    """

    title: str
    notes: list[str]
    columns: list[str]
    words: int
    lines: list[list[str]]

    def to_rich(self) -> Table:
        """For the terminal."""
        table = Table(title=self.title, caption="\n".join(self.notes), caption_justify="left")
        for i, name in enumerate(self.columns):
            table.add_column(name, justify="left" if i < self.words else "right")
        for line in self.lines:
            table.add_row(*line)
        return table

    def to_markdown(self) -> str:
        """For the README."""
        alignment = [":--" if i < self.words else "--:" for i in range(len(self.columns))]
        lines = [self.columns, alignment, *self.lines]
        table = ["| " + " | ".join(cell or " " for cell in line) + " |" for line in lines]
        return "\n".join([f"**{self.title}**", "", *table, "", *("- " + note for note in self.notes)]) + "\n"


def measured(rows: Sequence[Row]) -> list[Measured]:
    """Groups rows by system, in the order of the paper's table; what it does not have comes last.

    Raises:
        ResultsError: rows of something other than the systems of Table 2.
    """
    found: dict[tuple[Case, str], dict[str, Row]] = {}
    for row in rows:
        try:
            case = Case.from_dict(row.case)
        except ValueError as error:
            raise ResultsError(str(error)) from error
        found.setdefault((case, row.provider), {})[row.metric] = row
    systems = [(case, provider, metrics) for (case, provider), metrics in found.items()]
    return sorted(systems, key=lambda system: _place(system[0]))


def _place(case: Case) -> tuple[int, ...]:
    orders = ((case.backbone, BACKBONES), (case.head, HEADS), (case.upsampling, UPSAMPLINGS))
    return tuple([*order].index(name) if name in order else len(order) for name, order in orders)


def speed_up(system: Measured, systems: Sequence[Measured]) -> float | None:
    """Frames per second over those of the dilated twin in the same run; None if that is not there.

    The twin has no JPU, so where the system's own provider did not measure it, any other's does; one that is captured
    in a graph as it is, if there is one.
    """
    case, provider, metrics = system
    twins = [s for s in systems if s[0] == dilated_twin(case) and "fps" in s[2]]
    twins.sort(key=lambda s: (s[1] != provider, s[1].endswith(GRAPH) != provider.endswith(GRAPH)))
    if not twins or "fps" not in metrics:
        return None
    return metrics["fps"].value / twins[0][2]["fps"].value


def table2(rows: Sequence[Row]) -> Report:
    """The table of one run, with the paper's figures beside the measured ones.

    Raises:
        ResultsError: rows of something other than the systems of Table 2.
    """
    systems = measured(rows)
    with_provider = len({provider for _, provider, _ in systems}) > 1
    same_input = len({case.input for case, _, _ in systems}) == 1
    words = ["backbone", "head", "upsampling"]
    words += ["provider"] if with_provider else []
    words += [] if same_input else ["input"]
    numbers = ["ms (p5–p95)", "frames/s", "× dilated", "paper frames/s", "paper × dilated"]
    numbers += ["peak MiB", "parameters M", "multiply-adds G"]
    lines = []
    for system in systems:
        case, provider, metrics = system
        cells = [backbone_name(case.backbone), HEADS[case.head], UPSAMPLINGS[case.upsampling]]
        cells += [provider] if with_provider else []
        cells += [] if same_input else [case.input]
        paper = paper_fps(case)
        cells += [
            _latency(metrics.get("latency")),
            number(metrics["fps"].value) if "fps" in metrics else "",
            _times(speed_up(system, systems)),
            f"{paper:.2f}" if paper is not None else "",
            _times(paper_speed_up(case)),
            f"{metrics['peak_memory'].value:.0f}" if "peak_memory" in metrics else "",
            f"{metrics['parameters'].value / 1e6:.1f}" if "parameters" in metrics else "",
            f"{metrics['multiply_adds'].value:.1f}" if "multiply_adds" in metrics else "",
        ]
        lines.append(cells)
    inputs = systems[0][0].input if same_input else "several inputs"
    return Report(f"{rows[0].device}: {inputs}", _notes(rows), words + numbers, len(words), lines)


def _notes(rows: Sequence[Row]) -> list[str]:
    versions = ", ".join(f"{name} {value}" for name, value in rows[0].versions.items())
    notes = [
        versions,
        "ms: median of one forward pass, auxiliary head included (5th to 95th percentile); frames/s: batch / median",
        f"paper: {PAPER}; × dilated: frames/s over those of the dilated backbone with the same head",
        "parameters: whole model; multiply-adds: convolutions and matrix products of one forward pass",
    ]
    if any(row.metric == "peak_memory" for row in rows):
        notes.append(
            "peak MiB: weights and one forward pass, above the level before the model was made "
            "(CPU: resident memory of the process; GPU: PyTorch's allocator)"
        )
    return notes


def _latency(row: Row | None) -> str:
    if row is None:
        return ""
    spread = f" ({number(row.quantiles['p5'])}–{number(row.quantiles['p95'])})" if row.quantiles else ""
    return number(row.value) + spread


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}×"


def number(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f}"
