"""Cases of the paper's table, the rendered table and the chart."""

import matplotlib.image
import pytest

from benchmarks import cases, chart, measure, report, results
from benchmarks.__main__ import main
from benchmarks.cases import Case
from benchmarks.results import ResultsError, Row

VERSIONS = {"run": "2026-01-02T03:04:05.678Z", "python": "3.11.7", "torch": "2.14.1"}


def _rows(case: Case, fps: float, provider: str = "reference", memory: bool = True) -> list[Row]:
    def row(metric: str, value: float, quantiles: dict[str, float] | None = None) -> Row:
        unit = results.METRICS[metric].unit
        arguments = (case.as_dict(), provider, metric, value, quantiles, unit)
        return Row("a CPU, 2 threads", VERSIONS, "0" * 64, *arguments)

    latencies = [0.9e3 / fps, 1e3 / fps, 1.1e3 / fps]
    rows = [
        row("latency", 1e3 / fps, measure.quantiles(latencies)),
        row("fps", fps, measure.quantiles([1e3 / latency for latency in latencies])),
        row("parameters", 42_000_000),
        row("multiply_adds", 186.25),
    ]
    return rows + ([row("peak_memory", 1024.0)] if memory else [])


DILATED = Case("resnet101", "encoding", "none")
JPU = Case("resnet101", "encoding", "jpu")


def _line(rendered: report.Report, index: int) -> dict[str, str]:
    return dict(zip(rendered.columns, rendered.lines[index], strict=True))


def test_the_default_cases_are_those_of_the_papers_table():
    assert [case.system for case in cases.select()] == list(cases.PAPER_FPS)


def test_a_filter_of_heads_keeps_the_tables_upsamplings():
    systems = [case.system[1:] for case in cases.select(["resnet50"], ["psp"])]
    assert systems == [("psp", "none"), ("psp", "jpu")]


def test_named_upsamplings_run_with_every_head():
    selected = cases.select(["resnet50"], ["aspp", "fcn"], ["jpu_x", "bilinear"], size=64, batch=2)
    assert [case.system[1:] for case in selected] == [
        ("aspp", "jpu_x"),
        ("aspp", "bilinear"),
        ("fcn", "jpu_x"),
        ("fcn", "bilinear"),
    ]
    assert {(case.size, case.batch) for case in selected} == {(64, 2)}


def test_a_head_outside_the_table_is_run_dilated_and_with_jpu():
    assert [case.upsampling for case in cases.select(["resnet50"], ["fcn"])] == ["none", "jpu"]


def test_the_papers_speed_up():
    assert cases.paper_speed_up(JPU) == pytest.approx(32.02 / 10.51)


def test_the_paper_has_no_speed_up_for_other_systems():
    assert cases.paper_speed_up(Case("resnet50", "psp", "jpu_x")) is None


def test_a_case_survives_its_dict():
    assert Case.from_dict(JPU.as_dict()) == JPU


def test_a_case_with_other_keys_is_refused():
    with pytest.raises(ValueError, match="case: expected the keys backbone, .*, got channels"):
        Case.from_dict({"channels": 3})


def test_the_table_has_the_papers_figures_beside_the_measured():
    rendered = report.table2(_rows(JPU, 1.6) + _rows(DILATED, 0.5))
    assert _line(rendered, 1) == {
        "backbone": "ResNet-101",
        "head": "Encoding",
        "upsampling": "JPU",
        "ms (p5–p95)": "625 (569–681)",
        "frames/s": "1.60",
        "× dilated": "3.20×",
        "paper frames/s": "32.02",
        "paper × dilated": "3.05×",
        "peak MiB": "1024",
        "parameters M": "42.0",
        "multiply-adds G": "186.2",
    }


def test_the_table_is_in_the_papers_order():
    rows = _rows(JPU, 1.6) + _rows(Case("resnet50", "psp", "jpu"), 2) + _rows(DILATED, 0.5)
    lines = [line[:3] for line in report.table2(rows).lines]
    assert lines == [
        ["ResNet-50", "PSP", "JPU"],
        ["ResNet-101", "Encoding", "Dilated"],
        ["ResNet-101", "Encoding", "JPU"],
    ]


def test_without_the_dilated_twin_there_is_no_speed_up():
    assert _line(report.table2(_rows(JPU, 1.6)), 0)["× dilated"] == ""


def test_a_provider_without_a_dilated_twin_is_held_against_anothers():
    rows = _rows(DILATED, 0.5) + _rows(JPU, 1.0) + _rows(JPU, 2.0, provider="cuda")
    rendered = report.table2(rows)
    assert [(line[3], line[6]) for line in rendered.lines] == [
        ("reference", "1.00×"),
        ("reference", "2.00×"),
        ("cuda", "4.00×"),
    ]


def test_what_is_captured_in_a_graph_is_held_against_a_dilated_twin_that_is():
    rows = _rows(DILATED, 0.5) + _rows(DILATED, 1.0, "reference-graph")
    rows += _rows(JPU, 2.0, "cuda") + _rows(JPU, 4.0, "cuda-graph") + _rows(JPU, 3.0, "compiled-jpu-graph")
    rendered = report.table2(rows)
    assert {line[3]: line[6] for line in rendered.lines[2:]} == {
        "cuda": "4.00×",
        "cuda-graph": "4.00×",
        "compiled-jpu-graph": "3.00×",
    }


def test_the_chart_has_the_fastest_of_each_kind_of_provider():
    rows = _rows(DILATED, 0.5) + _rows(DILATED, 1.0, "reference-graph")
    for provider, fps in (("reference", 2), ("reference-graph", 1), ("cuda", 3), ("cuda-graph", 4), ("host", 0.1)):
        rows += _rows(JPU, fps, provider)
    rows += _rows(JPU, 2.5, "compiled-jpu") + _rows(Case("resnet101", "encoding", "jpu", batch=16), 9, "cuda")
    found = [(case.batch, provider) for case, provider, _ in chart.fastest(report.measured(rows))]
    jpu = [(1, "reference"), (1, "compiled-jpu"), (1, "cuda-graph"), (16, "cuda")]
    assert found == [(1, "reference-graph"), *jpu]


def test_the_papers_figures_stand_beside_its_own_input_only():
    line = _line(report.table2(_rows(Case("resnet101", "encoding", "jpu", size=64), 9)), 0)
    assert (line["paper frames/s"], line["paper × dilated"]) == ("", "")


def test_a_metric_that_was_not_measured_leaves_its_cell_empty():
    assert _line(report.table2(_rows(JPU, 1.6, memory=False)), 0)["peak MiB"] == ""


def test_several_inputs_are_told_apart():
    rendered = report.table2(_rows(JPU, 1) + _rows(Case("resnet101", "encoding", "jpu", batch=2), 1))
    assert [_line(rendered, i)["input"] for i in range(2)] == [
        "512×512, batch 1, float32",
        "512×512, batch 2, float32",
    ]


def test_rows_of_another_benchmark_are_refused():
    (row, *_) = _rows(JPU, 1.0)
    other = Row(**{**vars(row), "case": {"channels": 3}})
    with pytest.raises(ResultsError, match="case: expected the keys backbone"):
        report.table2([other])


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rows.jsonl"
    results.append(path, _rows(DILATED, 0.5) + _rows(JPU, 1.6))
    return path


def test_the_command_prints_markdown_with_machine_and_versions(file, capsys):
    assert main(["table", str(file), "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "**a CPU, 2 threads: 512×512, batch 1, float32**"
    assert lines[2].startswith("| backbone | head | upsampling | ms (p5–p95) |")
    assert lines[3] == "| :-- | :-- | :-- |" + " --: |" * 8
    assert lines[5].startswith("| ResNet-101 | Encoding | JPU | 625 (569–681) | 1.60 | 3.20× | 32.02 |")
    assert "- run 2026-01-02T03:04:05.678Z, python 3.11.7, torch 2.14.1" in lines


def test_the_command_prints_a_table(file, capsys):
    assert main(["table", str(file)]) == 0
    assert "625 (569–681)" in capsys.readouterr().out


def test_the_command_refuses_an_absent_file(tmp_path, capsys):
    assert main(["table", str(tmp_path / "absent.jsonl")]) == 2
    assert "expected a file of results" in capsys.readouterr().err


EVERY = ("reference", "compiled-jpu-graph", "cuda-graph")


def _all_systems(provider: str = "reference", **common) -> list[Row]:
    rows = []
    for case in cases.select(**common):
        rows += _rows(case, cases.PAPER_FPS[case.system] * (1 + EVERY.index(provider)), provider)
    return rows


@pytest.mark.parametrize(
    "rows",
    [
        _all_systems(),
        _rows(JPU, 1.6),
        _rows(DILATED, 0.5) + _rows(JPU, 1.0, "cuda") + _rows(JPU, 2.0),
        _all_systems() + _all_systems(batch=2),
        [row for batch in (1, 16) for name in EVERY for row in _all_systems(batch=batch, provider=name)],
    ],
    ids=["table", "one", "providers", "inputs", "all"],
)
def test_a_chart_is_drawn(tmp_path, rows):
    path = tmp_path / "new" / "chart.png"
    chart.draw(rows, path)
    image = matplotlib.image.imread(path)
    # Neither blank nor cut: ink within, a white margin around.
    assert image[..., :3].std() > 0.05
    assert (image[0] == 1).all()
    assert (image[:, -1] == 1).all()


def test_a_chart_of_no_frame_rates_is_refused(tmp_path):
    rows = [row for row in _rows(JPU, 1.6) if row.metric != "fps"]
    with pytest.raises(ResultsError, match="chart: expected rows of the metric fps, got none"):
        chart.draw(rows, tmp_path / "chart.png")
