"""The cost sheet: for every kernel and shape the floor, counted traffic, instructions and the time these take.

Nothing here needs a GPU. Counts come from executing the kernels on the CPU (pip install '.[host]'; the first run takes
minutes, later ones read what it kept in the cache), instructions from nvcc and nvdisasm. What is missing leaves its
columns out, and a line says why.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .. import environment
from . import sheet, training
from .binary import BinaryUnavailableError, Compiler
from .counts import Counter, count_samples
from .devices import DEVICES
from .kernels import KERNELS
from .work import BATCHES, ELEMENT_BYTES, SIZES, TRAINED_BATCHES, TRAINED_SIZES, select

_ROWS = list(dict.fromkeys(kernel.row for kernel in (*KERNELS, *training.KERNELS)))
_RESULTS = environment.ROOT / "benchmarks" / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the sheet; 0, or 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    device = DEVICES[options.device]
    chosen = _ROWS if options.kernels is None else options.kernels
    kernels, trained = ([k for k in listed if k.row in chosen] for listed in (KERNELS, training.KERNELS))
    works = select(options.shapes or SIZES, options.batch or BATCHES, options.dtype or list(ELEMENT_BYTES))
    trained_works = select(
        options.shapes or TRAINED_SIZES, options.batch or TRAINED_BATCHES, options.dtype or ["bfloat16"]
    )
    missing: list[str] = []
    # Beside the tables, which may be piped into a file.
    bar = _progress(Console(stderr=True))
    counting = bar.add_task(
        "", total=count_samples(kernels, works) + count_samples(trained, trained_works), visible=not options.no_counts
    )
    with bar if sys.stderr.isatty() else nullcontext():

        def tick(what: str) -> None:
            bar.update(counting, advance=1, description=what)

        counter = None if options.no_counts else Counter(tick=tick)
        compiler: Compiler | None = None
        if not options.no_binary:
            try:
                compiler = Compiler(tick=lambda what: bar.update(counting, description=what, visible=True))
            except BinaryUnavailableError as error:
                missing.append(f"not compiled: {error}")
        try:
            tools = counter, compiler, sheet.read_results(_RESULTS), environment.source_hash()
            found, reasons = sheet.lines(device, kernels, works, *tools)
            in_training, more = sheet.lines(device, trained, trained_works, *tools)
        except KeyboardInterrupt:
            return 130
    both = [*found, *in_training]
    reports = [sheet.times(device, found), sheet.training_times(device, in_training)]
    reports += [sheet.counted(both), sheet.binaries(device, both)]
    console = Console() if sys.stdout.isatty() else Console(width=220)
    for report in reports:
        if not report.lines:
            continue
        if options.markdown:
            print(report.to_markdown())
        else:
            console.print(report.to_rich())
    for reason in dict.fromkeys([*missing, *reasons, *more]):
        print(reason, file=sys.stderr)
    return 0


def _progress(console: Console) -> Progress:
    columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
    return Progress(*columns, console=console, transient=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.model", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device", choices=list(DEVICES), default="h100", help="whose figures are taken (default: %(default)s)"
    )
    parser.add_argument(
        "--dtype", nargs="+", choices=list(ELEMENT_BYTES), help="default: all of them; of training bfloat16"
    )
    parser.add_argument(
        "--batch", nargs="+", type=_positive_int, metavar="N", help="images; default: 1 4 16; of training 16"
    )
    parser.add_argument(
        "--shapes",
        nargs="+",
        type=_size,
        metavar="HxW",
        help=f"of the stride-8 map; default: {' '.join(f'{h}x{w}' for h, w in SIZES)}; of training 60x60",
    )
    parser.add_argument(
        "--kernels",
        nargs="+",
        choices=_ROWS,
        metavar="NAME",
        help="default: all; one or more of " + ", ".join(map(repr, _ROWS)),
    )
    parser.add_argument("--markdown", action="store_true", help="tables as the README shows them")
    parser.add_argument("--no-binary", action="store_true", help="do without nvcc: no instructions, no occupancy")
    parser.add_argument("--no-counts", action="store_true", help="do without host execution: floors and DRAM only")
    return parser


def _positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text!r}")
    return int(text)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)[x×]([1-9]\d*)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected height and width such as 64x64, got {text!r}")
    return int(match[1]), int(match[2])


if __name__ == "__main__":
    sys.exit(main())
