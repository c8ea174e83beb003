"""Holds two runs against each other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from . import results
from .results import ResultsError, Row

_Key = tuple[str, str, str, str]

VERDICTS = ("same", "better", "regression", "lost", "new")


@dataclass(frozen=True)
class Change:
    """One measured value in two runs.

    Attributes:
        key: device ("" across devices), case as JSON, provider, metric.
        old: row of the older run; None if it has none.
        new: row of the newer run; None if it has none.
        verdict: one of :data:`VERDICTS`; ``"same"`` is within threshold or spread.
    """

    key: _Key
    old: Row | None
    new: Row | None
    verdict: str

    @property
    def fails(self) -> bool:
        return self.verdict in ("regression", "lost")


def compare(
    old: Sequence[Row], new: Sequence[Row], threshold: float = 0.1, across_devices: bool = False
) -> list[Change]:
    """Compares two runs value by value.

    A value is a regression where it is worse by more than ``threshold`` (lower is better: new > old ·
    (1 + threshold); higher is better: old > new · (1 + threshold), so that a latency and its frame rate
    agree) and lies outside the older run's 5th to 95th percentile. Values of the older run that the newer
    one lacks are lost.

    Raises:
        ResultsError: the runs were made on different devices and ``across_devices`` is not set, or a run
            has two values for one thing.
    """
    devices = [sorted({row.device for row in run}) for run in (old, new)]
    if devices[0] != devices[1] and not across_devices:
        raise ResultsError(
            f"devices differ: expected {'; '.join(devices[0])} as in the older run, got "
            f"{'; '.join(devices[1])} (--across-devices compares them all the same)"
        )
    old_by_key, new_by_key = _by_key(old, across_devices), _by_key(new, across_devices)
    changes = []
    for key in {**old_by_key, **new_by_key}:
        before, after = old_by_key.get(key), new_by_key.get(key)
        changes.append(Change(key, before, after, _verdict(before, after, threshold)))
    return changes


def _by_key(rows: Sequence[Row], across_devices: bool) -> dict[_Key, Row]:
    found: dict[_Key, Row] = {}
    for row in rows:
        device = "" if across_devices else row.device
        key = (device, json.dumps(row.case, sort_keys=True), row.provider, row.metric)
        if key in found:
            raise ResultsError(f"run {row.run}: expected one row for {', '.join(key[1:])}, got two")
        found[key] = row
    return found


def _verdict(old: Row | None, new: Row | None, threshold: float) -> str:
    if old is None:
        return "new"
    if new is None:
        return "lost"
    higher_is_better = results.METRICS[old.metric].higher_is_better
    if _exceeds(new, old, threshold):
        return "better" if higher_is_better else "regression"
    if _falls_below(new, old, threshold):
        return "regression" if higher_is_better else "better"
    return "same"


def _exceeds(new: Row, old: Row, threshold: float) -> bool:
    spread = old.quantiles or {"p95": old.value}
    return new.value > old.value * (1 + threshold) and new.value > spread["p95"]


def _falls_below(new: Row, old: Row, threshold: float) -> bool:
    spread = old.quantiles or {"p5": old.value}
    return old.value > new.value * (1 + threshold) and new.value < spread["p5"]


_STYLES = {"regression": "bold red", "lost": "bold red", "better": "green", "new": "cyan", "same": None}


def render(changes: Sequence[Change], old: Sequence[Row], new: Sequence[Row]) -> Table:
    """A table with one line for each value."""
    table = Table(title=f"{_describe(old)}  →  {_describe(new)}")
    for name in ("case", "provider", "metric", "unit"):
        table.add_column(name)
    for name in ("old", "new", "new / old"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for change in changes:
        row = change.old or change.new
        assert row is not None
        before, after = change.old, change.new
        ratio = f"{after.value / before.value:.3f}" if before and after and before.value else ""
        table.add_row(
            _case_label(row),
            row.provider,
            row.metric,
            row.unit,
            f"{before.value:.5g}" if before else "–",
            f"{after.value:.5g}" if after else "–",
            ratio,
            change.verdict,
            style=_STYLES[change.verdict],
        )
    return table


def _describe(rows: Sequence[Row]) -> str:
    commit = rows[0].versions.get("commit")
    return rows[0].run + (f" ({commit})" if commit else "")


def _case_label(row: Row) -> str:
    return " ".join(str(value) for value in row.case.values())
