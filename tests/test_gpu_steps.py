"""Steps of the check on a GPU: limits, shares, interrupts, with commands that need no GPU."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import gpu_check
import pytest
from gpu_steps import LEAST_SECONDS, Outcome, Result, Step, run_all, run_step

# Seconds in which a program surely starts, also on a loaded machine, with a quarter left to end in.
STARTED = 10


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def step(name: str, code: str = "", share: float = 1, **options: Any) -> Step:
    return Step(name, python(code), share, **options)


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pid)


def run(steps: list[Step], folder: Path, seconds: float = 60) -> dict[str, Result]:
    return {x.name: x for x in run_all(steps, time.monotonic() + seconds, folder, folder)}


# --- one step --------------------------------------------------------------------------------------------


def test_a_step_passes_fails_and_keeps_the_end_of_its_log(tmp_path: Path) -> None:
    result = run_step(step("long", "print(*range(100), sep='\\n')"), 30, tmp_path / "log", tmp_path)
    assert (result.status, result.log[-1], len(result.log)) == ("passed", "99", 40)
    assert len((tmp_path / "log").read_text().split()) == 100
    result = run_step(step("bad", "import sys; sys.exit('no kernels')"), 30, tmp_path / "log", tmp_path)
    assert (result.status, result.reason, result.log) == ("failed", "exit code 1", ["no kernels"])


INTERRUPTED = """
import signal, sys, time
def end(*_):
    print("========= ERROR SUMMARY: 3 errors")
    sys.exit(0)
signal.signal(signal.SIGINT, end)
time.sleep(60)
"""


def test_errors_found_before_the_time_was_up_are_a_failure(tmp_path: Path) -> None:
    sanitizer = step("memcheck", INTERRUPTED, judge=gpu_check.judge_sanitizer)
    result = run_step(sanitizer, STARTED, tmp_path / "log", tmp_path)
    assert (result.status, result.measured) == ("failed", {"errors": 3})
    assert "3 errors" in result.reason


def test_failures_found_before_the_time_was_up_are_a_failure_too(tmp_path: Path) -> None:
    def judge(code: int, log: str) -> Outcome:
        return "2 of 3 tests failed", {"failures": 2, "errors": 0}

    result = run_step(step("tests", INTERRUPTED, judge=judge), STARTED, tmp_path / "log", tmp_path)
    assert (result.status, result.reason) == ("failed", "2 of 3 tests failed")


def test_a_program_that_is_not_there_fails(tmp_path: Path) -> None:
    result = run_step(Step("none", [str(tmp_path / "none")], 1), 30, tmp_path / "log", tmp_path)
    assert result.status == "failed"
    assert "No such file" in result.reason


# A child in the group, and one that leaves it.
CHILDREN = """
import subprocess, sys, time, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
sleep = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]  # ignores what its parent ignores
for leaves in (False, True):
    print(subprocess.Popen(sleep, start_new_session=leaves).pid, flush=True)
time.sleep(60)
"""


def test_a_step_out_of_time_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    start = time.monotonic()
    result = run_step(step("slow", CHILDREN), 2, tmp_path / "log", tmp_path)
    assert time.monotonic() - start < 4
    assert (result.status, result.reason) == ("timed out", "took more than its 2 s")
    pids = [int(line) for line in (tmp_path / "log").read_text().split()]
    assert len(pids) == 2
    assert all(map(gone, pids))


def test_what_a_step_leaves_behind_is_killed_too(tmp_path: Path) -> None:
    sleep = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
    code = f"import subprocess; print(subprocess.Popen({sleep}).pid)"
    result = run_step(step("quick", code), 30, tmp_path / "log", tmp_path)
    assert result.status == "passed"
    assert gone(int(result.log[0]))


def test_a_step_out_of_time_may_still_say_what_it_has(tmp_path: Path) -> None:
    code = "import time\ntry:\n  time.sleep(60)\nexcept KeyboardInterrupt:\n  print('3 passed so far')"
    result = run_step(step("slow", code), STARTED, tmp_path / "log", tmp_path)
    assert (result.status, result.log) == ("timed out", ["3 passed so far"])


def test_a_step_can_be_told_its_time(tmp_path: Path) -> None:
    told = Step("told", [*python("import sys; print(sys.argv[1:])"), "--budget", "{seconds}"], 1)
    assert run_step(told, 105, tmp_path / "log", tmp_path).log == ["['--budget', '80']"]  # of 105 − 5 of grace


def test_ctrl_c_kills_the_step_and_is_passed_on(tmp_path: Path) -> None:
    results: list[Result] = []

    def tick(*_: object) -> None:
        if (tmp_path / "slow.log").read_text():
            raise KeyboardInterrupt

    steps = [step("slow", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"), step("never")]
    with pytest.raises(KeyboardInterrupt):
        run_all(steps, time.monotonic() + 60, tmp_path, tmp_path, ended=results.append, tick=tick)
    assert [x.status for x in results] == ["interrupted"]
    assert gone(int((tmp_path / "slow.log").read_text()))


# --- all steps -------------------------------------------------------------------------------------------


def test_steps_run_in_order_and_only_after_what_they_need(tmp_path: Path) -> None:
    steps = [
        step("a", "import sys; sys.exit(3)"),
        step("b"),
        step("c", needs=["a"]),
        step("d", needs=["b"]),
        step("e", skip="no tool"),
        step("f", needs=["e"]),
    ]
    results = run(steps, tmp_path)
    assert list(results) == list("abcdef")
    assert [x.status for x in results.values()] == ["failed", "passed", "skipped", "passed", "skipped", "skipped"]
    assert results["c"].reason == "expected a to pass first, it did not"
    assert results["e"].reason == "no tool"
    assert not (tmp_path / "c.log").exists()


def test_each_step_has_its_share_and_what_others_leave(tmp_path: Path) -> None:
    results = run(
        [step("a", share=1), step("b", share=2), step("c", share=5, skip="-"), step("d", share=1)], tmp_path, 40
    )
    assert results["a"].limit == pytest.approx(10, abs=0.5)
    assert 20 < results["b"].limit == pytest.approx(2 / 3 * 40, abs=2)
    assert 30 < results["d"].limit <= 40


def test_steps_beside_each_other_run_at_the_same_time(tmp_path: Path) -> None:
    def meets(own: str, other: str) -> str:
        there = f"from pathlib import Path; import time; Path({str(tmp_path / own)!r}).touch()\n"
        return there + f"while not Path({str(tmp_path / other)!r}).exists(): time.sleep(0.01)"

    steps = [
        step("a", meets("x", "y"), share=1),
        step("b", meets("y", "x"), share=3, beside=True),
        step("none", share=9, skip="-", beside=True),
        step("bad", "import sys; sys.exit(1)", beside=True, needs=["absent"]),
        step("c", share=1),
    ]
    results = run(steps, tmp_path, 40)
    assert {name: x.status for name, x in results.items()} == {
        **dict.fromkeys("abc", "passed"),
        **dict.fromkeys(("none", "bad"), "skipped"),
    }
    assert results["a"].limit == results["b"].limit == pytest.approx(30, abs=0.5)


def test_one_of_several_that_is_out_of_time_does_not_end_the_others(tmp_path: Path) -> None:
    slow, quick = step("slow", "import time; time.sleep(60)"), step("quick", beside=True)
    results = run([slow, quick], tmp_path, STARTED)
    assert [*results] == ["quick", "slow"], "as they end"
    assert [x.status for x in results.values()] == ["passed", "timed out"]


def test_a_tool_that_cannot_work_here_says_nothing_against_the_kernels(tmp_path: Path) -> None:
    code = "print('========= Error: Device not supported'); raise SystemExit(1)"
    results = run([step("memcheck", code, judge=gpu_check.judge_sanitizer)], tmp_path)
    assert (results["memcheck"].status, results["memcheck"].reason) == ("skipped", "Device not supported")


def test_no_step_runs_beyond_the_deadline(tmp_path: Path) -> None:
    start = time.monotonic()
    sleep = "import time; time.sleep(60)"
    results = run([step("a", sleep), step("b", sleep), step("c", sleep, share=0.1)], tmp_path, 4)
    assert time.monotonic() - start < 5.5
    assert [x.status for x in results.values()][:2] == ["timed out", "timed out"]
    assert results["c"].status == "skipped"
    assert results["c"].limit < LEAST_SECONDS
    assert "s were left" in results["c"].reason


def test_a_report_that_cannot_be_read_fails_the_step(tmp_path: Path) -> None:
    judge = gpu_check.judge_tests(tmp_path / "none.xml")
    result = run([step("tests", judge=judge)], tmp_path)["tests"]
    assert result.status == "failed"
    assert "its output cannot be read" in result.reason
