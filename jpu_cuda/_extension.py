"""Loads the compiled kernels; never builds them, and importing never crashes.

The binary (``_kernels.abi3.so``) registers the CUDA implementations of operators that are defined in
Python. ``_build_info.json`` beside it says what it was built from and for, or why it was not built.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import _source
from ._source import BINARY, BUILD_INFO, OLDEST_TORCH

_PACKAGE = Path(__file__).resolve().parent

# What each CUDA version asks of the driver on Linux; within one major version any driver of it serves.
_OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}

_HOW_TO_BUILD = "install with nvcc >= 12 on PATH and JPU_CUDA_KERNELS=on to build them"


@dataclass(frozen=True)
class Status:
    """Whether the compiled kernels are loaded.

    Attributes:
        available: they are; what a given device needs is asked of :func:`supports`.
        reason: why not, in one sentence, or what was loaded.
        info: what the build wrote down; empty without a build.
    """

    available: bool
    reason: str
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Here:
    """What a binary meets on this machine."""

    torch: str
    cuda: str | None
    source_hash: str | None  # of the checkout that the package lies in, if it does

    @staticmethod
    def look(package: Path) -> Here:
        checkout = _source.checkout_root(package)
        return Here(str(torch.__version__), torch.version.cuda, _source.source_hash(checkout) if checkout else None)


@functools.cache
def load() -> Status:
    """Loads the binary on the first call; the answer is kept. Never raises, never builds."""
    try:
        return load_from(_PACKAGE)
    except Exception as error:  # a broken installation leaves the reference, which needs none of this
        return Status(False, f"the compiled CUDA kernels cannot be looked for: {_text(error)}")


def load_from(package: Path, open_library: Callable[[str], Any] | None = None) -> Status:
    """Loads the binary in the folder ``package``; ``open_library`` is ``torch.ops.load_library`` but for tests."""
    binary = package / BINARY
    try:
        info = read_info(package)
    except ValueError as error:
        return Status(False, f"{error}; {_HOW_TO_BUILD}")
    reason = refusal(info, binary.is_file(), Here.look(package))
    if reason is not None:
        return Status(False, reason, info)
    try:
        (open_library or torch.ops.load_library)(str(binary))
    except (OSError, RuntimeError) as error:
        return Status(False, f"{built_for(info)} do not load in torch {torch.__version__}: {_text(error)}", info)
    return Status(True, f"{built_for(info)} are loaded", info)


def read_info(package: Path) -> dict[str, Any]:
    """What the build wrote down; empty if it wrote nothing.

    Raises:
        ValueError: the file holds something else.
    """
    path = package / BUILD_INFO
    try:
        info = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name}: expected a JSON object, got an unreadable file ({_text(error)})") from error
    if not isinstance(info, dict) or not isinstance(info.get("built"), bool):
        raise ValueError(f'{path.name}: expected a JSON object with "built", got {str(info)[:80]!r}')
    if info["built"]:
        texts = all(isinstance(info.get(key), str) for key in ("cuda", "torch", "source_hash"))
        archs = info.get("archs")
        if not texts or not isinstance(archs, list) or not all(parse_arch(str(arch)) for arch in archs):
            raise ValueError(f"{path.name}: expected cuda, torch, source_hash and archs, got {str(info)[:200]!r}")
    return info


def refusal(info: dict[str, Any], has_binary: bool, here: Here) -> str | None:
    """Why the binary must not be loaded here; None if it may."""
    if not info.get("built"):
        if has_binary:
            return f"{BINARY} is there, but no {BUILD_INFO} says what it was built for; {_HOW_TO_BUILD}"
        why_not = f" ({info['why_not']})" if info.get("why_not") else ""
        return f"this installation has no compiled CUDA kernels{why_not}; {_HOW_TO_BUILD}"
    built = built_for(info)
    if not has_binary:
        return f"{built} are gone: expected {BINARY} beside the package, got none; {_HOW_TO_BUILD}"
    if version_of(here.torch) < OLDEST_TORCH:
        return f"{built} need torch >= 2.10, got torch {here.torch}"
    if here.cuda is None:
        return f"{built} need a torch with CUDA, got torch {here.torch} without"
    if version_of(here.cuda)[0] != version_of(info["cuda"])[0]:
        expected = version_of(info["cuda"])[0]
        return f"{built}: expected torch for CUDA {expected}, got torch {here.torch} for CUDA {here.cuda}"
    if here.source_hash is not None and here.source_hash != info["source_hash"]:
        return (
            f"{built} are stale: expected the sources here ({here.source_hash[:12]}), "
            f"got a build of others ({info['source_hash'][:12]}); {_HOW_TO_BUILD}"
        )
    return None


def built_for(info: dict[str, Any]) -> str:
    """What a build can do, to begin a sentence with."""
    return f"kernels built for CUDA {info['cuda']}, torch >= 2.10 and {', '.join(info['archs'])}"


@functools.cache
def supports(device_index: int) -> str | None:
    """Why the loaded binary cannot serve a device; None if it can. Never raises; the answer is kept."""
    status = load()
    if not status.available:
        return status.reason
    try:
        name = torch.cuda.get_device_name(device_index)
        capability = torch.cuda.get_device_capability(device_index)
    except Exception as error:  # RuntimeError, AssertionError and others, by version and by what is wrong
        return no_device(status.info, _text(error))
    return device_refusal(status.info, name, capability)


def no_device(info: dict[str, Any], error: str) -> str:
    """The reason where PyTorch cannot reach a device."""
    major = version_of(info["cuda"])[0]
    driver = f" (CUDA {major} needs an NVIDIA driver >= {_OLDEST_DRIVER[major]})" if major in _OLDEST_DRIVER else ""
    return f"{built_for(info)}: expected a CUDA device{driver}, got {error!r}"


def device_refusal(info: dict[str, Any], name: str, capability: tuple[int, int]) -> str | None:
    """The reason where the binary has no code for a device's compute capability."""
    if runs_on(info["archs"], capability):
        return None
    got = f"{name} with compute capability {capability[0]}.{capability[1]}"
    return f"expected a device for {', '.join(info['archs'])}, which the kernels were built for, got {got}"


def runs_on(archs: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether code for ``archs``, written as in TORCH_CUDA_ARCH_LIST, runs on a compute capability.

    Machine code runs within its major version from its minor one on, PTX on all that is newer, and both
    on exactly one capability if they use its own instructions (``9.0a``), or on one family (``10.0f``).
    """
    for arch in archs:
        parsed = parse_arch(arch)
        if parsed is None:
            continue
        target, suffix, ptx = parsed
        same_major = capability[0] == target[0] and capability[1] >= target[1]
        if capability == target or (suffix != "a" and same_major) or (ptx and not suffix and capability >= target):
            return True
    return False


def parse_arch(arch: str) -> tuple[tuple[int, int], str, bool] | None:
    """``"9.0a+PTX"`` as ``((9, 0), "a", True)``; None if it is no architecture."""
    match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", arch)
    return ((int(match[1]), int(match[2])), match[3], match[4] is not None) if match else None


def version_of(text: str) -> tuple[int, int]:
    """Major and minor of a version; (0, 0) if it has none."""
    match = re.match(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _text(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
