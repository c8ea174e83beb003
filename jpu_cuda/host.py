"""Host execution: the kernels run on the CPU, thread by thread, for verification.

The library is the same kernel sources, launchers and checks as the GPU binary, compiled by a C++ compiler
without any CUDA toolkit. It is built on first use and kept in a cache by the hash of its sources. It is
slow (some ten million accesses of memory a second) and strict: what a GPU would silently get wrong raises.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ._source import source_hash, source_root

__all__ = ["HostBuildError", "Launch", "build", "load", "record", "schedule"]

# What watches the kernels (CMakeLists.txt): "shadow", "coverage" or "address"; the last two are for tests.
_CHECK = os.environ.get("JPU_CUDA_HOST_CHECK", "shadow")

_lock = threading.Lock()
_module: ModuleType | None = None


class HostBuildError(RuntimeError):
    """The library for host execution cannot be built here."""


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Attributes:
        kernel: its name.
        blocks, threads: the grid, in blocks and threads a block.
        counters: what it cost: bytes and 32-byte sectors requested of global memory, distinct bytes summed
            over blocks, shared-memory passes and those that bank conflicts add, barriers, multiply-adds;
            ``matrix_multiply_adds`` are those of tensor cores, by ``matrix_instructions`` of warps, which
            ``matrix_loads`` feed. ``global_reads`` and ``global_writes`` count accesses by their width in bytes.
    """

    kernel: str
    blocks: int
    threads: int
    counters: dict[str, Any] = field(repr=False)


def cache_folder() -> Path:
    """Where built libraries are kept."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "jpu_cuda"


def build(check: str = _CHECK, *, root: Path | None = None, faulty: bool = False) -> Path:
    """Builds the library, unless the cache has it.

    Args:
        check: what watches the kernels; see CMakeLists.txt.
        root: the folder that holds csrc and CMakeLists.txt; this package's if None.
        faulty: build the broken kernels of the tests instead.

    Returns:
        Path of the extension module.

    Raises:
        HostBuildError: no sources, no tools, or a compiler's error, which the message holds.
    """
    root = source_root() if root is None else root
    tag = f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}-{torch.__version__}-{_compiler()}"
    if check == "coverage":
        tag += f"-{root.resolve()}"  # what it counts, it counts for the files at the paths it was built from
    key = hashlib.sha256(f"{source_hash(root)} {_extra_hash(root) if faulty else ''} {tag}".encode()).hexdigest()[:16]
    name = "_faulty" if faulty else "_host"
    folder = cache_folder() / f"{name[1:]}-{check}-{key}"
    library = folder / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if library.exists():
        return library
    tools = {tool: _tool(tool) for tool in ("cmake", "ninja")}
    try:  # here, since importing the package must work without
        import fcntl

        import pybind11
    except ImportError as error:
        raise HostBuildError(
            f"host execution: expected Linux and pybind11 to build the kernels, got {error}"
        ) from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"host execution: expected a cache that can be written (XDG_CACHE_HOME chooses it), got {error}"
        raise HostBuildError(message) from error
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be building the same
        if library.exists():
            return library
        work = folder / "build"
        if work.exists():  # of a build that was broken off, perhaps from sources elsewhere
            shutil.rmtree(work)
        configure = [
            *(tools["cmake"], "-G", "Ninja", "-S", str(root), "-B", str(work)),
            *(f"-DCMAKE_MAKE_PROGRAM={tools['ninja']}", f"-DPython_EXECUTABLE={sys.executable}"),
            *(f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DJPU_CHECK={check}"),
            "-DJPU_FAULTY=ON" if faulty else f"-DTORCH_ROOT={Path(torch.__file__).parent}",
        ]
        for command in (configure, [tools["cmake"], "--build", str(work)]):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise HostBuildError(f"host execution: {' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        # A rename, so that nobody sees half a file; the coverage build's notes stay beside its objects.
        os.replace(work / library.name, library)
        if check != "coverage":
            shutil.rmtree(work)
    return library


def load() -> ModuleType:
    """Loads the library into this process, building it first if need be.

    Raises:
        HostBuildError: as :func:`build`.
    """
    global _module
    with _lock:
        if _module is None:
            from . import ops  # noqa: F401  defines the operators that the library implements

            _module = load_module(build())
        return _module


def load_module(path: Path) -> ModuleType:
    """Imports an extension module by its path.

    Raises:
        HostBuildError: the file is no library that loads here.
    """
    spec = importlib.util.spec_from_file_location(path.name.split(".")[0], path)
    assert spec is not None
    assert spec.loader is not None
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        message = f"host execution: expected a library that loads, got {error}; delete {path} to build it anew"
        raise HostBuildError(message) from error
    return module


@contextmanager
def record(module: ModuleType | None = None) -> Iterator[list[Launch]]:
    """Counts what kernels cost while the block runs, whichever thread launches them.

    Args:
        module: a library of other kernels; the product's, as :func:`load` gives it, if None.

    Yields:
        A list that has one :class:`Launch` a launch, in order, once the block has ended.
    """
    module = load() if module is None else module
    launches: list[Launch] = []
    recorder = module.open_recorder()
    try:
        yield launches
    finally:
        launches.extend(Launch(**entry) for entry in module.close_recorder(recorder))


@contextmanager
def schedule(seed: int = 0, *, late: bool = True, module: ModuleType | None = None) -> Iterator[None]:
    """Sets in which order blocks and threads run, and when asynchronous copies take effect, for this thread's calls.

    Args:
        seed: 0 for ascending order; others for a random one each.
        late: as late as the kernel's own waits allow, or as soon as they are issued.
        module: as in :func:`record`.
    """
    module = load() if module is None else module
    before = module.configuration()
    module.configure(seed, late)
    try:
        yield
    finally:
        module.configure(*before)


def _tool(name: str) -> str:
    # Wheels of cmake and ninja put their programs beside the interpreter, which need not be on PATH.
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        raise HostBuildError(
            f"host execution: expected {name} on PATH to build the kernels, got none (pip install {name})"
        )
    return found


def _compiler() -> str:
    """What CMake will compile with, as far as the environment says: another one makes another library."""
    name, flags = os.environ.get("CXX", "c++"), os.environ.get("CXXFLAGS", "")
    try:
        version = subprocess.run([name, "--version"], capture_output=True, text=True, check=False).stdout
    except OSError:
        version = ""  # CMake will say so
    return f"{name} {version.partition(chr(10))[0]} {flags}"


def _extra_hash(root: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted((root / "tests" / "kernels").glob("*")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
