"""Inference, measured: every provider is held to the truth, then timed, and set beside what the device can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from jpu_cuda.backend import BackendUnavailableError

from . import ceilings, measure, results, session, verify
from .ceilings import Ceilings, timing_rows
from .environment import Environment
from .providers import GRAPH, PROVIDERS, Provider, serve
from .results import Row
from .runner import Job, Outcome, Skipped, Tick
from .session import CALLS, Session
from .workloads import Prepared, Workload, prepare

# How much slower than the fastest a way of launching may be that is captured in a graph.
_NEAR = 1.5


def jobs_in_order(workloads: Sequence[Workload], names: Sequence[str]) -> list[tuple[Workload, str]]:
    """What is measured, workload by workload; all that is compiled, which takes minutes, comes last.

    But for the first workload, which is there to be held against the compiler too: a budget that is spent on the others
    must not have left that out.

    Args:
        workloads: in any format, the most important first.
        names: keys of :data:`benchmarks.providers.PROVIDERS`.
    """
    found = []
    for workload in workloads:
        for name in names:
            provider = PROVIDERS[name]
            if _applies(provider, workload.part):
                found += [(replace(workload, memory_format=layout), name) for layout in provider.formats]
    return sorted(found, key=lambda job: PROVIDERS[job[1]].compiled and job[0].in_any_format != workloads[0])  # stable


def _applies(provider: Provider, part: str) -> bool:
    """Products are timed beside the branches that have them; a JPU is compiled alone where there is more."""
    if provider.products is not None:
        return part == "branches"
    return part == "fastfcn" or not provider.only_jpu


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
    where, before = session.begin(device, output, resume)
    here = _Session(device, seconds, budget, where, before)
    dtypes = list(dict.fromkeys(workload.dtype for workload in workloads))
    lacking = [dtype for dtype in dtypes if dtype not in here.ceilings.products]
    first = [Job("ceilings", partial(here.measure_ceilings, lacking))] if lacking else []
    return session.run(here, jobs_in_order(workloads, names), before, output, console, _describe, first)


def _describe(rows: list[Row]) -> str:
    if ceilings.is_ceiling(rows[0]):
        found = Ceilings.of(rows)
        products = ", ".join(f"{dtype} {value:.4g} TFLOP/s" for dtype, value in found.products.items())
        return f"{products}; copy {found.bandwidth:.4g} GB/s"
    by_metric = {row.metric: row.value for row in rows}
    text = f"{by_metric['latency']:.4g} ms, {by_metric['throughput']:.4g} TFLOP/s"
    return text + (f", {by_metric['of_ceiling']:.1f} % of the ceiling" if "of_ceiling" in by_metric else "")


class _Session(Session[Workload, Prepared]):
    """What the jobs of a run share: the ceilings too, and how fast PyTorch is launch by launch."""

    def __init__(
        self, device: torch.device, seconds: float, budget: float, where: Environment, before: Sequence[Row]
    ) -> None:
        super().__init__(PROVIDERS, device, seconds, budget, where)
        self.ceilings = Ceilings.of(before)
        # Medians of what PyTorch serves launch by launch, by workload in any format.
        self._eager: dict[Workload, dict[tuple[str, str], float]] = {}
        for row in before:
            if row.metric == "latency" and not ceilings.is_ceiling(row):
                self._note(Workload.from_dict(row.case), row.provider, row.value)

    def measure_ceilings(self, dtypes: Sequence[str], tick: Tick) -> list[Row]:
        rows = ceilings.measure_ceilings(dtypes, self._device, self._seconds, self._where, tick)
        found = Ceilings.of(rows)
        self.ceilings = Ceilings({**self.ceilings.products, **found.products}, found.bandwidth)
        return rows

    def measure(self, workload: Workload, name: str, tick: Tick) -> list[Row]:
        rows = super().measure(workload, name, tick)
        self._note(workload, name, rows[0].value)
        return rows

    def _check(self, workload: Workload, name: str, provider: Provider) -> None:
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
        base = workload.in_any_format
        prepared = self._prepare_once((base, provider.products), lambda: prepare(base, provider, self._device))
        model, inputs = prepared.in_format(workload.memory_format)
        try:
            with serve(provider, model, inputs, workload.dtype == "tf32") as call:
                for _ in range(CALLS[provider.compiled]):
                    result = call()
                verify.assert_no_worse(prepared.compared(result), prepared.truth, workload.part == "fastfcn")
                samples = measure.time_calls(call, self._device, self._seconds, tick)
        except BackendUnavailableError as error:
            raise Skipped(str(error)) from error
        rate = timing_rows(samples, prepared.flops / 1e9, "throughput", workload.as_dict(), name, self._where)
        ceiling = self.ceilings.products.get(workload.dtype)
        return [*rate, _share(rate[1], ceiling)] if ceiling else [*rate]


def _share(rate: Row, ceiling: float) -> Row:
    def share(value: float) -> float:
        return 100 * value / ceiling

    quantiles = {name: share(value) for name, value in (rate.quantiles or {}).items()}
    unit = results.METRICS["of_ceiling"].unit
    return replace(rate, metric="of_ceiling", value=share(rate.value), quantiles=quantiles, unit=unit)
