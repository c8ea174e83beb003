"""Rows of a run, put together again as the timed calls that they are of; how tables show them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .ceilings import is_ceiling
from .report import number
from .results import ResultsError, Row
from .workloads import W

# One timed call: what, by whom, and its rows by metric.
Timed = tuple[W, str, dict[str, Row]]


def group(rows: Sequence[Row], kind: type[W]) -> list[Timed[W]]:
    """Groups the rows of a run by call; ceilings are passed over.

    Args:
        rows: of one run.
        kind: of workload.

    Raises:
        ResultsError: rows of another benchmark, or none of latency.
    """
    found: dict[tuple[W, str], dict[str, Row]] = {}
    for row in rows:
        if not is_ceiling(row):
            try:
                workload = kind.from_dict(row.case)
            except ValueError as error:
                raise ResultsError(str(error)) from error
            found.setdefault((workload, row.provider), {})[row.metric] = row
    calls = [(workload, provider, metrics) for (workload, provider), metrics in found.items() if "latency" in metrics]
    if not calls:
        raise ResultsError("expected rows of the metric latency, got none")
    return calls


def latency(call: Timed[W]) -> float:
    """Its median in milliseconds."""
    return call[2]["latency"].value


def fastest(calls: Sequence[Timed[W]], kind: Callable[[str], str | None]) -> dict[W, dict[str, Timed[W]]]:
    """The fastest call of each kind, by workload in any format.

    Args:
        calls: of one run.
        kind: of a provider; None for one that does not count.
    """
    found: dict[W, dict[str, Timed[W]]] = {}
    for call in calls:
        kinds, name = found.setdefault(call[0].in_any_format, {}), kind(call[1])
        if name is not None and (name not in kinds or latency(call) < latency(kinds[name])):
            kinds[name] = call
    return found


def words_of(call: Timed[W]) -> list[str]:
    """Cells that say what was timed: part, size, batch, dtype, layout."""
    workload = call[0]
    layout = "NHWC" if workload.memory_format == "channels_last" else "NCHW"
    size = f"{workload.height}×{workload.width}"
    return [workload.part, size, str(workload.batch), workload.dtype, layout]


def with_quartiles(row: Row) -> str:
    spread = f" ({milliseconds(row.quantiles['p25'])}–{milliseconds(row.quantiles['p75'])})" if row.quantiles else ""
    return milliseconds(row.value) + spread


def quartiles(row: Row) -> tuple[float, float] | None:
    return None if row.quantiles is None else (row.quantiles["p25"], row.quantiles["p75"])


def milliseconds(value: float) -> str:
    """Three significant digits, also of microseconds."""
    return f"{value:#.3g}" if value < 1 else number(value)


def origin(rows: Sequence[Row]) -> list[str]:
    """Notes that say of which versions and sources a run is."""
    versions = ", ".join(f"{name} {value}" for name, value in rows[0].versions.items())
    return [versions, f"sources {rows[0].source_hash[:12]}"]
