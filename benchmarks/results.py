"""Rows of measurements, kept as one JSON object a line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .environment import Environment


@dataclass(frozen=True)
class Metric:
    """Unit of a metric, and which way is better."""

    unit: str
    higher_is_better: bool = False


METRICS = {
    "latency": Metric("ms"),
    "forward_latency": Metric("ms"),
    "fps": Metric("1/s", higher_is_better=True),
    "peak_memory": Metric("MiB"),
    "saved_memory": Metric("MiB"),
    "saved_inputs": Metric("MiB"),
    "parameters": Metric("1"),
    "multiply_adds": Metric("G"),
    "throughput": Metric("TFLOP/s", higher_is_better=True),
    "of_ceiling": Metric("%", higher_is_better=True),
    "bandwidth": Metric("GB/s", higher_is_better=True),
    "cycles_per_step": Metric("cycles"),
    "bytes_per_cycle": Metric("B/cycle", higher_is_better=True),
}


class ResultsError(ValueError):
    """A results file that cannot be read or does not fit the question."""


@dataclass(frozen=True)
class Row:
    """One measured value.

    Attributes:
        device: CPU (with threads) or GPU.
        versions: of Python and the libraries; ``run`` is the time that names the run.
        source_hash: of the kernels' sources, :func:`benchmarks.environment.source_hash`.
        case: what was measured.
        provider: which implementation served the JPU.
        metric: a key of :data:`METRICS`.
        value: the median where there is a distribution.
        quantiles: ``p5``, ``p25``, ``p75``, ``p95`` of the value, or None where there is one value only.
        unit: of value and quantiles.
    """

    device: str
    versions: dict[str, str]
    source_hash: str
    case: dict[str, Any]
    provider: str
    metric: str
    value: float
    quantiles: dict[str, float] | None
    unit: str

    @property
    def run(self) -> str:
        return self.versions["run"]


def make_row(
    where: Environment,
    case: dict[str, Any],
    provider: str,
    metric: str,
    value: float,
    quantiles: dict[str, float] | None = None,
) -> Row:
    """A row in the metric's unit, measured at a place."""
    unit = METRICS[metric].unit
    return Row(where.device, where.versions, where.source_hash, case, provider, metric, value, quantiles, unit)


_KEYS = [field.name for field in fields(Row)]


def append(path: Path, rows: Iterable[Row]) -> None:
    """Appends rows to a file, which is made with its folder if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(asdict(row), ensure_ascii=False, allow_nan=False) + "\n")


def read(path: Path) -> list[Row]:
    """Reads and checks a file of rows.

    Raises:
        ResultsError: no such file, no rows, or a line that is not a row; the message names file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ResultsError(f"{path}: expected a file of results, got {error}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                rows.append(_parse(line))
            except ValueError as error:
                raise ResultsError(f"{path}:{number}: {error}") from error
    if not rows:
        raise ResultsError(f"{path}: expected at least one row, got none")
    return rows


def _parse(line: str) -> Row:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"expected one JSON object, got {line[:60]!r} ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"expected one JSON object, got {line[:60]!r}")
    if sorted(values) != sorted(_KEYS):
        raise ValueError(f"expected the keys {', '.join(_KEYS)}, got {', '.join(values) or 'none'}")
    for key in ("device", "source_hash", "provider", "metric", "unit"):
        if not isinstance(values[key], str):
            raise ValueError(f"{key}: expected a string, got {values[key]!r}")
    for key in ("versions", "case"):
        if not isinstance(values[key], dict):
            raise ValueError(f"{key}: expected an object, got {values[key]!r}")
    if not isinstance(values["versions"].get("run"), str):
        raise ValueError(f"versions: expected the key 'run' with a time, got {values['versions']!r}")
    metric = METRICS.get(values["metric"])
    if metric is None:
        raise ValueError(f"metric: expected one of {', '.join(METRICS)}, got {values['metric']!r}")
    if values["unit"] != metric.unit:
        raise ValueError(f"unit: expected {metric.unit!r} for {values['metric']}, got {values['unit']!r}")
    if not _is_measure(values["value"]):
        raise ValueError(f"value: expected a finite number >= 0, got {values['value']!r}")
    quantiles = values["quantiles"]
    if quantiles is not None and not (
        isinstance(quantiles, dict)
        and sorted(quantiles) == ["p25", "p5", "p75", "p95"]
        and all(map(_is_measure, quantiles.values()))
    ):
        raise ValueError(f"quantiles: expected null or numbers for p5, p25, p75 and p95, got {quantiles!r}")
    return Row(**values)


def _is_measure(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and value >= 0


def runs(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by run, in the order of the runs' times."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.run, []).append(row)
    return dict(sorted(found.items()))


def pick_run(rows: Sequence[Row], run: str = "last") -> list[Row]:
    """The rows of one run.

    Args:
        rows: of any number of runs.
        run: the run's time or an unambiguous beginning of it, or ``"last"``.

    Raises:
        ResultsError: no run or several fit.
    """
    by_run = runs(rows)
    if run == "last":
        return list(by_run.values())[-1]
    fitting = [name for name in by_run if name.startswith(run)]
    if len(fitting) != 1:
        raise ResultsError(f"run: expected one of {', '.join(by_run)}, got {run!r}, which fits {len(fitting)}")
    return by_run[fitting[0]]
