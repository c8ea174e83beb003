"""Table and chart of a run of inference, from rows such as a GPU gives (made up: only their handling is tested)."""

import matplotlib.image
import pytest

from benchmarks import ceilings, inference_chart, inference_report, results, timings, workloads
from benchmarks.__main__ import main
from benchmarks.environment import Environment
from benchmarks.inference import _share
from benchmarks.results import ResultsError, Row
from benchmarks.workloads import Workload

WHERE = Environment("a GPU", {"run": "2026-01-02T03:04:05.678Z", "torch": "2.14.1"}, "abc" * 21 + "d")
CALL = Workload("branches", 64, 64, 16)
CEILING = 800.0


def _rows(workload: Workload, provider: str, milliseconds: float, memory_format: str = "channels_last") -> list[Row]:
    case = {**workload.as_dict(), "memory_format": memory_format}
    samples = [0.9 * milliseconds, milliseconds, 1.2 * milliseconds]
    latency, rate = ceilings.timing_rows(samples, 400.0, "throughput", case, provider, WHERE)
    return [latency, rate, _share(rate, CEILING)]


def _ceilings(*dtypes: str) -> list[Row]:
    rows = []
    for dtype in dtypes:
        case = {"ceiling": "matrix product", "dtype": dtype}
        rows += ceilings.timing_rows([1.0], CEILING, "throughput", case, "torch", WHERE)
    copied = {"ceiling": "copy", "bytes": 2**30}
    return [*rows, *ceilings.timing_rows([1.0], 3000.0, "bandwidth", copied, "torch", WHERE)]


TIMES = {"gemm": 0.5, "reference": 4.0, "folded": 3.0, "folded-graph": 2.0, "compiled": 2.5, "cuda": 1.6}
RUN = _ceilings("bfloat16") + [row for name, value in TIMES.items() for row in _rows(CALL, name, value)]


def _lines(rows: list[Row]) -> list[dict[str, str]]:
    rendered = inference_report.table(rows)
    return [dict(zip(rendered.columns, line, strict=True)) for line in rendered.lines]


def test_a_line_has_what_was_measured_and_what_it_is_worth():
    (line,) = (line for line in _lines(RUN) if line["provider"] == "cuda")
    assert line == {
        "part": "branches",
        "stride 8": "64×64",
        "batch": "16",
        "dtype": "bfloat16",
        "layout": "NHWC",
        "provider": "cuda",
        "ms (p25–p75)": "1.60 (1.52–1.76)",
        "TFLOP/s": "250",
        "% of ceiling": "31.2",
        "× best of PyTorch": "1.25×",
    }


def test_the_yardstick_comes_first_then_the_fastest():
    assert [line["provider"] for line in _lines(RUN)] == [
        *("gemm", "cuda", "folded-graph", "compiled", "folded", "reference")
    ]


def test_the_best_of_pytorch_is_neither_yardstick_nor_kernel():
    ratios = {line["provider"]: line["× best of PyTorch"] for line in _lines(RUN)}
    assert ratios["folded-graph"] == "1.00×"
    assert ratios["reference"] == "0.50×"
    assert ratios["gemm"] == ""


def test_the_best_of_pytorch_may_lie_in_another_layout():
    rows = _rows(CALL, "reference", 4.0) + _rows(CALL, "reference", 2.0, "contiguous") + _rows(CALL, "cuda", 1.0)
    found = {(line["provider"], line["layout"]): line["× best of PyTorch"] for line in _lines(rows)}
    assert found == {
        ("cuda", "NHWC"): "2.00×",
        ("reference", "NCHW"): "1.00×",
        ("reference", "NHWC"): "0.50×",
    }


def test_calls_are_held_against_their_like_only():
    others = [Workload("branches", 64, 64, 1), Workload("jpu", 64, 64, 16), Workload("branches", 64, 64, 16, "tf32")]
    rows = _rows(CALL, "cuda", 1.0)
    for other in others:
        rows += _rows(other, "reference", 2.0)
    assert next(line for line in _lines(rows) if line["provider"] == "cuda")["× best of PyTorch"] == ""


def test_lines_are_in_the_order_of_parts_dtypes_batches_and_sizes():
    calls = [
        Workload("branches", 60, 60, 1),
        Workload("branches", 64, 64, 1),
        Workload("branches", 60, 60, 16),
        Workload("branches", 60, 60, 1, "float32"),
        Workload("jpu", 60, 60, 1),
    ]
    rows = [row for call in reversed(calls) for row in _rows(call, "cuda", 1.0)]
    assert [call[0].in_any_format for call in inference_report.timed(rows)] == calls


def test_notes_say_sources_and_ceilings():
    notes = inference_report.table(RUN).notes
    assert "run 2026-01-02T03:04:05.678Z, torch 2.14.1" in notes
    assert "sources abcabcabcabc" in notes
    assert "ceiling: large square matrix products in the same run: bfloat16 800 TFLOP/s" in notes
    assert "a copy moves 3000 GB/s, read and written" in notes


def test_microseconds_keep_their_digits():
    (line,) = _lines(_rows(CALL, "cuda", 0.0421))
    assert line["ms (p25–p75)"] == "0.0421 (0.0400–0.0463)"


def test_rows_of_an_older_provider_are_shown():
    (line,) = _lines(_rows(CALL, "cuda-first", 1.0))
    assert (line["provider"], line["× best of PyTorch"]) == ("cuda-first", "")
    assert inference_chart.kind("cuda-first") == "kernels"


@pytest.mark.parametrize("draw", [inference_report.table, lambda rows: inference_chart.draw(rows, "unused.png")])
def test_a_run_that_timed_nothing_is_refused(draw):
    with pytest.raises(ResultsError, match="expected rows of the metric latency, got none"):
        draw(_ceilings("bfloat16"))


def test_rows_of_another_benchmark_are_refused():
    (row, *_) = _rows(CALL, "cuda", 1.0)
    with pytest.raises(ResultsError, match="case: expected the keys part, .*, got size"):
        inference_report.table([Row(**{**vars(row), "case": {"size": 3}})])


def test_the_table_command_tells_the_benchmarks_apart(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    results.append(path, RUN)
    assert main(["table", str(path), "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "**a GPU: inference**"
    assert lines[5].startswith("| branches | 64×64 | 16 | bfloat16 | NHWC | cuda | 1.60 (1.52–1.76) | 250 | 31.2 |")


# --- chart -----------------------------------------------------------------------------------------------


def test_the_fastest_of_each_kind_is_drawn():
    rows = RUN + _rows(CALL, "cuda-mma", 1.2) + _rows(CALL, "cuda-mma-graph", 1.1) + _rows(CALL, "cuda-graph", 1.5)
    (kinds,) = timings.fastest(inference_report.timed(rows), inference_chart.kind).values()
    assert {kind: call[1] for kind, call in kinds.items()} == {
        "matrix products alone": "gemm",
        "PyTorch, eager": "folded",
        "PyTorch, CUDA graph": "folded-graph",
        "PyTorch, compiled": "compiled",
        "kernels": "cuda-mma",
        "kernels, CUDA graph": "cuda-mma-graph",
    }
    assert kinds.keys() == inference_chart.COLOURS.keys()


def _whole_run() -> list[Row]:
    selected = workloads.select(
        list(workloads.PARTS), workloads.SHAPES, workloads.BATCHES, ["bfloat16", "tf32"], workloads.CHANNELS
    )
    rows = _ceilings("bfloat16", "tf32")
    for workload in selected:
        for name, value in {**TIMES, "cuda-graph": 1.0}.items():
            rows += _rows(workload, name, value)
    return rows


@pytest.mark.parametrize(
    "rows",
    [RUN, _whole_run(), [row for row in RUN if not ceilings.is_ceiling(row)], _rows(CALL, "cuda", 1.0)],
    ids=["one", "whole", "no-ceiling", "one-bar"],
)
def test_a_chart_is_drawn(tmp_path, rows):
    path = tmp_path / "new" / "chart.png"
    inference_chart.draw(rows, path)
    image = matplotlib.image.imread(path)
    # Neither blank nor cut: ink within, a white margin around.
    assert image[..., :3].std() > 0.05
    assert (image[0] == 1).all()
    assert (image[-1] == 1).all()
    assert (image[:, -1] == 1).all()
