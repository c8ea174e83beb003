"""Time and size of a model: repeated calls with a synchronised clock, parameters, multiply-adds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

WARM_UP_SHARE = 0.2
MIN_REPETITIONS = 3


def time_calls(
    call: Callable[[], object],
    device: torch.device,
    seconds: float,
    tick: Callable[[float], None] = lambda done: None,
) -> list[float]:
    """Times a call again and again, each time from a synchronised device to a synchronised device.

    Args:
        call: the work, on ``device``.
        device: on a CPU the clock is :func:`time.perf_counter`; on a GPU it is a pair of events, and the
            L2 cache is overwritten before each call, as another model's work would.
        seconds: for warm-up (a fifth of it, and at least one call) and repetitions together; exceeded
            only where three repetitions need more.
        tick: told the share of ``seconds`` that has passed.

    Returns:
        Milliseconds of each repetition, 3 or more.
    """
    return [sample[-1] for sample in time_stages([call], device, seconds, tick)]


def time_stages(
    stages: Sequence[Callable[[], object]],
    device: torch.device,
    seconds: float,
    tick: Callable[[float], None] = lambda done: None,
) -> list[list[float]]:
    """As :func:`time_calls`, of calls that are made one right after the other and again all together.

    Returns:
        For each repetition, milliseconds from the beginning of the first call to the end of each.
    """
    clock: Callable[[Sequence[Callable[[], object]]], list[float]]
    clock = _CudaClock(device) if device.type == "cuda" else _cpu_clock
    start = perf_counter()
    while True:
        clock(stages)
        passed = perf_counter() - start
        tick(min(1.0, passed / seconds))
        if passed >= WARM_UP_SHARE * seconds:
            break
    samples: list[list[float]] = []
    # Stop before the repetition that would end too late.
    while len(samples) < MIN_REPETITIONS or perf_counter() - start + samples[-1][-1] / 1000 < seconds:
        samples.append(clock(stages))
        tick(min(1.0, (perf_counter() - start) / seconds))
    return samples


def _cpu_clock(stages: Sequence[Callable[[], object]]) -> list[float]:
    ends = []
    start = perf_counter()
    for stage in stages:
        stage()
        ends.append((perf_counter() - start) * 1000)
    return ends


class _CudaClock:
    def __init__(self, device: torch.device) -> None:
        self._device = device
        l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        self._flush = torch.empty(max(2 * l2_bytes, 2**26), dtype=torch.uint8, device=device)

    def __call__(self, stages: Sequence[Callable[[], object]]) -> list[float]:
        with torch.cuda.device(self._device):
            start, *ends = (torch.cuda.Event(enable_timing=True) for _ in range(len(stages) + 1))
            self._flush.zero_()
            start.record()
            for stage, end in zip(stages, ends, strict=True):
                stage()
                end.record()
            ends[-1].synchronize()
        return [start.elapsed_time(end) for end in ends]


def quantiles(samples: Sequence[float]) -> dict[str, float]:
    """The 5th, 25th, 75th and 95th percentile, linear between samples."""
    return {f"p{q}": float(np.percentile(samples, q)) for q in (5, 25, 75, 95)}


def parameters(model: nn.Module) -> int:
    """Number of learned values of all parts, used by the forward pass or not; buffers do not count."""
    return sum(p.numel() for p in model.parameters())


def multiply_adds(model: nn.Module, *inputs: Tensor) -> float:
    """Multiply-adds of one forward pass over inputs like these, in G (10⁹).

    Counts what :class:`torch.utils.flop_counter.FlopCounterMode` does, convolutions and matrix products
    at two operations each, halved; norms, activations, pooling, resizing and other elementwise work are
    not counted. Nothing is computed: fake tensors, which have shapes and no data, run through the model.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.no_grad(), fake, FlopCounterMode(display=False) as counter:
        model(*map(torch.empty_like, inputs))
    return counter.get_total_flops() / 2 / 1e9
