"""Measures which lines of the kernels host execution runs, and fails where a file has less than 95 %.

``make coverage``; needs no GPU. The kernels are compiled with gcov's counters, then the tests of the
operators run, then gcovr collects. Bodies for the GPU are never compiled here, so they count neither way:
they are listed instead.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
LEAST = 0.95
# Kernels of the product, and those of the tests, which alone use some headers so far.
TEST_FILES = (
    "test_upsample_concat.py",
    "test_upsample_fold.py",
    "test_norm_relu.py",
    "test_training_rows.py",
    "test_training_norms.py",
    "test_training_norms_refusals.py",
    "test_separable_pyramid.py",
    "test_separable_pyramid_matrix.py",
    "test_training_depthwise.py",
    "test_training_products.py",
    "test_upsample_concat_limits.py",
    "test_host_faults.py",
    "test_host_runtime.py",
    "test_host_matrix.py",
)

# True of a GPU's compiler, or of a binding for CUDA tensors.
_GPU = re.compile(r"(!?)\s*(?:JPU_CUDA|defined\s*\(?\s*(?:__CUDACC__|USE_CUDA)\s*\)?)")
_DIRECTIVE = re.compile(r"\s*#\s*(ifdef|ifndef|if|elif|else|endif)\b\s*(.*?)\s*(?://.*)?$")


class CoverageError(Exception):
    """Tests or tools failed, so that nothing can be said about the kernels."""


@dataclass(frozen=True)
class Range:
    """Lines that only a GPU's compiler reads, from the first to the last."""

    first: int
    last: int
    code: int  # lines of it that are neither empty nor comments


def gpu_ranges(text: str) -> list[Range]:
    """The bodies for the GPU in a source file.

    Raises:
        ValueError: conditionals that do not match, or that mix the GPU with something else.
    """
    lines = text.splitlines()
    ranges: list[Range] = []
    # For each open conditional: whether its condition is about the GPU, and whether the GPU's branch is open.
    stack: list[tuple[bool, bool]] = []
    first: int | None = None
    for number, line in enumerate(lines, start=1):
        match = _DIRECTIVE.match(line)
        if match is None:
            continue
        word, condition = match[1], match[2]
        if word in ("if", "ifdef", "ifndef"):
            stack.append(_opened(word, condition, number))
        elif not stack:
            raise ValueError(f"line {number}: expected an #if before #{word}, got none")
        elif word == "endif":
            stack.pop()
        else:
            about_gpu, open_ = stack[-1]
            if word == "elif" and (about_gpu or _GPU.search(condition)):
                raise ValueError(f"line {number}: expected #else after a condition on the GPU, got #elif")
            stack[-1] = (about_gpu, about_gpu and not open_)
        inside = any(open_ for _, open_ in stack)
        if inside and first is None:
            first = number + 1
        elif not inside and first is not None:
            if number > first:
                ranges.append(Range(first, number - 1, sum(map(_is_code, lines[first - 1 : number - 1]))))
            first = None
    if stack:
        raise ValueError(f"expected #endif for every #if, got {len(stack)} less")
    return ranges


def _opened(word: str, condition: str, number: int) -> tuple[bool, bool]:
    if word != "if":
        condition = ("!" if word == "ifndef" else "") + f"defined({condition})"
    match = _GPU.fullmatch(condition)
    if match is None:
        if _GPU.search(condition):
            raise ValueError(f"line {number}: expected a condition on the GPU alone, got {condition!r}")
        return False, False
    return True, match[1] == ""


def _is_code(line: str) -> bool:
    return bool(line.strip()) and not line.strip().startswith("//")


@dataclass
class Coverage:
    """What was executed of one file.

    Attributes:
        lines: how often each line was executed; templates added up.
        copies: the same for each line of each instantiation.
        gpu: what is compiled for GPUs only.
    """

    file: str
    lines: dict[int, int] = field(default_factory=dict)
    copies: dict[tuple[int, str], int] = field(default_factory=dict)
    gpu: list[Range] = field(default_factory=list)

    @property
    def share(self) -> float:
        return share(self.lines.values())

    @property
    def missing(self) -> list[int]:
        return sorted(line for line, count in self.lines.items() if count == 0)


def share(counts: Any) -> float:
    """Of counts, how many are not 0; all of none."""
    numbers = list(counts)
    return sum(count > 0 for count in numbers) / len(numbers) if numbers else 1.0


def read_gcovr(report: dict[str, Any], root: Path = ROOT) -> list[Coverage]:
    """Reads gcovr's JSON, and adds the files that no kernel includes."""
    found: dict[str, Coverage] = {}
    for entry in report["files"]:
        coverage = found.setdefault(entry["file"], Coverage(entry["file"]))
        for line in entry["lines"]:
            number, copy = line["line_number"], (line["line_number"], line.get("function_name", ""))
            coverage.lines[number] = coverage.lines.get(number, 0) + line["count"]
            coverage.copies[copy] = coverage.copies.get(copy, 0) + line["count"]
    for path in kernel_files(root):
        name = path.relative_to(root).as_posix()
        found.setdefault(name, Coverage(name)).gpu = gpu_ranges(path.read_text())
    return sorted(found.values(), key=lambda coverage: coverage.file)


def kernel_files(root: Path = ROOT) -> Iterator[Path]:
    """Headers of device/ and all of the ops' kernels; csrc/host is what runs them, and bindings hold none."""
    for folder in sorted((root / "csrc").iterdir()):
        if folder.name not in ("host", "binding"):
            yield from sorted(path for path in folder.glob("*") if path.suffix in (".h", ".cu"))


def complaints(files: Sequence[Coverage], least: float = LEAST) -> list[str]:
    """All that is below the bar; nothing measured is below it too."""
    if not any(file.lines for file in files):
        return ["expected executed lines, got none"]
    return [
        f"{file.file}: expected {least:.0%} of the lines, got {file.share:.1%}; never executed: "
        + ", ".join(map(str, file.missing))
        for file in files
        if file.share < least
    ]


def call(command: Sequence[str], what: str, **environment: str) -> None:
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise CoverageError(f"{what} failed ({done.returncode}):\n{done.stdout[-6000:]}")


def measure(tests: Sequence[str]) -> list[Coverage]:
    """Builds with counters, runs the oracle and the tests, and collects."""
    from jpu_cuda import host

    objects = [host.build("coverage", faulty=faulty).parent / "build" for faulty in (False, True)]
    for folder in objects:
        for path in folder.rglob("*.gcda"):  # of an earlier run
            path.unlink()
    environment = {"JPU_CUDA_HOST_CHECK": "coverage", "PYTHONPATH": str(TESTS)}
    call([sys.executable, "-m", "mutants.oracle"], "the oracle", **environment)
    if tests:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "2", *tests]
        call(command, "the tests", **environment)
    report = ROOT / "out" / "coverage.json"
    report.parent.mkdir(exist_ok=True)
    filters = [part for path in kernel_files() for part in ("--filter", re.escape(str(path)))]
    command = [sys.executable, "-m", "gcovr", "--root", str(ROOT), *filters]
    # One file's lines are those of several objects, and of several instantiations in each.
    options = ["--merge-mode-functions", "separate", "--json", str(report)]
    call([*command, *options, *map(str, objects)], "gcovr")
    return read_gcovr(json.loads(report.read_text()))


def show(files: Sequence[Coverage]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("file", title="lines of kernels in host execution")
    for column in ("lines", "executed", "share", "share of each dtype's copies", "lines for GPUs only"):
        table.add_column(column, justify="right")
    for file in files:
        if not file.lines and not file.gpu:
            continue  # declarations and constants only
        executed = sum(count > 0 for count in file.lines.values())
        shares = (f"{file.share:.1%}", f"{share(file.copies.values()):.1%}") if file.lines else ("–", "–")
        counts = (str(len(file.lines)), str(executed), *shares, str(sum(r.code for r in file.gpu)))
        table.add_row(file.file, *counts, style="red" if file.share < LEAST else None)
    every = {(file.file, line): count for file in files for line, count in file.lines.items()}
    copies = [count for file in files for count in file.copies.values()]
    executed = sum(count > 0 for count in every.values())
    gpu = sum(r.code for file in files for r in file.gpu)
    table.add_section()
    table.add_row(
        "all", str(len(every)), str(executed), f"{share(every.values()):.1%}", f"{share(copies):.1%}", str(gpu)
    )
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    print(f"never compiled here, since only GPUs run it ({gpu} lines):")
    for file in files:
        for r in file.gpu:
            print(f"  {file.file}:{r.first}-{r.last}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", nargs="*", help="what pytest runs; the tests of kernels if left out")
    parser.add_argument("--oracle-only", action="store_true", help="leave pytest out")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    found = [f"tests/{name}" for name in TEST_FILES]
    files = measure([] if options.oracle_only else options.tests or found)
    show(files)
    wrong = complaints(files)
    for line in wrong:
        print(f"refused: {line}")
    print(f"coverage: {len(wrong)} complaints, {time.monotonic() - started:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CoverageError as error:
        sys.exit(f"coverage: {error}")
