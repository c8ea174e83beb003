"""CuTe's layout algebra as an oracle: programs that include its headers, compiled by the C++ compiler alone.

The headers come from packages, without what those depend on: nvidia-cutlass would replace torch's own cuda-bindings
and bring four packages that no header needs. So they are no requirement of the tests, but lie under ``out/``.
"""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FOLDER = ROOT / "out" / "cute"
PACKAGES = [
    "nvidia-cutlass==4.2.0.0",
    # Of CUDA's headers those that CuTe's include; no compiler and no libraries.
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-cccl==13.0.85",
]


class CuteError(RuntimeError):
    """There are no headers, or a program does not compile."""


def headers() -> list[Path]:
    """Folders to include from; installs them the first time.

    Raises:
        CuteError: they are not here, and pip does not get them.
    """
    FOLDER.parent.mkdir(exist_ok=True)
    with open(FOLDER.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be installing them
        done = FOLDER / "installed"
        wanted = "\n".join(PACKAGES)
        if not done.exists() or done.read_text() != wanted:
            shutil.rmtree(FOLDER, ignore_errors=True)
            _call([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(FOLDER), *PACKAGES])
            done.write_text(wanted)
    cuda = FOLDER / "nvidia" / "cu13" / "include"
    return [FOLDER / "cutlass_library" / "source" / "include", cuda, cuda / "cccl"]


def output_of(source: Path, folder: Path) -> str:
    """Compiles a program, which may also include the headers of csrc, in a folder, runs it and returns what it prints.

    Raises:
        CuteError: no headers, or the compiler's error.
    """
    program = folder / source.stem
    system = [f"-isystem{path}" for path in headers()]
    options = ["-std=c++20", "-O1", "-Wall", "-Wextra", f"-I{ROOT / 'csrc'}", *system]
    _call([os.environ.get("CXX", "c++"), *options, str(source), "-o", str(program)])
    return _call([str(program)])


def _call(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CuteError(f"{Path(command[0]).name}: {error}") from error
    if done.returncode != 0:
        raise CuteError(f"{' '.join(command)} failed ({done.returncode}):\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


class Tables:
    """What layouts.cpp printed."""

    def __init__(self, text: str) -> None:
        self._rows: dict[str, list[list[int]]] = {}
        for line in text.splitlines():
            name, *numbers = line.split()
            self._rows.setdefault(name, []).append([int(number) for number in numbers])

    def operand(self, name: str) -> np.ndarray:
        """[threads, values, 2]: the row and column that a thread's value has in its matrix.

        ``name`` is a dtype and A, B or C, such as ``float16.A``. Rows of B are its columns in the product, since CuTe
        has it as N × K.
        """
        rows = np.array(self._rows[name])
        assert (rows[:, 0] == np.repeat(np.arange(32), len(rows) // 32)).all()
        return rows[:, 2:].reshape(32, -1, 2)

    def load(self) -> np.ndarray:
        """[threads, registers, 2]: whose row a register of ldmatrix comes from, and which of its four words."""
        return self.operand("ldmatrix")

    @functools.cached_property
    def _swizzles(self) -> dict[tuple[int, int, int], list[int]]:
        return {(bits, shift, pitch): offsets for bits, shift, pitch, *offsets in self._rows["swizzle"]}

    def swizzle(self, bits: int, shift: int, row_bytes: int) -> np.ndarray:
        """[64 rows, units of 16 bytes in a row]: the byte at which a unit lies.

        By ``Swizzle<bits, 4, shift>`` of rows that lie one after the other, of 32, 64, 128 or 256 bytes; bits 1 to 3
        and shift from bits to 4, or 0 and 3. Swizzle<3, 4, 3>, <2, 4, 3> and <1, 4, 3> are the hardware's of 128, 64
        and 32 bytes.
        """
        return np.array(self._swizzles[bits, shift, row_bytes]).reshape(64, -1)


def tables(folder: Path) -> Tables:
    """All layouts of layouts.cpp, compiled in a folder."""
    return Tables(output_of(HERE / "layouts.cpp", folder))
