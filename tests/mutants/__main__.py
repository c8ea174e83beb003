"""Puts each fault into the kernels, builds them for execution on the CPU, and looks whether a check notices.

``make mutants``; needs no GPU. Fails when less than 95 % of the faults are caught, and when an entry no
longer applies to the sources. Writes out/mutants.json.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import queue
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from jpu_cuda._source import source_hash

from . import (
    norm_relu,
    pyramid_matrix,
    pyramid_operands,
    pyramid_policy,
    separable_pyramid,
    training_depthwise,
    training_levels,
    training_norms,
    training_products,
    training_rows,
    upsample_concat,
    upsample_fold,
)
from .faults import DoesNotApply, Fault
from .trial import ROOT, Check, Tree, TrialError, Verdict, accept_original, try_fault

OUT = ROOT / "out"
FAULTS = [
    *upsample_concat.FAULTS,
    *upsample_fold.FAULTS,
    *norm_relu.FAULTS,
    *training_rows.FAULTS,
    *separable_pyramid.FAULTS,
    *pyramid_operands.FAULTS,
    *pyramid_matrix.FAULTS,
    *pyramid_policy.FAULTS,
    *training_norms.FAULTS,
    *training_depthwise.FAULTS,
    *training_levels.FAULTS,
    *training_products.FAULTS,
]
LEAST_CAUGHT = 0.95
TEST_FILES = (
    "test_upsample_concat.py",
    "test_upsample_concat_limits.py",
    "test_upsample_fold.py",
    "test_norm_relu.py",
    "test_training_norms.py",
    "test_training_norms_refusals.py",
    "test_training_rows.py",
)

ORACLE = Check("oracle", ["-m", "mutants.oracle", "--library", "LIBRARY"], 300)


def tests_check() -> Check:
    """The operators' tests of values, accesses and refusals; those of autograd and compilers take minutes."""
    files = [f"tests/{name}" for name in TEST_FILES]
    command = ["-m", "mutants.run_pytest", "LIBRARY", "-x", "-q", "-p", "no:cacheprovider", *files]
    return Check("tests", command, 900)


def run(faults: Sequence[Fault], checks: Sequence[Check], jobs: int, console: Console) -> list[Verdict]:
    """Tries all faults, in as many copies of the sources as there are jobs."""
    # One after the other in a file, so that what it leaves to compile again is compiled with the next.
    order = sorted(faults, key=lambda fault: fault.file)
    trees: queue.SimpleQueue[Tree] = queue.SimpleQueue()
    copies = [Tree(OUT / "mutants" / f"tree{i}") for i in range(max(1, min(jobs, len(order))))]

    def attempt(fault: Fault) -> Verdict:
        tree = trees.get()
        try:
            return try_fault(tree, fault, checks)
        finally:
            trees.put(tree)

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    verdicts: list[Verdict] = []
    with Progress(*columns, console=console) as progress, ThreadPoolExecutor(len(copies)) as pool:
        task = progress.add_task("without faults", total=len(order))
        for done in [pool.submit(accept_original, tree, checks if tree is copies[0] else ()) for tree in copies]:
            done.result()
        for tree in copies:
            trees.put(tree)
        pending = [pool.submit(attempt, fault) for fault in order]
        try:
            for done in as_completed(pending):
                verdict = done.result()
                verdicts.append(verdict)
                progress.update(task, advance=1, description=verdict.fault.name)
                if not verdict.caught:
                    progress.console.print(f"[red]not caught:[/red] {verdict.fault.name} {verdict.message}")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    position = {fault.name: i for i, fault in enumerate(faults)}
    return sorted(verdicts, key=lambda verdict: position[verdict.fault.name])


def report(verdicts: Sequence[Verdict], seconds: float, console: Console) -> dict[str, Any]:
    """Prints who caught what and what nobody did; returns what goes into the file."""
    caught = [verdict for verdict in verdicts if verdict.caught]
    table = Table("caught by", "how", title="faults")
    table.add_column("number", justify="right")
    for (by, how), number in sorted(Counter((v.by, v.how) for v in caught).items()):
        table.add_row(by, how, str(number))
    console.print(table)
    survivors = [verdict for verdict in verdicts if not verdict.caught]
    if survivors:
        table = Table("not caught", "file", "what is wrong then", "error of the check", title="survivors")
        for verdict in survivors:
            table.add_row(verdict.fault.name, verdict.fault.file, verdict.fault.breaks, verdict.message)
        console.print(table)
    share = len(caught) / len(verdicts) if verdicts else 1.0
    console.print(f"mutants: {len(caught)} of {len(verdicts)} caught ({share:.1%}), {seconds:.0f} s", highlight=False)
    return {
        "source_hash": source_hash(ROOT),
        "caught": len(caught),
        "total": len(verdicts),
        "seconds": round(seconds, 1),
        "faults": [verdict.row() for verdict in verdicts],
    }


def chosen(patterns: Sequence[str]) -> list[Fault]:
    """The faults that any of the patterns names; all without patterns.

    Raises:
        TrialError: a pattern names none.
    """
    if not patterns:
        return FAULTS
    for pattern in patterns:
        if not fnmatch.filter([fault.name for fault in FAULTS], pattern):
            raise TrialError(f"--only: expected the name of a fault, got {pattern!r}")
    return [fault for fault in FAULTS if any(fnmatch.fnmatch(fault.name, pattern) for pattern in patterns)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="faults at a time")
    parser.add_argument("--only", action="append", default=[], help="a name, which may hold *; several times for more")
    parser.add_argument("--skip", choices=("oracle", "tests"), help="leave one of the two checks out")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    console = Console(width=None if sys.stdout.isatty() else 160)
    faults = chosen(options.only)
    for fault in faults:
        fault.apply((ROOT / "csrc" / fault.file).read_text())  # all of them, before an hour is spent on the first
    checks = [check for check in (ORACLE, tests_check()) if check.name != options.skip]
    verdicts = run(faults, checks, options.jobs, console)
    result = report(verdicts, time.monotonic() - started, console)
    OUT.mkdir(exist_ok=True)
    Path(OUT / "mutants.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0 if result["caught"] >= LEAST_CAUGHT * result["total"] else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (DoesNotApply, TrialError) as error:
        sys.exit(f"mutants: {error}")
