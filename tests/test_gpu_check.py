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
from gpu_steps import Step, Unable, run_step

from jpu_cuda._source import source_hash

ROOT = Path(__file__).resolve().parents[1]
HASH = "a" * 64
LOOKED = {"device": "GPU X", "capability": "9.0", "source_hash": HASH, "driver": "580.1", "versions": {"torch": "2.10"}}


def step(name: str, code: str = "", share: float = 1, **options: Any) -> Step:
    return Step(name, [sys.executable, "-S", "-c", code], share, **options)


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
