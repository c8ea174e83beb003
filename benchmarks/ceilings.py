"""What the device reaches at best, measured in the same run: large square matrix products and copies."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from . import measure
from .environment import Environment
from .providers import settings
from .results import Row, make_row
from .workloads import DTYPES

PROVIDER = "torch"
_PRODUCT, _COPY = "matrix product", "copy"
# Large enough for every core and beyond every cache; small enough for a test on a CPU.
_SIDES = {"cuda": (4096, 8192), "cpu": (256, 512)}
_BYTES = {"cuda": 2**30, "cpu": 2**24}


@dataclass(frozen=True)
class Ceilings:
    """What bounds a call.

    Attributes:
        products: TFLOP/s by dtype, a key of :data:`benchmarks.workloads.DTYPES`.
        bandwidth: of a copy, bytes read and written, in GB/s; None where it was not measured.
    """

    products: dict[str, float]
    bandwidth: float | None

    @staticmethod
    def of(rows: Sequence[Row]) -> Ceilings:
        """What the rows of a run say; rows of other things are passed over."""
        products: dict[str, float] = {}
        bandwidth = None
        for row in filter(is_ceiling, rows):
            if row.metric == "throughput":
                products[row.case["dtype"]] = row.value
            elif row.metric == "bandwidth":
                bandwidth = row.value
        return Ceilings(products, bandwidth)


def is_ceiling(row: Row) -> bool:
    """Whether a row is one of :func:`measure_ceilings`."""
    return "ceiling" in row.case


def measure_ceilings(
    dtypes: Sequence[str], device: torch.device, seconds: float, where: Environment, tick: Callable[[float], None]
) -> list[Row]:
    """Measures the products of each dtype, of which the faster size counts, and the copy.

    Args:
        dtypes: keys of :data:`benchmarks.workloads.DTYPES`.
        device: ``cpu`` or ``cuda``.
        seconds: for each size.
        where: goes into every row.
        tick: told the share that is done.
    """
    rows: list[Row] = []
    with torch.inference_mode():
        for done, dtype in enumerate(dtypes):
            tick(done / (len(dtypes) + 1))
            sizes = [_product(dtype, side, device, seconds, where) for side in _SIDES[device.type]]
            fastest: tuple[Row, Row] = max(sizes, key=lambda pair: pair[1].value)
            rows += fastest
        tick(len(dtypes) / (len(dtypes) + 1))
        rows += _copy(device, seconds, where)
    return rows


def _product(dtype: str, side: int, device: torch.device, seconds: float, where: Environment) -> tuple[Row, Row]:
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(side, side, generator=generator, device=device, dtype=DTYPES[dtype]) for _ in range(2))
    with settings(tf32=dtype == "tf32"):
        samples = measure.time_calls(lambda: torch.mm(a, b), device, seconds)
    case = {"ceiling": _PRODUCT, "dtype": dtype}  # whichever size is faster, so that runs can be compared
    return timing_rows(samples, 2.0 * side**3 / 1e9, "throughput", case, PROVIDER, where)


def _copy(device: torch.device, seconds: float, where: Environment) -> tuple[Row, Row]:
    source = torch.zeros(_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    samples = measure.time_calls(lambda: target.copy_(source), device, seconds)
    case = {"ceiling": _COPY, "bytes": source.nbytes}
    return timing_rows(samples, 2.0 * source.nbytes / 1e6, "bandwidth", case, PROVIDER, where)


def timing_rows(
    samples: Sequence[float], work: float, metric: str, case: dict[str, Any], provider: str, where: Environment
) -> tuple[Row, Row]:
    """Rows of the latency and of a rate.

    Args:
        samples: milliseconds.
        work: of one call, in what the metric's unit has per millisecond.
        metric: of the rate.
        case: goes into both rows.
        provider: likewise.
        where: likewise.
    """
    spread = measure.quantiles(samples)
    # The slowest twentieth of the latencies are the lowest rates.
    rates = {f"p{100 - int(name[1:])}": work / value for name, value in spread.items()}
    median = statistics.median(samples)

    rate = make_row(where, case, provider, metric, work / median, rates)
    return make_row(where, case, provider, "latency", median, spread), rate
