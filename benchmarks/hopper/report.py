"""Tables of the microbenchmarks: each figure beside its budget; of a run's rows, or of none yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..model.devices import DEVICES, Device
from ..report import Report
from ..results import ResultsError, Row
from . import budgets
from .bench import variant_of
from .budgets import COPIES, DEPTHWISE, PRODUCTS, VARIANTS, Variant

NONE = "–"
RESOURCES = ("tensor", "shared", "issue", "L2")
STRIDES = (1, 2, 4, 8)

Metrics = dict[str, Row]


def is_hopper(row: Row) -> bool:
    """Whether a row is one of :mod:`benchmarks.hopper.bench`."""
    return "hopper" in row.case


def tables(rows: Sequence[Row]) -> list[Report]:
    """All tables of one run; of no rows the budgets alone."""
    return [pipes(rows), tiles(rows)]


def pipes(rows: Sequence[Row]) -> Report:
    """Cycles of a step beside the cycles that each resource should need.

    Raises:
        ResultsError: rows of another benchmark.
    """
    found: dict[Variant, Metrics] = {}
    fences = False
    for row in _of_kind(rows, "pipes"):
        found.setdefault(variant_of(row.case), {})[row.metric] = row
        fences |= bool(row.case["reader_fence"])
    device = device_of(rows)
    lines = []
    for variant in VARIANTS:
        metrics = found.get(variant, {})
        predicted = budgets.cycles(variant, device)
        resource, most = budgets.bound(variant, device)
        measured = metrics.get("cycles_per_step")
        active = "+".join(name for name in (PRODUCTS, COPIES, DEPTHWISE) if name in variant.active)
        lines.append(
            [
                *(variant.layout, variant.columns, active),
                *(f"{predicted[name]:.0f}" if predicted.get(name) else "" for name in RESOURCES),
                f"{most:.0f} ({resource})",
                _cycles(measured),
                f"{measured.value / most:.2f}×" if measured else NONE,
                _value(metrics.get("throughput"), 0) if PRODUCTS in variant.active else "",
                _value(metrics.get("bytes_per_cycle"), 1) if COPIES in variant.active else "",
            ]
        )
    columns = ["layout", "columns", "active", *RESOURCES, "bound", "measured cycles (p5–p95)", "× bound"]
    columns += ["TFLOP/s", "copied B/cycle"]
    notes = [
        *_origin(rows),
        f"a step of {budgets.CHANNELS} channels, {budgets.PIXELS} pixels, {budgets.OUTPUTS} outputs in one SM; "
        f"tensor … L2: cycles by {budgets.SOURCE}, for {device.name}, each as if alone; bound: the largest",
        "measured: clock64 from the first barrier to the last, mean of blocks, median of launches; "
        "TFLOP/s: by events, of all blocks",
        *(f"{name}: {text}" for name, text in budgets.LAYOUTS.items()),
        "columns of a product's instruction: 256 leave one warpgroup for the depthwise, 2x128 leave two",
        _pair_verdict(found),
    ]
    if fences:
        notes.append("pair: right only with a second fence where operands are read, and timed with it")
    return Report(f"{_device_name(rows)}: what shares a multiprocessor", notes, columns, 3, lines)


def tiles(rows: Sequence[Row]) -> Report:
    """Rates of tiles of every d-th pixel, by the copy engine and by cp.async.

    Raises:
        ResultsError: rows of another benchmark.
    """
    found: dict[tuple[str, str, int], Metrics] = {}
    for row in _of_kind(rows, "tiles"):
        found.setdefault((row.case["engine"], row.case["memory"], row.case["stride"]), {})[row.metric] = row
    lines = []
    for memory in ("L2", "L2, halo", "DRAM"):
        for engine in ("bulk", "cp.async"):
            first = found.get((engine, memory, 1), {}).get("bytes_per_cycle")
            for stride in STRIDES:
                metrics = found.get((engine, memory, stride), {})
                rate = metrics.get("bytes_per_cycle")
                lines.append(
                    [
                        *(memory, engine, str(stride)),
                        _cycles(metrics.get("cycles_per_step")),
                        _value(rate, 1),
                        _value(metrics.get("bandwidth"), 0),
                        f"{rate.value / first.value:.2f}×" if rate and first else NONE,
                    ]
                )
    columns = ["memory", "engine", "stride", "measured cycles a tile (p5–p95)", "B/cycle", "GB/s", "× stride 1"]
    notes = [
        *_origin(rows),
        f"a tile of 18 × 10 pixels of 64 channels, {budgets.TILE_BYTES} bytes; B/cycle of one SM by clock64, "
        "GB/s of all by events",
        "L2, DRAM: the strides read the same bytes, each once; halo: a dilated convolution's tiles of 64 × 64 pixels, "
        "whose pixels beyond the image are zeros that nobody reads",
        _strided_verdict(found),
    ]
    return Report(f"{_device_name(rows)}: tiles of every d-th pixel", notes, columns, 3, lines)


def _of_kind(rows: Sequence[Row], kind: str) -> list[Row]:
    for row in rows:
        if not is_hopper(row):
            raise ResultsError(f"expected rows of the benchmark hopper, got the case {row.case}")
    return [row for row in rows if row.case["hopper"] == kind]


def _pair_verdict(found: dict[Variant, Metrics]) -> str:
    all_of_it = frozenset((PRODUCTS, COPIES, DEPTHWISE))
    measured = [
        metrics["cycles_per_step"].value
        for variant, metrics in found.items()
        if variant.layout == "pair" and variant.active == all_of_it and "cycles_per_step" in metrics
    ]
    rule = f"a pair above {budgets.LIMIT_OF_PAIR} cycles a step is not built"
    if not measured:
        return f"{rule}: not measured"
    verdict = "not built" if min(measured) > budgets.LIMIT_OF_PAIR else "worth building"
    return f"{rule}: {min(measured):.0f} at best, {verdict}"


def _strided_verdict(found: dict[tuple[str, str, int], Metrics]) -> str:
    rule = f"the copy engine below {budgets.LEAST_OF_STRIDED:g} of its rate at stride 1, or below cp.async, is not used"
    verdicts = []
    for stride in STRIDES[1:]:
        rates: dict[Any, float] = {}
        for engine, at in (("bulk", 1), ("bulk", stride), ("cp.async", stride)):
            row = found.get((engine, "L2", at), {}).get("bytes_per_cycle")
            if row is not None:
                rates[engine, at] = row.value
        if len(rates) == 3:
            least = max(budgets.LEAST_OF_STRIDED * rates["bulk", 1], rates["cp.async", stride])
            verdicts.append(f"stride {stride} {'cp.async' if rates['bulk', stride] < least else 'copy engine'}")
    return f"{rule}: {', '.join(verdicts) or 'not measured'}"


def device_of(rows: Sequence[Row]) -> Device:
    """Whose figures the budgets are of: the device that was measured if it is known, else an H100."""
    names = {row.device for row in rows}
    return next((device for device in DEVICES.values() if device.reported in names), DEVICES["h100"])


def _device_name(rows: Sequence[Row]) -> str:
    return rows[0].device if rows else "Nothing measured yet"


def _origin(rows: Sequence[Row]) -> list[str]:
    return [", ".join(f"{name} {value}" for name, value in rows[0].versions.items())] if rows else []


def _cycles(row: Row | None) -> str:
    if row is None:
        return NONE
    spread = f" ({row.quantiles['p5']:.0f}–{row.quantiles['p95']:.0f})" if row.quantiles else ""
    return f"{row.value:.0f}{spread}"


def _value(row: Row | None, digits: int) -> str:
    return NONE if row is None else f"{row.value:.{digits}f}"
