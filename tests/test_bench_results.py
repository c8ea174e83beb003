"""Rows: written, read back, refused where they are malformed, picked by run."""

import json
from dataclasses import asdict, replace

import pytest

from benchmarks import results
from benchmarks.results import ResultsError, Row

ROW = Row(
    device="a CPU, 2 threads",
    versions={"run": "2026-01-02T03:04:05.678Z", "torch": "2.14.1"},
    source_hash="0" * 64,
    case={"backbone": "resnet50"},
    provider="reference",
    metric="latency",
    value=12.5,
    quantiles={"p5": 12.0, "p25": 12.2, "p75": 13.0, "p95": 14.0},
    unit="ms",
)


def test_rows_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    rows = [ROW, replace(ROW, metric="parameters", value=7, quantiles=None, unit="1")]
    results.append(path, rows)
    assert results.read(path) == rows


def test_rows_are_appended(tmp_path):
    path = tmp_path / "rows.jsonl"
    results.append(path, [ROW])
    results.append(path, [ROW])
    assert results.read(path) == [ROW, ROW]


def test_a_line_has_exactly_the_agreed_keys(tmp_path):
    path = tmp_path / "rows.jsonl"
    results.append(path, [ROW])
    expected = "device, versions, source_hash, case, provider, metric, value, quantiles, unit"
    assert ", ".join(json.loads(path.read_text())) == expected


def test_a_value_that_is_no_number_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        results.append(tmp_path / "rows.jsonl", [replace(ROW, value=float("nan"))])


def _line(**changes: object) -> str:
    return json.dumps({**asdict(ROW), **changes})


def _without(key: str) -> str:
    return json.dumps({k: v for k, v in asdict(ROW).items() if k != key})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"device": ', "expected one JSON object, got '{\"device\": '"),
        ("[1, 2]", r"expected one JSON object, got '\[1, 2\]'"),
        (_without("unit"), "expected the keys device, .*, unit, got device, .*, quantiles$"),
        (_line(extra=1), "expected the keys device, .*, got .*, extra$"),
        (_line(device=3), "device: expected a string, got 3"),
        (_line(case="x"), "case: expected an object, got 'x'"),
        (_line(versions={"torch": "2"}), "versions: expected the key 'run' with a time, got {'torch': '2'}"),
        (_line(metric="speed"), "metric: expected one of latency, .*, got 'speed'"),
        (_line(unit="s"), "unit: expected 'ms' for latency, got 's'"),
        (_line(value=None), "value: expected a finite number >= 0, got None"),
        (_line(value=True), "value: expected a finite number >= 0, got True"),
        (_line(value=-1), "value: expected a finite number >= 0, got -1"),
        (_line(value=float("inf")), "value: expected a finite number >= 0, got inf"),
        (_line(quantiles={"p5": 1}), "quantiles: expected null or numbers for p5, .*, got {'p5': 1}"),
        (_line(quantiles=[1]), r"quantiles: expected null or numbers for p5, .*, got \[1\]"),
    ],
)
def test_a_malformed_line_is_refused_with_its_place(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    results.append(path, [ROW])
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ResultsError, match=f"rows.jsonl:2: {message}"):
        results.read(path)


def test_an_absent_file_is_refused(tmp_path):
    with pytest.raises(ResultsError, match=r"expected a file of results, got .*No such file"):
        results.read(tmp_path / "absent.jsonl")


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(b"\x89PNG\xff")
    with pytest.raises(ResultsError, match="expected a file of results, got .*decode"):
        results.read(path)


def test_an_empty_file_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n")
    with pytest.raises(ResultsError, match="expected at least one row, got none"):
        results.read(path)


def _of_run(run: str) -> Row:
    return replace(ROW, versions={"run": run})


RUNS = [_of_run("2026-01-03T"), _of_run("2026-01-01T"), _of_run("2026-01-03T"), _of_run("2026-02-01T")]


def test_runs_are_ordered_by_time():
    assert list(results.runs(RUNS)) == ["2026-01-01T", "2026-01-03T", "2026-02-01T"]


def test_the_last_run_is_picked_by_default():
    assert results.pick_run(RUNS) == [RUNS[3]]


def test_a_run_is_picked_by_the_beginning_of_its_time():
    assert results.pick_run(RUNS, "2026-01-03") == [RUNS[0], RUNS[2]]


@pytest.mark.parametrize(("run", "fitting"), [("2025", 0), ("2026-01", 2)])
def test_a_run_that_is_not_one_is_refused(run, fitting):
    with pytest.raises(ResultsError, match=f"run: expected one of 2026-.*, got '{run}', which fits {fitting}"):
        results.pick_run(RUNS, run)
