"""Table of a run of :mod:`benchmarks.inference`."""

from __future__ import annotations

from collections.abc import Sequence

from . import timings
from .ceilings import Ceilings
from .providers import PROVIDERS
from .report import Report, number
from .results import Row
from .timings import Timed, latency
from .workloads import DTYPES, PARTS, Workload

_PYTORCH = "PyTorch"


def timed(rows: Sequence[Row]) -> list[Timed[Workload]]:
    """Groups the rows of a run by call, in the order of parts, dtypes, batches and sizes; fastest first in each.

    The yardstick, the matrix products alone, stands before those that it is held against.

    Raises:
        ResultsError: rows of another benchmark.
    """
    return sorted(timings.group(rows, Workload), key=_place)


def _place(call: Timed[Workload]) -> tuple[float, ...]:
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


def table(rows: Sequence[Row]) -> Report:
    """The table of one run.

    Raises:
        ResultsError: rows of another benchmark, or none that were timed.
    """
    calls = timed(rows)
    best = timings.fastest(calls, lambda provider: _PYTORCH if is_pytorch(provider) else None)
    words = ["part", "stride 8", "batch", "dtype", "layout", "provider"]
    numbers = ["ms (p25–p75)", "TFLOP/s", "% of ceiling", "× best of PyTorch"]
    lines = []
    for call in calls:
        workload, provider, metrics = call
        rival = best[workload.in_any_format].get(_PYTORCH)
        ratio = f"{latency(rival) / latency(call):.2f}×" if rival and not is_yardstick(provider) else ""
        lines.append(
            [
                *timings.words_of(call),
                provider,
                timings.with_quartiles(metrics["latency"]),
                f"{metrics['throughput'].value:.3g}" if "throughput" in metrics else "",
                f"{metrics['of_ceiling'].value:.1f}" if "of_ceiling" in metrics else "",
                ratio,
            ]
        )
    return Report(f"{rows[0].device}: inference", _notes(rows), words + numbers, len(words), lines)


def _notes(rows: Sequence[Row]) -> list[str]:
    ceilings = Ceilings.of(rows)
    products = ", ".join(f"{dtype} {number(value)} TFLOP/s" for dtype, value in ceilings.products.items())
    notes = [
        *timings.origin(rows),
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
