"""Where a measurement was made: device, versions and the sources of the kernels."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy
import torch

import jpu_cuda
from jpu_cuda import _source

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Environment:
    """What all rows of one run have in common."""

    device: str
    versions: dict[str, str]
    source_hash: str


def describe(device: torch.device) -> Environment:
    """Looks at this machine, now; two calls differ in ``versions["run"]``."""
    return Environment(device_name(device), versions(device), source_hash())


def device_name(device: torch.device) -> str:
    """Model of the GPU, or of the CPU with the number of threads that PyTorch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_cpu_model()}, {threads} thread{'s' if threads != 1 else ''}"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def versions(device: torch.device) -> dict[str, str]:
    """Versions of what a result depends on, and under ``run`` the time in UTC that names the run."""
    found = {
        "run": datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "jpu_cuda": jpu_cuda.__version__,
    }
    if device.type == "cuda":
        found["cuda"] = str(torch.version.cuda)
        found["cudnn"] = str(torch.backends.cudnn.version())
    commit = _commit(ROOT)
    if commit is not None:
        found["commit"] = commit
    return found


def _commit(root: Path) -> str | None:
    """Short hash of the checked-out commit, ``-dirty`` if the tree differs; None outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        # An unpacked archive may lie inside some other repository, whose commit says nothing about it.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None
        return git("describe", "--always", "--dirty", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def source_hash(root: Path = ROOT) -> str:
    """SHA-256 of the kernels' sources and build flags, in hexadecimal; see :mod:`jpu_cuda._source`."""
    return _source.source_hash(root)
