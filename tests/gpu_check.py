"""``make gpu-check MINUTES=20``: all that only a GPU can show, the most important first, inside the minutes given.

Each step has a share of the time and a hard stop. What was done stands in one line of
benchmarks/results/gpu-check.jsonl after every step, so that a cut run leaves what it has; full logs are in
out/gpu-check/. Exit codes: 0 nothing failed, 1 a step failed or was out of time, 2 no CUDA device, 130 Ctrl-C.

``--confirmed`` says which GPU the sources here were last confirmed on, which needs no GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from gpu_steps import Outcome, Result, Step, Unable, by_exit_code, run_all

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the package need not be installed

from jpu_cuda._source import source_hash  # noqa: E402

OUT = ROOT / "out" / "gpu-check"
RECORDS = ROOT / "benchmarks" / "results" / "gpu-check.jsonl"
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
# Without these nothing is confirmed. The others must not have failed, but for what runs none of the package's kernels.
REQUIRED = ("environment", "probe", "tests")
FOREIGN = ("hopper",)
HOW_TO_BUILD = f"JPU_CUDA_KERNELS=on {sys.executable} -m pip install --no-build-isolation --no-deps --editable ."

# In processes of their own: this one makes no CUDA context, which would keep memory from those that follow.
LOOK = """
import json, sys, torch
from benchmarks import environment
if torch.version.cuda is None or not torch.cuda.is_available():
    built = "without CUDA" if torch.version.cuda is None else "for CUDA " + torch.version.cuda
    print(json.dumps({"missing": f"torch {torch.__version__} {built}, {torch.cuda.device_count()} devices"}))
    sys.exit()
device = torch.device("cuda", 0)
major, minor = torch.cuda.get_device_capability(device)
versions = environment.versions(device)
print(json.dumps({"run": versions.pop("run"), "device": torch.cuda.get_device_name(device),
                  "capability": f"{major}.{minor}", "source_hash": environment.source_hash(), "versions": versions}))
"""
SUPPORTS = f"""
import sys
from jpu_cuda import _extension
status = _extension.load()
print(status.reason)
refusal = _extension.supports(0)
sys.exit(refusal and refusal + "\\nbuild them with: {HOW_TO_BUILD}")
"""


# --- records -----------------------------------------------------------------------------------------------


def read_records(path: Path = RECORDS) -> list[dict[str, Any]]:
    """All records, the oldest first; none if there is no file."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Appends a record, or replaces that of the same run; a cut leaves the old file or the new one."""
    records = [other for other in read_records(path) if other["run"] != record["run"]]
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.{os.getpid()}")
    half.write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in [*records, record]), encoding="utf-8")
    half.replace(path)


def passes(record: dict[str, Any]) -> bool:
    """Whether a run confirms the sources that it ran: what is required passed, and nothing that ran them failed."""
    statuses = {step["name"]: step["status"] for step in record["steps"] if step["name"] not in FOREIGN}
    return all(statuses.get(name) == "passed" for name in REQUIRED) and "failed" not in statuses.values()


def confirmation(records: Iterable[dict[str, Any]], sources: str) -> dict[str, Any] | None:
    """The newest run that confirms the sources of a hash; None if none does."""
    fitting = [record for record in records if record["source_hash"] == sources and passes(record)]
    return max(fitting, key=lambda record: str(record["run"]), default=None)


def kernel_status(records: Iterable[dict[str, Any]], sources: str) -> str:
    """The beginning of the README's statement about kernels of the sources of a hash."""
    records = list(records)
    found = confirmation(records, sources)
    if found is None:
        older = max(filter(passes, records), key=lambda record: str(record["run"]), default=None)
        if older is None:
            return "Kernel status: **host-verified** (no GPU record for these sources)"
        last = f"`{older['source_hash'][:12]}` on {older['device']}"
        return f"Kernel status: **host-verified** (no GPU record for these sources; last confirmed: {last})"
    return f"Kernel status: **confirmed on {found['device']}** at source hash `{sources[:12]}`"


def readme_complaint(readme: str, records: Iterable[dict[str, Any]], sources: str) -> str | None:
    """What is wrong with the README's statement; None if the records bear it out."""
    expected = kernel_status(records, sources)
    lines = [line for line in readme.splitlines() if line.startswith("Kernel status:")]
    if len(lines) == 1 and lines[0].startswith(expected):
        return None
    return f"README: expected one line that begins with {expected!r}, got {lines}"


# --- steps -------------------------------------------------------------------------------------------------


def judge_tests(report: Path) -> Callable[[int, str], Outcome]:
    """Reads pytest's JUnit report; a run in which everything was skipped proves nothing."""

    def judge(code: int, log: str) -> Outcome:
        root = ElementTree.parse(report).getroot()
        suite = root if root.tag == "testsuite" else root.find("testsuite")
        if suite is None:
            return "expected a report of tests, got none", {}
        counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
        ran = counts["tests"] - counts["skipped"]
        if code != 0:
            return f"{counts['failures'] + counts['errors']} of {ran} tests failed (exit code {code})", counts
        return (None if ran > 0 else "expected tests to run, got none"), counts

    return judge


def judge_sanitizer(code: int, log: str) -> Outcome:
    """Demands the tool's own summary, since a program that it never looked at has no errors either."""
    match = re.search(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:errors?|hazards?)", log)
    if "Device not supported" in log:
        raise Unable("Device not supported")
    if match is None:
        return f"expected the tool's summary, got none (exit code {code})", {}
    counts = {"errors": int(match[1])}
    return (None if code == 0 and not counts["errors"] else f"{match[0]} (exit code {code})"), counts


def judge_hot_calls(report: Path) -> Callable[[int, str], Outcome]:
    """Takes the medians from pytest-benchmark's report."""

    def judge(code: int, log: str) -> Outcome:
        if code != 0 and not report.exists():
            return f"exit code {code}", {}
        rows = json.loads(report.read_text())["benchmarks"]
        medians = {row["name"]: round(row["stats"]["median"] * 1e3, 4) for row in rows}
        return (None if code == 0 else f"exit code {code}"), {"median_ms": medians}

    return judge


def judge_timings(code: int, log: str, resumed: bool = False) -> Outcome:
    """Fails where kernels did, or nothing was timed; ways of PyTorch that are less exact than eager do not count.

    Of a run that goes on, all may have been timed before.
    """
    timed = re.findall(r"^.* · \S+: \S+ ms, ", log, re.MULTILINE)
    failed = re.findall(r"^(?:.* · )?(\S+): failed, (.*)$", log, re.MULTILINE)
    ours = [f"{name}: {reason}" for name, reason in failed if name.startswith("cuda") or name == "ceilings"]
    measured = {"timed": len(timed), "failed": len(failed), "errors": len(ours)}
    if ours:
        return ours[0], measured
    if not timed and not resumed:
        return f"expected timings, got none (exit code {code})", measured
    return (None if code in (0, 1) else f"exit code {code}"), measured


def judge_hopper(code: int, log: str) -> Outcome:
    """The microbenchmarks say themselves what was wrong; other devices than those they are for say nothing."""
    if code == 2 and (refused := re.search(r"compute capability.*", log)):
        raise Unable(refused[0])
    return by_exit_code(code, log)


def judge_profiler(report: Path) -> Callable[[int, str], Outcome]:
    """Demands figures of kernels from Nsight Compute."""

    def judge(code: int, log: str) -> Outcome:
        text = report.read_text(errors="replace") if report.exists() else ""
        refusals = r"==ERROR== (?!The application returned).*|Failed to initialize the profiler.*|ERR_NVGPUCTRPERM.*"
        if refused := re.search(refusals, text + log):
            raise Unable(refused[0])
        rows = csv.DictReader(line for line in text.splitlines() if line.startswith('"'))
        kernels = {row["ID"] for row in rows if row.get("ID", "").isdigit()}
        return (None if code == 0 and kernels else f"exit code {code}"), {"kernels": len(kernels)}

    return judge


def find_tool(name: str) -> str | None:
    """A program of the CUDA toolkit."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [str(Path(home) / "bin") for home in homes if home]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(folders))


def make_steps(out: Path = OUT, resume: bool = False) -> list[Step]:
    """All steps, the most important first.

    Args:
        out: folder for logs and reports.
        resume: whether benchmarks go on with their last runs.
    """
    return [*_correctness(out), *_speed(out, resume)]


# What was timed on a device that does something else as well says nothing, so what is beside something is not timed.
_LOADED = ("environment",)


def _correctness(out: Path) -> list[Step]:
    python = sys.executable
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    sanitizer = find_tool("compute-sanitizer")
    lacking = None if sanitizer else "expected compute-sanitizer on PATH or in CUDA_HOME, got none"
    report = out / "tests.xml"
    pytest = [python, "-m", "pytest", "tests", "-m", "gpu", "-v", f"--junitxml={report}", *_workers()]
    pytest += ["--ignore=tests/test_bench_hopper.py"]  # a step of its own, which confirms nothing
    steps = [
        Step("environment", [python, "-c", SUPPORTS], 4, paths),
        Step("probe", [python, "-m", "probe.compare", "gpu", "--dump", str(out / "probe.npz")], 8, paths),
        # Tests hold kernels against their execution on the CPU too; none of them should have to wait for its library.
        Step("host", [python, "-c", "from jpu_cuda import host; host.load()"], 8, beside=True),
        Step("tests", pytest, 30, needs=_LOADED, judge=judge_tests(report)),
    ]
    for tool in TOOLS:
        # One allocation for each tensor, whose ends and first bytes the tool then knows.
        cached = tool in ("racecheck", "synccheck")
        command = [sanitizer or "", "--tool", tool, "--error-exitcode", "9", python, "tests/probe/small_cases.py"]
        # What results are held to takes few operations: threads would wait for the tests' workers.
        environment = {**paths, "OMP_NUM_THREADS": "1", **({} if cached else {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})}
        steps.append(Step(tool, command, 30, environment, _LOADED, lacking, True, judge_sanitizer))
    return steps


def _workers() -> list[str]:
    """Tests side by side, where processors and a plugin allow it; those of one group one after the other.

    What takes them long is what they are held to, which the CPU computes, in one thread each.
    """
    count = min((os.cpu_count() or 1) - 2, 12)
    if count < 2 or importlib.util.find_spec("xdist") is None:
        return []
    return ["-n", str(count), "--dist", "loadgroup"]


def _speed(out: Path, resume: bool) -> list[Step]:
    python = sys.executable
    hot_calls, profile = out / "hot-calls.json", out / "ncu.csv"
    benchmark = [python, "-m", "benchmarks"]
    budget = ["--device", "cuda", "--budget", "{seconds}"]

    def timings(name: str, share: float, *options: str) -> Step:
        # The last run may have been cut before this one had a row.
        resumed = resume and RECORDS.with_name(f"{name}.jsonl").exists()
        command = [*benchmark, name, *budget, "--chart", str(out / f"{name}.png"), *options]
        command += ["--resume"] if resumed else []
        return Step(name, command, share, needs=_LOADED, judge=partial(judge_timings, resumed=resumed))

    networks = ["--dtype", "bfloat16", "--batches", "16", "1", "--formats", "channels_last", "contiguous"]
    networks += ["--upsamplings", "none", "jpu", "fpn", "bilinear", "--seconds", "0.5"]
    networks += ["--providers", "reference-graph", "cuda-graph", "reference", "cuda", "compiled-jpu-graph"]
    pytest = [python, "-m", "pytest", "benchmarks", "-m", "gpu", "--benchmark-enable"]
    ncu = find_tool("ncu")
    # Each kernel of one pass by tensor cores, but none of the passes before it; then the first of the two passes.
    profiler = [ncu or "", "--set", "full", "--clock-control", "none", "--profile-from-start", "off"]
    profiler += ["--launch-count", "50", "--csv"]
    profiler += ["--page", "details", "--log-file", str(profile), "--kernel-name-base", "function"]
    profiler += ["--kernel-name", "regex:^(pyramid|training|rows|norm|upsample)_"]
    lacking = None if ncu else "expected ncu on PATH or in CUDA_HOME, got none"
    return [
        Step("launches", [*benchmark, "launches", "--device", "cuda"], 8, needs=_LOADED),
        Step("hopper", [*benchmark, "hopper", *budget], 5, judge=judge_hopper),
        timings("inference", 14, "--shapes", "64x64", "60x60", "--batches", "16", "1"),
        timings("training", 14),
        timings("table2", 16, *networks),
        Step(
            *("hot-calls", [*pytest, f"--benchmark-json={hot_calls}", "--benchmark-max-time=0.2"], 4),
            needs=_LOADED,
            judge=judge_hot_calls(hot_calls),
        ),
        Step(
            *("ncu", [*profiler, *benchmark, "launches", "--device", "cuda", "--once"], 8),
            needs=_LOADED,
            skip=lacking,
            judge=judge_profiler(profile),
        ),
    ]


# --- run ---------------------------------------------------------------------------------------------------


def look() -> dict[str, Any]:
    """What is here: device, versions, sources; or ``missing`` with the reason."""
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, cwd=ROOT, timeout=300)
    if done.returncode != 0:
        return {"missing": (done.stderr.strip().splitlines() or ["no answer"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    if "missing" not in found:
        found["driver"] = _first_line(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
        nvcc = find_tool("nvcc")
        found["versions"]["nvcc"] = _release(_output([nvcc, "--version"])) if nvcc else None
    return found


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _first_line(command: list[str]) -> str | None:
    return (_output(command).strip().splitlines() or [None])[0]


def _release(text: str) -> str | None:
    match = re.search(r"release (\d+\.\d+), V(\S+)", text)
    return match[2] if match else None


STYLES = {"passed": "green", "failed": "red", "timed out": "red", "skipped": "yellow", "interrupted": "yellow"}


class Display:
    """Live where output is a terminal, else a line at the beginning and at the end of each step."""

    def __init__(self, seconds: float) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.console = Console() if sys.stdout.isatty() else Console(width=160)
        self.start, self.seconds = time.monotonic(), seconds
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
        self.progress = Progress(*columns, console=self.console, disable=not sys.stdout.isatty())
        self.task = self.progress.add_task("gpu-check", total=seconds)

    def begun(self, step: Step) -> None:
        if self.progress.disable:
            self.console.print(f"{step.name} …", markup=False, highlight=False)

    def tick(self, step: Step, seconds: float, limit: float, line: str) -> None:
        text = f"{step.name} {seconds:.0f}/{limit:.0f} s  {line[:60]}"
        self.progress.update(self.task, completed=time.monotonic() - self.start, description=text)

    def ended(self, result: Result) -> None:
        from rich.text import Text

        line = Text(f"{result.name}: ")
        line.append(result.status, STYLES[result.status])
        line.append(f" in {result.seconds:.0f} s" if result.seconds else "")
        line.append(f"; {result.reason}" if result.reason else "")
        self.console.print(line)
        if result.status == "failed":
            for text in result.log[-15:]:
                self.console.print("    " + text, markup=False, highlight=False)


def check(
    minutes: float,
    steps: Sequence[Step] | None = None,
    looked: dict[str, Any] | None = None,
    records: Path = RECORDS,
    out: Path = OUT,
) -> int:
    """Runs the check; the arguments but the first are for tests.

    Returns:
        The exit code.
    """
    start = time.monotonic()
    record = look() if looked is None else dict(looked)
    if "missing" in record:
        print(f"gpu-check: expected a CUDA device, got none ({record['missing']})", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    steps = make_steps(out) if steps is None else steps
    record = {"run": _now(), **record, "minutes": minutes, "finished": False, "steps": []}
    print(f"gpu-check: {record['device']}, compute capability {record['capability']}, {minutes:g} minutes")
    write_record(records, record)
    display = Display(minutes * 60)

    def ended(result: Result) -> None:
        record["steps"].append(result.as_dict())
        write_record(records, record)
        display.ended(result)

    try:
        with display.progress:
            deadline = start + minutes * 60 - 1  # a second for what follows the last step
            run_all(steps, deadline, out, ROOT, display.begun, ended, display.tick)
    except KeyboardInterrupt:
        return 130
    record["finished"] = True
    write_record(records, record)
    print(f"record: {records}\nlogs: {out}\nfor the README: {kernel_status([record], record['source_hash'])}")
    return 1 if {"failed", "timed out"} & {step["status"] for step in record["steps"]} else 0


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def show_confirmed(records: Path = RECORDS) -> int:
    """Prints what the records say of the sources here, and of those confirmed last."""
    found, sources = read_records(records), source_hash(ROOT)
    print(kernel_status(found, sources))
    passing = [record for record in found if passes(record)]
    if passing:
        last = max(passing, key=lambda record: str(record["run"]))
        print(f"last confirmed: source hash {last['source_hash']} on {last['device']}, {last['run']}")
    else:
        print("last confirmed: no sources on any GPU")
    return 0


def _minutes(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) < math.inf:
            return value
    raise argparse.ArgumentTypeError(f"expected a number of minutes > 0, got {text!r}")


def _chosen(names: Sequence[str] | None, resume: bool) -> list[Step]:
    """Steps by name, without those that they need: a second call goes on where a first one has shown these."""
    return [
        step if names is None else replace(step, needs=[need for need in step.needs if need in names])
        for step in make_steps(resume=resume)
        if names is None or step.name in names
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=_minutes, default=20.0, help="that all of it may take (%(default)s)")
    parser.add_argument("--confirmed", action="store_true", help="say what the records confirm, and run nothing")
    parser.add_argument(
        "--steps", nargs="+", choices=[step.name for step in make_steps()], metavar="NAME", help="default: all of them"
    )
    parser.add_argument("--resume", action="store_true", help="let benchmarks go on with their last runs")
    options = parser.parse_args(arguments)
    if options.confirmed:
        return show_confirmed()
    return check(options.minutes, _chosen(options.steps, options.resume))


if __name__ == "__main__":
    sys.exit(main())
