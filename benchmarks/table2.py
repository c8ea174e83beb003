"""The paper's Table 2, measured: every case is checked, then timed, weighed and counted."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from jpu_cuda import use_backend
from jpu_cuda.backend import BackendUnavailableError, matrix_options

from . import measure, session, systems, verify
from .cases import Case, has_jpu
from .environment import Environment
from .memory import PeakMemory
from .providers import PROVIDERS, Provider, chosen, serve, why_not
from .results import Row, make_row
from .runner import Outcome, Skipped, Tick
from .session import CALLS, Session


def jobs_in_order(selected: Sequence[Case], names: Sequence[str]) -> list[tuple[Case, str]]:
    """What is measured, case by case; a network without a JPU only by what is no way of serving one.

    Where there are several heads, the first one's cases come first, of every backbone and input: those that the
    paper says most about. All that is compiled, which takes minutes, comes last.

    Args:
        selected: the cases.
        names: keys of :data:`benchmarks.providers.PROVIDERS`.
    """
    heads = list(dict.fromkeys(case.head for case in selected))
    ordered = sorted(selected, key=lambda case: heads.index(case.head))  # stable
    jobs = [(case, name) for case in ordered for name in names if has_jpu(case) or not PROVIDERS[name].needs_jpu]
    return sorted(jobs, key=lambda job: PROVIDERS[job[1]].compiled)  # stable


def run(
    selected: Sequence[Case],
    names: Sequence[str],
    device: torch.device,
    seconds: float,
    output: Path,
    console: Console,
    budget: float = float("inf"),
    resume: bool = False,
    more: Callable[[Case], bool] = lambda case: True,
) -> Outcome:
    """Measures cases one after the other; rows reach ``output`` as each is finished.

    A case that fails is reported and the others go on; what a provider cannot serve here, or the budget does not
    allow, is skipped. Ctrl-C ends the run and keeps what is measured.

    As in the paper's protocol a model is in eval mode and computes its auxiliary head. Latency has no part of moving
    the image to the device. Frames per second are batch / median latency.

    Args:
        selected: what to measure.
        names: keys of :data:`benchmarks.providers.PROVIDERS`, each in the case's memory format.
        device: ``cpu`` or ``cuda``.
        seconds: for timing each, see :func:`benchmarks.measure.time_calls`.
        output: file to append to.
        console: where progress is shown: a bar on a terminal, a line for each case anywhere.
        budget: seconds in which the last should end.
        resume: whether to go on with the last run of ``output``, whose rows are then in the outcome too.
        more: asked before each case; the case is left out where it says False.

    Raises:
        ResultsError: there is no run to go on with, or it was made elsewhere or of other sources.
    """
    where, before = session.begin(device, output, resume)
    here = _Session(names, device, seconds, budget, where, more)
    several = len(names) > 1, len({case.input for case in selected}) > 1

    def label(case: Case, name: str) -> str:
        more = [case.input] * several[1] + [name] * several[0]
        return " · ".join([case.label, *more])

    return session.run(here, jobs_in_order(selected, names), before, output, console, _describe, label=label)


def _describe(rows: list[Row]) -> str:
    return f"{rows[0].value:.4g} ms, {rows[1].value:.4g} frames/s"


@dataclass
class _Prepared:
    """A case's model and input.

    Attributes:
        peaks: MiB of both, by backend; None where this machine cannot tell.
    """

    case: Case
    model: nn.Module
    images: Tensor
    peaks: Mapping[str, float | None]
    _truth: verify.Truth | None = None
    _multiply_adds: float | None = None

    def truth(self) -> verify.Truth:
        """What the last image's logits should be, and PyTorch's error.

        To be asked before a provider puts anything of its own in the model's place.
        """
        if self._truth is None:
            tf32 = self.images.is_cuda and self.case.dtype == "float32" and matrix_options().allow_tf32
            self._truth = verify.find_truth(self.model, [self.images[-1:]], lambda result: result[0], tf32)
        return self._truth

    def multiply_adds(self) -> float:
        """Of one forward pass, in G."""
        if self._multiply_adds is None:
            with use_backend("reference"):  # kernels are no convolutions to whoever counts
                self._multiply_adds = measure.multiply_adds(self.model, self.images)
        return self._multiply_adds


class _Session(Session[Case, _Prepared]):
    def __init__(
        self,
        names: Sequence[str],
        device: torch.device,
        seconds: float,
        budget: float,
        where: Environment,
        more: Callable[[Case], bool],
    ) -> None:
        super().__init__(PROVIDERS, device, seconds, budget, where)
        self._names, self._more = names, more
        self._warm = False

    def _check(self, workload: Case, name: str, provider: Provider) -> None:
        if not self._more(workload):
            raise Skipped("left out")

    def _verify_and_time(self, workload: Case, name: str, provider: Provider, tick: Tick) -> list[Row]:
        case = workload
        prepared = self._prepare_once(case, lambda: self._prepare(case))
        truth = None if name == "reference" else prepared.truth()
        try:
            with serve(provider, prepared.model, [prepared.images]) as call:
                if truth is not None:
                    for _ in range(CALLS[provider.compiled]):
                        result = call()
                    verify.assert_no_worse(result[0][-1:], truth, deep=True)
                samples = measure.time_calls(call, self._device, self._seconds, tick)
        except BackendUnavailableError as error:
            raise Skipped(str(error)) from error
        return self._rows(case, name, samples, prepared)

    def _rows(self, case: Case, name: str, samples: Sequence[float], prepared: _Prepared) -> list[Row]:
        """Latency, frames per second, peak memory, parameters and multiply-adds."""

        def row(metric: str, value: float, quantiles: dict[str, float] | None = None) -> Row:
            return make_row(self._where, case.as_dict(), name, metric, value, quantiles)

        def fps(milliseconds: float) -> float:
            return case.batch * 1000 / milliseconds

        latency, spread = statistics.median(samples), measure.quantiles(samples)
        # The slowest twentieth of the latencies are the lowest frame rates.
        fps_spread = {f"p{100 - int(name[1:])}": fps(value) for name, value in spread.items()}
        rows = [row("latency", latency, spread), row("fps", fps(latency), fps_spread)]
        # Graphs and compilers hold what they like beside the model.
        plain = PROVIDERS[name] == Provider(PROVIDERS[name].backend, formats=PROVIDERS[name].formats)
        if plain and (peak := prepared.peaks[PROVIDERS[name].backend]) is not None:
            rows.append(row("peak_memory", peak))
        rows.append(row("parameters", measure.parameters(prepared.model)))
        return [*rows, row("multiply_adds", prepared.multiply_adds())]

    def _prepare(self, case: Case) -> _Prepared:
        """Builds a case's model, weighs it by every backend that serves it, and checks its output."""
        if not self._warm:  # code and buffers that PyTorch maps when it is first used, and are not the case's
            small = replace(case, size=64, batch=1)
            _run_checked(systems.build_model(small, self._device), systems.build_input(small, self._device), small)
            self._warm = True
            session.tidy(self._device)
        images = systems.build_input(case, self._device)
        memory = PeakMemory(self._device)
        with memory:
            model = systems.build_model(case, self._device)
            peaks = {}
            for provider in self._backends(case):
                memory.reset()
                with chosen(provider):
                    _run_checked(model, images, case)
                peaks[provider.backend] = memory.mib()
        return _Prepared(case, model, images, peaks)

    def _backends(self, case: Case) -> list[Provider]:
        """A plain provider of each backend that is asked for and there."""
        wanted = {PROVIDERS[name].backend for _, name in jobs_in_order([case], self._names)}
        here = [Provider(backend) for backend in sorted(wanted)]
        return [provider for provider in here if why_not(provider, self._device) is None]


def _run_checked(model: nn.Module, images: Tensor, case: Case) -> None:
    with torch.inference_mode():
        systems.check_output(model(images), case)
