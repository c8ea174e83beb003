"""Inference, measured: every provider is held to the truth, then timed, and set beside what the device can do."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter

import torch
from rich.console import Console

from jpu_cuda.backend import BackendUnavailableError

from . import ceilings, environment, measure, results, runner, verify
from .ceilings import Ceilings, timing_rows
from .environment import Environment
from .providers import GRAPH, PROVIDERS, Provider, serve, why_not
from .results import ResultsError, Row
from .runner import Job, Outcome, Skipped, Tick
from .workloads import Prepared, Workload, prepare

# Seconds that the first job of a kind may take before there is one to judge by. On a GPU the compiler times dozens of
# kernels for each matrix product.
_FIRST = {False: 5.0, True: 90.0}
_FIRST_ON_CPU = 0.0
# Calls before a result is looked at: the compiler's own graphs run from the third on.
_CALLS = {False: 1, True: 3}
# How much slower than the fastest a way of launching may be that is captured in a graph.
_NEAR = 1.5


def jobs_in_order(workloads: Sequence[Workload], names: Sequence[str]) -> list[tuple[Workload, str]]:
    """What is measured, workload by workload; all that is compiled, which takes minutes, comes last.

    Args:
        workloads: in any format, the most important first.
        names: keys of :data:`benchmarks.providers.PROVIDERS`.
    """
    found = []
    for workload in workloads:
        for name in names:
            provider = PROVIDERS[name]
            if provider.products is None or workload.part == "branches":
                found += [(replace(workload, memory_format=layout), name) for layout in provider.formats]
    return sorted(found, key=lambda job: PROVIDERS[job[1]].compiled)  # stable


def run(
    workloads: Sequence[Workload],
    names: Sequence[str],
    device: torch.device,
    seconds: float,
    budget: float,
    output: Path,
    console: Console,
    resume: bool = False,
) -> Outcome:
    """Measures ceilings, then every workload by every provider; rows reach ``output`` as each is finished.

    A provider whose result is wrong fails; one that cannot serve here is skipped, and so is what the budget does not
    allow. Ctrl-C ends the run and keeps what is measured.

    Args:
        workloads: in any format, the most important first.
        names: keys of :data:`benchmarks.providers.PROVIDERS`, the most important first.
        device: ``cpu`` or ``cuda``.
        seconds: for timing each.
        budget: seconds in which the last job should end.
        output: file to append to.
        console: where progress is shown.
        resume: whether to go on with the last run of ``output``, whose rows are then in the outcome too.

    Raises:
        ResultsError: there is no run to go on with, or it was made elsewhere or of other sources.
    """
    where = environment.describe(device)
    before: list[Row] = []
    if resume:
        before = results.pick_run(results.read(output))
        where = _same(where, before[0])
    session = _Session(device, seconds, perf_counter() + budget, budget, where, before)
    dtypes = list(dict.fromkeys(workload.dtype for workload in workloads))
    lacking = [dtype for dtype in dtypes if dtype not in session.ceilings.products]
    jobs = [Job("ceilings", partial(session.measure_ceilings, lacking))] if lacking else []
    done = {(Workload.from_dict(row.case), row.provider) for row in before if not ceilings.is_ceiling(row)}
    for job in jobs_in_order(workloads, names):
        if job not in done:
            label = f"{job[0].label}, {job[0].memory_format} · {job[1]}"
            jobs.append(Job(label, partial(session.measure, *job)))
    outcome = runner.run(jobs, output, console, _describe)
    outcome.rows = before + outcome.rows
    return outcome


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


def _describe(rows: list[Row]) -> str:
    if ceilings.is_ceiling(rows[0]):
        found = Ceilings.of(rows)
        products = ", ".join(f"{dtype} {value:.4g} TFLOP/s" for dtype, value in found.products.items())
        return f"{products}; copy {found.bandwidth:.4g} GB/s"
    by_metric = {row.metric: row.value for row in rows}
    text = f"{by_metric['latency']:.4g} ms, {by_metric['throughput']:.4g} TFLOP/s"
    return text + (f", {by_metric['of_ceiling']:.1f} % of the ceiling" if "of_ceiling" in by_metric else "")


class _Session:
    """What the jobs of a run share."""

    def __init__(
        self,
        device: torch.device,
        seconds: float,
        deadline: float,
        budget: float,
        where: Environment,
        before: Sequence[Row],
    ) -> None:
        self._device, self._seconds, self._deadline, self._budget = device, seconds, deadline, budget
        self._where = where
        self.ceilings = Ceilings.of(before)
        self._prepared: tuple[object, Prepared | Exception] | None = None
        # Medians of what PyTorch serves launch by launch, by workload in any format.
        self._eager: dict[Workload, dict[tuple[str, str], float]] = {}
        for row in before:
            if row.metric == "latency" and not ceilings.is_ceiling(row):
                self._note(Workload.from_dict(row.case), row.provider, row.value)
        self._longest: dict[bool, float] = dict(_FIRST)
        if device.type == "cpu":
            self._longest = dict.fromkeys(_FIRST, _FIRST_ON_CPU)
        self._measured: set[bool] = set()

    def measure_ceilings(self, dtypes: Sequence[str], tick: Tick) -> list[Row]:
        rows = ceilings.measure_ceilings(dtypes, self._device, self._seconds, self._where, tick)
        found = Ceilings.of(rows)
        self.ceilings = Ceilings({**self.ceilings.products, **found.products}, found.bandwidth)
        return rows

    def measure(self, workload: Workload, name: str, tick: Tick) -> list[Row]:
        provider = PROVIDERS[name]
        start = perf_counter()
        if (reason := why_not(provider, self._device)) is not None:
            raise Skipped(reason)
        self._check_budget(provider, start)
        self._check_twin(workload, name, provider)
        rows = self._verify_and_time(workload, name, provider, tick)
        took = perf_counter() - start
        kind = provider.compiled
        self._longest[kind] = max(took, self._longest[kind]) if kind in self._measured else took
        self._measured.add(kind)
        self._note(workload, name, rows[0].value)
        return rows

    def _check_budget(self, provider: Provider, now: float) -> None:
        if now + self._longest[provider.compiled] > self._deadline:
            raise Skipped(f"the budget of {self._budget:g} s is spent")

    def _check_twin(self, workload: Workload, name: str, provider: Provider) -> None:
        """Of PyTorch's ways, those far behind the fastest are not captured in a graph too.

        Where launches take longer than what they launch, all are near each other, and any may win in a graph.
        """
        if not (provider.graphed and provider.backend == "reference"):
            return
        rivals = self._eager.get(workload.in_any_format, {})
        base = name.removesuffix(GRAPH), workload.memory_format
        if base in rivals and rivals[base] > _NEAR * min(rivals.values()):
            fastest, layout = min(rivals, key=lambda rival: rivals[rival])
            raise Skipped(f"launched one by one it is far slower than {fastest}, {layout}")
        if base not in rivals and rivals:
            raise Skipped(f"{base[0]} was not timed")

    def _note(self, workload: Workload, name: str, latency: float) -> None:
        if name in PROVIDERS and PROVIDERS[name].is_eager:
            self._eager.setdefault(workload.in_any_format, {})[name, workload.memory_format] = latency

    def _verify_and_time(self, workload: Workload, name: str, provider: Provider, tick: Tick) -> list[Row]:
        prepared = self._prepare(workload.in_any_format, provider)
        model, inputs = prepared.in_format(workload.memory_format)
        try:
            with serve(provider, model, inputs, workload.dtype == "tf32") as call:
                for _ in range(_CALLS[provider.compiled]):
                    result = call()
                verify.assert_no_worse(prepared.compared(result), prepared.truth, workload.part == "fastfcn")
                samples = measure.time_calls(call, self._device, self._seconds, tick)
        except BackendUnavailableError as error:
            raise Skipped(str(error)) from error
        rate = timing_rows(samples, prepared.flops / 1e9, "throughput", workload.as_dict(), name, self._where)
        ceiling = self.ceilings.products.get(workload.dtype)
        return [*rate, _share(rate[1], ceiling)] if ceiling else [*rate]

    def _prepare(self, workload: Workload, provider: Provider) -> Prepared:
        """Model, inputs and truth; those of the job before where they are the same, and its error too."""
        key = workload, provider.products
        if self._prepared is None or self._prepared[0] != key:
            self._prepared = None  # before the next takes its memory
            _tidy(self._device)
            try:
                self._prepared = key, prepare(workload, provider, self._device)
            except Exception as error:
                self._prepared = key, error.with_traceback(None)
        found = self._prepared[1]
        if isinstance(found, Exception):
            raise found
        return found


def _share(rate: Row, ceiling: float) -> Row:
    def share(value: float) -> float:
        return 100 * value / ceiling

    quantiles = {name: share(value) for name, value in (rate.quantiles or {}).items()}
    unit = results.METRICS["of_ceiling"].unit
    return replace(rate, metric="of_ceiling", value=share(rate.value), quantiles=quantiles, unit=unit)


def _tidy(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def summary(pairs: Sequence[tuple[str, str]], show: Callable[[str], None]) -> None:
    """Shows each reason once, with the number of jobs that it kept from running."""
    counts: dict[str, int] = {}
    for _, reason in pairs:
        counts[reason] = counts.get(reason, 0) + 1
    for reason, count in counts.items():
        show(f"skipped {count}: {reason}")
