"""The benchmark of inference: order, rows, and that every provider is verified before it is timed."""

from dataclasses import replace

import pytest
import torch
from inference_runs import CPU, SMALL, run, serve_wrongly, small_ceilings, timed

from benchmarks import ceilings, environment, inference, measure, results, verify, workloads
from benchmarks.ceilings import Ceilings, is_ceiling
from benchmarks.providers import DEFAULT, PROVIDERS
from benchmarks.workloads import Workload

__all__ = ["small_ceilings"]  # a fixture of every test here


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
    # Of the first workload right after all else of it, of the others at the very end.
    first = [job for job in jobs if job[0].in_any_format == selected[0]]
    assert jobs[: len(first)] == first
    assert [name for _, name in first[-2:]] == ["compiled", "compiled-frozen"]
    others = jobs[len(first) :]
    first_compiled = next(i for i, job in enumerate(others) if PROVIDERS[job[1]].compiled)
    assert all(PROVIDERS[name].compiled for _, name in others[first_compiled:])
    assert len(others) - first_compiled == 15 * 2
    assert len(set(jobs)) == len(jobs)


def test_the_products_alone_are_no_yardstick_of_a_whole_jpu():
    jobs = inference.jobs_in_order([replace(SMALL, part="jpu")], DEFAULT)
    assert {name for _, name in jobs} == {name for name in DEFAULT if not name.startswith(("gemm", "compiled-jpu"))}


def test_a_jpu_is_compiled_alone_within_a_network_only():
    jobs = inference.jobs_in_order([replace(SMALL, part="fastfcn")], DEFAULT)
    assert {name for _, name in jobs} == {name for name in DEFAULT if not name.startswith("gemm")}


def test_default_shapes_are_those_of_the_crops_in_use():
    assert sorted((8 * h, 8 * w) for h, w in workloads.SHAPES) == [(480, 480), (512, 512), (512, 1024), (1024, 2048)]
    assert sorted(workloads.BATCHES) == [1, 4, 16]
    assert set(workloads.DTYPES) == {"bfloat16", "float16", "float32", "tf32"}


# --- rows ------------------------------------------------------------------------------------------------


def test_rows_are_made_as_each_is_finished(tmp_path):
    outcome, output = run(tmp_path)
    rows = results.read(tmp_path / "rows.jsonl")
    assert outcome.rows == rows
    assert outcome.failures == []
    assert timed(rows) == [("gemm", "channels_last"), ("reference", "contiguous"), ("reference", "channels_last")]
    (gemm, *_) = (row for row in rows if row.metric == "throughput" and row.provider == "gemm")
    assert Workload.from_dict(gemm.case) == replace(SMALL, memory_format="channels_last")
    lines = output.splitlines()
    assert lines[0].startswith("ceilings: float32 ")
    assert lines[1].startswith("branches 4×6, batch 2, float32, channels_last · gemm: ")
    assert len(lines) == 4


def test_throughput_follows_from_latency_and_work(tmp_path):
    outcome, _ = run(tmp_path)
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
    where = environment.describe(CPU)
    rows = ceilings.measure_ceilings(["bfloat16", "float32"], CPU, 1e-3, where, lambda done: None)
    found = Ceilings.of(rows)
    assert found.products == {name: pytest.approx(2 * 32**3 / 4e-3 / 1e12) for name in ("bfloat16", "float32")}
    assert found.bandwidth == pytest.approx(2 * 2**12 / 4e-3 / 1e9)
    assert all(is_ceiling(row) for row in rows)


def test_a_whole_network_is_verified_and_timed(tmp_path, monkeypatch):
    deep = []
    monkeypatch.setattr(verify, "assert_no_worse", lambda *arguments: deep.append(arguments[2]))
    outcome, _ = run(tmp_path, [Workload("fastfcn", 8, 6, 1, "bfloat16"), SMALL], ["reference"])
    assert outcome.failures == []
    assert len(timed(outcome.rows)) == 4
    assert deep == [True, True, False, False]


# --- verification ----------------------------------------------------------------------------------------


def _off_in_one_pixel(x):
    x[-1, 2, 3, 4] += 1e-2
    return x


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x * 1.001, "WrongResultError: error: expected at most "),
        (_off_in_one_pixel, "WrongResultError: error: expected at most "),
        (lambda x: x / 0, "WrongResultError: result: expected finite values, got "),
        (lambda x: x[:, :3], "WrongResultError: result: expected torch.float32 (2, 16, 4, 6), got torch.float32 (2, 3"),
        (lambda x: x.double(), "WrongResultError: result: expected torch.float32 (2, 16, 4, 6), got torch.float64"),
    ],
    ids=["scaled", "pixel", "nan", "shape", "dtype"],
)
def test_a_wrong_provider_is_not_timed(tmp_path, monkeypatch, spoil, message):
    serve_wrongly(monkeypatch, spoil)
    outcome, output = run(tmp_path, names=["folded", "reference"])
    assert {provider for provider, _ in timed(results.read(tmp_path / "rows.jsonl"))} == {"reference"}
    assert [label for label, _ in outcome.failures] == [
        f"branches 4×6, batch 2, float32, {layout} · folded" for layout in ("contiguous", "channels_last")
    ]
    assert all(reason.startswith(message) for _, reason in outcome.failures)
    assert "· folded: failed, WrongResultError" in output
    assert outcome.code == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "tf32", "float32"])
def test_the_bound_is_of_the_dtype(tmp_path, dtype):
    outcome, _ = run(tmp_path, [replace(SMALL, dtype=dtype)], ["reference", "gemm", "gemm-slices"])
    assert outcome.failures == []
    assert len(timed(outcome.rows)) == 4
    eps = 2**-10 if dtype == "tf32" else torch.finfo(workloads.DTYPES[dtype]).eps
    prepared = workloads.prepare(replace(SMALL, dtype=dtype), PROVIDERS["reference"], CPU)
    assert eps / 100 < prepared.truth.error < 100 * eps


def test_images_of_a_batch_differ(tmp_path):
    prepared = workloads.prepare(SMALL, PROVIDERS["reference"], CPU)
    for level in prepared.inputs:
        assert not level[0].equal(level[1])
    assert prepared.truth.value.shape[0] == 2
