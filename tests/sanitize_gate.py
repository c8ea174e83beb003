"""Runs the kernels on the CPU under AddressSanitizer and UndefinedBehaviorSanitizer; fails on any report.

``make sanitize``; needs no GPU. They watch what our own shadow memory does not: the launchers, the
bindings and the runtime itself. Each run also builds copies with a known fault, which must be reported.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
TREE = ROOT / "out" / "sanitize"

_REPORT = re.compile(r"^==\d+==\s*ERROR: (.*)|^(\S+:\d+:\d+: runtime error: .*)", re.MULTILINE)

# A fault of the list of mutants, the check of the oracle that runs into it, and what must be reported.
PROOFS = [
    ("forward-elements-beyond", "forward_is_interpolate", "AddressSanitizer: heap-buffer-overflow"),
    ("path-misaligned-base", "any_strides_do", "misaligned address"),
]


class SanitizeError(Exception):
    """Compilers or checks failed, so that the sanitizers have not seen the kernels."""


@dataclass(frozen=True)
class Run:
    """How a check under the sanitizers ended."""

    code: int
    output: str

    @property
    def reports(self) -> list[str]:
        return [first or second for first, second in _REPORT.findall(self.output)]


def environment(libraries: Sequence[str]) -> dict[str, str]:
    """What a process needs that loads a library with sanitizers into an interpreter without."""
    return {
        **os.environ,
        "JPU_CUDA_HOST_CHECK": "address",
        "LD_PRELOAD": ":".join(libraries),
        # Python and torch keep memory until the end. Fibers have stacks of their own, which fake ones would hide.
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:strict_string_checks=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "PYTHONPATH": str(TESTS),
    }


def preloaded() -> list[str]:
    """The sanitizers' own libraries, which must come before all others.

    Raises:
        SanitizeError: g++ has none.
    """
    found = []
    for name in ("libasan.so", "libubsan.so"):
        done = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
        path = Path(done.stdout.strip())
        if not path.is_absolute():  # g++ repeats a name that it does not know
            raise SanitizeError(f"expected g++ to have {name}, got none")
        found.append(str(path))
    return found


def run(command: Sequence[str], limit: float) -> Run:
    """Runs Python under the sanitizers."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment(preloaded()),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=limit,
        check=False,
    )
    return Run(done.returncode, done.stdout)


def complaint(done: Run) -> str | None:
    """What a run of sound sources must not have said."""
    if done.reports:
        return "expected no report, got " + "; ".join(done.reports) + "\n" + done.output[-6000:]
    if done.code != 0:
        return f"expected the checks to pass, got exit status {done.code}\n{done.output[-3000:]}"
    return None


def missed(done: Run, expected: str) -> str | None:
    """What is wrong where a fault was put in; None if it was reported."""
    if any(expected in report for report in done.reports):
        return None
    return f"expected a report of {expected!r}, got {done.reports or f'none, exit status {done.code}'}"


def main(arguments: list[str] | None = None) -> int:
    sys.path.insert(0, str(TESTS))
    from mutants.trial import Tree
    from mutants.upsample_concat import FAULTS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", nargs="*", help="what pytest runs beside the oracle; nothing if left out")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilers at a time")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    tree = Tree(TREE, "address", options.jobs)
    wrong: list[str] = []

    def build() -> None:
        if (error := tree.build()) is not None:
            raise SanitizeError(f"expected the sources to build, got {error}")

    tree.restore()
    build()
    print(f"sanitize: built, {time.monotonic() - started:.0f} s", flush=True)
    found = complaint(run(["-m", "mutants.oracle", "--library", str(tree.library)], 600))
    wrong += [f"oracle: {found}"] if found else []
    if options.tests:
        command = ["-m", "mutants.run_pytest", str(tree.library), "-q", "-p", "no:cacheprovider", *options.tests]
        found = complaint(run(command, 1800))
        wrong += [f"tests: {found}"] if found else []
    for name, check, expected in PROOFS:
        tree.restore()
        tree.apply(next(fault for fault in FAULTS if fault.name == name))
        build()
        command = ["-m", "mutants.oracle", "--library", str(tree.library), "--only", check]
        found = missed(run(command, 600), expected)
        wrong += [f"{name}: {found}"] if found else []
        print(f"sanitize: {name} is {'not ' if found else ''}reported", flush=True)
    for line in wrong:
        print(f"refused: {line}")
    print(f"sanitize: {len(wrong)} complaints, {time.monotonic() - started:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SanitizeError as error:
        sys.exit(f"sanitize: {error}")
