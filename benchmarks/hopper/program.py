"""Builds the program of the microbenchmarks and runs its parts."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import runpy
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..environment import ROOT

FOLDER = Path(__file__).resolve().parent / "cuda"
OUT = ROOT / "out" / "hopper"
ARCH = "9.0a"
SOURCES = ["main.cu", "host.cu", "pipes.cu", "copies.cu"]
# cudart is linked in and the driver found at run time, so that a program built elsewhere runs. The C++ library is not:
# it would bring symbols of the newest libc here.
FLAGS = ["-O3", "-std=c++20", "-cudart=static", "-Xcompiler=-Wall,-Wextra", "-Xptxas=-v"]
PARTS = ("single", "pair", "bulk", "gather", "multicast")  # the most important first

Line = dict[str, Any]


class ProgramError(RuntimeError):
    """The program is not there and cannot be built, or it cannot run here."""


def key() -> str:
    """Hash of the program's sources and flags."""
    found = hashlib.sha256(" ".join([*FLAGS, ARCH]).encode())
    for path in sorted(FOLDER.iterdir()):
        found.update(path.name.encode())
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def path_of_program() -> Path:
    """Where the program of these sources lies, once built: also on a machine that has no nvcc."""
    return OUT / f"program-{key()}"


def build() -> Path:
    """Builds the program unless it is there and starts; what the compilers said lies beside it, with the suffix .log.

    Raises:
        ProgramError: it is not there, and neither is nvcc; or the compiler's error.
    """
    OUT.mkdir(parents=True, exist_ok=True)
    with open(OUT / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be building the same
        return _build(path_of_program())


def _build(program: Path) -> Path:
    if program.exists() and _starts(program):
        return program
    setup = load_setup()
    nvcc = setup["find_nvcc"]()
    if nvcc is None:
        raise ProgramError(f"expected nvcc on PATH or a {program.relative_to(ROOT)} that starts, got neither")
    half = program.with_suffix(f".{os.getpid()}")
    threads = f"--threads={min(len(SOURCES), os.cpu_count() or 1)}"
    sources = [str(FOLDER / name) for name in SOURCES]
    said = call([nvcc, *FLAGS, *setup["gencode"]([ARCH]), threads, "-o", str(half), *sources])
    program.with_suffix(".log").write_text(said)
    half.replace(program)
    return program


def _starts(program: Path) -> bool:
    """Whether it says how it wants to be called; one that was built elsewhere may want another libc."""
    if not os.access(program, os.X_OK):  # which a copy may have lost
        program.chmod(0o755)
    try:
        done = subprocess.run([str(program)], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 2 and "expected: hopper" in done.stderr


def load_setup() -> dict[str, Any]:
    """What setup.py knows of compilers.

    Raises:
        ProgramError: it does not load.
    """
    try:
        return runpy.run_path(str(ROOT / "setup.py"))
    except ImportError as error:
        raise ProgramError(f"setup.py: expected it to load, got {error}") from error


def call(command: list[str]) -> str:
    """What a compiler says.

    Raises:
        ProgramError: it failed.
    """
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ProgramError(f"{Path(command[0]).name}: {error}") from error
    if done.returncode != 0:
        raise ProgramError(f"{Path(command[0]).name} failed ({done.returncode}):\n{done.stdout[-4000:]}")
    return done.stdout


def run(
    program: Path,
    part: str,
    *,
    device: int = 0,
    check: bool = False,
    seconds: float = 30.0,
    case_seconds: float = 0.2,
    first: int = 0,
    told: Callable[[Line], None] = lambda line: None,
) -> tuple[int, str]:
    """Runs a part; each line reaches ``told`` as soon as it is printed.

    Args:
        program: what :func:`build` gave.
        part: one of PARTS.
        device: its number.
        check: compare only, time nothing.
        seconds: after which no case begins; some seconds later the program is killed.
        case_seconds: for timing each case.
        first: so many cases are passed over.
        told: is given each line.

    Returns:
        The exit code, and what stands in stderr: 0 all right, 1 a case was wrong, 2 nothing could be run here,
        3 a call or a kernel failed; negative for a program that was killed.
    """
    command = [str(program), part, "--device", str(device), "--seconds", f"{seconds:g}"]
    command += ["--case-seconds", f"{case_seconds:g}", "--first", str(first), *(["--check"] if check else [])]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        try:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        except OSError as error:
            raise ProgramError(f"{program.name}: {error}") from error
        assert process.stdout is not None
        killer = threading.Timer(seconds + 15, process.kill)
        killer.start()
        try:
            for text in process.stdout:
                try:
                    line = json.loads(text)
                except json.JSONDecodeError:  # of a program that was killed while it wrote
                    continue
                told(line)
            code = process.wait()
        finally:
            killer.cancel()
            process.kill()
            process.wait()
        errors.seek(0)
        return code, errors.read().strip()
