"""Which implementation serves an op: a compiled kernel, the same kernel executed on the CPU, or PyTorch."""

from __future__ import annotations

import functools
import os
import sys
import threading
import warnings
from contextvars import ContextVar, Token
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

from . import _extension, host
from .ops._library import DTYPES

BACKENDS = ("auto", "cuda", "host", "reference")

# The device that each kernel backend takes tensors of.
_DEVICE = {"cuda": "cuda", "host": "cpu"}

# How the kernels do their matrix products (csrc/separable_pyramid/policy.h).
POLICIES = ("auto", "fma", "mma", "two-pass")


class _Request(NamedTuple):
    backend: str
    arch: int | None
    policy: str


_AUTO = _Request("auto", None, "auto")
_requested: ContextVar[_Request] = ContextVar("jpu_cuda_backend", default=_AUTO)
# torch.compile reads context variables, and compiles anew where they changed, since this version at the latest.
_COMPILER_READS_CONTEXTS = _extension.version_of(torch.__version__) >= (2, 14)
# What was last chosen in any context, for those who cannot ask the one that is meant: autograd's own threads, which do
# what belongs to CUDA tensors, and older compilers, which look at this to see whether a compiled function still holds.
_latest = _AUTO


def _choose(request: _Request) -> Token[_Request]:
    global _latest
    _latest = request
    return _requested.set(request)


def _request() -> _Request:
    """What is asked for in this context or, in a thread of autograd's own, what was asked for last in any."""
    if torch.compiler.is_compiling():
        return _requested.get() if _COMPILER_READS_CONTEXTS else _constant_request(*_latest)
    found = _requested.get()
    return _latest if found is _AUTO and _is_foreign() else found


@torch.compiler.assume_constant_result
def _constant_request(*latest: object) -> _Request:
    return _requested.get()


def _is_foreign() -> bool:
    """Whether this thread was begun elsewhere than in Python."""
    return isinstance(threading.current_thread(), threading._DummyThread)


class BackendUnavailableError(RuntimeError):
    """A backend was asked for by name and cannot serve here."""


class use_backend:
    """Chooses the backend, for the current context from now on or for a ``with`` block.

    ``use_backend("reference")`` as a statement holds until it is called again; ``with
    use_backend("reference"):`` restores what was there before. The choice belongs to the current
    :mod:`contextvars` context, so threads and asyncio tasks do not disturb each other; a new thread
    starts from ``"auto"``. A backward pass runs on the backend of its forward, wherever it is called; what
    :mod:`torch.utils.checkpoint` computes anew runs on the backend that is current then.

    Two things go by the choice that was made last in any thread, since they cannot see the context: what is computed
    anew for CUDA tensors, in autograd's own threads, and before torch 2.14 whether a compiled function still holds.

    Args:
        name: ``"auto"`` (compiled kernels for CUDA tensors, the reference for all else), ``"cuda"``
            (compiled kernels or an error), ``"host"`` (the kernels executed on the CPU, for
            verification; built on first use, which takes about half a minute) or ``"reference"``
            (pure PyTorch).
        arch: for ``"host"``, the GPU whose kernels are executed, by its compute capability: 80 for 8.0. None is
            one without tensor cores, so that all products are plain multiply-adds.
        policy: how matrix products are done: ``"auto"`` chooses by device, dtype and shape; ``"fma"`` is plain
            multiply-adds, ``"mma"`` tensor cores in a single launch, ``"two-pass"`` tensor cores with an operand
            that passes through the L2 cache. What a policy cannot take, another serves: :func:`jpu_cuda.explain`
            says which.

    Raises:
        ValueError: an unknown name, or an option that the backend does not have.
        BackendUnavailableError: a backend that this installation does not have.
    """

    def __init__(self, name: str, *, arch: int | None = None, policy: str = "auto") -> None:
        if name not in BACKENDS:
            raise ValueError(f"backend: expected one of {', '.join(map(repr, BACKENDS))}, got {name!r}")
        if policy not in POLICIES:
            raise ValueError(f"policy: expected one of {', '.join(map(repr, POLICIES))}, got {policy!r}")
        if policy != "auto" and name == "reference":
            raise ValueError(f"policy: expected 'auto' for backend 'reference', which has no kernels, got {policy!r}")
        if arch is not None and name != "host":
            raise ValueError(f"arch: expected None for backend {name!r}, since only 'host' has no device, got {arch!r}")
        if arch is not None and (isinstance(arch, bool) or not isinstance(arch, int) or not 10 <= arch <= 999):
            raise ValueError(f"arch: expected a compute capability such as 80 for 8.0, or None, got {arch!r}")
        if (why_not := _unavailable(name)) is not None:
            raise BackendUnavailableError(f"backend {name!r} is not available: {why_not}")
        self._request = _Request(name, arch, policy)
        self._entered = False
        self._token: Token[_Request] = _choose(self._request)

    @property
    def name(self) -> str:
        """The backend's name."""
        return self._request.backend

    def __enter__(self) -> use_backend:
        if self._entered:
            raise RuntimeError("use_backend: expected a fresh use_backend(...) for each with block")
        self._entered = True
        _choose(self._request)  # another may have been chosen since this one was made
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _latest
        _requested.reset(self._token)
        _latest = _requested.get()


def requested_backend() -> str:
    """The name last given to :class:`use_backend` in this context; ``"auto"`` if none was."""
    return _request().backend


class MatrixOptions(NamedTuple):
    """What the operators are told of matrix products, beside their tensors."""

    allow_tf32: bool
    arch: int  # 0 for a device without tensor cores; only host execution goes by it
    policy: str


def matrix_options() -> MatrixOptions:
    """As :class:`use_backend` and PyTorch's setting for convolutions say in this context."""
    request = _request()
    return MatrixOptions(_allows_tf32(), request.arch or 0, request.policy)


# Nothing for torch.compile to look into: a compiled function keeps what held when it was compiled.
@torch.compiler.assume_constant_result
def _allows_tf32() -> bool:
    """Whether PyTorch's own convolutions of float32 may use TF32: those of cuDNN, which NVIDIA's override rules too."""
    if not torch.backends.cudnn.enabled or os.environ.get("NVIDIA_TF32_OVERRIDE") == "0":
        return False
    if hasattr(
        torch.backends.cudnn, "conv"
    ):  # since torch 2.9; the older name raises where convolutions have their own
        return bool(torch.backends.cudnn.conv.fp32_precision == "tf32")
    return bool(torch.backends.cudnn.allow_tf32)


@dataclass(frozen=True)
class Explanation:
    """How a module would be served.

    Attributes:
        backend: ``"cuda"``, ``"host"`` or ``"reference"``.
        policy: how the matrix products of the branches are done; ``"torch"`` where PyTorch does them.
        reason: why, in one sentence.
    """

    backend: str
    policy: str
    reason: str

    def __str__(self) -> str:
        return f"backend {self.backend}, policy {self.policy}: {self.reason}"


def choose(tensor: Tensor) -> Explanation:
    """Decides which backend serves an op on ``tensor``, and those like it, in this context.

    Raises:
        BackendUnavailableError: ``"cuda"`` or ``"host"`` was asked for and cannot serve this tensor.
    """
    requested = requested_backend()
    if requested == "reference":
        return Explanation("reference", "torch", "asked for by use_backend('reference')")
    if torch.onnx.is_in_onnx_export():
        return Explanation("reference", "torch", "ONNX export, which knows plain operators only")
    if torch._C._are_functorch_transforms_active():
        return Explanation("reference", "torch", "torch.func transforms, which know PyTorch's own operators only")
    device = tensor.device
    if requested == "auto" and device.type != "cuda":
        return Explanation("reference", "torch", f"auto, and kernels serve CUDA tensors; got {device.type}")
    why_not = _why_not(tensor, "cuda" if requested == "auto" else requested)
    if why_not is None:
        backend = "host" if requested == "host" else "cuda"
        return Explanation(backend, "fma", f"{requested}, and kernels take {tensor.dtype} on {device.type}")
    if requested != "auto":
        raise BackendUnavailableError(f"backend {requested!r} cannot serve this call: {why_not}")
    return Explanation("reference", "torch", f"auto, but {why_not}")


def _unavailable(name: str) -> str | None:
    """Why a backend cannot be asked for at all."""
    if name == "cuda":
        status = _extension.load()
        return None if status.available else status.reason
    if name == "host":
        try:
            host.load()
        except (host.HostBuildError, OSError) as error:
            return str(error)
    return None


def _why_not(tensor: Tensor, backend: str) -> str | None:
    if tensor.device.type != _DEVICE[backend]:
        return f"expected tensors on {_DEVICE[backend]}, got {tensor.device.type}"
    if tensor.dtype not in DTYPES:
        return f"expected {', '.join(str(dtype) for dtype in DTYPES)}, got {tensor.dtype}"
    return _why_not_device(tensor.device.index) if backend == "cuda" else None


# Nothing for torch.compile to look into.
@torch.compiler.assume_constant_result
def _why_not_device(index: int) -> str | None:
    why_not = _extension.supports(index)
    # Asked for by name, a missing backend is an error, which must not use up the one warning.
    if why_not is not None and requested_backend() == "auto":
        _warn_once(why_not)
    return why_not


@functools.cache
def _warn_once(why_not: str) -> None:
    """One warning a process for each reason, which names the line that called into this package."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("jpu_cuda", "torch"):
        frame, level = frame.f_back, level + 1
    warnings.warn(f"jpu_cuda: PyTorch serves CUDA tensors, since {why_not}", stacklevel=level)
