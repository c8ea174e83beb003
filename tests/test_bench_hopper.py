"""Microbenchmarks for compute capability 9.0: budgets, rows, tables, the command; on a GPU their own checks."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from functools import partial
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks import __main__, results
from benchmarks.hopper import bench, budgets, program, report
from benchmarks.hopper.budgets import COPIES, DEPTHWISE, PRODUCTS, VARIANTS, Variant
from benchmarks.hopper.program import ProgramError
from benchmarks.model.devices import DEVICES
from benchmarks.results import ResultsError, Row

ALL = frozenset((PRODUCTS, COPIES, DEPTHWISE))


def variant(layout: str, *active: str, columns: str = "256") -> Variant:
    return Variant(layout, columns, frozenset(active))


# --- budgets -----------------------------------------------------------------------------------------------


def test_products_take_the_tensor_cores_as_the_design_has_it() -> None:
    assert budgets.cycles(variant("single", PRODUCTS))["tensor"] == 1024


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        (variant("single", PRODUCTS), 640),
        (variant("single", PRODUCTS, columns="2x128"), 768),  # the left operand twice
        (variant("single", COPIES), 256 + 180 + 20),  # weights, pixels, taps
        (variant("pair", COPIES), 256 + 90 + 10),
        (variant("single", DEPTHWISE), 288 + 160 + 128),  # pixels, taps, the operand
        (variant("pair", *ALL), 640 + 256 + 100 + 224 + 128),
    ],
    ids=["products", "products, 2x128", "copies", "copies of a pair", "depthwise", "all of a pair"],
)
def test_shared_memory_as_the_design_has_it(of: Variant, expected: int) -> None:
    assert budgets.cycles(of)["shared"] == expected


def test_the_depthwise_has_issue_slots_to_spare() -> None:
    assert budgets.cycles(variant("single", DEPTHWISE))["issue"] == 876
    assert budgets.cycles(variant("pair", DEPTHWISE))["issue"] == 876 / 2 + 8 * 16 / 4 / 2  # stores to the peer


def test_multicast_halves_what_weights_take_from_l2() -> None:
    assert budgets.l2_bytes(variant("single", COPIES)) == 32768 + 25600
    assert budgets.l2_bytes(variant("multicast", COPIES)) == 16384 + 25600
    assert budgets.l2_bytes(variant("pair", COPIES)) == 32768 + 12800


def test_a_bound_is_the_largest() -> None:
    for one in VARIANTS:
        resource, most = budgets.bound(one)
        assert most == max(budgets.cycles(one).values()) == budgets.cycles(one)[resource]


def test_every_part_says_how_many_cases_it_has() -> None:
    counts = Counter(one.layout for one in VARIANTS)
    assert {name: bench.CASES[name] for name in budgets.LAYOUTS} == counts
    assert set(bench.CASES) == set(program.PARTS)


# --- rows and tables ---------------------------------------------------------------------------------------

PIPES = {"kind": "pipes", "layout": "pair", "columns": "256", "active": "products+copies+depthwise", "wrong": ""}
PIPES |= {"reader_fence": False, "blocks": 132, "steps": 100, "cycles": [130000, 131000, 129000]}
PIPES |= {"milliseconds": [0.07, 0.08, 0.09]}
TILES = {"kind": "tiles", "engine": "bulk", "memory": "L2", "stride": 1, "wrong": "", "blocks": 132, "steps": 8}
TILES |= {"cycles": [4608.0] * 3, "milliseconds": [0.004] * 3}
ABOUT = {"kind": "about", "device": "a GPU", "multiprocessors": 132}


def fake(folder: Path, lines: list[dict], code: int) -> Path:
    path = folder / "program"
    text = "\n".join(json.dumps(line) for line in lines)
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {code}\n")
    path.chmod(0o755)
    return path


def measured(
    folder: Path, monkeypatch: pytest.MonkeyPatch, lines: list[dict], code: int = 0
) -> tuple[bench.Outcome, str]:
    """What the bench makes of a program that prints such lines."""
    monkeypatch.setattr(bench, "require", lambda device: None)
    monkeypatch.setattr(program, "build", partial(fake, folder, lines, code))
    console = Console(file=StringIO(), width=200)
    outcome = bench.run(["pair"], torch.device("cpu"), 0.1, 10.0, folder / "rows.jsonl", console)
    return outcome, console.file.getvalue()


def values(rows: list[Row]) -> dict[str, float]:
    return {row.metric: row.value for row in rows}


def test_lines_become_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, _ = measured(tmp_path, monkeypatch, [ABOUT, PIPES, TILES])
    assert outcome.code == 0
    assert results.read(tmp_path / "rows.jsonl") == outcome.rows
    pipes, tiles = (values([row for row in outcome.rows if row.case["hopper"] == kind]) for kind in ("pipes", "tiles"))
    assert pipes["cycles_per_step"] == 1300
    assert pipes["throughput"] == pytest.approx(2 * 128 * 256 * 64 * 100 * 132 / 0.08e-3 / 1e12)
    assert pipes["bytes_per_cycle"] == pytest.approx((32768 + 12800) / 1300)
    assert tiles["cycles_per_step"] == 576
    assert tiles["bytes_per_cycle"] == 40
    assert tiles["bandwidth"] == pytest.approx(23040 * 8 * 132 / 0.004e-3 / 1e9)
    assert outcome.rows[0].versions["program"] == program.key()


def test_what_is_right_is_kept_where_another_case_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {**PIPES, "columns": "2x128", "wrong": "block 1, byte 7", "cycles": None}
    failed = {"kind": "failed", "message": "waited 2 s for operands to be full"}
    outcome, _ = measured(tmp_path, monkeypatch, [PIPES, wrong, failed], code=3)
    assert outcome.code == 1
    assert {row.case["columns"] for row in outcome.rows} == {"256"}
    ((label, reason),) = outcome.failures
    assert label == "pair, held to the host's numbers"
    assert "pair 2x128 products+copies+depthwise: block 1, byte 7" in reason
    assert "waited 2 s for operands to be full" in reason


def test_a_case_that_failed_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Prints the case with the number that --first says, and fails at the second.
    texts = [
        json.dumps(PIPES),
        json.dumps({"kind": "failed", "message": "trap"}),
        json.dumps({**PIPES, "columns": "2x128"}),
    ]
    script = f"""#!/bin/sh
for word; do [ "$previous" = --first ] && first=$word; previous=$word; done
[ $first -le 0 ] && echo '{texts[0]}'
[ $first -le 1 ] && echo '{texts[1]}' && exit 3
echo '{texts[2]}'
"""
    monkeypatch.setattr(bench, "require", lambda device: None)
    path = tmp_path / "program"
    path.write_text(script)
    path.chmod(0o755)
    monkeypatch.setattr(program, "build", lambda: path)
    console = Console(file=StringIO())
    outcome = bench.run(["pair"], torch.device("cpu"), 0.1, 10.0, tmp_path / "rows.jsonl", console)
    assert {row.case["columns"] for row in outcome.rows} == {"256", "2x128"}
    assert [reason for _, reason in outcome.failures] == ["ProgramError: trap"]


def test_a_program_that_dies_without_a_word_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, _ = measured(tmp_path, monkeypatch, [ABOUT], code=3)
    assert "exit code 3" in outcome.failures[0][1]


def test_what_no_time_was_left_for_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, _ = measured(tmp_path, monkeypatch, [PIPES, {"kind": "skipped", "what": "pair copies"}])
    assert outcome.code == 0
    assert outcome.skipped[0][1] == "no time was left for pair copies"


def test_a_second_fence_that_was_needed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note = {"kind": "note", "text": "right only with a fence", "without": "block 0, sum"}
    outcome, said = measured(tmp_path, monkeypatch, [note, {**PIPES, "reader_fence": True}])
    assert "pair: right only with a fence: block 0, sum" in said
    assert "timed with it" in report.pipes(outcome.rows).to_markdown()


@pytest.mark.parametrize(("cycles", "verdict"), [(1300, "1300 at best, worth building"), (1500, "not built")])
def test_the_table_decides_about_the_pair(
    cycles: int, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome, _ = measured(tmp_path, monkeypatch, [{**PIPES, "cycles": [cycles * 100.0] * 3}])
    table = report.pipes(outcome.rows)
    assert any(verdict in note for note in table.notes)
    (line,) = [line for line in table.lines if line[:3] == ["pair", "256", "products+copies+depthwise"]]
    assert f"{cycles} ({cycles}–{cycles})" in line
    assert f"{cycles / 1348:.2f}×" in line


@pytest.mark.parametrize(("strided", "gathered", "verdict"), [(600, 700, "copy engine"), (600, 590, "cp.async")])
def test_the_table_decides_about_strided_tiles(
    strided: int, gathered: int, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [TILES, {**TILES, "stride": 8, "cycles": [8.0 * strided] * 3}]
    lines.append({**TILES, "engine": "cp.async", "stride": 8, "cycles": [8.0 * gathered] * 3})
    outcome, _ = measured(tmp_path, monkeypatch, lines)
    assert any(f"stride 8 {verdict}" in note for note in report.tiles(outcome.rows).notes)


def test_the_command_table_shows_a_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(tmp_path, monkeypatch, [PIPES, TILES])
    assert __main__.main(["table", str(tmp_path / "rows.jsonl"), "--markdown"]) == 0
    assert "| pair | 256 | products+copies+depthwise | 1024 | 1348 |" in capsys.readouterr().out


def test_without_rows_the_budgets_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["hopper", "--budgets", "--markdown"]) == 0
    shown = capsys.readouterr().out
    assert "not measured" in shown
    assert shown.count("| pair |") == 14


def test_rows_of_another_benchmark_are_refused() -> None:
    row = Row("a CPU", {"run": "now"}, "0", {"part": "jpu"}, "cuda", "latency", 1.0, None, "ms")
    with pytest.raises(ResultsError, match="expected rows of the benchmark hopper"):
        report.tables([row])


def test_budgets_are_of_the_device_that_was_measured() -> None:
    row = Row("NVIDIA H200", {"run": "now"}, "0", {"hopper": "tiles"}, "hopper", "latency", 1.0, None, "ms")
    assert report.device_of([row]) is DEVICES["h200"]


# --- the command -------------------------------------------------------------------------------------------


def test_a_cpu_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["hopper", "--device", "cpu", "--output", str(tmp_path / "rows.jsonl")]) == 2
    assert "expected a CUDA device of compute capability 9.0, got cpu" in capsys.readouterr().err


def test_another_capability_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(ProgramError, match=re.escape("compute capability 9.0, got 8.0")):
        bench.require(torch.device("cuda", 0))


def test_a_built_program_needs_no_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "OUT", tmp_path)
    monkeypatch.setattr(program, "load_setup", lambda: pytest.fail("looked for a compiler"))
    path = program.path_of_program()
    path.write_text("#!/bin/sh\necho 'expected: hopper' >&2\nexit 2\n")  # without the right to execute it
    assert program.build() == path


@pytest.mark.parametrize("there", [False, True])
def test_without_a_program_that_starts_and_nvcc_it_is_said(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "ROOT", tmp_path)
    monkeypatch.setattr(program, "OUT", tmp_path / "out")
    monkeypatch.setattr(program, "load_setup", lambda: {"find_nvcc": lambda: None})
    program.OUT.mkdir()
    if there:
        program.path_of_program().write_text("#!/bin/sh\necho 'GLIBC_9 not found' >&2\nexit 1\n")
    with pytest.raises(ProgramError, match="expected nvcc on PATH or a out/program-.* that starts, got neither"):
        program.build()


def test_sources_change_the_programs_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = program.key()
    shutil.copytree(program.FOLDER, tmp_path / "cuda")
    monkeypatch.setattr(program, "FOLDER", tmp_path / "cuda")
    assert program.key() == before
    (tmp_path / "cuda" / "pipes.cuh").write_text("")
    assert program.key() != before


@pytest.mark.gpu
@pytest.mark.parametrize("part", program.PARTS)
def test_every_case_is_right_on_a_gpu(part: str) -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs compute capability 9.0")
    try:
        path = program.build()
    except ProgramError as error:
        pytest.skip(str(error))
    lines: list[program.Line] = []
    code, errors = program.run(path, part, check=True, told=lines.append)
    assert [complaint for line in lines if (complaint := bench.complaint_of(line))] == []
    assert (code, errors) == (0, "")
    assert sum(line["kind"] in ("pipes", "tiles") for line in lines) == bench.CASES[part]
