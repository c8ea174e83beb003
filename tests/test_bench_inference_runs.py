"""Runs of the benchmark of inference: what they leave out, how they are cut and go on, and the command."""

import json
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from inference_runs import SMALL, run, serve_wrongly, small_ceilings, timed

from benchmarks import ceilings, inference, measure, results, session
from benchmarks.__main__ import main
from benchmarks.ceilings import Ceilings
from benchmarks.results import ResultsError
from jpu_cuda.backend import BackendUnavailableError

__all__ = ["small_ceilings"]  # a fixture of every test here

# --- what is left out ------------------------------------------------------------------------------------


def test_what_cannot_serve_here_is_skipped_with_its_reason(tmp_path):
    outcome, _ = run(tmp_path)
    reasons = {label.split(" · ")[1]: reason for label, reason in outcome.skipped}
    assert reasons == {
        "cuda": "backend 'cuda' needs tensors on cuda, got cpu",
        "reference-graph": "CUDA graphs need a CUDA device, got cpu",
    }
    assert outcome.code == 0


def test_a_policy_without_a_place_is_skipped(tmp_path, monkeypatch):
    @contextmanager
    def refuse(*_):
        raise BackendUnavailableError("policy 'mma' does not take this")
        yield

    monkeypatch.setattr(inference, "serve", refuse)
    outcome, _ = run(tmp_path, names=["reference"])
    assert [reason for _, reason in outcome.skipped] == ["policy 'mma' does not take this"] * 2
    assert outcome.failures == []


def test_pytorchs_launches_that_are_far_behind_are_not_graphed(tmp_path, monkeypatch):
    """On a GPU that is not here: a graph is the call itself."""
    monkeypatch.setattr(session, "why_not", lambda *_: None)
    monkeypatch.setattr("benchmarks.providers._captured", lambda call, inputs: lambda: call(*inputs))
    milliseconds = iter([1.0, 1.0, 1.0, 3.1, 2.9, 3.0, 2.0, 9.0, 9.0, 9.0])  # the first three are of ceilings
    monkeypatch.setattr(measure, "time_calls", lambda *_: [next(milliseconds)])
    outcome, _ = run(tmp_path, names=["reference", "folded", "reference-graph", "folded-graph"])
    found = timed(outcome.rows)
    # Half as slow again as folded, channels_last is allowed.
    graphed = [("reference-graph", "channels_last"), ("folded-graph", "contiguous"), ("folded-graph", "channels_last")]
    assert found[4:] == graphed
    (skipped,) = outcome.skipped
    assert skipped[0].endswith("contiguous · reference-graph")
    assert skipped[1] == "launched one by one it is far slower than folded, channels_last"


@pytest.fixture
def clock(monkeypatch):
    """A clock that each measurement moves by a second, and a compiled one by thirty."""
    clock = SimpleNamespace(now=0.0)

    def measured(self, workload, name, provider, tick):
        clock.now += 30 if provider.compiled else 1
        return list(ceilings.timing_rows([1.0], 1.0, "throughput", workload.as_dict(), name, self._where))

    monkeypatch.setattr(session, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(inference._Session, "_verify_and_time", measured)
    return clock


def test_the_budget_ends_a_run_before_the_job_that_would_exceed_it(tmp_path, clock):
    selected = [SMALL, replace(SMALL, batch=1)]
    outcome, _ = run(tmp_path, selected, ["reference", "compiled"], budget=40.0)
    # Four of a second, of which two after the first workload's compiled one; another of those would take until 64.
    eager = [("reference", layout) for layout in ("contiguous", "channels_last")]
    assert timed(outcome.rows) == [*eager, ("compiled", "channels_last"), *eager]
    assert [row.case["batch"] for row in outcome.rows if row.provider == "compiled"] == [2] * 2
    assert outcome.rows[-1].case["batch"] == 1
    assert [reason for _, reason in outcome.skipped] == ["the budget of 40 s is spent"]
    assert clock.now == 34
    assert outcome.code == 0


def test_on_a_gpu_no_compiler_is_begun_in_the_last_minute(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(session, "_FIRST_ON_CPU", 90.0)
    outcome, _ = run(tmp_path, names=["compiled"], budget=89.0)
    assert timed(outcome.rows) == []
    assert [reason for _, reason in outcome.skipped] == ["the budget of 89 s is spent"]


def test_the_longest_job_so_far_is_what_another_may_take(tmp_path, clock, monkeypatch):
    seconds = iter([5.0, 1.0, 1.0, 1.0])

    def measured(self, workload, name, provider, tick):
        clock.now += next(seconds)
        return list(ceilings.timing_rows([1.0], 1.0, "throughput", workload.as_dict(), name, self._where))

    monkeypatch.setattr(inference._Session, "_verify_and_time", measured)
    outcome, _ = run(tmp_path, names=["reference", "folded"], budget=11.5)
    assert len(timed(outcome.rows)) == 3  # 7 s have passed, and another 5 would not fit


def test_a_guess_holds_until_something_was_measured(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(session, "_FIRST_ON_CPU", 90.0)
    outcome, _ = run(tmp_path, names=["compiled", "compiled-frozen"], budget=95.0)
    assert len(timed(outcome.rows)) == 2  # of 30 s each


def test_a_workload_that_cannot_be_prepared_is_tried_once(tmp_path, monkeypatch):
    tried = []

    def prepare(*arguments):
        tried.append(arguments)
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr(inference, "prepare", prepare)
    outcome, _ = run(tmp_path, names=["reference", "folded"])
    assert [reason for _, reason in outcome.failures] == ["OutOfMemoryError: no more"] * 4
    assert len(tried) == 1


# --- runs that are cut, and go on ------------------------------------------------------------------------


def _interrupt_after(monkeypatch, count):
    timed = inference._Session._verify_and_time
    left = [count]

    def measured(*arguments):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return timed(*arguments)

    monkeypatch.setattr(inference._Session, "_verify_and_time", measured)
    return lambda: monkeypatch.setattr(inference._Session, "_verify_and_time", timed)


def test_an_interrupt_keeps_what_was_measured_and_the_run_can_go_on(tmp_path, monkeypatch):
    restore = _interrupt_after(monkeypatch, 2)
    outcome, output = run(tmp_path)
    assert outcome.interrupted
    assert outcome.code == 130
    assert "interrupted; what was measured is kept" in output
    first = results.read(tmp_path / "rows.jsonl")
    assert timed(first) == [("gemm", "channels_last"), ("reference", "contiguous")]
    restore()
    outcome, output = run(tmp_path, resume=True)
    rows = results.read(tmp_path / "rows.jsonl")
    assert rows[: len(first)] == first
    assert outcome.rows == rows
    assert timed(rows) == [("gemm", "channels_last"), ("reference", "contiguous"), ("reference", "channels_last")]
    assert len(results.runs(rows)) == 1
    assert len(output.splitlines()) == 1  # neither ceilings nor what was there
    share = next(row for row in reversed(rows) if row.metric == "of_ceiling")
    rate = next(row for row in reversed(rows) if row.metric == "throughput")
    assert share.value == pytest.approx(100 * rate.value / Ceilings.of(first).products["float32"])


def test_a_run_that_goes_on_measures_the_ceilings_it_lacks(tmp_path):
    run(tmp_path, names=["gemm"])
    outcome, _ = run(tmp_path, [SMALL, replace(SMALL, dtype="bfloat16")], ["gemm"], resume=True)
    assert set(Ceilings.of(outcome.rows).products) == {"float32", "bfloat16"}
    assert [row.case["dtype"] for row in outcome.rows if row.metric == "of_ceiling"] == ["float32", "bfloat16"]


def test_without_asking_a_second_run_is_a_second_run(tmp_path):
    for _ in range(2):
        run(tmp_path, names=["gemm"])
    rows = results.read(tmp_path / "rows.jsonl")
    assert [len(timed(run)) for run in results.runs(rows).values()] == [1, 1]


@pytest.mark.parametrize(
    ("key", "value"), [("device", "a GPU"), ("source_hash", "0" * 64), ("versions", {"run": "2026", "torch": "2.0"})]
)
def test_a_run_made_otherwise_does_not_go_on(tmp_path, key, value):
    run(tmp_path, names=["gemm"])
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({**json.loads(line), key: value}) for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ResultsError, match=f"cannot resume run .*: {key.replace('_', ' ')}: expected "):
        run(tmp_path, names=["gemm"], resume=True)


def test_on_a_terminal_there_is_a_bar(tmp_path):
    assert "━" in run(tmp_path, names=["gemm"], terminal=True)[1]


# --- the command -----------------------------------------------------------------------------------------

COMMAND = ["inference", "--device", "cpu", "--parts", "branches", "--channels", "4", "--seconds", "0.001"]
COMMAND += ["--shapes", "4x6", "--batches", "1", "2", "--providers", "gemm", "reference", "cuda"]


def test_the_command_makes_rows_table_and_chart(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    assert main([*COMMAND, "--output", str(path)]) == 0
    printed = capsys.readouterr().out
    assert {row.case["batch"] for row in results.read(path) if "part" in row.case} == {1, 2}
    assert {row.case["dtype"] for row in results.read(path) if "part" in row.case} == {"bfloat16"}
    assert "% of ceiling" in printed
    assert "skipped 4: backend 'cuda' needs tensors on cuda, got cpu" in printed
    assert path.with_suffix(".png").exists()
    assert main(["table", str(path), "--markdown"]) == 0
    assert "| branches | 4×6 | 1 | bfloat16 | NHWC | gemm |" in capsys.readouterr().out


def test_the_command_fails_with_a_provider(tmp_path, monkeypatch, capsys):
    serve_wrongly(monkeypatch, lambda x: x * 1.1)
    assert main([*COMMAND, "folded", "--output", str(tmp_path / "rows.jsonl")]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4
    assert errors[0].startswith("failed: branches 4×6, batch 1, bfloat16, contiguous · folded: WrongResultError: error")


def test_two_runs_can_be_compared(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    for _ in range(2):
        main([*COMMAND, "--output", str(path)])
    capsys.readouterr()
    assert main(["compare", str(path), "--threshold", "1000"]) == 0
    assert "same" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "64"], "argument --shapes: expected a height and a width as 64x128, got '64'"),
        (["--shapes", "0x4"], "argument --shapes: expected a height and a width as 64x128, got '0x4'"),
        (["--parts", "head"], "invalid choice: 'head'"),
        (["--dtypes", "int8"], "invalid choice: 'int8'"),
        (["--providers", "fast"], "invalid choice: 'fast'"),
        (["--budget", "0"], "argument --budget: expected a number > 0, got '0'"),
        (["--device", "abacus"], "argument --device: expected auto, cpu or cuda, got 'abacus'"),
    ],
)
def test_a_wrong_argument_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["inference", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_there_must_be_a_run_to_go_on_with(tmp_path, capsys):
    assert main([*COMMAND, "--output", str(tmp_path / "none.jsonl"), "--resume"]) == 2
    assert "expected a file of results" in capsys.readouterr().err
