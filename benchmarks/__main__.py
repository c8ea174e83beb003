"""Command line of the benchmarks; without a subcommand it measures the paper's Table 2."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from . import (
    cases,
    ceilings,
    chart,
    compare,
    demo,
    environment,
    inference,
    inference_chart,
    inference_report,
    launches,
    report,
    results,
    session,
    table2,
    targets,
    training,
    training_chart,
    training_report,
    training_workloads,
    workloads,
)
from .arguments import device, positive_float, positive_int, shape
from .hopper import bench as hopper
from .hopper import program as hopper_program
from .hopper import report as hopper_report
from .providers import DEFAULT, PROVIDERS, TRAINING, TRAINING_DEFAULT
from .results import ResultsError, Row
from .runner import Outcome

_RESULTS = Path(__file__).resolve().parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand.

    Returns:
        0; 1 where a case failed, a run regressed or a check did not hold; 2 for input that cannot be
        used; 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments.insert(0, "table2")
    options = _parser().parse_args(arguments)
    try:
        code: int = options.command(options)
    except ResultsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return code


def _console() -> Console:
    # Where output is no terminal, rich would squeeze a table into 80 columns.
    return Console() if sys.stdout.isatty() else Console(width=200)


def _table2(options: argparse.Namespace) -> int:
    console = _console()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    selected = [
        case
        for layout in options.formats
        for batch in options.batches
        for case in cases.select(
            options.backbones,
            options.heads,
            options.upsamplings,
            size=options.size,
            batch=batch,
            dtype=options.dtype,
            memory_format=layout,
        )
    ]
    limits = options.seconds, options.output, console, options.budget or math.inf, options.resume
    outcome = table2.run(selected, options.providers, options.device, *limits)
    return _show_run(options, console, outcome, report.table2, chart.draw)


def _show_failures(outcome: Outcome) -> None:
    for label, reason in outcome.failures:
        print(f"failed: {label}: {reason}", file=sys.stderr)


def _inference(options: argparse.Namespace) -> int:
    selected = workloads.select(options.parts, options.shapes, options.batches, options.dtypes, options.channels)
    return _timings(options, inference.run, selected, inference_report.table, inference_chart.draw)


def _training(options: argparse.Namespace) -> int:
    batches = options.batches or training_workloads.BATCHES[options.device.type]
    what = options.parts, options.shapes, batches, options.dtypes, options.norms, options.channels
    selected = training_workloads.select(*what)
    return _timings(options, training.run, selected, training_report.table, training_chart.draw)


def _timings(
    options: argparse.Namespace,
    run: Callable[..., Outcome],
    selected: Sequence[Any],
    table: Callable[[list[Row]], report.Report],
    draw: Callable[[list[Row], Path], None],
) -> int:
    console = _console()
    limits = options.seconds, options.budget
    outcome = run(selected, options.providers, options.device, *limits, options.output, console, options.resume)
    return _show_run(options, console, outcome, table, draw)


def _show_run(
    options: argparse.Namespace,
    console: Console,
    outcome: Outcome,
    table: Callable[[list[Row]], report.Report],
    draw: Callable[[list[Row], Path], None],
) -> int:
    """Table and chart of a run, why jobs were skipped, and what failed; returns the exit code."""
    if any(row.metric == "latency" and not ceilings.is_ceiling(row) for row in outcome.rows):
        console.print(table(outcome.rows).to_rich())
        path = options.chart or options.output.with_suffix(".png")
        try:
            draw(outcome.rows, path)
            where = str(path)
        except ResultsError as error:
            where = f"none ({error})"
        console.print(f"rows: {options.output}\nchart: {where}", highlight=False, markup=False, soft_wrap=True)
    session.summary(outcome.skipped, print)
    _show_failures(outcome)
    return outcome.code


def _launches(options: argparse.Namespace) -> int:
    console = _console()
    what = options.parts, options.shape, options.batch, options.dtype, options.channels
    record = launches.make_once if options.once else launches.record
    outcome = launches.run(*what, options.device, options.output, console, record)
    if outcome.rows:
        console.print(launches.table(outcome.rows).to_rich())
        print(f"rows: {options.output}")
    session.summary(outcome.skipped, print)
    _show_failures(outcome)
    return outcome.code


def _compare(options: argparse.Namespace) -> int:
    old_run, new_run = options.run or ("last", "last")
    old_rows = results.read(options.old)
    if options.new is not None:
        new_rows = results.read(options.new)
    else:
        new_rows = old_rows
        if options.run is None:
            old_run, new_run = _last_two(old_rows, options.old)
    old, new = results.pick_run(old_rows, old_run), results.pick_run(new_rows, new_run)
    changes = compare.compare(old, new, options.threshold, options.across_devices)
    _console().print(compare.render(changes, old, new))
    counts = {verdict: sum(c.verdict == verdict for c in changes) for verdict in compare.VERDICTS}
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count))
    return 1 if any(change.fails for change in changes) else 0


def _last_two(rows: Sequence[Row], path: Path) -> tuple[str, str]:
    names = list(results.runs(rows))
    if len(names) < 2:
        raise ResultsError(f"{path}: expected two runs to compare, got {len(names)}")
    return names[-2], names[-1]


def _table(options: argparse.Namespace) -> int:
    rows = results.pick_run(results.read(options.file), options.run)
    cases = [row.case for row in rows]
    if any(hopper_report.is_hopper(row) for row in rows):
        _show(hopper_report.tables(rows), options.markdown)
        return 0
    if all(map(launches.is_launch, rows)):
        rendered = launches.table(rows)
    elif any("norms" in case for case in cases):
        rendered = training_report.table(rows)
    elif any("part" in case or "ceiling" in case for case in cases):
        rendered = inference_report.table(rows)
    else:
        rendered = report.table2(rows)
    _show([rendered], options.markdown)
    return 0


def _targets(options: argparse.Namespace) -> int:
    found = targets.evaluate(targets.read(options.folder))
    rendered = targets.table(found, environment.source_hash())
    _show([rendered], options.markdown)
    return 1 if any(target.missed for target in found) else 0


def _show(reports: Sequence[report.Report], markdown: bool) -> None:
    for rendered in reports:
        if markdown:
            print(rendered.to_markdown(), end="")
        else:
            _console().print(rendered.to_rich())


def _hopper(options: argparse.Namespace) -> int:
    if options.budgets:
        _show(hopper_report.tables([]), options.markdown)
        return 0
    try:
        if options.build:
            print(hopper_program.build())
            return 0
        console = _console()
        limits = options.seconds, options.budget
        outcome = hopper.run(options.parts, options.device, *limits, options.output, console, options.check)
    except hopper_program.ProgramError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if outcome.rows:
        _show(hopper_report.tables(outcome.rows), options.markdown)
        console.print(f"rows: {options.output}", highlight=False, markup=False, soft_wrap=True)
    session.summary(outcome.skipped, print)
    _show_failures(outcome)
    return outcome.code


def _source_hash(options: argparse.Namespace) -> int:
    print(environment.source_hash())
    return 0


def _demo(options: argparse.Namespace) -> int:
    return demo.run(options.output, _console(), options.budget)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    _add_table2(commands.add_parser("table2", help="measure the paper's Table 2 (the default)"))

    _add_inference(commands.add_parser("inference", help="measure branches, JPU and FastFCN by every provider"))

    _add_training(commands.add_parser("training", help="measure forward and backward, and a step, by every provider"))

    _add_launches(commands.add_parser("launches", help="time every launch of a call by itself; needs a GPU"))

    _add_hopper(commands.add_parser("hopper", help="microbenchmarks on compute capability 9.0; docs/hopper.md"))

    compare_ = commands.add_parser("compare", help="hold two runs against each other; fails on a regression")
    compare_.add_argument("old", type=Path, help="file of rows; its last run is taken")
    compare_.add_argument(
        "new", type=Path, nargs="?", help="likewise; without it the last two runs of OLD are compared"
    )
    compare_.add_argument(
        "--threshold",
        type=positive_float,
        default=0.1,
        help="share that a value may be worse by (%(default)s)",
    )
    compare_.add_argument(
        "--run", nargs=2, metavar=("OLD", "NEW"), help="times of the runs, or their beginnings, or 'last'"
    )
    compare_.add_argument("--across-devices", action="store_true", help="compare different devices' runs")
    compare_.set_defaults(command=_compare)

    table_ = commands.add_parser("table", help="render a run that was measured before")
    table_.add_argument("file", type=Path, help="file of rows")
    table_.add_argument("--run", default="last", help="time of the run, or its beginning (%(default)s)")
    table_.add_argument("--markdown", action="store_true", help="as the README shows it")
    table_.set_defaults(command=_table)

    targets_ = commands.add_parser("targets", help="hold the last runs against what they should show; fails on a miss")
    targets_.add_argument("folder", type=Path, nargs="?", default=_RESULTS, help="of rows (%(default)s)")
    targets_.add_argument("--markdown", action="store_true", help="as documents show it")
    targets_.set_defaults(command=_targets)

    source_hash = commands.add_parser("source-hash", help="print the hash of kernel sources and build flags")
    source_hash.set_defaults(command=_source_hash)

    demo_ = commands.add_parser("demo", help="check, measure and show everything in under three minutes")
    demo_.add_argument("--output", type=Path, default=Path("out"), help="folder to write to (%(default)s)")
    demo_.add_argument(
        "--budget",
        type=positive_float,
        default=160.0,
        help="seconds in which the last case should end (%(default)s)",
    )
    demo_.set_defaults(command=_demo)
    return parser


def _add_table2(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbones", nargs="+", metavar="NAME", help="default: resnet50 resnet101; timm's names too")
    parser.add_argument("--heads", nargs="+", choices=list(cases.HEADS), help="default: the table's")
    parser.add_argument(
        "--upsamplings", nargs="+", choices=list(cases.UPSAMPLINGS), help="default: the table's for each head"
    )
    parser.add_argument("--size", type=positive_int, default=512, help="height and width (%(default)s)")
    parser.add_argument("--batches", nargs="+", type=positive_int, default=[1], help="images at once (1)")
    parser.add_argument("--dtype", choices=cases.DTYPES, default="float32")
    parser.add_argument("--formats", nargs="+", choices=cases.MEMORY_FORMATS, default=["contiguous"], help="of memory")
    parser.add_argument("--threads", type=positive_int, help="CPU threads (PyTorch's choice)")
    providers = [name for name, provider in PROVIDERS.items() if provider.products is None]
    parser.add_argument("--providers", nargs="+", choices=providers, default=["reference"], metavar="NAME")
    _add_run(parser, "table2", seconds=10.0, budget=None)
    parser.set_defaults(command=_table2)


def _add_inference(parser: argparse.ArgumentParser) -> None:
    images = "512×512, 480×480, 512×1024 and 1024×2048"
    _add_timings(parser, "inference", workloads.PARTS, workloads.SHAPES, images, PROVIDERS, DEFAULT)
    parser.add_argument("--batches", nargs="+", type=positive_int, default=list(workloads.BATCHES))
    parser.add_argument("--dtypes", nargs="+", choices=list(workloads.DTYPES), default=["bfloat16"])
    parser.set_defaults(command=_inference)


def _add_training(parser: argparse.ArgumentParser) -> None:
    known = training_workloads
    _add_timings(parser, "training", known.PARTS, known.SHAPES, "480×480", TRAINING, TRAINING_DEFAULT)
    defaults = "; ".join(f"{' '.join(map(str, batches))} on {kind}" for kind, batches in known.BATCHES.items())
    parser.add_argument("--batches", nargs="+", type=positive_int, help=f"images at once ({defaults})")
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=known.TRAINED_DTYPES,
        default=["bfloat16", "tf32"],
        help="bfloat16 is autocast, with weights in float32",
    )
    parser.add_argument(
        "--norms", nargs="+", choices=known.NORMS, default=list(known.NORMS), help="frozen ones of branches only"
    )
    parser.set_defaults(command=_training)


def _add_launches(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parts", nargs="+", choices=launches.PARTS, default=list(launches.PARTS))
    parser.add_argument("--shape", type=shape, metavar="HxW", help="at stride 8 (64x64; of training 60x60)")
    parser.add_argument("--batch", type=positive_int, default=16, help="images at once (%(default)s)")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "tf32"), default="bfloat16")
    parser.add_argument("--channels", type=positive_int, default=workloads.CHANNELS, help="of the JPU (%(default)s)")
    parser.add_argument("--device", type=device, default="auto", help="as of table2")
    parser.add_argument(
        "--output", type=Path, default=_RESULTS / "launches.jsonl", help="rows are appended here (%(default)s)"
    )
    parser.add_argument("--once", action="store_true", help="make each call once and time nothing: for ncu, say")
    parser.set_defaults(command=_launches)


def _add_hopper(parser: argparse.ArgumentParser) -> None:
    parser.description = "Products, bulk copies and the depthwise at once; tiles of every d-th pixel: docs/hopper.md"
    parts = hopper_program.PARTS
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts), help="the most important first")
    parser.add_argument("--device", type=device, default="auto", help="as of table2")
    parser.add_argument("--seconds", type=positive_float, default=0.2, help="for timing each case (%(default)s)")
    parser.add_argument(
        "--budget", type=positive_float, default=40.0, help="seconds in which the last should begin (%(default)s)"
    )
    parser.add_argument("--check", action="store_true", help="hold every case to the host's numbers, time none")
    parser.add_argument("--build", action="store_true", help="build the program and say where it is; needs no GPU")
    parser.add_argument("--budgets", action="store_true", help="show the budgets alone; needs no GPU")
    parser.add_argument("--markdown", action="store_true", help="tables as documents show them")
    parser.add_argument(
        "--output", type=Path, default=_RESULTS / "hopper.jsonl", help="rows are appended here (%(default)s)"
    )
    parser.set_defaults(command=_hopper)


def _add_timings(
    parser: argparse.ArgumentParser,
    name: str,
    parts: Iterable[str],
    shapes: Iterable[tuple[int, int]],
    images: str,
    providers: Iterable[str],
    default: Iterable[str],
) -> None:
    """What benchmarks of timings have in common."""
    parser.description = "A budget may cut a run, so the most important comes first: in the order given here."
    parser.add_argument("--parts", nargs="+", choices=list(parts), default=list(parts))
    parser.add_argument(
        "--shapes",
        nargs="+",
        type=shape,
        default=list(shapes),
        metavar="HxW",
        help=f"sizes at stride 8 (those of images of {images})",
    )
    parser.add_argument("--channels", type=positive_int, default=workloads.CHANNELS, help="of the JPU (%(default)s)")
    parser.add_argument(
        "--providers",
        nargs="+",
        choices=list(providers),
        default=list(default),
        metavar="NAME",
        help=f"of {', '.join(providers)} (all but host)",
    )
    _add_run(parser, name, seconds=0.2, budget=540.0)


def _add_run(parser: argparse.ArgumentParser, name: str, seconds: float, budget: float | None) -> None:
    """What all that measures has in common."""
    parser.add_argument(
        "--device", type=device, default="auto", help="cpu, cuda, cuda:1, … or auto (a GPU if there is one)"
    )
    parser.add_argument("--seconds", type=positive_float, default=seconds, help="for timing each (%(default)s)")
    parser.add_argument(
        "--budget", type=positive_float, default=budget, help="seconds in which the last should end (%(default)s)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the last run of the output")
    parser.add_argument(
        "--output", type=Path, default=_RESULTS / f"{name}.jsonl", help="rows are appended here (%(default)s)"
    )
    parser.add_argument("--chart", type=Path, help="image to write (the output with the suffix .png)")


if __name__ == "__main__":
    sys.exit(main())
