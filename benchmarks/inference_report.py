"""Table of a run of :mod:`benchmarks.inference`."""

from __future__ import annotations

from collections.abc import Sequence

from .ceilings import Ceilings, is_ceiling
from .providers import PROVIDERS
from .report import Report, number
from .results import ResultsError, Row
from .workloads import DTYPES, PARTS, Workload

# One timed call: what, by whom, and its rows by metric.
Timed = tuple[Workload, str, dict[str, Row]]


def timed(rows: Sequence[Row]) -> list[Timed]:
    """Groups the rows of a run by call, in the order of parts, dtypes, batches and sizes; fastest first in each.

    The yardstick, the matrix products alone, stands before those that it is held against.

    Raises:
        ResultsError: rows of another benchmark.
    """
    found: dict[tuple[Workload, str], dict[str, Row]] = {}
    for row in rows:
        if not is_ceiling(row):
            try:
                workload = Workload.from_dict(row.case)
            except ValueError as error:
                raise ResultsError(str(error)) from error
            found.setdefault((workload, row.provider), {})[row.metric] = row
    calls = [(workload, provider, metrics) for (workload, provider), metrics in found.items() if "latency" in metrics]
    if not calls:
        raise ResultsError("expected rows of the metric latency, got none")
    return sorted(calls, key=_place)


def _place(call: Timed) -> tuple[float, ...]:
    workload, provider, metrics = call
    part, dtype = [*PARTS].index(workload.part), [*DTYPES].index(workload.dtype)
    pixels = workload.height * workload.width
    return part, dtype, workload.batch, pixels, not is_yardstick(provider), metrics["latency"].value


def is_yardstick(provider: str) -> bool:
    """Whether it does the matrix products alone."""
    return PROVIDERS[provider].products is not None if provider in PROVIDERS else False


def is_pytorch(provider: str) -> bool:
    """Whether it serves the whole call without this package's kernels."""
    known = PROVIDERS.get(provider)
    return known is not None and known.backend == "reference" and known.products is None


def best_of_pytorch(calls: Sequence[Timed]) -> dict[Workload, Timed]:
    """The fastest that a user of PyTorch can have, by workload in any format."""
    best: dict[Workload, Timed] = {}
    for call in calls:
        key = call[0].in_any_format
        if is_pytorch(call[1]) and (key not in best or latency(call) < latency(best[key])):
            best[key] = call
    return best


def latency(call: Timed) -> float:
    """Its median in milliseconds."""
    return call[2]["latency"].value


def table(rows: Sequence[Row]) -> Report:
    """The table of one run.

    Raises:
        ResultsError: rows of another benchmark, or none that were timed.
    """
    calls = timed(rows)
    best = best_of_pytorch(calls)
    words = ["part", "stride 8", "batch", "dtype", "layout", "provider"]
    numbers = ["ms (p25–p75)", "TFLOP/s", "% of ceiling", "× best of PyTorch"]
    lines = []
    for call in calls:
        workload, provider, metrics = call
        rival = best.get(workload.in_any_format)
        ratio = f"{latency(rival) / latency(call):.2f}×" if rival and not is_yardstick(provider) else ""
        lines.append(
            [
                workload.part,
                f"{workload.height}×{workload.width}",
                str(workload.batch),
                workload.dtype,
                "NHWC" if workload.memory_format == "channels_last" else "NCHW",
                provider,
                _with_quartiles(metrics["latency"]),
                f"{metrics['throughput'].value:.3g}" if "throughput" in metrics else "",
                f"{metrics['of_ceiling'].value:.1f}" if "of_ceiling" in metrics else "",
                ratio,
            ]
        )
    return Report(f"{rows[0].device}: inference", _notes(rows), words + numbers, len(words), lines)


def _with_quartiles(row: Row) -> str:
    spread = f" ({milliseconds(row.quantiles['p25'])}–{milliseconds(row.quantiles['p75'])})" if row.quantiles else ""
    return milliseconds(row.value) + spread


def milliseconds(value: float) -> str:
    """Three significant digits, also of microseconds."""
    return f"{value:#.3g}" if value < 1 else number(value)


def _notes(rows: Sequence[Row]) -> list[str]:
    ceilings = Ceilings.of(rows)
    products = ", ".join(f"{dtype} {number(value)} TFLOP/s" for dtype, value in ceilings.products.items())
    notes = [
        ", ".join(f"{name} {value}" for name, value in rows[0].versions.items()),
        f"sources {rows[0].source_hash[:12]}",
        "ms: median of one call (quartiles), on a GPU with its L2 cache flushed before each; of a graph, its replay; "
        "compiled: with inputs marked as staying where they are, so that its graphs copy none",
        "TFLOP/s: convolutions and matrix products, two operations for each multiply-add; "
        "gemm: the pointwise products alone, one batched product or one for each dilation into a slice of the output",
        "× best of PyTorch: latency of the fastest provider without this package's kernels over this one's",
    ]
    if products:
        notes.append(f"ceiling: large square matrix products in the same run: {products}")
    if ceilings.bandwidth is not None:
        notes.append(f"a copy moves {number(ceilings.bandwidth)} GB/s, read and written")
    return notes
