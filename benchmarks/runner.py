"""Runs measurements one after the other: one that fails does not cost the others, and Ctrl-C keeps what is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from . import results
from .results import Row

Tick = Callable[[float], None]


class Skipped(Exception):  # noqa: N818  no error: another machine, or more time, would do it
    """Why a job is not done here."""


@dataclass(frozen=True)
class Job:
    """One measurement.

    Attributes:
        label: names it for a reader.
        work: makes its rows, and tells the share of it that is done; raises :class:`Skipped` where it is not for
            this machine or this run.
    """

    label: str
    work: Callable[[Tick], list[Row]]


@dataclass
class Outcome:
    """What a run gave: rows, and the jobs that gave none with the reason.

    Attributes:
        rows: of the finished jobs.
        failures: (label, error) of each job that failed.
        skipped: (label, reason) of each job that was not begun.
        interrupted: whether Ctrl-C ended the run early.
    """

    rows: list[Row] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    interrupted: bool = False

    @property
    def code(self) -> int:
        """The exit code of a command that made this run."""
        if self.interrupted:
            return 130
        return 1 if self.failures else 0


def run(jobs: Sequence[Job], output: Path, console: Console, describe: Callable[[list[Row]], str]) -> Outcome:
    """Does all jobs; rows reach ``output`` as each is finished.

    Args:
        jobs: in this order.
        output: file to append to.
        console: where progress is shown: a bar on a terminal, a line for each finished or failed job anywhere.
        describe: what a finished job's line says of its rows.
    """
    outcome = Outcome()
    with _progress(console) as progress:
        whole = progress.add_task("cases", total=len(jobs))
        part = progress.add_task("")
        try:
            for job in jobs:
                progress.reset(part, total=1, description=job.label)
                try:
                    rows = job.work(partial(_show, progress, part))
                except Skipped as reason:
                    outcome.skipped.append((job.label, str(reason)))
                except Exception as error:  # out of memory, say: must not cost the other jobs
                    outcome.failures.append((job.label, f"{type(error).__name__}: {error}".splitlines()[0]))
                    console.print(Text(f"{job.label}: failed, {outcome.failures[-1][1]}", style="red"), soft_wrap=True)
                else:
                    results.append(output, rows)
                    outcome.rows += rows
                    console.print(Text(f"{job.label}: {describe(rows)}"), soft_wrap=True)
                progress.advance(whole)
        except KeyboardInterrupt:
            outcome.interrupted = True
            console.print(Text("interrupted; what was measured is kept", style="yellow"))
    return outcome


def _progress(console: Console) -> Progress:
    """Bars on a terminal, nothing elsewhere: a line for each job is printed anyway."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _show(progress: Progress, task: TaskID, done: float) -> None:
    progress.update(task, completed=done)
