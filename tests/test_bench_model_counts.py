"""Counts of host execution are scaled by blocks and steps; what is predicted so is what is counted."""

from dataclasses import replace

import pytest
import torch

from benchmarks.model import counts
from benchmarks.model.counts import Counter, CountsUnavailableError, execute, scale, total
from benchmarks.model.kernels import CALLS, FMA_OUTPUTS, KERNELS, MATRIX_OUTPUTS, TILE_PIXELS
from benchmarks.model.work import Work
from jpu_cuda import host, use_backend
from jpu_cuda.host import Launch

# 12 × 10 pixels fill no tile of either dilation.
WORKS = [Work(2, 12, 10, dtype, channels=64, dilations=(1, 4)) for dtype in ("bfloat16", "float16", "float32")]


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.dtype)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.row)
def test_counts_of_small_calls_predict_those_of_a_larger_one(kernel, work, tmp_path):
    small, _ = CALLS[kernel.call].samples(work)
    work = replace(work, outputs=2 * small.outputs)
    predicted = Counter(tmp_path).counts(kernel, work)
    assert predicted == execute(CALLS[kernel.call], work)[kernel.name]
    assert predicted["blocks"] > 0


@pytest.mark.parametrize(("channels", "dtype"), [(512, "bfloat16"), (512, "float32")])
def test_counts_of_norm_relu_hold_for_several_tiles_of_channels(channels, dtype, tmp_path):
    kernel = next(kernel for kernel in KERNELS if kernel.call == "norm_relu")
    work = Work(3, 21, 18, dtype, channels=channels)
    assert Counter(tmp_path).counts(kernel, work) == execute(CALLS["norm_relu"], work)[kernel.name]


def test_a_fused_block_makes_the_multiply_adds_of_its_tile():
    # One tile of 8 × 16 pixels: none is wasted.
    work = Work(1, 8, 16, "bfloat16", levels=1, channels=64, outputs=FMA_OUTPUTS, dilations=(1,))
    kernel = next(kernel for kernel in KERNELS if kernel.policy == "fma")
    found = execute(CALLS[kernel.call], work)[kernel.name]
    assert found["blocks"] == 1
    assert kernel.main_multiply_adds is not None
    product = kernel.main_multiply_adds(work, found)
    assert product == work.pointwise_multiply_adds()
    # Nine taps and a norm for each pixel and channel; a norm for each pixel and output.
    assert found["multiply_adds"] == product + TILE_PIXELS * (10 * 64 + FMA_OUTPUTS)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.row)
def test_blocks_have_the_threads_that_the_table_says(kernel):
    call = CALLS[kernel.call]
    with use_backend("host", arch=call.arch, policy=call.policy), host.record() as launches:
        call.run(Work(1, 4, 4, "bfloat16", channels=8, outputs=8, dilations=(1,)))
    assert {launch.threads for launch in launches if launch.kernel == kernel.name} == {kernel.threads}


def test_counts_are_linear_in_features():
    found = scale([(1, 10), (1, 20)], [{"a": 7 + 30, "b": 2}, {"a": 7 + 60, "b": 2}], (4, 100))
    assert found == {"a": 4 * 7 + 300, "b": 8}


def test_counts_that_depend_on_something_else_are_refused():
    with pytest.raises(ValueError, match="a: expected whole blocks, got 1.5 for the features"):
        scale([(1, 0), (0, 2)], [{"a": 1}, {"a": 1}], (1, 1))


def test_features_that_tell_nothing_apart_are_refused():
    with pytest.raises(ValueError, match=r"expected calls that tell \(1, 1\) apart"):
        scale([(1, 2), (2, 4)], [{"a": 1}, {"a": 2}], (1, 1))


def _launch(name: str, **counters: object) -> Launch:
    return Launch(name, 3, 256, dict(counters))


def test_launches_of_one_name_are_summed():
    launches = [_launch("a", barriers=1), _launch("b", barriers=10), _launch("a", barriers=2, global_reads={16: 4})]
    assert total(launches, "a") == {"blocks": 6, "barriers": 3}


def test_a_launch_that_did_not_happen_is_an_error():
    with pytest.raises(ValueError, match="expected 'c', got a, b"):
        total([_launch("b"), _launch("a")], "c")


def test_calls_are_executed_once_and_kept(tmp_path, monkeypatch):
    executed: list[Work] = []
    real = counts.execute
    monkeypatch.setattr(counts, "execute", lambda call, work: executed.append(work) or real(call, work))
    ticks: list[str] = []
    kernel, work = KERNELS[0], Work(1, 8, 8, "bfloat16")
    first = Counter(tmp_path, ticks.append).counts(kernel, work)
    assert Counter(tmp_path, ticks.append).counts(kernel, work) == first
    assert len(executed) == counts.count_samples([kernel], [work]) == 2
    assert len(ticks) == 4
    # Another batch is made of the same samples.
    Counter(tmp_path, ticks.append).counts(kernel, replace(work, batch=16))
    assert len(executed) == 2


def test_kept_counts_that_were_broken_off_are_counted_anew(tmp_path):
    kernel, work = KERNELS[0], Work(1, 8, 8, "bfloat16")
    first = Counter(tmp_path).counts(kernel, work)
    for path in tmp_path.iterdir():
        path.write_text("{")
    assert Counter(tmp_path).counts(kernel, work) == first


@pytest.mark.parametrize(("name", "value"), [("source_hash", lambda: "other"), ("_HERE", ("__main__.py",))])
def test_counts_of_other_sources_are_not_taken(name, value, tmp_path, monkeypatch):
    kernel, work = KERNELS[0], Work(1, 8, 8, "bfloat16")
    Counter(tmp_path).counts(kernel, work)
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(counts, name, value)
    Counter(tmp_path).counts(kernel, work)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_sample_is_executed_once_for_all_kernels_of_a_call(tmp_path):
    passes = [kernel for kernel in KERNELS if kernel.policy == "two-pass"]
    ticks: list[str] = []
    counter = Counter(tmp_path, ticks.append)
    for kernel in passes:
        counter.counts(kernel, WORKS[0])
    assert (len(passes), len(ticks)) == (2, 2)


def test_a_fused_block_makes_the_multiply_adds_of_its_tile_by_tensor_cores():
    work = Work(1, 8, 16, "float32", levels=1, channels=64, outputs=MATRIX_OUTPUTS, dilations=(1,))
    found = execute(CALLS["mma"], work)["separable_pyramid mma"]
    assert found["blocks"] == 1
    assert found["matrix_multiply_adds"] == work.pointwise_multiply_adds()


def test_counting_leaves_the_setting_of_tf32_as_it_was():
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    try:
        found = execute(CALLS["mma"], Work(1, 4, 4, "float32", levels=1, channels=16, outputs=8, dilations=(1,)))
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"
    finally:
        torch.backends.cudnn.conv.fp32_precision = before
    assert set(found) == {"separable_pyramid mma"}


def test_host_execution_that_cannot_be_built_is_named(monkeypatch):
    def fail() -> None:
        raise host.HostBuildError("host execution: no compiler")

    monkeypatch.setattr(host, "load", fail)
    with pytest.raises(CountsUnavailableError, match="host execution: no compiler"):
        execute(CALLS["fma"], WORKS[0])
