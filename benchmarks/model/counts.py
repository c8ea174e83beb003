"""What kernels are counted to do: host execution of smaller calls, scaled to the real one.

Blocks of a kind cost the same to the last bit, whatever the values, so a count is a linear combination of a few
numbers of the call (:attr:`Kernel.features`): of blocks and of their steps over channels, say. As many calls that are
small in channels, outputs and batch give the coefficients. The map keeps its real size where tiles at its edges differ.
What no combination gives, such as the overlap of what a block's tiles read, a formula does (:attr:`Kernel.known`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from jpu_cuda import BackendUnavailableError, host, use_backend

from ..environment import source_hash
from .kernels import CALLS as CALLS_OF_INFERENCE
from .kernels import Call, Counts, Kernel
from .training_calls import CALLS as CALLS_OF_TRAINING
from .work import Work

# What counts depend on beside the kernels' sources.
_HERE = ("counts.py", "kernels.py", "tiles.py", "training.py", "training_calls.py", "work.py")
CALLS = {**CALLS_OF_INFERENCE, **CALLS_OF_TRAINING}


class CountsUnavailableError(RuntimeError):
    """Host execution cannot be built here."""


def scale(features: Sequence[Sequence[int]], counts: Sequence[Counts], target: Sequence[int]) -> Counts:
    """The counts of a call from those of others.

    Args:
        features: of the other calls, of which the first that suffice are taken.
        counts: of the other calls.
        target: features of the call in question.

    Raises:
        ValueError: the features do not tell the calls apart, or the result is not whole, so that these are not the
            numbers that the counts depend on.
    """
    shares = _combination(features, target)
    found: Counts = {}
    for name in counts[0]:
        value = sum((share * of[name] for share, of in zip(shares, counts, strict=True) if share), Fraction())
        if value.denominator != 1:
            raise ValueError(f"{name}: expected whole blocks, got {float(value)} for the features {target}")
        found[name] = int(value)
    return found


def _combination(features: Sequence[Sequence[int]], target: Sequence[int]) -> list[Fraction]:
    """What share of each call together has the features that are wanted: by elimination, in whole numbers."""
    rows = [[Fraction(value) for value in [*column, end]] for *column, end in zip(*features, target, strict=True)]
    pivots: list[int] = []
    for call in range(len(features)):
        done = len(pivots)
        below = next((i for i in range(done, len(rows)) if rows[i][call]), None)
        if below is None:
            continue
        rows[done], rows[below] = rows[below], rows[done]
        rows[done] = [value / rows[done][call] for value in rows[done]]
        for i, other in enumerate(rows):
            if i != done and other[call]:
                rows[i] = [value - other[call] * own for value, own in zip(other, rows[done], strict=True)]
        pivots.append(call)
    if any(row[-1] for row in rows[len(pivots) :]):
        raise ValueError(f"features: expected calls that tell {tuple(target)} apart, got {list(map(tuple, features))}")
    shares = [Fraction()] * len(features)
    for row, call in zip(rows, pivots, strict=False):
        shares[call] = row[-1]
    return shares


def total(launches: Sequence[host.Launch], name: str) -> Counts:
    """The sum over all launches of a kernel; counts by width of access are left out."""
    mine = [launch for launch in launches if launch.kernel == name]
    if not mine:
        got = ", ".join(sorted({launch.kernel for launch in launches})) or "none"
        raise ValueError(f"launches: expected {name!r}, got {got}")
    found: Counts = {"blocks": sum(launch.blocks for launch in mine)}
    for launch in mine:
        for counter, value in launch.counters.items():
            if isinstance(value, int):
                found[counter] = found.get(counter, 0) + value
    return found


def execute(call: Call, work: Work) -> dict[str, Counts]:
    """Runs a call on the CPU; counts by name of kernel.

    Raises:
        CountsUnavailableError: host execution cannot be built here.
    """
    with _backend(call), _tf32(), torch.no_grad(), host.record() as launches:
        call.run(work)
    return {name: total(launches, name) for name in {launch.kernel for launch in launches}}


def _backend(call: Call) -> AbstractContextManager[object]:
    try:
        return use_backend("host", arch=call.arch, policy=call.policy)
    except BackendUnavailableError as error:
        raise CountsUnavailableError(str(error)) from error


@contextmanager
def _tf32() -> Iterator[None]:
    """Lets tensor cores take float32; where a policy has none, it changes nothing."""
    settings: Any = torch.backends.cudnn  # whose stubs lack it
    before = settings.conv.fp32_precision
    settings.conv.fp32_precision = "tf32"
    try:
        yield
    finally:
        settings.conv.fp32_precision = before


class Counter:
    """Counts calls, each sample once, and keeps what it counted in the cache of built libraries."""

    def __init__(self, folder: Path | None = None, tick: Callable[[str], None] = lambda what: None) -> None:
        """Prepares for counting.

        Args:
            folder: where counts are kept; beside the built libraries if None.
            tick: is told of each sample, before it is executed or taken from the cache.
        """
        self._known: dict[tuple[str, Work], dict[str, Counts]] = {}
        self._folder = host.cache_folder() / "counts" if folder is None else folder
        self._tick = tick
        digest = hashlib.sha256(source_hash().encode())
        for name in _HERE:
            digest.update((Path(__file__).parent / name).read_bytes())
        self._version = digest.hexdigest()

    def counts(self, kernel: Kernel, work: Work) -> Counts:
        """Of a kernel in a call.

        Raises:
            CountsUnavailableError: as :func:`execute`.
        """
        samples = CALLS[kernel.call].samples(work)
        parts = [self._scaled(kernel, sample) for sample in samples]
        found = scale([kernel.features(sample) for sample in samples], parts, kernel.features(work))
        return {name: value + kernel.known(work).get(name, 0) for name, value in found.items()}

    def _scaled(self, kernel: Kernel, sample: Work) -> Counts:
        known, found = kernel.known(sample), self._sample(kernel.call, sample)[kernel.name]
        return {name: value - known.get(name, 0) for name, value in found.items()}

    def _sample(self, call: str, work: Work) -> dict[str, Counts]:
        if (call, work) not in self._known:
            self._tick(f"{call}, {work.size} {work.dtype}")
            key = hashlib.sha256(f"{self._version} {call} {json.dumps(asdict(work))}".encode()).hexdigest()[:24]
            path = self._folder / f"{key}.json"
            found = _read(path)
            if found is None:
                found = execute(CALLS[call], work)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(found))
            self._known[call, work] = found
        return self._known[call, work]


def _read(path: Path) -> dict[str, Counts] | None:
    """Counts that were kept; None if there are none, or writing them was broken off."""
    try:
        found: dict[str, Counts] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found


def count_samples(kernels: Sequence[Kernel], works: Sequence[Work]) -> int:
    """How many different calls are executed for the counts of these, unless they are kept."""
    counted = [kernel for kernel in kernels if not kernel.vendor]
    return len({(k.call, sample) for k in counted for w in works for sample in CALLS[k.call].samples(w)})
