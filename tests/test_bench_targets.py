"""Targets held against rows such as a GPU gives (made up: only their handling is tested)."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import ceilings, results, targets
from benchmarks.__main__ import main
from benchmarks.cases import Case
from benchmarks.environment import Environment
from benchmarks.results import Row, make_row
from benchmarks.targets import Target
from benchmarks.training_workloads import TrainingWorkload
from benchmarks.workloads import Workload

WHERE = Environment("a GPU", {"run": "2026-01-02T03:04:05.678Z", "torch": "2.14.1"}, "abc" * 21 + "d")
BRANCHES = Workload("branches", 64, 64, 16, "bfloat16")
TRAINED = TrainingWorkload("branches", 60, 60, 16, "bfloat16")


def _timed(workload: Workload, provider: str, milliseconds: float, layout: str = "channels_last") -> list[Row]:
    case = {**workload.as_dict(), "memory_format": layout}
    return [*ceilings.timing_rows([milliseconds] * 3, 1.0, "throughput", case, provider, WHERE)]


def _framed(case: Case, provider: str, fps: float, where: Environment = WHERE) -> Row:
    return make_row(where, case.as_dict(), provider, "fps", fps)


INFERENCE = [
    *_timed(BRANCHES, "gemm", 0.1),  # the products alone count for nobody
    *_timed(BRANCHES, "reference", 4.0, "contiguous"),
    *_timed(BRANCHES, "folded-graph", 3.3),
    *_timed(BRANCHES, "compiled", 2.0),
    *_timed(BRANCHES, "compiled-frozen", 1.8),
    *_timed(BRANCHES, "cuda", 1.5),
    *_timed(BRANCHES, "cuda-mma-graph", 1.0),
    *_timed(replace(BRANCHES, batch=1), "reference", 0.01),  # another call
]
TRAINING = [
    *_timed(TRAINED, "depthwise-cudnn", 9.0),
    *_timed(TRAINED, "compiled-default", 6.0),
    *_timed(TRAINED, "cuda", 4.0),
    *_timed(TRAINED, "cuda-compiled", 0.1),  # the compiler's share in it is not the kernels'
    *_timed(replace(TRAINED, norms="frozen"), "reference", 0.01),
]
JPU = Case("resnet101", "encoding", "jpu", batch=16, dtype="bfloat16")
TABLE = [
    _framed(replace(JPU, upsampling="none"), "reference", 100.0),
    _framed(replace(JPU, upsampling="none", memory_format="channels_last"), "reference-graph", 120.0),
    _framed(replace(JPU, upsampling="fpn"), "reference", 610.0),
    _framed(JPU, "reference", 900.0),  # without kernels
    _framed(JPU, "compiled-jpu-graph", 900.0),
    _framed(JPU, "cuda", 500.0),
    _framed(replace(JPU, memory_format="channels_last"), "cuda-graph", 600.0),
]


def _by_name(found: list[Target]) -> dict[str, Target]:
    assert len({target.name for target in found}) == len(found)
    return {target.name: target for target in found}


def test_the_fastest_of_each_kind_are_held_against_each_other() -> None:
    found = _by_name(targets.evaluate({"inference": INFERENCE, "training": TRAINING, "table2": TABLE}))
    measured = {name: (target.least, target.ratio, target.missed) for name, target in found.items() if target.row}
    inference = "stage (b), inference, 64×64, batch 16, bfloat16: "
    training = "stage (b), forward and backward, 60×60, batch 16, bfloat16: "
    network = "ResNet-101, Encoding, 512×512, batch 16, bfloat16: "
    assert measured == {
        inference + targets.EAGER: (3.0, pytest.approx(3.3), False),
        inference + targets.COMPILED: (1.5, pytest.approx(1.8), False),
        training + targets.EAGER: (3.0, pytest.approx(2.25), True),
        training + targets.COMPILED: (1.5, pytest.approx(1.5), False),
        network + "dilated backbone": (5.0, pytest.approx(5.0), False),
        network + "FPN": (1.0, pytest.approx(600 / 610), True),
    }
    assert found[inference + targets.EAGER].detail == "3.30 ms (folded-graph) to 1.00 ms (cuda-mma-graph)"
    assert found[network + "FPN"].detail == "610.0 frames/s (reference) to 600.0 (cuda-graph)"


def test_without_rows_every_target_stands_there_unmeasured() -> None:
    found = targets.evaluate({})
    assert all(target.ratio is None and not target.missed for target in found)
    aims = {(name.split(":")[0], target.least) for name, target in _by_name(found).items() if "dilated" in name}
    assert aims == {
        (f"{backbone}, Encoding, 512×512, batch {batch}, bfloat16", least)
        for backbone, least in (("ResNet-50", 3.0), ("ResNet-101", 5.0))
        for batch in (1, 16)
    }
    assert sum(name.endswith("FPN") for name in _by_name(found)) == 2 * 2 * 3


def test_each_dtype_of_the_table_is_held_to_it() -> None:
    rows = [*TABLE, *(replace(row, case={**row.case, "dtype": "float32"}) for row in TABLE[:6])]
    found = {name: target.ratio for name, target in _by_name(targets.evaluate({"table2": rows})).items()}
    assert found["ResNet-101, Encoding, 512×512, batch 16, float32: dilated backbone"] == pytest.approx(500 / 120)
    assert found["ResNet-101, Encoding, 512×512, batch 16, bfloat16: dilated backbone"] == pytest.approx(5.0)


def test_the_command_fails_on_a_miss_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets", str(tmp_path)]) == 0
    assert "not measured" in capsys.readouterr().out
    results.append(tmp_path / "inference.jsonl", INFERENCE)
    assert main(["targets", str(tmp_path), "--markdown"]) == 0
    printed = capsys.readouterr().out
    assert "bfloat16: PyTorch, compiled | met | a GPU * | 1.80 ms (compiled-frozen) to 1.00 ms" in printed
    assert "*: measured with other sources than those here" in printed
    results.append(tmp_path / "training.jsonl", TRAINING)
    assert main(["targets", str(tmp_path), "--markdown"]) == 1
    assert "launch by launch or in a graph | missed | a GPU *" in capsys.readouterr().out


def test_rows_of_another_benchmark_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results.append(tmp_path / "table2.jsonl", [_framed(JPU, "cuda", 1.0), *TRAINING, replace(TABLE[0], case={"a": 1})])
    assert main(["targets", str(tmp_path)]) == 2
    assert "case: expected the keys backbone" in capsys.readouterr().err
