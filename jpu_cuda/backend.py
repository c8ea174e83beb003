"""Which implementation serves an op: a compiled kernel, the same kernel executed on the CPU, or PyTorch."""

from __future__ import annotations

from contextvars import ContextVar, Token
from dataclasses import dataclass
from types import TracebackType

BACKENDS = ("auto", "cuda", "host", "reference")

# Why a backend cannot be asked for; the ones that are not listed are available.
_UNAVAILABLE = {
    "cuda": "this version has no compiled CUDA kernels",
    "host": "this version has no kernels to execute on the CPU",
}

_requested: ContextVar[str] = ContextVar("jpu_cuda_backend", default="auto")


class BackendUnavailableError(RuntimeError):
    """A backend was asked for by name and cannot serve here."""


class use_backend:
    """Chooses the backend, for the current context from now on or for a ``with`` block.

    ``use_backend("reference")`` as a statement holds until it is called again; ``with
    use_backend("reference"):`` restores what was there before. The choice belongs to the current
    :mod:`contextvars` context, so threads and asyncio tasks do not disturb each other; a new thread
    starts from ``"auto"``. A backward pass runs on the backend of its forward, wherever it is called.

    Args:
        name: ``"auto"`` (compiled kernels for CUDA tensors, the reference for all else), ``"cuda"``
            (compiled kernels or an error), ``"host"`` (the kernels executed on the CPU, for
            verification) or ``"reference"`` (pure PyTorch).

    Raises:
        ValueError: an unknown name.
        BackendUnavailableError: a backend that this installation does not have.
    """

    def __init__(self, name: str) -> None:
        if name not in BACKENDS:
            raise ValueError(f"backend: expected one of {', '.join(map(repr, BACKENDS))}, got {name!r}")
        if name in _UNAVAILABLE:
            available = [known for known in BACKENDS if known not in _UNAVAILABLE]
            raise BackendUnavailableError(
                f"backend {name!r} is not available: {_UNAVAILABLE[name]}; "
                f"expected one of {', '.join(map(repr, available))}"
            )
        self.name = name
        self._entered = False
        self._token: Token[str] = _requested.set(name)

    def __enter__(self) -> use_backend:
        if self._entered:
            raise RuntimeError("use_backend: expected a fresh use_backend(...) for each with block")
        self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _requested.reset(self._token)


def requested_backend() -> str:
    """The name last given to :class:`use_backend` in this context; ``"auto"`` if none was."""
    return _requested.get()


@dataclass(frozen=True)
class Explanation:
    """How a module would be served.

    Attributes:
        backend: ``"cuda"``, ``"host"`` or ``"reference"``.
        policy: how that backend does its matrix products; ``"torch"`` for the reference.
        reason: why, in one sentence.
    """

    backend: str
    policy: str
    reason: str

    def __str__(self) -> str:
        return f"backend {self.backend}, policy {self.policy}: {self.reason}"


def choose() -> Explanation:
    """Decides which backend serves a call made in this context."""
    if requested_backend() == "reference":
        return Explanation("reference", "torch", "asked for by use_backend('reference')")
    return Explanation("reference", "torch", f"auto, and {_UNAVAILABLE['cuda']}; pure PyTorch serves every call")
