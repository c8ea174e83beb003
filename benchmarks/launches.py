"""Every launch of a call, timed by itself on a GPU: what the cost sheet has in its column "measured"."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from jpu_cuda.backend import BackendUnavailableError

from . import environment, measure, passes, runner, session, timings, training_workloads, verify, workloads
from .environment import Environment
from .model import kernels, sheet, training
from .model.kernels import Kernel
from .model.work import Work
from .providers import PROVIDERS, TRAINING, Provider, serve, why_not
from .report import Report
from .results import ResultsError, Row, make_row
from .runner import Job, Outcome, Skipped, Tick
from .training_workloads import TrainingWorkload
from .workloads import Workload

REPETITIONS = 20
OTHER = "other launches"
PARTS = ("branches", "jpu", "training")
# One call each: its provider, and the policy of the sheet's kernels that it makes.
_POLICIES = {"cuda-mma": "mma", "cuda-two-pass": "two-pass"}
# What PyTorch launches right after one of ours, in a gradient.
_AFTER = {
    "training_normalised": "torch.bmm dqᵀ·ẑ",
    "norm_coefficients": "torch.bmm dq·P",
    "upsample_backward": "torch.cat of gradients",
}
_CAT = "CatArray"  # in the names of torch.cat's kernels


@dataclass(frozen=True)
class Launch:
    """One kernel, copy or fill that a device ran.

    Attributes:
        name: as the profiler has it, demangled or not.
        milliseconds: that it took.
    """

    name: str
    milliseconds: float

    @property
    def function(self) -> str | None:
        """Of this package's kernels the bare name; None for all else."""
        if self.name.startswith("_Z"):  # lengths before names, the last of which is followed by template arguments
            mangled = re.match(r"_ZN3jpu\d+[a-z_]+?\d+([a-z_]+)", self.name)
            return mangled[1] if mangled else None
        demangled = re.search(r"\bjpu::\w+::(\w+)\s*[<(]", self.name)
        return demangled[1] if demangled else None


def record(call: Callable[[], object], repetitions: int = REPETITIONS) -> list[list[Launch]]:
    """What each of several calls launches, in order.

    The caches hold what the call before has left; calls whose tensors are larger than those find little there.

    Raises:
        RuntimeError: calls that differ in what they launch.
    """
    activities = [torch.profiler.ProfilerActivity.CUDA]
    for count in (1, repetitions):  # the first time the profiler itself has things to load
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=activities) as profile:
            for _ in range(count):
                call()
            torch.cuda.synchronize()
    events = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    events.sort(key=lambda event: event.time_range.start)
    return split([Launch(e.name, e.time_range.elapsed_us() / 1000) for e in events], repetitions)


def make_once(call: Callable[[], object]) -> list[list[Launch]]:
    """In the place of :func:`record`, where another profiler watches, which may look at nothing but this."""
    torch.cuda.empty_cache()  # what such a profiler saves and restores for each of its passes
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    call()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()
    raise Skipped("made once for another profiler, not timed")


def split(launches: Sequence[Launch], repetitions: int) -> list[list[Launch]]:
    """Launches call by call.

    Raises:
        RuntimeError: calls that differ in what they launch.
    """
    count = len(launches) // repetitions
    calls = [list(launches[i * count : (i + 1) * count]) for i in range(repetitions)]
    names = [[launch.name for launch in call] for call in calls]
    if not launches or len(launches) % repetitions or any(own != names[0] for own in names):
        raise RuntimeError(f"expected {repetitions} calls of the same launches, got {len(launches)} launches in all")
    return calls


def attribute(launches: Sequence[Launch], listed: Sequence[Kernel]) -> dict[str, float]:
    """Milliseconds of each of the sheet's kernels, and of all other launches together.

    Args:
        launches: of one call, in order.
        listed: the kernels that it may make; those of PyTorch's are told by what they follow.

    Raises:
        RuntimeError: a kernel of this package that is not among these.
    """
    rows = {kernel.symbol.partition("I.*")[0]: kernel.row for kernel in listed if not kernel.vendor}
    vendor = {kernel.row for kernel in listed if kernel.vendor}
    found: dict[str, float] = {}
    before = ""
    for launch in launches:
        function = launch.function
        if function is None:
            row = _AFTER.get(before, OTHER)
            # Weights are put together before a product, and casts of gradients come after all.
            if row not in vendor or row.startswith("torch.cat") != (_CAT in launch.name):
                row = OTHER
        elif function in rows:
            row, before = rows[function], function
        else:
            raise RuntimeError(f"{function}: expected one of {', '.join(rows)}")
        found[row] = found.get(row, 0.0) + launch.milliseconds
    return found


def jobs(parts: Sequence[str], size: tuple[int, int] | None, batch: int, dtype: str, channels: int) -> list[Any]:
    """(label, provider, what measures it), in the order of parts; the two passes, dozens of launches, come last."""
    found: list[Any] = []
    for part in parts:
        height, width = size or ((60, 60) if part == "training" else (64, 64))
        known = TRAINING if part == "training" else PROVIDERS
        for name in ["cuda"] if part == "jpu" else _POLICIES:
            label = f"{part} {height}×{width}, batch {batch}, {dtype} · {name}"
            if part == "training":
                step = TrainingWorkload("branches", height, width, batch, dtype, channels=channels)
                found.append((label, known[name], partial(_of_training, step, name)))
            else:
                call = Workload(part, height, width, batch, dtype, channels=channels)
                found.append((label, known[name], partial(_of_inference, call, name)))
    return sorted(found, key=lambda job: job[1].policy == "two-pass")  # stable


Measured = list[tuple[Kernel | None, str, list[float]]]


def _work(workload: Workload) -> Work:
    dtype = "float32" if workload.dtype == "tf32" else workload.dtype
    channels = workload.channels
    return Work(workload.batch, workload.height, workload.width, dtype, channels=channels, outputs=channels)


def _columns(calls: Sequence[Sequence[Launch]], listed: Sequence[Kernel]) -> dict[str, list[float]]:
    """By row, milliseconds of each call."""
    each = [attribute(call, listed) for call in calls]
    return {row: [one[row] for one in each] for row in each[0]}


Recorder = Callable[[Callable[[], object]], list[list[Launch]]]


def _of_inference(workload: Workload, name: str, device: torch.device, record: Recorder) -> dict[str, list[float]]:
    provider = PROVIDERS[name]
    prepared = workloads.prepare(workload, provider, device)
    model, inputs = prepared.in_format("channels_last")
    with serve(provider, model, inputs, workload.dtype == "tf32") as call:
        verify.assert_no_worse(prepared.compared(call()), prepared.truth)
        calls = record(call)
    if workload.part == "jpu":  # whose branches are those of another job
        stages = [kernel for kernel in kernels.KERNELS if kernel.name == "norm_relu forward"]
        only = [[launch for launch in call if launch.function == stages[0].symbol] for call in calls]
        return _columns(only, stages)
    policies = "any", _POLICIES[name]
    return _columns(calls, [kernel for kernel in kernels.KERNELS if kernel.policy in policies])


def _of_training(
    workload: TrainingWorkload, name: str, device: torch.device, record: Recorder
) -> dict[str, list[float]]:
    provider = TRAINING[name]
    prepared = training_workloads.prepare(workload, device)
    model, inputs, gradient = prepared.in_format("channels_last")
    with passes.serve(provider, model, inputs, gradient, workload.autocast, workload.dtype == "tf32") as step:
        prepared.assert_right(step.results())

        def both() -> None:
            step.forward()
            step.backward()

        calls = record(both)
        forward = len(record(step.forward)[0])
    policies = "any", _POLICIES[name]
    listed = [kernel for kernel in training.KERNELS if kernel.policy in policies]
    halves = [
        _columns([call[:forward] for call in calls], [k for k in listed if k.direction == "forward"]),
        _columns([call[forward:] for call in calls], [k for k in listed if k.direction == "backward"]),
    ]
    # What both have is the same launch: the sheet has it twice.
    other = [a + b for a, b in zip(*(half.pop(OTHER, [0.0] * len(calls)) for half in halves), strict=True)]
    return {**halves[0], **halves[1], OTHER: other}


def run(
    parts: Sequence[str],
    size: tuple[int, int] | None,
    batch: int,
    dtype: str,
    channels: int,
    device: torch.device,
    output: Path,
    console: Console,
    record: Recorder = record,
) -> Outcome:
    """Measures calls of each part; rows reach ``output`` as each is finished.

    Args:
        parts: of :data:`PARTS`.
        size: at stride 8; None for that which targets are of.
        batch: images at once.
        dtype: ``"bfloat16"``, ``"float16"`` or ``"tf32"``.
        channels: of the JPU.
        device: a CUDA one: no other has launches to be timed.
        output: file to append to.
        console: where progress is shown.
        record: what times launches.
    """
    where = environment.describe(device)

    def rows(provider: Provider, name: str, work: Work, measured: Callable[..., Any], tick: Tick) -> list[Row]:
        if device.type != "cuda":
            raise Skipped(f"launches need a CUDA device, got {device.type}")
        if (reason := why_not(provider, device)) is not None:
            raise Skipped(reason)
        session.tidy(device)
        try:
            return _rows(where, work, name, measured(device, record))
        except BackendUnavailableError as error:
            raise Skipped(str(error)) from error

    found = []
    for label, provider, measured in jobs(parts, size, batch, dtype, channels):
        workload, name = measured.args
        found.append(Job(label, partial(rows, provider, name, _work(workload), measured)))
    return runner.run(found, output, console, _describe)


def _rows(where: Environment, work: Work, name: str, columns: dict[str, list[float]]) -> list[Row]:
    found = []
    for row, samples in columns.items():
        case = sheet.case_of_row(row, work)
        spread = measure.quantiles(samples)
        found.append(make_row(where, case, name, "latency", statistics.median(samples), spread))
    return found


def _describe(rows: list[Row]) -> str:
    slowest = max(rows, key=lambda row: row.value)
    return f"{sum(row.value for row in rows):.4g} ms, of which {slowest.case['kernel']} {slowest.value:.4g} ms"


def is_launch(row: Row) -> bool:
    return "kernel" in row.case


def table(rows: Sequence[Row]) -> Report:
    """The launches of one run, the longest of each call first.

    Raises:
        ResultsError: rows of another benchmark.
    """
    if not all(map(is_launch, rows)):
        raise ResultsError("expected rows of launches, got others")
    calls: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = *(row.case[name] for name in ("height", "width", "batch", "dtype")), row.provider
        calls.setdefault(key, []).append(row)
    lines = []
    for (height, width, batch, dtype, provider), own in calls.items():
        whole = sum(row.value for row in own)
        for row in sorted(own, key=lambda row: -row.value):
            cells = [f"{height}×{width}", str(batch), dtype, provider, row.case["kernel"]]
            lines.append([*cells, timings.with_quartiles(row), f"{100 * row.value / whole:.1f}"])
    notes = [
        *timings.origin(rows),
        "ms: median of the launches of one call together (quartiles), each from its beginning to its end on the "
        "device; the caches hold what the call before has left; %: of all launches that are listed of a call",
        "python -m benchmarks.model has them beside what it predicts",
    ]
    columns = ["stride 8", "batch", "dtype", "provider", "kernel", "ms (p25–p75)", "%"]
    return Report(f"{rows[0].device}: launches", notes, columns, 5, lines)
