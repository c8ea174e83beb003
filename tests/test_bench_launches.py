"""Launches of a call told apart and held against the cost sheet's kernels, without a GPU that runs them."""

import io
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from strategies import needs_host

from benchmarks import launches, results, runner
from benchmarks.__main__ import main
from benchmarks.environment import Environment
from benchmarks.launches import OTHER, Launch, attribute, split
from benchmarks.model import kernels, sheet, training
from benchmarks.model.devices import DEVICES
from benchmarks.model.work import Work
from benchmarks.providers import PROVIDERS, TRAINING, Provider
from benchmarks.workloads import Workload
from jpu_cuda import host

CPU = torch.device("cpu")
BACKWARD = [kernel for kernel in training.KERNELS if kernel.direction == "backward"]


def _named(function: str, milliseconds: float = 1.0) -> Launch:
    return Launch(f"void jpu::some_op::{function}<jpu::bfloat16, 8>(jpu::some_op::Params)", milliseconds)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        # As c++filt and the binary have them.
        ("void jpu::norm_relu::rows_output_sums<jpu::bfloat16, 8>(jpu::norm_relu::RowParams)", "rows_output_sums"),
        (
            "void jpu::separable_pyramid::pyramid_mma<jpu::bfloat16, false>(jpu::separable_pyramid::Params)",
            "pyramid_mma",
        ),
        ("_ZN3jpu9norm_relu16rows_output_sumsINS_8bfloat16ELi8EEEvNS0_9RowParamsE", "rows_output_sums"),
        ("_ZN3jpu17separable_pyramid11pyramid_mmaINS_8bfloat16ELb0EEEvNS0_6ParamsE", "pyramid_mma"),
        ("nvjet_tst_256x128_64x4_1x2_h_bz_coopA_NTN", None),
        ("Memcpy DtoD (Device -> Device)", None),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<int>>(int)", None),
    ],
)
def test_a_launch_tells_whose_it_is(name: str, function: str | None) -> None:
    assert Launch(name, 1.0).function == function


def test_calls_are_told_apart() -> None:
    calls = [[_named("a", i), _named("b", 10 * i)] for i in (1, 2, 3)]
    assert split([launch for call in calls for launch in call], 3) == calls


@pytest.mark.parametrize("names", ["", "ababa", "abbaab"], ids=["none", "one is missing", "in another order"])
def test_calls_that_differ_are_refused(names: str) -> None:
    with pytest.raises(RuntimeError, match=f"expected 3 calls of the same launches, got {len(names)} launches"):
        split([_named(name) for name in names], 3)


def test_products_are_told_by_what_they_follow() -> None:
    def product(milliseconds: float) -> Launch:
        return Launch("nvjet_tst_256x128", milliseconds)

    def cat(milliseconds: float) -> Launch:
        name = "void at::native::(anonymous namespace)::CatArrayBatchedCopy_contig<at::native::OpaqueType<2u>, 3>(int)"
        return Launch(name, milliseconds)

    found = attribute(
        [
            *(product(0.5), _named("rows_output_sums"), _named("norm_coefficients"), _named("rows_output_gradient")),
            *(_named("training_normalised"), product(1.0), product(0.25), _named("norm_pointwise_gradient")),
            *(_named("norm_coefficients"), cat(8.0), product(2.0), _named("training_depthwise_gradient", 3.0)),
            *(_named("upsample_backward"), cat(4.0), Launch("void at::native::unrolled_elementwise_kernel", 16.0)),
        ],
        BACKWARD,
    )
    assert found == {
        OTHER: 24.5,
        "norm_relu output sums": 1.0,
        "norm_statistics coefficients": 2.0,
        "norm_relu output gradient": 1.0,
        "separable_pyramid training normalised": 1.0,
        "torch.bmm dqᵀ·ẑ": 1.25,
        "norm_statistics pointwise gradient": 1.0,
        "torch.bmm dq·P": 2.0,
        "separable_pyramid training depthwise gradient": 3.0,
        "upsample_concat backward": 1.0,
        "torch.cat of gradients": 4.0,
    }


def test_a_kernel_that_the_sheet_does_not_have_is_refused() -> None:
    with pytest.raises(RuntimeError, match="pyramid_mma: expected one of .*rows_output_sums"):
        attribute([_named("pyramid_mma")], BACKWARD)


def _executed(call: Callable[[], object]) -> list[list[Launch]]:
    """What host execution launches, under the names that a GPU would have, twice."""
    functions = {k.name: k.symbol.partition("I.*")[0] for k in (*kernels.KERNELS, *training.KERNELS) if not k.vendor}
    with host.record() as made:
        call()
    return [[_named(functions[launch.kernel], 0.5 + i) for launch in made] for i in range(2)]


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROVIDERS, "cuda", Provider("host"))
    for known in (PROVIDERS, TRAINING):
        for name, policy in (("cuda-mma", "mma"), ("cuda-two-pass", "two-pass")):
            monkeypatch.setitem(known, name, Provider("host", policy=policy, arch=80))


@needs_host
@pytest.mark.usefixtures("executed")
@pytest.mark.parametrize("part", launches.PARTS)
def test_what_real_calls_launch_is_what_the_sheet_has(part: str) -> None:
    work = Work(2, 4, 4, "bfloat16", channels=8, outputs=8)
    for label, _, measured in launches.jobs([part], (4, 4), 2, "bfloat16", 8):
        columns = measured(CPU, _executed)
        policies = "any", label.rpartition("cuda-")[2]
        if part == "jpu":
            assert columns.keys() == {"norm_relu forward"}
            continue
        listed = training.KERNELS if part == "training" else kernels.KERNELS
        own = [k for k in listed if k.policy in policies and not k.vendor and k.launched(work)]
        assert columns.keys() - {OTHER} == {kernel.row for kernel in own}
        counts = {row: samples[0] / 0.5 for row, samples in columns.items()}
        assert counts == {row: samples[1] / 1.5 for row, samples in columns.items()}


ROWS_OF = Environment(DEVICES["h100"].reported, {"run": "2026-01-02T03:04:05.678Z", "torch": "2.14.1"}, "0" * 64)


def _rows() -> list[results.Row]:
    work = Work(16, 64, 64, "bfloat16")
    columns = {"separable_pyramid mma": [1.0, 1.2, 1.4], OTHER: [0.3, 0.3, 0.3]}
    return launches._rows(ROWS_OF, work, "cuda-mma", columns)


def test_the_table_has_the_longest_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "launches.jsonl"
    results.append(path, _rows())
    assert main(["table", str(path), "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[4] == "| 64×64 | 16 | bfloat16 | cuda-mma | separable_pyramid mma | 1.20 (1.10–1.30) | 80.0 |"
    assert lines[5] == "| 64×64 | 16 | bfloat16 | cuda-mma | other launches | 0.300 (0.300–0.300) | 20.0 |"


def test_the_sheet_finds_the_rows_and_says_how_far_off_it_was() -> None:
    (kernel,) = (kernel for kernel in kernels.KERNELS if kernel.row == "separable_pyramid mma")
    (line,), _ = sheet.lines(DEVICES["h100"], [kernel], [Work(16, 64, 64, "bfloat16")], None, None, _rows(), "0" * 64)
    assert line.measured == pytest.approx(1.2)
    rendered = sheet.times(DEVICES["h100"], [line])
    cells = dict(zip(rendered.columns, rendered.lines[1], strict=True))
    assert cells["measured"] == "1.20"
    assert float(cells["× predicted"]) == pytest.approx(1.2 / float(cells["predicted"]), rel=0.01)


@needs_host
@pytest.mark.usefixtures("executed")
def test_for_another_profiler_a_whole_pass_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    ((_, _, measured), _) = launches.jobs(["training"], (4, 4), 2, "bfloat16", 8)
    watched, made = host.record(), list[list[host.Launch]]()
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda.profiler, "start", lambda: made.append(watched.__enter__()))
    monkeypatch.setattr(torch.cuda.profiler, "stop", lambda: watched.__exit__(None, None, None))
    with pytest.raises(runner.Skipped, match="made once"):
        measured(CPU, launches.make_once)
    # That pass alone: another, before it, was held to the truth.
    assert [launch.kernel for launch in made[0]].count("upsample_concat backward") == 1


def test_the_two_passes_come_last() -> None:
    names = [measured.args[1] for _, _, measured in launches.jobs(launches.PARTS, None, 16, "bfloat16", 512)]
    assert names == ["cuda-mma", "cuda", "cuda-mma", "cuda-two-pass", "cuda-two-pass"]


def test_without_a_gpu_nothing_is_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "launches.jsonl"
    assert main(["launches", "--device", "cpu", "--parts", "branches", "--output", str(path)]) == 0
    assert "skipped 2: launches need a CUDA device, got cpu" in capsys.readouterr().out
    assert not path.exists()


def test_one_call_that_fails_does_not_cost_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def jobs(*_: Any) -> list[Any]:
        def measured(workload: Any, name: str, device: torch.device, record: object) -> dict[str, list[float]]:
            if name == "bad":
                raise RuntimeError("no such launch")
            return {"separable_pyramid mma": [1.0, 2.0, 3.0]}

        call = Workload("branches", 64, 64, 16)
        return [(name, Provider(), partial(measured, call, name)) for name in ("bad", "good")]

    monkeypatch.setattr(launches, "jobs", jobs)
    monkeypatch.setattr(launches.environment, "describe", lambda device: replace(ROWS_OF, device="here"))
    console = Console(file=io.StringIO())
    pretended = type("Device", (), {"type": "cuda"})()
    monkeypatch.setattr(launches.session, "tidy", lambda device: None)
    outcome = launches.run(["branches"], None, 16, "bfloat16", 512, pretended, tmp_path / "x.jsonl", console)
    assert outcome.failures == [("bad", "RuntimeError: no such launch")]
    assert [row.value for row in outcome.rows] == [2.0]
