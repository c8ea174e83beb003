"""Counts of host execution are scaled by blocks and steps; what is predicted so is what is counted."""

from dataclasses import replace

import pytest

from benchmarks.model import counts
from benchmarks.model.counts import Counter, CountsUnavailableError, execute, scale, total
from benchmarks.model.kernels import CALLS, FMA_OUTPUTS, FMA_PIXELS, KERNELS, Call
from benchmarks.model.work import Work
from jpu_cuda.host import Launch

# 12 × 10 pixels fill no tile of any dilation.
WORKS = [
    Work(2, 12, 10, "bfloat16", channels=64, outputs=128),
    Work(2, 12, 10, "float32", channels=64, outputs=64),
]


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.dtype)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.row)
def test_counts_of_small_calls_predict_those_of_a_larger_one(kernel, work, tmp_path):
    predicted = Counter(tmp_path).counts(kernel, work)
    counted = execute(CALLS[kernel.call], work)[kernel.name]
    assert predicted == counted
    assert counted["blocks"] > 0


def test_a_fused_block_makes_the_multiply_adds_of_its_tile():
    # One tile of 8 × 16 pixels: none is wasted.
    work = Work(1, 8, 16, "bfloat16", levels=1, channels=64, outputs=FMA_OUTPUTS, dilations=(1,))
    kernel = KERNELS[-1]
    found = execute(CALLS[kernel.call], work)[kernel.name]
    assert found["blocks"] == 1
    assert kernel.main_multiply_adds is not None
    product = kernel.main_multiply_adds(work, found)
    assert product == work.pointwise_multiply_adds()
    # Nine taps and a norm for each pixel and channel; a norm for each pixel and output.
    assert found["multiply_adds"] == product + FMA_PIXELS * (10 * 64 + FMA_OUTPUTS)


def test_counts_are_linear_in_features():
    found = scale([(1, 10), (1, 20)], [{"a": 7 + 30, "b": 2}, {"a": 7 + 60, "b": 2}], (4, 100))
    assert found == {"a": 4 * 7 + 300, "b": 8}


def test_counts_that_depend_on_something_else_are_refused():
    with pytest.raises(ValueError, match="a: expected whole blocks, got 1.5 for the features"):
        scale([(1, 0), (0, 2)], [{"a": 1}, {"a": 1}], (1, 1))


def test_features_that_tell_nothing_apart_are_refused():
    with pytest.raises(ValueError, match="expected two that are no multiples of each other"):
        scale([(1, 2), (2, 4)], [{"a": 1}, {"a": 2}], (1, 1))


def _launch(name: str, **counters: object) -> Launch:
    return Launch(name, 3, 256, dict(counters))


def test_launches_of_one_name_are_summed():
    launches = [_launch("a", barriers=1), _launch("b", barriers=10), _launch("a", barriers=2, global_reads={16: 4})]
    assert total(launches, "a") == {"launches": 2, "blocks": 6, "barriers": 3}


def test_a_launch_that_did_not_happen_is_an_error():
    with pytest.raises(ValueError, match="expected 'c', got a, b"):
        total([_launch("b"), _launch("a")], "c")


def test_calls_are_executed_once_and_kept(tmp_path, monkeypatch):
    executed = []
    real = counts.execute
    monkeypatch.setattr(counts, "execute", lambda call, work: executed.append(work) or real(call, work))
    ticks = []
    kernel, work = KERNELS[0], Work(1, 8, 8, "bfloat16")
    first = Counter(tmp_path, ticks.append).counts(kernel, work)
    assert Counter(tmp_path, ticks.append).counts(kernel, work) == first
    assert len(executed) == len(ticks) == counts.samples([kernel], [work]) == 2
    # Another batch is made of the same samples.
    Counter(tmp_path, ticks.append).counts(kernel, replace(work, batch=16))
    assert len(executed) == 2


def test_kept_counts_that_were_broken_off_are_counted_anew(tmp_path):
    kernel, work = KERNELS[0], Work(1, 8, 8, "bfloat16")
    first = Counter(tmp_path).counts(kernel, work)
    for path in tmp_path.iterdir():
        path.write_text("{")
    assert Counter(tmp_path).counts(kernel, work) == first


def test_counts_of_other_sources_are_not_taken(tmp_path, monkeypatch):
    kernel, work = KERNELS[0], Work(1, 8, 8, "bfloat16")
    Counter(tmp_path).counts(kernel, work)
    monkeypatch.setattr(counts, "source_hash", lambda: "other")
    ticks = []
    Counter(tmp_path, ticks.append).counts(kernel, work)
    assert len(ticks) == 2


def test_a_policy_that_host_execution_does_not_know_is_named():
    call = Call(lambda work: None, lambda work: (work, work), policy="none such")
    with pytest.raises(CountsUnavailableError, match="none such"):
        execute(call, WORKS[0])
