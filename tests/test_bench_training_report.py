"""Table and chart of a run of training, from rows such as a GPU gives (made up: only their handling is tested)."""

from dataclasses import replace

import matplotlib.image
import pytest

from benchmarks import ceilings, results, training_chart, training_report
from benchmarks.__main__ import main
from benchmarks.environment import Environment
from benchmarks.results import ResultsError, Row, make_row
from benchmarks.training_chart import COMPILED, COMPILED_KERNELS, EAGER, KERNELS
from benchmarks.training_workloads import TrainingWorkload
from benchmarks.workloads import Workload

WHERE = Environment("a GPU", {"run": "2026-01-02T03:04:05.678Z", "torch": "2.14.1"}, "abc" * 21 + "d")
CALL = TrainingWorkload("branches", 60, 60, 16)
STEP, DILATED = replace(CALL, part="step"), replace(CALL, part="dilated")


def _rows(
    workload: Workload, provider: str, milliseconds: float, memory_format: str = "channels_last", peak: float = 0.0
) -> list[Row]:
    case = {**workload.as_dict(), "memory_format": memory_format}
    samples = [0.9 * milliseconds, milliseconds, 1.2 * milliseconds]
    rows = [*ceilings.timing_rows(samples, 1000.0 * workload.batch, "fps", case, provider, WHERE)]
    values = {"forward_latency": milliseconds / 4}
    values |= {"peak_memory": peak, "saved_memory": peak / 2, "saved_inputs": 5.0} if peak else {}
    return rows + [make_row(WHERE, case, provider, metric, value) for metric, value in values.items()]


RUN = [
    *_rows(CALL, "reference", 8.0, peak=4000.0),
    *_rows(CALL, "depthwise-native", 6.0, "contiguous", peak=3000.0),
    *_rows(CALL, "compiled-default", 4.0, peak=2000.0),
    *_rows(CALL, "compiled", 3.0),
    *_rows(CALL, "cuda", 2.0, peak=1000.0),
    *_rows(CALL, "cuda-compiled-default", 1.5, peak=1000.0),
]


def _lines(rows: list[Row]) -> list[dict[str, str]]:
    rendered = training_report.table(rows)
    return [dict(zip(rendered.columns, line, strict=True)) for line in rendered.lines]


def _line(rows: list[Row], provider: str) -> dict[str, str]:
    (found,) = (line for line in _lines(rows) if line["provider"] == provider)
    return found


def test_a_line_has_what_was_measured_and_what_it_is_worth():
    assert _line(RUN, "cuda") == {
        "part": "branches",
        "stride 8": "60×60",
        "batch": "16",
        "dtype": "bfloat16",
        "layout": "NHWC",
        "provider": "cuda",
        "ms (p25–p75)": "2.00 (1.90–2.20)",
        "forward ms": "0.500",
        "images/s": "8000",
        "× eager": "3.00×",
        "× compiled": "1.50×",
        "× dilated": "",
        "peak MiB": "1000",
        "saved MiB": "500",
        "inputs MiB": "5.00",
    }


def test_rivals_are_the_fastest_in_any_layout_and_setting():
    assert [line["provider"] for line in _lines(RUN)] == [
        *("cuda-compiled-default", "cuda", "compiled", "compiled-default", "depthwise-native", "reference")
    ]
    assert _line(RUN, "depthwise-native")["× eager"] == "1.00×"
    assert _line(RUN, "reference")["× eager"] == "0.75×"
    assert _line(RUN, "compiled")["× compiled"] == "1.00×"
    assert _line(RUN, "compiled")["peak MiB"] == ""


def test_a_step_is_held_against_the_fastest_of_its_dilated_twin():
    rows = _rows(STEP, "cuda", 50.0) + _rows(DILATED, "reference", 120.0, "contiguous")
    rows += _rows(DILATED, "compiled-default", 100.0) + _rows(replace(DILATED, batch=2), "reference", 10.0)
    assert _line(rows, "cuda")["× dilated"] == "2.00×"
    assert {line["× dilated"] for line in _lines(rows) if line["part"] == "dilated"} == {""}
    assert _line(_rows(STEP, "cuda", 50.0), "cuda")["× dilated"] == ""


def test_frozen_norms_are_another_call():
    rows = _rows(replace(CALL, norms="frozen"), "cuda", 1.0) + _rows(CALL, "reference", 4.0)
    line = _line(rows, "cuda")
    assert (line["part"], line["× eager"]) == ("branches, frozen", "")


def test_lines_are_in_the_order_of_parts_dtypes_norms_batches_and_sizes():
    calls = [
        replace(CALL, batch=2),
        CALL,
        replace(CALL, height=64),
        replace(CALL, norms="frozen"),
        replace(CALL, dtype="tf32"),
        replace(CALL, part="jpu"),
        STEP,
        DILATED,
    ]
    rows = [row for call in reversed(calls) for row in _rows(call, "reference", 1.0)]
    assert [call[0].in_any_format for call in training_report.timed(rows)] == calls


def test_rows_of_an_older_provider_are_the_kernels():
    assert _line(_rows(CALL, "cuda-first", 1.0), "cuda-first")["× eager"] == ""
    kinds = {name: training_report.kind(name) for name in ("cuda-first", "cuda-compiled", "compiled", "reference")}
    assert [*kinds.values()] == [KERNELS, COMPILED_KERNELS, COMPILED, EAGER]


def test_rows_of_another_benchmark_are_refused():
    with pytest.raises(ResultsError, match="case: expected the keys part, .*norms, got part"):
        training_report.table(_rows(Workload("branches", 60, 60), "reference", 1.0))


def test_the_table_command_tells_the_benchmarks_apart(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    results.append(path, RUN)
    assert main(["table", str(path), "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "**a GPU: training**"
    assert (
        "| branches | 60×60 | 16 | bfloat16 | NHWC | cuda | 2.00 (1.90–2.20) | 0.500 | 8000 | 3.00× | 1.50× |"
        in lines[5]
    )


# --- chart -----------------------------------------------------------------------------------------------


def test_bars_are_relative_to_the_fastest_of_eager_mode():
    speed, peak, saved = training_chart.panels_of(RUN)
    ((label, bars),) = speed.groups
    assert label == "branches\n60×60\nbatch 16"
    assert {kind: bar.value for kind, bar in bars.items()} == {
        EAGER: 1.0,
        COMPILED: 2.0,
        KERNELS: 3.0,
        COMPILED_KERNELS: 4.0,
    }
    assert bars[KERNELS].text == "2.00"
    assert bars[KERNELS].spread == (pytest.approx(6.0 / 2.2), pytest.approx(6.0 / 1.9))
    ((_, bars),) = peak.groups
    assert {kind: (round(bar.value, 3), bar.text) for kind, bar in bars.items()} == {
        EAGER: (1.0, "3000"),
        KERNELS: (0.333, "1000"),
        COMPILED_KERNELS: (0.333, "1000"),
    }
    assert saved.title == "bfloat16: memory saved for the backward pass"


def test_without_eager_mode_there_is_no_chart(tmp_path):
    rows = _rows(CALL, "cuda", 1.0)
    assert training_chart.panels_of(rows) == []
    with pytest.raises(ResultsError, match="expected rows of PyTorch, eager, got none"):
        training_chart.draw(rows, tmp_path / "chart.png")


def test_a_chart_is_drawn(tmp_path):
    rows = list(RUN)
    for call in (replace(CALL, norms="frozen"), replace(CALL, dtype="tf32"), STEP, DILATED):
        rows += _rows(call, "reference", 4.0) + _rows(call, "compiled", 3.0)
    path = tmp_path / "new" / "chart.png"
    training_chart.draw(rows, path)
    image = matplotlib.image.imread(path)
    # Neither blank nor cut: ink within, a white margin around.
    assert image[..., :3].std() > 0.05
    assert (image[0] == 1).all()
    assert (image[-1] == 1).all()
    assert (image[:, -1] == 1).all()
