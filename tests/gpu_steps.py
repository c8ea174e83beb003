"""Runs commands one after the other inside a span of time, each with its own share and a hard stop."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

TAIL_LINES = 40
# Between the interrupt, after which pytest and others still say what they have, and the kill.
GRACE = 5.0
LEAST_SECONDS = 1.0  # with less left, a step is not begun

Outcome = tuple[str | None, dict[str, Any]]  # a complaint, and what was measured


class Unable(Exception):  # noqa: N818  says nothing against what was to be checked
    """Raised by a judge whose tool cannot work on this machine, with the reason."""


def by_exit_code(code: int, log: str) -> Outcome:
    """A command fails where its exit code is not 0."""
    return (None if code == 0 else f"exit code {code}"), {}


@dataclass(frozen=True)
class Step:
    """One command of the check.

    Attributes:
        name: as the record has it.
        command: program and arguments; ``{seconds}`` stands for a time in which it can end by itself.
        share: of the time that is left, in proportion to the shares of this step and those after it; of steps that run
            together the greatest counts.
        environment: variables beside those of this process.
        needs: names of steps that must have passed.
        skip: why it cannot run here; None if it can.
        beside: whether it runs at the same time as the step before it.
        judge: told the exit code and the log; a complaint makes the step fail, and so does an exception but
            :class:`Unable`. If it measured "errors" or "failures", the step failed even where its time was up first.
    """

    name: str
    command: Sequence[str]
    share: float
    environment: Mapping[str, str] = field(default_factory=dict)
    needs: Sequence[str] = ()
    skip: str | None = None
    beside: bool = False
    judge: Callable[[int, str], Outcome] = by_exit_code


@dataclass
class Result:
    """What became of a step; ``status`` is passed, failed, timed out, interrupted or skipped."""

    name: str
    status: str
    reason: str = ""
    seconds: float = 0.0
    limit: float = 0.0
    measured: dict[str, Any] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)  # its last lines

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "seconds": round(self.seconds, 1), "limit": round(self.limit, 1)}


Tick = Callable[[Step, float, float, str], None]  # step, seconds, limit, last line of the log


def run_all(
    steps: Sequence[Step],
    deadline: float,
    logs: Path,
    cwd: Path,
    begun: Callable[[Step], None] = lambda step: None,
    ended: Callable[[Result], None] = lambda result: None,
    tick: Tick = lambda *_: None,
) -> list[Result]:
    """Runs steps in order; time that one leaves over goes to those after it.

    Args:
        steps: the most important first.
        deadline: by :func:`time.monotonic`; no step runs beyond it.
        logs: folder for one full log a step.
        cwd: where commands run.
        begun: told of each step that starts.
        ended: told each result.
        tick: told what a step is at while it runs.

    Raises:
        KeyboardInterrupt: as it came, after the steps' processes were killed and ``ended`` was told.
    """
    logs.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []

    def end(result: Result) -> None:
        results.append(result)
        ended(result)

    groups = _groups(steps)
    for i, group in enumerate(groups):
        passed = {result.name for result in results if result.status == "passed"}
        limit = (deadline - time.monotonic()) * _share(group) / (sum(map(_share, groups[i:])) or 1)
        running = []
        for step in group:
            missing = [name for name in step.needs if name not in passed]
            if step.skip is not None:
                end(Result(step.name, "skipped", step.skip))
            elif missing:
                end(Result(step.name, "skipped", f"expected {missing[0]} to pass first, it did not"))
            elif limit < LEAST_SECONDS:
                left = max(deadline - time.monotonic(), 0)
                end(Result(step.name, "skipped", f"{left:.0f} s were left for this and what follows"))
            else:
                begun(step)
                running.append(_Run(step, limit, logs / f"{step.name}.log", cwd))
        if _run_together(running, end, tick):
            raise KeyboardInterrupt
    return results


def run_step(step: Step, limit: float, log: Path, cwd: Path) -> Result:
    """Runs one step by itself for at most ``limit`` seconds."""
    results: list[Result] = []
    _run_together([_Run(step, limit, log, cwd)], results.append, lambda *_: None)
    return results[0]


def _groups(steps: Sequence[Step]) -> list[list[Step]]:
    """Steps that run at the same time."""
    groups: list[list[Step]] = []
    for step in steps:
        if step.beside and groups:
            groups[-1].append(step)
        else:
            groups.append([step])
    return groups


def _share(group: Sequence[Step]) -> float:
    return max((step.share for step in group if step.skip is None), default=0.0)


def _run_together(running: list[_Run], ended: Callable[[Result], None], tick: Tick) -> bool:
    """Tells results as runs end; returns whether Ctrl-C ended them."""
    interrupted = False
    waiting = list(running)
    try:
        while waiting:
            for run in [run for run in waiting if not run.goes_on()]:
                waiting.remove(run)
                ended(run.end())
            if waiting:
                first = waiting[0]
                tick(first.step, first.seconds(), first.limit, _last_line(first.log))
                time.sleep(0.1)
    except KeyboardInterrupt:
        interrupted = True
        for run in waiting:
            ended(run.end(interrupted=True))
    return interrupted


class _Run:
    """One step's command, for at most ``limit`` seconds; nothing that it started outlives it."""

    def __init__(self, step: Step, limit: float, log: Path, cwd: Path) -> None:
        self.step, self.limit, self.log, self._cwd = step, limit, log, cwd
        self._start = time.monotonic()
        self._grace = min(GRACE, limit / 4)
        # The program has to start and to say what it found, and what it does last may take longer than it thought.
        seconds = f"{0.8 * (limit - self._grace):.0f}"
        self._process: subprocess.Popen[bytes] | None = None
        self._error = ""
        with log.open("wb") as file:
            try:
                self._process = subprocess.Popen(
                    [part.replace("{seconds}", seconds) for part in step.command],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    cwd=cwd,
                    env={**os.environ, **step.environment},
                    start_new_session=True,
                    preexec_fn=_take_interrupts,
                )
            except OSError as error:
                self._error = str(error)

    def seconds(self) -> float:
        return time.monotonic() - self._start

    def goes_on(self) -> bool:
        return self._process is not None and _runs(self._process) and self.seconds() < self.limit - self._grace

    def end(self, interrupted: bool = False) -> Result:
        """Ends it if it still runs, and judges."""
        step = self.step
        if self._process is None:
            return Result(step.name, "failed", self._error, 0.0, self.limit)
        late = _runs(self._process)
        _end(self._process, self._grace if late and not interrupted else 0.0)
        text = self.log.read_text(errors="replace").replace(str(self._cwd) + os.sep, "")
        result = Result(step.name, "passed", "", self.seconds(), self.limit, {}, text.splitlines()[-TAIL_LINES:])
        complaint: str | None = None
        unable = None
        try:
            complaint, result.measured = step.judge(self._process.returncode, text)
        except Unable as reason:
            unable = str(reason)
        except Exception as error:  # of a report that is cut short, say
            complaint = f"its output cannot be read: {error}"
        if interrupted:
            result.status, result.reason = "interrupted", "Ctrl-C"
        elif unable is not None:
            result.status, result.reason = "skipped", unable
        elif late and not (result.measured.get("errors") or result.measured.get("failures")):
            result.status, result.reason = "timed out", f"took more than its {self.limit:.0f} s"
        elif complaint is not None or late:
            result.status = "failed"
            result.reason = complaint or f"found errors, then took more than its {self.limit:.0f} s"
        return result


def _take_interrupts() -> None:
    """In the child: what a shell runs in the background ignores them, and hands that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _runs(process: subprocess.Popen[bytes]) -> bool:
    # Leaves it a zombie: once waited for, its number could become that of somebody else's group.
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def _end(process: subprocess.Popen[bytes], grace: float) -> None:
    """Interrupts a process if there is a time of grace, then kills all that descends from it."""
    descendants = _descendants(process.pid)
    if grace > 0:
        _signal_group(process.pid, signal.SIGINT)
        deadline = time.monotonic() + grace
        while _runs(process) and time.monotonic() < deadline:
            time.sleep(0.05)
        descendants |= _descendants(process.pid)
    _signal_group(process.pid, signal.SIGKILL)
    for pid, began in descendants:  # those that left the group
        if _beginning(pid) == began:
            _signal(pid, signal.SIGKILL)
    process.wait()


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # all gone
        os.killpg(group, number)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _beginning(pid: int) -> str:
    """When a process began, which tells it from a later one of the same number."""
    fields = _stat(pid)
    return fields[19] if fields else ""


def _descendants(ancestor: int) -> set[tuple[int, str]]:
    """Numbers and beginnings of all processes below one."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: set[tuple[int, str]] = set()
    waiting = [ancestor]
    while waiting:
        for child in children.get(waiting.pop(), []):
            found.add((child, _beginning(child)))
            waiting.append(child)
    return found


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 400))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
