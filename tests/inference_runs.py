"""What the tests of the benchmark of inference share: a run of one small workload on the CPU."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from benchmarks import ceilings, inference
from benchmarks.providers import serve
from benchmarks.results import Row
from benchmarks.runner import Outcome
from benchmarks.workloads import Workload

CPU = torch.device("cpu")
SMALL = Workload("branches", 4, 6, 2, "float32", channels=4)
NAMES = ("gemm", "reference", "cuda", "reference-graph")


@pytest.fixture(autouse=True)
def small_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "_SIDES", {"cpu": (16, 32)})
    monkeypatch.setattr(ceilings, "_BYTES", {"cpu": 2**12})


def run(
    folder: Path,
    selected: Sequence[Workload] = (SMALL,),
    names: Sequence[str] = NAMES,
    terminal: bool = False,
    **changes: Any,
) -> tuple[Outcome, str]:
    """A run whose rows go to ``folder / "rows.jsonl"``, and what it printed."""
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=terminal)
    arguments = {"device": CPU, "seconds": 1e-3, "budget": 1e3, "output": folder / "rows.jsonl", **changes}
    return inference.run(selected, names, console=console, **arguments), file.getvalue()


def timed(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Provider and memory format of each call that was timed."""
    return [(x.provider, x.case["memory_format"]) for x in rows if x.metric == "latency" and "part" in x.case]


def serve_wrongly(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Tensor], Tensor]) -> None:
    """Makes PyTorch with folded norms a provider that is wrong."""

    @contextmanager
    def wrongly(provider: Any, *arguments: Any) -> Iterator[Callable[[], Any]]:
        with serve(provider, *arguments) as call:
            yield (lambda: spoil(call().clone())) if provider.folded else call

    monkeypatch.setattr(inference, "serve", wrongly)
