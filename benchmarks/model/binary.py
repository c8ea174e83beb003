"""What the compiled kernels are: registers, spills, shared memory, instructions. Needs nvcc and nvdisasm, no GPU."""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..environment import ROOT
from . import sass
from .kernels import Kernel


class BinaryUnavailableError(RuntimeError):
    """A tool is missing, or a compiler failed; the message says which and why."""


@dataclass(frozen=True)
class Resources:
    """What ptxas says about a kernel.

    Attributes:
        registers: of a thread.
        shared: static bytes of a block.
        spills: bytes stored and loaded again.
    """

    registers: int
    shared: int
    spills: int


@dataclass(frozen=True)
class Compiled:
    """A kernel for one architecture."""

    resources: Resources
    program: sass.Program
    loop: sass.Loop | None


def parse_resources(text: str, symbol: str) -> Resources:
    """Reads the output of ``-Xptxas -v`` of one architecture.

    Raises:
        BinaryUnavailableError: it says nothing of such a kernel.
    """
    parts = re.split(r"Compiling entry function '", text)[1:]
    for part in parts:
        if not re.search(symbol, part.partition("'")[0]):
            continue
        registers = re.search(r"Used (\d+) registers", part)
        shared = re.search(r"(\d+) bytes smem", part)
        spills = [int(n) for n in re.findall(r"(\d+) bytes spill", part)[:2]]
        if registers is not None:
            return Resources(int(registers[1]), int(shared[1]) if shared else 0, sum(spills))
    raise BinaryUnavailableError(f"ptxas: expected a kernel that matches {symbol!r}, got {len(parts)} other kernels")


def find_disassembler(nvcc: str | None = None) -> str:
    """On PATH, in the toolkit of ``nvcc``, or in the package of triton, which torch brings along.

    Raises:
        BinaryUnavailableError: in none of them.
    """
    folders = [os.environ.get("PATH", "")]
    folders += [str(Path(home) / "bin") for name in ("CUDA_HOME", "CUDA_PATH") if (home := os.environ.get(name))]
    folders += [str(Path(nvcc).resolve().parent)] if nvcc else []
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        folders.append(str(Path(triton.origin).parent / "backends" / "nvidia" / "bin"))
    for folder in folders:
        if (found := shutil.which("nvdisasm", path=folder)) is not None:
            return found
    raise BinaryUnavailableError("nvdisasm: expected it on PATH, in CUDA_HOME or with triton, got none")


class Compiler:
    """Compiles each source once for each architecture."""

    def __init__(self, tick: Callable[[str], None] = lambda what: None) -> None:
        """Looks for the tools.

        Args:
            tick: is told what is compiled next.

        Raises:
            BinaryUnavailableError: one is missing.
        """
        # As the package is built: the same compiler and the same flags.
        try:
            setup = runpy.run_path(str(ROOT / "setup.py"))
        except ImportError as error:
            raise BinaryUnavailableError(f"setup.py: expected it to load, got {error}") from error
        nvcc = setup["find_nvcc"]()
        if nvcc is None:
            raise BinaryUnavailableError("nvcc: expected it in CUDA_HOME or on PATH, got none")
        self._nvcc: str = nvcc
        self._flags: list[str] = setup["FLAGS"]
        self._disassembler = find_disassembler(nvcc)
        self._tick = tick
        self._done: dict[tuple[str, str], tuple[str, list[sass.Program]]] = {}

    def compiled(self, kernel: Kernel, dtype: str, arch: str) -> Compiled:
        """A kernel.

        Args:
            kernel: which.
            dtype: of its instantiation.
            arch: as in ``90a``.

        Raises:
            BinaryUnavailableError: a tool failed.
        """
        source = kernel.source.format(dtype=dtype)
        if (source, arch) not in self._done:
            self._tick(f"{source}, sm_{arch}")
            self._done[source, arch] = self._compile(source, arch)
        said, programs = self._done[source, arch]
        try:
            program = sass.find(programs, kernel.symbol)
        except sass.SassError as error:
            raise BinaryUnavailableError(str(error)) from error
        return Compiled(parse_resources(said, kernel.symbol), program, sass.main_loop(program, kernel.wide))

    def _compile(self, source: str, arch: str) -> tuple[str, list[sass.Program]]:
        with tempfile.TemporaryDirectory() as folder:
            target = str(Path(folder) / "kernels.cubin")
            command = [self._nvcc, *self._flags, "-Icsrc", f"-arch=sm_{arch}", "-Xptxas", "-v", "-cubin"]
            said = _output([*command, f"csrc/{source}", "-o", target])
            try:
                return said, sass.parse(_output([self._disassembler, "-c", target]))
            except sass.SassError as error:
                raise BinaryUnavailableError(str(error)) from error


def _output(command: list[str]) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, check=False)
    if done.returncode != 0:
        raise BinaryUnavailableError(f"{Path(command[0]).name} failed ({done.returncode}): {done.stdout[-2000:]}")
    return done.stdout
