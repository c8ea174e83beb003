"""Runs the probe on a GPU and on the CPU, and compares bit for bit.

``PYTHONPATH=tests python -m probe.compare gpu`` builds and runs both, names each wrapper whose bodies differ and
keeps what the GPU made as a dump; ``host DUMP…`` holds the host bodies against dumps without a GPU; ``build ARCH``
builds the GPU's executable only. Exit codes: 0 all agree, 1 some differ, 2 nothing could be compared.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import re
import runpy
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from . import inputs
from .inputs import Case

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OUT = ROOT / "out" / "probe"
GOLDEN = HERE / "golden"  # dumps of GPUs, committed
MAGIC, VERSION = b"JPUPROBE", 1
HEADER, CASE_HEADER = struct.Struct("=8sII"), struct.Struct("=32sQQ")
SEED = 1

Outputs = dict[str, np.ndarray]  # by case: [items, bytes of an item]


class ProbeError(RuntimeError):
    """Nothing can be compared: a build or a run failed, or a file is of other inputs."""


@dataclass(frozen=True)
class Difference:
    """A wrapper that did not make what was expected.

    Attributes:
        wrapper: the case's name.
        count, items: how many results of how many.
        first: number of the first.
        input, expected, got: its bytes in hexadecimal.
    """

    wrapper: str
    count: int
    items: int
    first: int
    input: str
    expected: str
    got: str

    def __str__(self) -> str:
        return (
            f"{self.wrapper}: {self.count} of {self.items} results differ; item {self.first}, of the bytes "
            f"{self.input}: expected {self.expected}, got {self.got}"
        )


@dataclass(frozen=True)
class Dump:
    """What one target made of the inputs of one seed."""

    seed: int
    about: dict[str, Any]  # target, source_hash, inputs
    outputs: Outputs


# --- files -------------------------------------------------------------------------------------------------


def write_inputs(path: Path, cases: dict[str, Case]) -> None:
    """Writes what main.cpp reads."""
    with path.open("wb") as file:
        file.write(HEADER.pack(MAGIC, VERSION, len(cases)))
        for case in cases.values():
            file.write(CASE_HEADER.pack(case.name.encode(), len(case.input), case.input.size))
            file.write(case.input.tobytes())


def read_outputs(path: Path) -> Outputs:
    """Reads what main.cpp wrote."""
    data = path.read_bytes()
    magic, version, count = HEADER.unpack_from(data)
    if (magic, version) != (MAGIC, VERSION):
        raise ProbeError(f"{path}: expected a file of version {VERSION}, got {magic!r}, {version}")
    outputs: Outputs = {}
    place = HEADER.size
    for _ in range(count):
        name, items, size = CASE_HEADER.unpack_from(data, place)
        place += CASE_HEADER.size
        outputs[name.rstrip(b"\0").decode()] = np.frombuffer(data, np.uint8, size, place).reshape(items, -1)
        place += size
    return outputs


def write_dump(path: Path, dump: Dump) -> None:
    """Writes a dump that can be committed under ``golden/``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about = json.dumps({"seed": dump.seed, **dump.about}, sort_keys=True)
    with path.open("wb") as file:
        np.savez_compressed(file, about=np.array(about), **dump.outputs)


def read_dump(path: Path) -> Dump:
    """Reads a dump.

    Raises:
        ProbeError: no such file, or no dump.
    """
    try:
        with np.load(path) as file:
            outputs = {name: file[name] for name in file.files}
        about = json.loads(str(outputs.pop("about")))
        return Dump(about.pop("seed"), about, outputs)
    except (OSError, ValueError, KeyError) as error:
        raise ProbeError(f"{path}: expected a dump of the probe, got {error}") from error


# --- builds and runs ---------------------------------------------------------------------------------------


def _call(command: Sequence[str], timeout: float = 300) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ProbeError(f"{Path(command[0]).name}: {error}") from error
    if done.returncode != 0:
        raise ProbeError(f"{' '.join(command)} failed ({done.returncode}):\n{done.stdout}{done.stderr}")
    return done.stdout


def build_host() -> Path:
    """Builds the executable of host execution; only what has changed, from the second time on."""
    import pybind11

    from jpu_cuda import host

    cmake, ninja = (host._tool(name) for name in ("cmake", "ninja"))
    folder = OUT / "host"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be building the same
        options = {
            "CMAKE_MAKE_PROGRAM": ninja,
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "JPU_PROBE": "ON",
        }
        switches = [f"-D{name}={value}" for name, value in options.items()]
        kept = folder / "CMakeCache.txt"
        if kept.exists() and not {str(ROOT), sys.executable} <= {*re.split("[=\n]", kept.read_text())}:
            switches.append("--fresh")  # carried here from elsewhere, or made by another Python
        _call([cmake, "-G", "Ninja", "-S", str(ROOT), "-B", str(folder), *switches])
        _call([cmake, "--build", str(folder), "--target", "probe"])
    return folder / "probe"


def build_gpu(arch: str) -> Path:
    """Builds the executable for one architecture, written as in TORCH_CUDA_ARCH_LIST, unless it is there.

    Raises:
        ProbeError: it is not there, and neither is nvcc; or the compiler's error.
    """
    setup = runpy.run_path(str(ROOT / "setup.py"))
    # As the kernels are compiled: a flag that changes arithmetic must change it here too.
    flags = [flag for flag in setup["FLAGS"] if not flag.startswith(("-D", "-Xcompiler"))]
    flags += setup["gencode"]([arch])
    sources = [HERE / "probe.cu", HERE / "matrix.cu", HERE / "main.cpp"]
    key = hashlib.sha256(" ".join(flags).encode())
    for path in [*sources, HERE / "probe.h", HERE / "each.h", *sorted((ROOT / "csrc" / "device").glob("*.h"))]:
        key.update(path.read_bytes())
    program = OUT / f"gpu-{key.hexdigest()[:16]}"
    if _starts(program):
        return program
    nvcc = setup["find_nvcc"]()
    if nvcc is None:
        raise ProbeError(f"expected nvcc on PATH or a program that starts at {program}, got neither")
    OUT.mkdir(parents=True, exist_ok=True)
    half = program.with_suffix(f".{os.getpid()}")
    _call([nvcc, *flags, f"-I{ROOT / 'csrc'}", *map(str, sources), "-o", str(half)])
    half.replace(program)
    return program


def _starts(program: Path) -> bool:
    """Whether an executable is there and says what cases it has; one from elsewhere may want another libc."""
    if not program.exists():
        return False
    if not os.access(program, os.X_OK):  # which a copy may have lost
        program.chmod(0o755)
    try:
        return bool(probed(program))
    except ProbeError:
        return False


def run(program: Path, cases: dict[str, Case], folder: Path) -> tuple[str, Outputs]:
    """Runs an executable on all cases; returns the name of its target and the results."""
    folder.mkdir(parents=True, exist_ok=True)
    source, result = folder / "input.bin", folder / "output.bin"
    write_inputs(source, cases)
    result.unlink(missing_ok=True)
    target = _call([str(program), str(source), str(result)]).strip()
    return target, read_outputs(result)


def probed(program: Path) -> list[str]:
    """The cases that an executable has."""
    return _call([str(program)]).split()


# --- comparison --------------------------------------------------------------------------------------------


def truths(cases: dict[str, Case]) -> Outputs:
    """The results by NumPy, PyTorch and rational arithmetic."""
    return {case.name: case.truth() for case in cases.values()}


def unequal(case: Case, expected: np.ndarray, got: np.ndarray) -> tuple[np.ndarray, int]:
    """Which items differ, and how many floats are NaN in both with other bits, which count as equal."""
    if not case.floats:
        return (expected != got).any(axis=1), 0
    with np.errstate(invalid="ignore"):  # signalling NaNs
        a, b = (inputs.floats_of(data, case.floats).astype(np.float64) for data in (expected, got))
    other_bits = (expected != got).reshape(*a.shape, -1).any(axis=2)
    both = np.isnan(a) & np.isnan(b)
    near = ~other_bits | both
    if case.bounds is not None:
        with np.errstate(invalid="ignore"):  # infinities
            near |= (a == b) | (np.abs(a - b) <= case.bounds())
    return ~near.all(axis=1), int((both & other_bits).sum())


def compare(cases: dict[str, Case], expected: Outputs, got: Outputs) -> tuple[list[Difference], dict[str, int]]:
    """Holds results against others, bit for bit, or within a case's bounds; any NaN equals any NaN where one computes.

    Returns:
        What differs, and by case how many NaNs have other bits.

    Raises:
        ProbeError: a case is missing on one side, or has another number of results.
    """
    differences: list[Difference] = []
    nans: dict[str, int] = {}
    for name, case in cases.items():
        if name not in expected or name not in got:
            raise ProbeError(f"{name}: expected results on both sides, got none on one")
        a, b = expected[name], got[name]
        if a.shape != b.shape:
            raise ProbeError(f"{name}: expected results of the shape {a.shape}, got {b.shape}")
        wrong, other_nans = unequal(case, a, b)
        if other_nans:
            nans[name] = other_nans
        if wrong.any():
            first = int(wrong.argmax())
            texts = (x[first].tobytes().hex() for x in (case.input, a, b))
            differences.append(Difference(name, int(wrong.sum()), len(wrong), first, *texts))
    return differences, nans


def check_dump(dump: Dump, program: Path, folder: Path) -> tuple[list[Difference], dict[str, int]]:
    """Holds the host bodies against what a GPU made; arguments of :func:`compare` follow from the dump.

    Raises:
        ProbeError: the dump is of other inputs than this version of the probe makes.
    """
    cases = inputs.make(dump.seed)
    if inputs.digest(cases) != dump.about.get("inputs"):
        raise ProbeError("dump: expected one of the inputs that the probe makes now, got one of others")
    _, outputs = run(program, cases, folder)
    return compare(cases, dump.outputs, outputs)


def report(differences: Sequence[Difference], nans: dict[str, int], cases: int) -> str:
    """What a comparison found, for people."""
    lines = [str(difference) for difference in differences]
    if nans:
        counts = ", ".join(f"{name} {count}" for name, count in nans.items())
        lines.append(f"NaNs with other bits, which count as equal: {counts}")
    return "\n".join([*lines, f"{cases - len(differences)} of {cases} cases agree"])


# --- command line ------------------------------------------------------------------------------------------


def arch_of(capability: tuple[int, int]) -> str:
    """The architecture among those of setup.py whose code a device runs; the nearest, if several fit."""
    from jpu_cuda import _extension

    archs = runpy.run_path(str(ROOT / "setup.py"))["DEFAULT_ARCHS"].split(";")
    fitting = [arch for arch in archs if _extension.runs_on([arch], capability)]
    if not fitting:
        raise ProbeError(f"expected a device for {', '.join(archs)}, got compute capability {capability}")
    return fitting[-1]


def _gpu(options: argparse.Namespace) -> int:
    import torch

    from jpu_cuda import _source

    if not torch.cuda.is_available():
        raise ProbeError("expected a CUDA device, got none")
    cases = inputs.make(options.seed)
    target, on_gpu = run(build_gpu(arch_of(torch.cuda.get_device_capability(0))), cases, OUT / "gpu")
    about = {"target": target, "source_hash": _source.source_hash(ROOT), "inputs": inputs.digest(cases)}
    write_dump(options.dump, Dump(options.seed, about, on_gpu))
    print(f"what {target} made: {options.dump}; to hold the host bodies to it in every test run, commit it to {GOLDEN}")
    wrong, _ = compare(cases, truths(cases), on_gpu)
    for difference in wrong:
        print(f"{target} against the truth: {difference}")
    with TemporaryDirectory() as folder:
        _, on_host = run(build_host(), cases, Path(folder))
    differences, nans = compare(cases, on_host, on_gpu)
    print(f"{target} against host execution:\n{report(differences, nans, len(cases))}")
    return 1 if differences or wrong else 0


def _host(options: argparse.Namespace) -> int:
    program, failed = build_host(), False
    for path in options.dumps:
        dump = read_dump(path)
        with TemporaryDirectory() as folder:  # another process may be doing the same
            differences, nans = check_dump(dump, program, Path(folder))
        print(f"host execution against {path}, of {dump.about['target']}:")
        print(report(differences, nans, len(dump.outputs)))
        failed |= bool(differences)
    return 1 if failed else 0


def _build(options: argparse.Namespace) -> int:
    print(build_gpu(options.arch))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m probe.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    gpu = commands.add_parser("gpu", help="run on the GPU and on the CPU, and compare")
    gpu.add_argument("--seed", type=int, default=SEED)
    gpu.add_argument("--dump", type=Path, default=OUT / "gpu.npz", help="file for what the GPU made (%(default)s)")
    gpu.set_defaults(command=_gpu)
    host = commands.add_parser("host", help="hold the host bodies against dumps of GPUs")
    host.add_argument("dumps", type=Path, nargs="+")
    host.set_defaults(command=_host)
    build = commands.add_parser("build", help="build the GPU's executable only")
    build.add_argument("arch", help="such as 9.0a")
    build.set_defaults(command=_build)
    options = parser.parse_args(arguments)
    try:
        code: int = options.command(options)
    except ProbeError as error:
        print(f"probe: {error}", file=sys.stderr)
        return 2
    return code


if __name__ == "__main__":
    sys.exit(main())
