"""Trying a fault: a copy of the sources that is built again after each change, and the checks that run on it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from jpu_cuda._source import source_files

from .faults import Fault

TESTS = Path(__file__).resolve().parent.parent
ROOT = TESTS.parent
LIBRARY = f"_host{sysconfig.get_config_var('EXT_SUFFIX')}"


class TrialError(RuntimeError):
    """Nothing can be said about a fault: it is a tool that failed, or the sources without any fault."""


@dataclass(frozen=True)
class Verdict:
    """What became of a fault.

    Attributes:
        fault: its entry.
        caught: whether anything noticed it.
        by: ``"build"``, ``"oracle"`` or ``"tests"``; empty if nothing did.
        how: ``"build"``, ``"fault"`` (host execution refused an access or an order), ``"values"``,
            ``"crash"`` or ``"hang"``; ``"error"`` where the check itself went wrong, which counts as not caught.
        message: the first line of what it said.
        seconds: building and checking.
    """

    fault: Fault
    caught: bool
    by: str = ""
    how: str = ""
    message: str = ""
    seconds: float = 0.0

    def row(self) -> dict[str, Any]:
        names = ("name", "file", "breaks")
        entry = {name: getattr(self.fault, name) for name in names}
        return entry | {key: value for key, value in asdict(self).items() if key != "fault"}


@dataclass(frozen=True)
class Check:
    """A command that a faulty library must not pass."""

    name: str
    command: Sequence[str]  # "LIBRARY" stands for the library's path
    limit: float  # seconds

    def run(self, library: Path) -> tuple[str, str] | None:
        """How the library failed and the message; None if it passed."""
        command = [str(library) if word == "LIBRARY" else word for word in self.command]
        try:
            done = subprocess.run(
                [sys.executable, *command],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(TESTS), "HYPOTHESIS_STORAGE_DIRECTORY": str(library.parent)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=self.limit,
            )
        except subprocess.TimeoutExpired:
            return "hang", f"expected an end within {self.limit:.0f} s, got none"
        return read_output(done.returncode, done.stdout)


def read_output(code: int, output: str) -> tuple[str, str] | None:
    """How a check ended: None if it passed, else one of the words of :class:`Verdict` and the message."""
    if code == 0:
        return None
    if code < 0:
        return "crash", f"signal {-code}"
    found = re.search(r"^oracle: (.*)|^E +(\S.*)|^FAILED (.*)", output, re.MULTILINE)
    if code != 1 or found is None:
        return "error", (output.strip().splitlines() or [f"exit status {code}"])[-1][:300]
    message = next(filter(None, found.groups()))[:300]
    # Host execution names the kernel first: "upsample_concat forward: block 0, thread 3: ...".
    refused = re.search(r"\b\w+ (forward|backward): ", output)
    return ("fault" if refused else "values"), message


class Tree:
    """A copy of the sources and its build."""

    def __init__(self, folder: Path, watch: str = "shadow", jobs: int = 1) -> None:
        """``watch`` is CMakeLists.txt's JPU_CHECK, ``jobs`` how many compilers run at a time."""
        self.folder = folder
        self._build = folder / "build"
        self._watch, self._jobs = watch, jobs

    def restore(self) -> None:
        """Makes the copy equal to this checkout; files that are the same keep their time stamps."""
        wanted = source_files(ROOT)
        for path in wanted:
            self._write(path, (ROOT / path).read_text())
        for path in set(source_files(self.folder)) - set(wanted):
            (self.folder / path).unlink()

    def apply(self, fault: Fault) -> None:
        path = Path("csrc") / fault.file
        self._write(path, fault.apply((ROOT / path).read_text()))

    def build(self) -> str | None:
        """Compiles what has changed; returns the compiler's first error, or None."""
        if not (self._build / "build.ninja").exists():
            shutil.rmtree(self._build, ignore_errors=True)
            self._configure()
        done = subprocess.run(
            [tool("ninja"), "-C", str(self._build), f"-j{self._jobs}"], capture_output=True, text=True
        )
        if done.returncode == 0:
            return None
        error = re.search(r"(error: .*|undefined reference.*)", done.stdout)
        return error[1][:300] if error else done.stdout[-300:]

    @property
    def library(self) -> Path:
        return self._build / LIBRARY

    def _write(self, path: Path, text: str) -> None:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists() or target.read_text() != text:
            target.write_text(text)

    def _configure(self) -> None:
        import pybind11

        command = [
            *(tool("cmake"), "-G", "Ninja", "-S", str(self.folder), "-B", str(self._build)),
            *(f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", f"-DPython_EXECUTABLE={sys.executable}"),
            *(f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DTORCH_ROOT={Path(torch.__file__).parent}"),
            f"-DJPU_CHECK={self._watch}",
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise TrialError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


def tool(name: str) -> str:
    """Path of a program, which may lie beside the interpreter only."""
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        raise TrialError(f"expected {name} on PATH, got none")
    return found


def accept_original(tree: Tree, checks: Sequence[Check]) -> None:
    """Makes sure that sources without a fault pass; else every fault would seem to be caught."""
    tree.restore()
    error = tree.build()
    if error is not None:
        raise TrialError(f"expected the sources to build, got {error}")
    for check in checks:
        failed = check.run(tree.library)
        if failed is not None:
            raise TrialError(f"expected the sources without faults to pass the {check.name}, got {failed[1]}")


def try_fault(tree: Tree, fault: Fault, checks: Sequence[Check]) -> Verdict:
    """Builds with one fault and runs checks until one fails."""
    started = time.monotonic()
    tree.restore()
    tree.apply(fault)
    error = tree.build()
    if error is not None:
        return Verdict(fault, True, "build", "build", error, time.monotonic() - started)
    for check in checks:
        failed = check.run(tree.library)
        if failed is not None:
            how, message = failed
            by = check.name if how != "error" else ""
            return Verdict(fault, how != "error", by, how, message, time.monotonic() - started)
    return Verdict(fault, False, seconds=time.monotonic() - started)
