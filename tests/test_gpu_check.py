"""The runner of the check on a GPU, with commands that need none; and what README says of its records."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import gpu_check
import pytest
from gpu_steps import LEAST_SECONDS, Outcome, Result, Step, Unable, run_all, run_step

from jpu_cuda._source import source_hash

ROOT = Path(__file__).resolve().parents[1]
HASH = "a" * 64
LOOKED = {"device": "GPU X", "capability": "9.0", "source_hash": HASH, "driver": "580.1", "versions": {"torch": "2.10"}}


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


# --- the whole check -------------------------------------------------------------------------------------


def check(tmp_path: Path, steps: list[Step], minutes: float = 1) -> tuple[int, list[dict[str, Any]]]:
    records = tmp_path / "results" / "gpu-check.jsonl"
    code = gpu_check.check(minutes, steps, LOOKED, records, tmp_path / "out")
    return code, gpu_check.read_records(records)


def test_a_run_leaves_one_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, records = check(tmp_path, [step(name) for name in gpu_check.REQUIRED])
    assert code == 0
    (record,) = records
    assert record["finished"]
    assert LOOKED.items() <= record.items()
    assert [x["status"] for x in record["steps"]] == ["passed"] * 3
    assert f"confirmed on GPU X** at source hash `{HASH[:12]}`" in capsys.readouterr().out


def test_records_are_appended(tmp_path: Path) -> None:
    check(tmp_path, [step("a")])
    time.sleep(0.002)  # runs are told apart by the millisecond
    _, records = check(tmp_path, [step("b")])
    assert [record["steps"][0]["name"] for record in records] == ["a", "b"]


def test_a_failure_is_recorded_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, (record,) = check(tmp_path, [step("probe", "import sys; sys.exit('widen<float16> differs')"), step("b")])
    assert code == 1
    assert [x["status"] for x in record["steps"]] == ["failed", "passed"]
    assert record["steps"][0]["log"] == ["widen<float16> differs"]
    assert "widen<float16> differs" in capsys.readouterr().out


def test_the_record_is_written_as_the_run_goes(tmp_path: Path) -> None:
    """The second step looks at what stands there while it runs, as whoever cuts a run would find it."""
    file = tmp_path / "results" / "gpu-check.jsonl"
    code = f"import json; r = json.loads(open({str(file)!r}).read()); print(r['steps'][0]['name'], r['finished'])"
    _, (record,) = check(tmp_path, [step("first"), step("second", code)])
    assert record["steps"][1]["log"] == ["first False"]


def test_a_timeout_is_no_success(tmp_path: Path) -> None:
    code, (record,) = check(tmp_path, [step("a", "import time; time.sleep(60)")], minutes=4 / 60)
    assert (code, record["steps"][0]["status"]) == (1, "timed out")


def test_without_a_device_there_is_no_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = tmp_path / "records.jsonl"
    assert gpu_check.check(1, [step("a")], {"missing": "torch for CUDA 13.0, 0 devices"}, records, tmp_path / "o") == 2
    assert "expected a CUDA device, got none (torch for CUDA 13.0, 0 devices)" in capsys.readouterr().err
    assert not records.exists()


def test_without_a_device_the_command_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert gpu_check.main(["--minutes", "0.5"]) == 2
    assert "expected a CUDA device, got none" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "many"])
def test_minutes_are_checked(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_check.main([f"--minutes={text}"])
    assert "expected a number of minutes > 0" in capsys.readouterr().err


def test_the_steps_are_ordered_by_importance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "find_tool", lambda name: None)
    steps = gpu_check.make_steps(tmp_path)
    names = [x.name for x in steps]
    timed = ["launches", "hopper", "inference", "training", "table2", "hot-calls", "ncu"]
    assert names == ["environment", "probe", "host", "tests", *gpu_check.TOOLS, *timed]
    assert {x.name for x in steps if x.skip} == {*gpu_check.TOOLS, "ncu"}
    # What is timed has the device for itself.
    assert [x.name for x in steps if x.beside] == ["host", *gpu_check.TOOLS]
    monkeypatch.setattr(gpu_check, "find_tool", lambda name: f"/cuda/{name}")
    by_name = {x.name: x for x in gpu_check.make_steps(tmp_path)}
    assert by_name["memcheck"].command[:3] == ["/cuda/compute-sanitizer", "--tool", "memcheck"]
    assert by_name["memcheck"].environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"
    assert "PYTORCH_NO_CUDA_MEMORY_CACHING" not in by_name["racecheck"].environment


def test_steps_can_be_named_and_benchmarks_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "RECORDS", tmp_path / "gpu-check.jsonl")
    (tmp_path / "table2.jsonl").touch()
    chosen = {x.name: x for x in gpu_check._chosen(["table2", "tests"], resume=True)}
    assert [*chosen] == ["tests", "table2"]
    assert all(not x.needs for x in chosen.values())
    assert "--resume" in chosen["table2"].command
    assert chosen["table2"].judge(0, "skipped 9: the budget of 60 s is spent\n")[0] is None
    (unmeasured,) = gpu_check._chosen(["inference"], resume=True)
    assert "--resume" not in unmeasured.command, "there is nothing to go on with"
    everything = {x.name: x for x in gpu_check._chosen(None, resume=False)}
    assert everything["table2"].needs == ("environment",)
    assert "--resume" not in everything["table2"].command


def test_what_is_timed_by_commands_is_what_they_take(tmp_path: Path) -> None:
    from benchmarks.__main__ import _parser

    steps = {x.name: x.command for x in gpu_check.make_steps(tmp_path)}
    for name in ("launches", "hopper", "inference", "training", "table2", "ncu"):
        arguments = [*steps[name][steps[name].index("benchmarks") + 1 :]]
        arguments[arguments.index("cuda")] = "cpu"  # the device, which is asked for
        assert _parser().parse_args([part.replace("{seconds}", "60") for part in arguments])


@pytest.mark.parametrize(
    ("cores", "plugin", "workers"), [(16, True, "12"), (6, True, "4"), (3, True, ""), (16, False, "")]
)
def test_tests_run_side_by_side_where_they_can(
    cores: int, plugin: bool, workers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(gpu_check.importlib.util, "find_spec", lambda name: object() if plugin else None)
    assert gpu_check._workers() == (["-n", workers, "--dist", "loadgroup"] if workers else [])


def test_every_file_of_gpu_tests_is_among_the_steps() -> None:
    """The step takes all tests that are marked, which such a file must say of all of its own."""
    (command,) = (x.command for x in gpu_check.make_steps() if x.name == "tests")
    assert command[1:6] == ["-m", "pytest", "tests", "-m", "gpu"]
    files = {path.stem for path in (ROOT / "tests").glob("test_*_gpu.py")}
    assert files >= {"test_separable_pyramid_gpu", "test_served_gpu", "test_trained_gpu", "test_trained_pyramid_gpu"}
    for name in files:
        assert importlib.import_module(name).pytestmark.name == "gpu", f"{name}: expected the mark gpu"


def test_a_missing_binary_fails_the_environment_with_how_to_build_it(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device, and there may be kernels for it")
    (environment, *_) = gpu_check.make_steps(tmp_path)
    result = run_step(environment, 120, tmp_path / "log", ROOT)
    assert result.status == "failed"
    assert gpu_check.HOW_TO_BUILD.replace(str(ROOT) + os.sep, "") in result.log[-1]


# --- what steps say --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "log", "complaint"),
    [
        (0, "========= ERROR SUMMARY: 0 errors\n", None),
        (0, "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", None),
        (9, "========= ERROR SUMMARY: 1 error\n", "ERROR SUMMARY: 1 error (exit code 9)"),
        (
            0,
            "========= RACECHECK SUMMARY: 2 hazards displayed (0 errors, 2 warnings)\n",
            "RACECHECK SUMMARY: 2 hazards",
        ),
        (0, "56 cases\n", "expected the tool's summary, got none"),
    ],
)
def test_the_sanitizers_summary_decides(code: int, log: str, complaint: str | None) -> None:
    said, _ = gpu_check.judge_sanitizer(code, log)
    assert said is None if complaint is None else said is not None and said.startswith(complaint)


NCU = """==PROF== Connected to process 1
"ID","Process ID","Kernel Name","Metric Name","Metric Value"
"0","1","pyramid_mma","Duration","878"
"0","1","pyramid_mma","Registers Per Thread","254"
"1","1","rows_output","Duration","159"
"""


def test_the_profilers_report_decides(tmp_path: Path) -> None:
    path = tmp_path / "ncu.csv"
    judge = gpu_check.judge_profiler(path)
    assert judge(0, "") == ("exit code 0", {"kernels": 0})
    path.write_text(NCU)
    assert judge(0, "") == (None, {"kernels": 2})
    assert judge(1, "==ERROR== The application returned an error code (1).")[0] == "exit code 1"
    for refusal in (
        "==ERROR== ERR_NVGPUCTRPERM - no permission",
        "Failed to initialize the profiler: LibraryNotLoaded",
    ):
        with pytest.raises(Unable, match=re.escape(refusal)):
            judge(1, refusal)


@pytest.mark.parametrize(
    ("code", "skipped", "failures", "complaint"),
    [(0, 1, 0, None), (1, 0, 2, "2 of 3 tests failed"), (0, 3, 0, "expected tests to run, got none")],
)
def test_the_tests_report_decides(
    code: int, skipped: int, failures: int, complaint: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "tests.xml"
    counts = f'tests="3" failures="{failures}" errors="0" skipped="{skipped}"'
    path.write_text(f"<testsuites><testsuite {counts}/></testsuites>")
    said, measured = gpu_check.judge_tests(path)(code, "")
    assert said is None if complaint is None else said is not None and said.startswith(complaint)
    assert measured["tests"] == 3


def test_medians_of_hot_calls_go_into_the_record(tmp_path: Path) -> None:
    path = tmp_path / "calls.json"
    path.write_text(json.dumps({"benchmarks": [{"name": "test_forward[cuda]", "stats": {"median": 2.5e-5}}]}))
    assert gpu_check.judge_hot_calls(path)(0, "") == (None, {"median_ms": {"test_forward[cuda]": 0.025}})
    assert gpu_check.judge_hot_calls(tmp_path / "none")(2, "")[0] == "exit code 2"


TIMED = "branches 64×64, batch 16, bfloat16, channels_last · {}: 1.5 ms, 280 TFLOP/s\n"
FAILED = "branches 64×64, batch 16, bfloat16, channels_last · {}: failed, WrongResultError: error: expected at most 1\n"


@pytest.mark.parametrize(
    ("code", "log", "complaint", "counts"),
    [
        (0, TIMED.format("cuda"), None, (1, 0, 0)),
        (1, TIMED.format("cuda") + FAILED.format("folded"), None, (1, 1, 0)),
        (1, TIMED.format("cuda") + FAILED.format("cuda-mma-graph"), "cuda-mma-graph: WrongResultError", (1, 1, 1)),
        (1, TIMED.format("cuda") + "ceilings: failed, OutOfMemoryError: no more\n", "ceilings: Out", (1, 1, 1)),
        (0, "skipped 9: no kernels\n", "expected timings, got none (exit code 0)", (0, 0, 0)),
        (2, TIMED.format("cuda"), "exit code 2", (1, 0, 0)),
    ],
    ids=["timed", "pytorch", "kernels", "ceilings", "nothing", "crash"],
)
def test_kernels_that_are_wrong_fail_a_benchmark(
    code: int, log: str, complaint: str | None, counts: tuple[int, int, int]
) -> None:
    said, measured = gpu_check.judge_timings(code, log)
    assert said is None if complaint is None else said is not None and said.startswith(complaint)
    assert tuple(measured.values()) == counts


# --- README ----------------------------------------------------------------------------------------------


def record(sources: str = HASH, run: str = "2026-01-01", device: str = "GPU X", **statuses: str) -> dict[str, Any]:
    found = {**dict.fromkeys(gpu_check.REQUIRED, "passed"), **statuses}
    return {
        "run": run,
        "device": device,
        "source_hash": sources,
        "steps": [{"name": name, "status": status} for name, status in found.items()],
    }


def test_readme_says_what_the_records_do() -> None:
    readme = (ROOT / "README.md").read_text()
    assert gpu_check.readme_complaint(readme, gpu_check.read_records(), source_hash(ROOT)) is None


EARLIER = (
    f"Kernel status: **host-verified** (no GPU record for these sources; last confirmed: `{'b' * 12}` on GPU X).\n"
)
VERIFIED = "Kernel status: **host-verified** (no GPU record for these sources): executed on the CPU.\n"
CONFIRMED = f"Kernel status: **confirmed on GPU X** at source hash `{HASH[:12]}`.\n"


@pytest.mark.parametrize(
    ("records", "readme"),
    [
        ([], VERIFIED),
        ([record("b" * 64)], EARLIER),
        ([record("b" * 64), record("c" * 64, "2026-02-01", "GPU Y", probe="failed")], EARLIER),
        ([record(probe="failed")], VERIFIED),
        ([record(tests="timed out")], VERIFIED),
        ([record(tests="skipped")], VERIFIED),
        ([record(memcheck="failed")], VERIFIED),
        ([record(launches="failed")], VERIFIED),
        ([record(hopper="failed")], CONFIRMED),
        ([record()], CONFIRMED),
        ([record(memcheck="skipped", table2="timed out")], CONFIRMED),
        ([record("b" * 64, "2026-02-01", "GPU Y"), record()], CONFIRMED),
        ([record(), record(run="2026-01-02", probe="failed")], CONFIRMED),
        ([record(device="GPU Y"), record(run="2026-01-02")], CONFIRMED),
    ],
)
def test_readme_is_held_to_the_records(records: list[dict[str, Any]], readme: str) -> None:
    other = VERIFIED if readme is not VERIFIED else CONFIRMED
    assert gpu_check.readme_complaint("# Title\n\n" + readme, records, HASH) is None
    for wrong in (other, "", readme + readme):
        complaint = gpu_check.readme_complaint(wrong, records, HASH)
        assert complaint is not None
        assert complaint.startswith("README: expected one line that begins with 'Kernel status: ")


def test_a_run_that_was_cut_confirms_nothing() -> None:
    cut = record()
    cut["steps"] = cut["steps"][:2]
    assert gpu_check.confirmation([cut], HASH) is None
