"""Compiles the CUDA kernels for every architecture and holds what the compiler says about them.

``python tests/compile_gate.py`` needs no GPU. It fails on spills, local memory, compiler warnings and the
information lines in which ptxas announces lost performance; then it looks at the built binary (the
libraries and symbols that it needs) and loads it in a fresh process.
"""

from __future__ import annotations

import argparse
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "out" / "gate"
ARCHS = "8.0;8.6;8.9;9.0a;10.0;12.0+PTX"

OLDEST_NVCC = (13, 0)
NVCC_FOLDER = ROOT / "out" / "nvcc"
# Only the same release of all of them compiles; the headers may be later ones.
NVCC_PACKAGES = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-cccl==13.0.*",
    "nvidia-cuda-runtime==13.0.*",
]

NEEDED = re.compile(r"(lib(c|m|stdc\+\+|gcc_s|pthread|dl|rt)|ld-linux.*)\.so(\.\d+)*|lib(torch|c10)\w*\.so")
# Whatever is not C: torch's C++ has no stable ABI, and its shims are called aoti_torch_* and torch_*.
UNSTABLE = re.compile(r"(?<![\w:])(c10|at|torch|caffe2)::")
PYTHON = re.compile(r"_?Py[A-Z_]\w*")

# C7510, C7511, C7517 and C7519 serialise wgmma or inject waits, C7508 ignores setmaxnreg: all of the family is refused.
LOST_PERFORMANCE = re.compile(r"\(C75\d\d\)|Potential Performance Loss|serialized")

# Every operator of the library, whether or not it has a kernel, and implementations of operators that nobody defined.
LOAD = """
import importlib, pkgutil, torch, jpu_cuda
from jpu_cuda import _extension
for found in pkgutil.walk_packages(jpu_cuda.__path__, "jpu_cuda."):
    if found.name.startswith("jpu_cuda.ops"):
        importlib.import_module(found.name)
status = _extension.load()
names = sorted(name for name in torch._C._dispatch_get_all_op_names() if name.startswith("jpu_cuda::"))
print("gate:", jpu_cuda.__file__)
print("gate:", "available" if status.available else "unavailable", status.reason)
for name in names:
    print("gate:", name, torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA"))
for text in torch._C._dispatch_find_dangling_impls():
    if "jpu_cuda::" in text:
        print("gate: undefined", text.split()[1])
"""


class GateError(Exception):
    """A compiler or a tool failed, so that nothing can be said about the kernels."""


@dataclass(frozen=True)
class Function:
    """What ptxas says about a kernel, or about a device function that it did not inline."""

    name: str
    arch: str
    registers: int | None = None  # None for a device function
    shared: int = 0
    stack: int = 0
    spill_stores: int = 0
    spill_loads: int = 0

    def complaint(self) -> str | None:
        if not (self.stack or self.spill_stores or self.spill_loads):
            return None
        got = f"{self.stack} of stack, {self.spill_stores} of spill stores and {self.spill_loads} of spill loads"
        return f"{self.name} for {self.arch}: expected no local memory, got bytes: {got}"


def parse_ptxas(text: str) -> list[Function]:
    """Reads the output of ``-Xptxas -v``, for any number of files and architectures."""
    functions: list[Function] = []
    arch = name = ""
    frame = (0, 0, 0)
    for line in text.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)' for '(\w+)'", line):
            arch = match[2]
        elif match := re.search(r"Function properties for (\S+)", line):
            name = match[1]
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            frame = (int(match[1]), int(match[2]), int(match[3]))
            functions.append(Function(name, arch, None, 0, *frame))
        elif match := re.search(r"Used (\d+) registers", line):
            # Follows the properties of a kernel at once; device functions have no such line.
            shared, local = (re.search(rf"(\d+) bytes {kind}", line) for kind in ("smem", "lmem"))
            stack = max(frame[0], int(local[1]) if local else 0)
            functions[-1] = Function(name, arch, int(match[1]), int(shared[1]) if shared else 0, stack, *frame[1:])
    return functions


def refused_lines(text: str) -> list[str]:
    """Warnings, and information lines that announce lost performance; each once."""
    refused = (line.strip() for line in text.splitlines() if _is_refused(line))
    return list(dict.fromkeys(refused))


def _is_refused(line: str) -> bool:
    said = re.match(r"ptxas info\s*:", line) and LOST_PERFORMANCE.search(line)
    # Compilers name the file or themselves first; setuptools begins with the word.
    return bool(said or re.match(r"\S.*\bwarning\s*[:#]", line))


def complaints(text: str) -> list[str]:
    """All that the compiler's output holds against the kernels."""
    return [found for function in parse_ptxas(text) if (found := function.complaint())] + refused_lines(text)


def missing(functions: list[Function], archs: Sequence[str]) -> list[str]:
    """Architectures that a kernel was not compiled for; a table with holes proves nothing."""
    expected = {"sm_" + arch.removesuffix("+PTX").replace(".", "") for arch in archs}
    kernels = [function for function in functions if function.registers is not None]
    if not kernels:
        return ["expected ptxas to report kernels, got none"]
    found: list[str] = []
    for name in sorted({kernel.name for kernel in kernels}):
        lacking = expected - {kernel.arch for kernel in kernels if kernel.name == name}
        if lacking:
            found.append(f"{name}: expected code for {', '.join(sorted(expected))}, got none for {sorted(lacking)}")
    return found


def wrong_libraries(dynamic: str) -> list[str]:
    """Libraries that a binary needs and must not, from the output of ``readelf -d``."""
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic)
    if not needed:
        return ["NEEDED: expected at least libc, got no list of libraries"]
    return [f"NEEDED: expected only libc's, libstdc++ and torch's, got {x}" for x in needed if not NEEDED.fullmatch(x)]


def wrong_symbols(undefined: str) -> list[str]:
    """Symbols that a binary imports and must not, from the output of ``nm -DC --undefined-only``."""
    found: list[str] = []
    for line in undefined.splitlines():
        match = re.match(r"\s*[UwvV]\s+(.+?)(@\S+)?$", line)
        if match and (PYTHON.fullmatch(match[1]) or UNSTABLE.search(match[1])):
            found.append(f"symbols: expected C shims of torch only, got {match[1]}")
    return found


# Operators that Python puts together from others.
IN_PYTHON = {"jpu_cuda::trained_pyramid", "jpu_cuda::trained_pyramid_backward"}


def wrong_operators(output: str, folder: Path) -> list[str]:
    """What the fresh process said that it must not."""
    # Libraries may print lines of their own.
    place, status, *operators = [line.removeprefix("gate: ") for line in output.splitlines() if line[:6] == "gate: "]
    found: list[str] = []
    if not Path(place).is_relative_to(folder):
        found.append(f"import: expected the package that was built, in {folder}, got {place}")
    if status.split()[0] != "available":
        found.append(f"load: expected the kernels, got: {status.partition(' ')[2]}")
    if not operators:
        found.append("operators: expected some in jpu_cuda::, got none")
    for line in operators:
        name, value = line.split()
        if name == "undefined":
            found.append(f"operators: expected {value} to be defined in Python, got a kernel alone")
        elif value != "True" and name not in IN_PYTHON:
            found.append(f"operators: expected a CUDA kernel of {name}, got none")
    return found


def call(command: list[str], **options: object) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)  # type: ignore[call-overload]
    if done.returncode != 0:
        # What ptxas says of the kernels that did compile would bury the error.
        lines = [line for line in done.stdout.splitlines() if not re.match(r"ptxas info|\s+\d+ bytes stack", line)]
        text = "\n".join(lines)[-6000:]
        raise GateError(f"{' '.join(command[:4])} … failed ({done.returncode}):\n{text}")
    return str(done.stdout)


def toolkit(setup: dict) -> dict[str, str]:
    """Environment in which setup.py finds nvcc >= 13.0; installs one from packages where there is none."""
    nvcc = setup["find_nvcc"]()
    if nvcc is not None and setup["numbers"](setup["cuda_version"](nvcc)) >= OLDEST_NVCC:
        return {}
    home = NVCC_FOLDER / "nvidia" / "cu13"
    if not (home / "bin" / "nvcc").exists():
        print(f"no nvcc >= 13.0 here: installing one into {NVCC_FOLDER.relative_to(ROOT)}", flush=True)
        shutil.rmtree(NVCC_FOLDER, ignore_errors=True)
        options = ["--quiet", "--no-deps", "--target", str(NVCC_FOLDER)]
        call([sys.executable, "-m", "pip", "install", *options, *NVCC_PACKAGES])
    return {"CUDA_HOME": str(home)}


def build(environment: dict[str, str]) -> tuple[str, Path]:
    """Builds the wheel as a user would; returns the compilers' output and the folder of the built package."""
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    steps = ["build", "--build-base", str(OUT), "bdist_wheel", "--skip-build", "--dist-dir", str(OUT / "dist")]
    command = [sys.executable, "-W", "ignore", "setup.py", *steps]
    text = call(command, cwd=ROOT, env={**os.environ, **environment, "NVCC_APPEND_FLAGS": "-Xptxas -v"})
    (OUT / "build.log").write_text(text)
    return text, next(OUT.glob("lib*"))


def demangled(names: list[str]) -> dict[str, str]:
    filters = [found for name in ("cu++filt", "c++filt") if (found := shutil.which(name))]
    if not filters or not names:
        return {name: name for name in names}
    texts = call([filters[0], *names]).splitlines()
    return {name: _short(text) for name, text in zip(names, texts, strict=True)}


def _short(text: str) -> str:
    """Without return type and arguments, which repeat what the template's arguments say."""
    text = text.removeprefix("void ")
    depth = 0
    for i, letter in enumerate(text):
        depth += {"<": 1, ">": -1}.get(letter, 0)
        if letter == "(" and depth == 0 and not text.startswith("(anonymous namespace)", i):
            return text[:i]
    return text


def show(functions: list[Function], names: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("kernel", "arch", title="ptxas")
    for column in ("registers", "shared", "stack", "spill stores", "spill loads"):
        table.add_column(column, justify="right")
    for function in sorted(functions, key=lambda f: (names[f.name], int(re.sub(r"\D", "", f.arch) or 0))):
        counts = (function.shared, function.stack, function.spill_stores, function.spill_loads)
        registers = "–" if function.registers is None else str(function.registers)
        style = "red" if function.complaint() else None
        table.add_row(names[function.name], function.arch, registers, *map(str, counts), style=style)
    # In a log there is no terminal whose width would cut names.
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def inspect(folder: Path) -> Iterator[str]:
    """Complaints about the binary and the wheel."""
    binary = folder / "jpu_cuda" / "_kernels.abi3.so"
    wheels = [path.name for path in (OUT / "dist").iterdir()]
    if len(wheels) != 1 or "-cp310-abi3-" not in wheels[0]:
        yield f"wheel: expected one with the tag cp310-abi3, got {wheels}"
    yield from wrong_libraries(call(["readelf", "-dW", str(binary)]))
    yield from wrong_symbols(call(["nm", "-DC", "--undefined-only", str(binary)]))
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    # Not from the root of the checkout, whose package would come first.
    output = call([sys.executable, "-W", "ignore", "-c", LOAD], cwd=OUT, env=environment)
    yield from wrong_operators(output, folder)
    print(output, end="")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", default=ARCHS, help="as in TORCH_CUDA_ARCH_LIST (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilers at a time")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    setup = runpy.run_path(str(ROOT / "setup.py"))
    if not setup["kernel_sources"]():
        raise GateError("expected kernels in csrc/*/*.cu, got none")
    archs = setup["parse_archs"](options.archs)
    switches = {"JPU_CUDA_KERNELS": "on", "TORCH_CUDA_ARCH_LIST": ";".join(archs), "MAX_JOBS": str(options.jobs)}
    text, folder = build({**switches, **toolkit(setup)})
    functions = parse_ptxas(text)
    names = demangled(sorted({function.name for function in functions}))
    show(functions, names)
    found = [*complaints(text), *missing(functions, archs), *inspect(folder)]
    for line in found:
        print("refused: " + re.sub(r"\b_Z\w+", lambda match: names.get(match[0], match[0]), line))
    print(f"compile gate: {len(found)} complaints, {time.monotonic() - started:.0f} s")
    return 1 if found else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GateError as error:
        sys.exit(f"compile gate: {error}")
