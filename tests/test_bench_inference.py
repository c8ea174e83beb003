"""The benchmark of inference: every provider verified and timed; wrong ones fail, time that is up skips, runs go on."""

import io
import json
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from benchmarks import ceilings, inference, measure, results, workloads
from benchmarks.__main__ import main
from benchmarks.ceilings import Ceilings, is_ceiling
from benchmarks.providers import DEFAULT, PROVIDERS, serve
from benchmarks.results import ResultsError
from benchmarks.workloads import Workload
from jpu_cuda.backend import BackendUnavailableError

CPU = torch.device("cpu")
SMALL = Workload("branches", 4, 6, 2, "float32", channels=4)
NAMES = ("gemm", "reference", "cuda", "reference-graph")


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(ceilings, "_SIDES", {"cpu": (16, 32)})
    monkeypatch.setattr(ceilings, "_BYTES", {"cpu": 2**12})


def _run(tmp_path, selected=(SMALL,), names=NAMES, **changes):
    console = Console(file=io.StringIO(), width=100, force_terminal=changes.pop("terminal", False))
    arguments = {"device": CPU, "seconds": 1e-3, "budget": 1e3, "output": tmp_path / "rows.jsonl", **changes}
    outcome = inference.run(selected, names, console=console, **arguments)
    return outcome, console.file.getvalue()


def _timed(rows):
    return [(row.provider, row.case["memory_format"]) for row in rows if row.metric == "latency" and "part" in row.case]


# --- order -----------------------------------------------------------------------------------------------


def test_the_most_important_comes_first_and_the_compiled_last():
    selected = workloads.select(["branches", "jpu"], [(64, 64), (60, 60)], [16, 1], ["bfloat16", "tf32"], 512)
    assert len(selected) == 16
    assert selected[0] == Workload("branches", 64, 64, 16, "bfloat16")
    assert selected[1].batch == 1
    assert selected[2].height == 60
    assert [workload.part for workload in selected[:8]] == ["branches"] * 4 + ["jpu"] * 4
    assert {workload.dtype for workload in selected[:8]} == {"bfloat16"}
    jobs = inference.jobs_in_order(selected, DEFAULT)
    assert jobs[0] == (replace(selected[0], memory_format="channels_last"), "gemm")
    first_compiled = next(i for i, job in enumerate(jobs) if PROVIDERS[job[1]].compiled)
    assert all(PROVIDERS[name].compiled for _, name in jobs[first_compiled:])
    assert len(jobs) - first_compiled == 16 * 2
    assert len(set(jobs)) == len(jobs)


def test_the_products_alone_are_no_yardstick_of_a_whole_jpu():
    jobs = inference.jobs_in_order([replace(SMALL, part="jpu")], DEFAULT)
    assert {name for _, name in jobs} == {name for name in DEFAULT if not name.startswith("gemm")}


def test_default_shapes_are_those_of_the_crops_in_use():
    assert sorted((8 * h, 8 * w) for h, w in workloads.SHAPES) == [(480, 480), (512, 512), (512, 1024), (1024, 2048)]
    assert sorted(workloads.BATCHES) == [1, 4, 16]
    assert set(workloads.DTYPES) == {"bfloat16", "float16", "float32", "tf32"}


# --- rows ------------------------------------------------------------------------------------------------


def test_rows_are_made_as_each_is_finished(tmp_path):
    outcome, output = _run(tmp_path)
    rows = results.read(tmp_path / "rows.jsonl")
    assert outcome.rows == rows
    assert outcome.failures == []
    assert _timed(rows) == [("gemm", "channels_last"), ("reference", "contiguous"), ("reference", "channels_last")]
    (gemm, *_) = (row for row in rows if row.metric == "throughput" and row.provider == "gemm")
    assert Workload.from_dict(gemm.case) == replace(SMALL, memory_format="channels_last")
    lines = output.splitlines()
    assert lines[0].startswith("ceilings: float32 ")
    assert lines[1].startswith("branches 4×6, batch 2, float32, channels_last · gemm: ")
    assert len(lines) == 4


def test_throughput_follows_from_latency_and_work(tmp_path):
    outcome, _ = _run(tmp_path)
    ceiling = Ceilings.of(outcome.rows).products["float32"]
    pointwise = 2 * 2 * 24 * 4 * (3 * 4) * 4  # two operations, images, pixels, dilations, inputs, outputs
    depthwise = 2 * 2 * 24 * 4 * (3 * 4) * 9
    for provider, flops in (("gemm", pointwise), ("reference", pointwise + depthwise)):
        found = {row.metric: row for row in outcome.rows if row.provider == provider}
        latency, rate, share = (found[name] for name in ("latency", "throughput", "of_ceiling"))
        assert rate.value == pytest.approx(flops / (latency.value / 1e3) / 1e12)
        assert rate.quantiles["p25"] == pytest.approx(flops / (latency.quantiles["p75"] / 1e3) / 1e12)
        assert share.value == pytest.approx(100 * rate.value / ceiling)
        assert (latency.unit, rate.unit, share.unit) == ("ms", "TFLOP/s", "%")
        assert share.quantiles["p75"] == pytest.approx(100 * rate.quantiles["p75"] / ceiling)


@pytest.mark.parametrize("part", ["branches", "jpu"])
def test_work_is_that_of_all_convolutions(part):
    workload = Workload(part, 5, 6, 3, channels=8)
    prepared = workloads.prepare(workload, PROVIDERS["reference"], CPU)
    branches = 5 * 6 * 4 * (3 * 8) * (8 + 9)
    stages = sum(h * w * c * 9 * 8 for h, w, c in ((5, 6, 512), (3, 3, 1024), (2, 2, 2048)))
    assert prepared.flops == pytest.approx(3 * 2 * (branches + (stages if part == "jpu" else 0)))


def test_the_ceiling_is_the_fastest_product_and_a_copy(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "time_calls", lambda *_: [2.0, 4.0, 8.0])
    where = inference.environment.describe(CPU)
    rows = ceilings.measure_ceilings(["bfloat16", "float32"], CPU, 1e-3, where, lambda done: None)
    found = Ceilings.of(rows)
    assert found.products == {name: pytest.approx(2 * 32**3 / 4e-3 / 1e12) for name in ("bfloat16", "float32")}
    assert found.bandwidth == pytest.approx(2 * 2**12 / 4e-3 / 1e9)
    assert all(is_ceiling(row) for row in rows)
    assert {row.case["side"] for row in rows if "side" in row.case} == {32}


def test_a_whole_network_is_verified_and_timed(tmp_path):
    outcome, _ = _run(tmp_path, [Workload("fastfcn", 8, 6, 1, "bfloat16")], ["reference"])
    assert outcome.failures == []
    assert len(_timed(outcome.rows)) == 2


# --- verification ----------------------------------------------------------------------------------------


def _serves_wrongly(monkeypatch, spoil):
    """Makes PyTorch with folded norms a provider that is wrong."""

    @contextmanager
    def wrongly(provider, *arguments):
        with serve(provider, *arguments) as call:
            yield (lambda: spoil(call().clone())) if provider.folded else call

    monkeypatch.setattr(inference, "serve", wrongly)


def _off_in_one_pixel(x):
    x[-1, 2, 3, 4] += 1e-2
    return x


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x * 1.001, "WrongResultError: error: expected at most "),
        (_off_in_one_pixel, "WrongResultError: error: expected at most "),
        (lambda x: x / 0, "WrongResultError: result: expected finite values, got "),
        (lambda x: x[:, :3], "WrongResultError: result: expected torch.float32 (1, 16, 4, 6), got torch.float32 (1, 3"),
        (lambda x: x.double(), "WrongResultError: result: expected torch.float32 (1, 16, 4, 6), got torch.float64"),
    ],
    ids=["scaled", "pixel", "nan", "shape", "dtype"],
)
def test_a_wrong_provider_is_not_timed(tmp_path, monkeypatch, spoil, message):
    _serves_wrongly(monkeypatch, spoil)
    outcome, output = _run(tmp_path, names=["folded", "reference"])
    assert {provider for provider, _ in _timed(results.read(tmp_path / "rows.jsonl"))} == {"reference"}
    assert [label for label, _ in outcome.failures] == [
        f"branches 4×6, batch 2, float32, {layout} · folded" for layout in ("contiguous", "channels_last")
    ]
    assert all(reason.startswith(message) for _, reason in outcome.failures)
    assert "· folded: failed, WrongResultError" in output
    assert outcome.code == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "tf32", "float32"])
def test_the_bound_is_of_the_dtype(tmp_path, dtype):
    outcome, _ = _run(tmp_path, [replace(SMALL, dtype=dtype)], ["reference", "gemm", "gemm-slices"])
    assert outcome.failures == []
    assert len(_timed(outcome.rows)) == 4
    eps = torch.finfo(workloads.DTYPES[dtype]).eps
    prepared = workloads.prepare(replace(SMALL, dtype=dtype), PROVIDERS["reference"], CPU)
    assert eps / 100 < prepared.truth.error < 100 * eps


def test_images_of_a_batch_differ(tmp_path):
    prepared = workloads.prepare(SMALL, PROVIDERS["reference"], CPU)
    for level in prepared.inputs:
        assert not level[0].equal(level[1])
    assert prepared.truth.value.shape[0] == 1


# --- what is left out ------------------------------------------------------------------------------------


def test_what_cannot_serve_here_is_skipped_with_its_reason(tmp_path):
    outcome, _ = _run(tmp_path)
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
    outcome, _ = _run(tmp_path, names=["reference"])
    assert [reason for _, reason in outcome.skipped] == ["policy 'mma' does not take this"] * 2
    assert outcome.failures == []


def test_only_the_fastest_of_pytorchs_launches_are_graphed(tmp_path, monkeypatch):
    """On a GPU that is not here: a graph is the call itself."""
    monkeypatch.setattr(inference, "why_not", lambda *_: None)
    monkeypatch.setattr("benchmarks.providers._captured", lambda call, inputs: lambda: call(*inputs))
    milliseconds = iter([1.0, 1.0, 1.0, 5.0, 4.0, 3.0, 2.0, 9.0])  # the first three are of ceilings
    monkeypatch.setattr(measure, "time_calls", lambda *_: [next(milliseconds)])
    outcome, _ = _run(tmp_path, names=["reference", "folded", "reference-graph", "folded-graph"])
    assert _timed(outcome.rows)[-1] == ("folded-graph", "channels_last")
    assert len(_timed(outcome.rows)) == 5
    reason = "of PyTorch's launches, only the fastest are graphed (folded, channels_last)"
    assert [found for _, found in outcome.skipped] == [reason] * 3


@pytest.fixture
def clock(monkeypatch):
    """A clock that each measurement moves by a second, and a compiled one by thirty."""
    clock = SimpleNamespace(now=0.0)

    def measured(session, workload, name, provider, tick):
        clock.now += 30 if provider.compiled else 1
        return list(ceilings.timing_rows([1.0], 1.0, "throughput", workload.as_dict(), name, session._where))

    monkeypatch.setattr(inference, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(inference._Session, "_verify_and_time", measured)
    return clock


def test_the_budget_ends_a_run_before_the_job_that_would_exceed_it(tmp_path, clock):
    selected = [SMALL, replace(SMALL, batch=1)]
    outcome, _ = _run(tmp_path, selected, ["reference", "compiled"], budget=40.0)
    # Four of a second; the first compiled ends at 34, and another would take until 64.
    assert _timed(outcome.rows) == [
        *[("reference", layout) for layout in ("contiguous", "channels_last")] * 2,
        ("compiled", "channels_last"),
    ]
    assert outcome.rows[-1].case["batch"] == 2
    assert [reason for _, reason in outcome.skipped] == ["the budget of 40 s is spent"]
    assert clock.now == 34
    assert outcome.code == 0


def test_on_a_gpu_no_compiler_is_begun_in_the_last_minute(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(inference, "_FIRST_ON_CPU", 90.0)
    outcome, _ = _run(tmp_path, names=["compiled"], budget=89.0)
    assert _timed(outcome.rows) == []
    assert [reason for _, reason in outcome.skipped] == ["the budget of 89 s is spent"]


def test_a_workload_that_cannot_be_prepared_is_tried_once(tmp_path, monkeypatch):
    tried = []

    def prepare(*arguments):
        tried.append(arguments)
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr(inference, "prepare", prepare)
    outcome, _ = _run(tmp_path, names=["reference", "folded"])
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
    outcome, output = _run(tmp_path)
    assert outcome.interrupted
    assert outcome.code == 130
    assert "interrupted; what was measured is kept" in output
    first = results.read(tmp_path / "rows.jsonl")
    assert _timed(first) == [("gemm", "channels_last"), ("reference", "contiguous")]
    restore()
    outcome, output = _run(tmp_path, resume=True)
    rows = results.read(tmp_path / "rows.jsonl")
    assert rows[: len(first)] == first
    assert outcome.rows == rows
    assert _timed(rows) == [("gemm", "channels_last"), ("reference", "contiguous"), ("reference", "channels_last")]
    assert len(results.runs(rows)) == 1
    assert len(output.splitlines()) == 1  # neither ceilings nor what was there
    share = next(row for row in reversed(rows) if row.metric == "of_ceiling")
    rate = next(row for row in reversed(rows) if row.metric == "throughput")
    assert share.value == pytest.approx(100 * rate.value / Ceilings.of(first).products["float32"])


def test_a_run_that_goes_on_measures_the_ceilings_it_lacks(tmp_path):
    _run(tmp_path, names=["gemm"])
    outcome, _ = _run(tmp_path, [SMALL, replace(SMALL, dtype="bfloat16")], ["gemm"], resume=True)
    assert set(Ceilings.of(outcome.rows).products) == {"float32", "bfloat16"}
    assert [row.case["dtype"] for row in outcome.rows if row.metric == "of_ceiling"] == ["float32", "bfloat16"]


def test_without_asking_a_second_run_is_a_second_run(tmp_path):
    for _ in range(2):
        _run(tmp_path, names=["gemm"])
    rows = results.read(tmp_path / "rows.jsonl")
    assert [len(_timed(run)) for run in results.runs(rows).values()] == [1, 1]


@pytest.mark.parametrize(
    ("key", "value"), [("device", "a GPU"), ("source_hash", "0" * 64), ("versions", {"run": "2026", "torch": "2.0"})]
)
def test_a_run_made_otherwise_does_not_go_on(tmp_path, key, value):
    _run(tmp_path, names=["gemm"])
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({**json.loads(line), key: value}) for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ResultsError, match=f"cannot resume run .*: {key.replace('_', ' ')}: expected "):
        _run(tmp_path, names=["gemm"], resume=True)


def test_on_a_terminal_there_is_a_bar(tmp_path):
    assert "━" in _run(tmp_path, names=["gemm"], terminal=True)[1]


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
    _serves_wrongly(monkeypatch, lambda x: x * 1.1)
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
