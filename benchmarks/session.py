"""What a run of many timings needs, whatever is timed: what is here, what a budget allows, what was prepared last."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Generic, Protocol, TypeVar

import torch
from rich.console import Console

from . import ceilings, environment, results, runner
from .environment import Environment
from .providers import Provider, why_not
from .results import ResultsError, Row
from .runner import Job, Outcome, Skipped, Tick


class Measured(Protocol):
    """What a job is of."""

    @property
    def label(self) -> str: ...

    @property
    def memory_format(self) -> str: ...

    def as_dict(self) -> dict[str, Any]: ...


W = TypeVar("W", bound=Measured)
P = TypeVar("P")

# Seconds that the first job of a kind may take before there is one to judge by. On a GPU the compiler times dozens of
# kernels for each matrix product.
_FIRST = {False: 5.0, True: 45.0}
_FIRST_ON_CPU = 0.0
# Calls before a result is looked at: the compiler's own graphs run from the third on.
CALLS = {False: 1, True: 3}


class Session(Generic[W, P]):
    """What the jobs of a run share; a subclass prepares, verifies and times.

    Args:
        providers: all that may be named.
        device: ``cpu`` or ``cuda``.
        seconds: for timing each.
        budget: seconds from now in which the last job should end.
        where: goes into every row.
    """

    def __init__(
        self,
        providers: Mapping[str, Provider],
        device: torch.device,
        seconds: float,
        budget: float,
        where: Environment,
    ) -> None:
        self._providers = providers
        self._device, self._seconds, self._where = device, seconds, where
        self._deadline, self._budget = perf_counter() + budget, budget
        self._prepared: tuple[object, P | Exception] | None = None
        self._longest: dict[bool, float] = dict(_FIRST)
        if device.type == "cpu":
            self._longest = dict.fromkeys(_FIRST, _FIRST_ON_CPU)
        self._measured: set[bool] = set()

    def measure(self, workload: W, name: str, tick: Tick) -> list[Row]:
        """The work of a job: rows of a workload by a provider, the first of them its latency."""
        provider = self._providers[name]
        start = perf_counter()
        if (reason := why_not(provider, self._device)) is not None:
            raise Skipped(reason)
        self._check_budget(provider, start)
        self._check(workload, name, provider)
        rows = self._verify_and_time(workload, name, provider, tick)
        took = perf_counter() - start
        kind = provider.compiled
        self._longest[kind] = max(took, self._longest[kind]) if kind in self._measured else took
        self._measured.add(kind)
        return rows

    def _check_budget(self, provider: Provider, now: float) -> None:
        if now + self._longest[provider.compiled] > self._deadline:
            raise Skipped(f"the budget of {self._budget:g} s is spent")

    def _check(self, workload: W, name: str, provider: Provider) -> None:
        """Raises Skipped where it is not worth the time."""

    def _verify_and_time(self, workload: W, name: str, provider: Provider, tick: Tick) -> list[Row]:
        raise NotImplementedError

    def _prepare_once(self, key: object, prepare: Callable[[], P]) -> P:
        """What ``prepare`` makes; that of the job before where the key is the same, and its error too."""
        if self._prepared is None or self._prepared[0] != key:
            self._prepared = None  # before the next takes its memory
            tidy(self._device)
            try:
                self._prepared = key, prepare()
            except Exception as error:
                self._prepared = key, error.with_traceback(None)
        found = self._prepared[1]
        if isinstance(found, Exception):
            raise found
        return found


def tidy(device: torch.device) -> None:
    """Gives memory back that nobody uses."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def begin(device: torch.device, output: Path, resume: bool) -> tuple[Environment, list[Row]]:
    """Where a run is made, and the rows that it has: those of the last run of ``output`` where that goes on.

    Raises:
        ResultsError: there is no run to go on with, or it was made elsewhere or of other sources.
    """
    where = environment.describe(device)
    if not resume:
        return where, []
    before = results.pick_run(results.read(output))
    return _same(where, before[0]), before


def _same(here: Environment, row: Row) -> Environment:
    """The environment of a run that goes on; ResultsError where it cannot go on here."""
    expected, got = {**row.versions, "run": ""}, {**here.versions, "run": ""}
    for name, old, new in (
        ("device", row.device, here.device),
        ("source hash", row.source_hash, here.source_hash),
        ("versions", expected, got),
    ):
        if old != new:
            raise ResultsError(f"cannot resume run {row.run}: {name}: expected {old}, got {new}")
    return Environment(here.device, row.versions, here.source_hash)


def run(
    session: Session[W, P],
    selected: Sequence[tuple[W, str]],
    before: Sequence[Row],
    output: Path,
    console: Console,
    describe: Callable[[list[Row]], str],
    first: Sequence[Job] = (),
    label: Callable[[W, str], str] | None = None,
) -> Outcome:
    """Measures what is selected and not there yet; rows of before are in the outcome too.

    Args:
        session: whose method measures.
        selected: workloads and providers, in this order.
        before: rows that the run has.
        output: file to append to.
        console: where progress is shown.
        describe: what a finished job's line says of its rows.
        first: jobs before all these.
        label: of a job, for a reader.

    Raises:
        ResultsError: the rows of before are of another benchmark.
    """
    cases = [(row.case, row.provider) for row in before if not ceilings.is_ceiling(row)]
    jobs = list(first)
    for workload, name in selected:
        if (workload.as_dict(), name) not in cases:
            known = f"{workload.label}, {workload.memory_format} · {name}" if label is None else label(workload, name)
            jobs.append(Job(known, partial(session.measure, workload, name)))
    outcome = runner.run(jobs, output, console, describe)
    outcome.rows = [*before, *outcome.rows]
    return outcome


def summary(pairs: Sequence[tuple[str, str]], show: Callable[[str], None]) -> None:
    """Shows each reason once, with the number of jobs that it kept from running."""
    counts: dict[str, int] = {}
    for _, reason in pairs:
        counts[reason] = counts.get(reason, 0) + 1
    for reason, count in counts.items():
        show(f"skipped {count}: {reason}")
