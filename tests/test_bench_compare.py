"""Two runs held against each other."""

from dataclasses import replace

import pytest

from benchmarks import compare, results
from benchmarks.__main__ import main
from benchmarks.results import ResultsError, Row


def _row(metric: str = "latency", value: float = 100.0, spread: float = 0.0, **changes: object) -> Row:
    quantiles = {"p5": value - spread, "p25": value, "p75": value, "p95": value + spread} if spread else None
    row = Row(
        device="a CPU, 2 threads",
        versions={"run": "2026-01-01T00:00:00.000Z"},
        source_hash="0" * 64,
        case={"backbone": "resnet50"},
        provider="reference",
        metric=metric,
        value=value,
        quantiles=quantiles,
        unit=results.METRICS[metric].unit,
    )
    return replace(row, **changes)  # type: ignore[arg-type]


def _verdict(old: Row, new: Row, threshold: float = 0.1) -> str:
    (change,) = compare.compare([old], [new], threshold)
    return change.verdict


@pytest.mark.parametrize(
    ("metric", "new", "verdict"),
    [
        ("latency", 109, "same"),
        ("latency", 111, "regression"),
        ("latency", 92, "same"),
        ("latency", 90, "better"),
        ("peak_memory", 111, "regression"),
        ("parameters", 111, "regression"),
        ("multiply_adds", 111, "regression"),
        ("fps", 111, "better"),
        ("fps", 92, "same"),
        ("fps", 90, "regression"),
    ],
)
def test_a_value_is_judged_by_the_direction_of_its_metric(metric, new, verdict):
    assert _verdict(_row(metric, 100), _row(metric, new)) == verdict


@pytest.mark.parametrize(("spread", "verdict"), [(10, "regression"), (30, "same")])
@pytest.mark.parametrize(("metric", "new"), [("latency", 125), ("fps", 80)])
def test_a_worse_value_within_the_older_spread_is_no_regression(metric, new, spread, verdict):
    assert _verdict(_row(metric, 100, spread), _row(metric, new)) == verdict


@pytest.mark.parametrize(("metric", "new"), [("latency", 75), ("fps", 125)])
def test_a_better_value_within_the_older_spread_is_the_same(metric, new):
    assert _verdict(_row(metric, 100, 30), _row(metric, new)) == "same"


def test_the_newer_spread_does_not_excuse():
    assert _verdict(_row(value=100, spread=1), _row(value=120, spread=50)) == "regression"


def test_the_threshold_decides():
    assert _verdict(_row(value=100), _row(value=120), threshold=0.25) == "same"


def test_from_nothing_to_something_is_a_regression():
    assert _verdict(_row("peak_memory", 0), _row("peak_memory", 1)) == "regression"


def test_a_lost_value_fails():
    (kept, lost) = compare.compare([_row(), _row("fps")], [_row()])
    assert (kept.verdict, lost.verdict, lost.fails) == ("same", "lost", True)


def test_a_new_value_does_not_fail():
    (_, new) = compare.compare([_row()], [_row(), _row("fps")])
    assert (new.verdict, new.fails) == ("new", False)


@pytest.mark.parametrize("other", [{"case": {"backbone": "resnet101"}}, {"provider": "cuda"}], ids=["case", "provider"])
def test_only_the_same_case_and_provider_are_compared(other):
    verdicts = [change.verdict for change in compare.compare([_row()], [_row(**other)])]
    assert verdicts == ["lost", "new"]


def test_the_order_of_a_cases_keys_does_not_matter():
    assert _verdict(_row(case={"a": 1, "b": 2}), _row(case={"b": 2, "a": 1})) == "same"


def test_other_devices_are_refused():
    with pytest.raises(ResultsError, match=r"expected a CPU, 2 threads .* got a GPU"):
        compare.compare([_row()], [_row(device="a GPU")])


def test_other_devices_are_compared_on_request():
    (change,) = compare.compare([_row()], [_row(device="a GPU", value=50)], across_devices=True)
    assert change.verdict == "better"


def test_two_values_for_one_thing_are_refused():
    with pytest.raises(ResultsError, match=r"expected one row for .*latency, got two"):
        compare.compare([_row(), _row()], [_row()])


@pytest.fixture
def files(tmp_path):
    """Paths of an older file (two runs) and a newer one (one run, 1.3 times as slow as the last)."""
    old, new = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    times = [{"run": f"2026-01-0{day}T00:00:00.000Z"} for day in (1, 2, 3)]
    results.append(old, [_row(value=200, versions=times[0]), _row(value=100, versions=times[1])])
    results.append(new, [_row(value=130, versions=times[2])])
    return str(old), str(new)


def test_the_command_fails_on_a_regression(files, capsys):
    assert main(["compare", *files]) == 1
    output = capsys.readouterr().out
    assert "1.300" in output
    assert "1 regression" in output


def test_the_command_takes_a_threshold(files):
    assert main(["compare", *files, "--threshold", "0.5"]) == 0


def test_the_command_compares_the_last_two_runs_of_one_file(files, capsys):
    assert main(["compare", files[0]]) == 0
    assert "1 better" in capsys.readouterr().out


def test_the_command_picks_runs_by_time(files):
    assert main(["compare", *files, "--run", "2026-01-01", "last"]) == 0


def test_the_command_refuses_one_run_alone(files, capsys):
    assert main(["compare", files[1]]) == 2
    assert "expected two runs to compare, got 1" in capsys.readouterr().err


def test_the_command_refuses_other_devices(files, tmp_path, capsys):
    other = tmp_path / "other.jsonl"
    results.append(other, [_row(device="a GPU")])
    assert main(["compare", files[0], str(other)]) == 2
    assert "devices differ: expected a CPU, 2 threads" in capsys.readouterr().err
    assert main(["compare", files[0], str(other), "--across-devices"]) == 0


def test_the_command_refuses_a_malformed_file(files, tmp_path, capsys):
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{}\n")
    assert main(["compare", files[0], str(broken)]) == 2
    assert "broken.jsonl:1: expected the keys" in capsys.readouterr().err
