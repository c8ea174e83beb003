"""The faults of tests/mutants, the runner that tries them, and the oracle that must notice them."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from mutants import __main__ as runner
from mutants import oracle, trial
from mutants.faults import DoesNotApply, Fault
from mutants.trial import ROOT, Check, TrialError, Verdict
from rich.console import Console
from strategies import needs_host

FAULTS = {fault.name: fault for fault in runner.FAULTS}


# --- the list -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAULTS)
def test_the_fault_applies_to_todays_sources(name: str) -> None:
    fault = FAULTS[name]
    before = (ROOT / "csrc" / fault.file).read_text()
    after = fault.apply(before)
    assert after != before
    assert len(after) == len(before) - len(fault.old) + len(fault.new)
    assert fault.breaks.endswith(".")


def test_no_two_faults_share_a_name_or_a_change() -> None:
    assert len(FAULTS) == len(runner.FAULTS)
    assert len({(f.file, f.old, f.new, f.index) for f in runner.FAULTS}) == len(runner.FAULTS)


BARRIERS = {
    "upsample_concat": 4,
    "norm_relu": 2,
    "norm_statistics": 8,
    "separable_pyramid": 29,
}


@pytest.mark.parametrize(("op", "count"), BARRIERS.items())
def test_every_barrier_is_dropped_by_some_fault(op: str, count: int) -> None:
    kernels = {path: path.read_text() for path in (ROOT / "csrc" / op).glob("*.h")}
    barriers = sum(text.count("block_barrier();") for text in kernels.values())
    faults = [f for f in runner.FAULTS if f.file.startswith(op)]
    dropped = [f for f in faults if f.old.count("block_barrier();") == f.new.count("block_barrier();") + 1]
    assert barriers == len(dropped) == count


# --- putting one in -----------------------------------------------------------------------------------


def test_a_fault_replaces_the_occurrence_that_it_names() -> None:
    fault = Fault("f", "x.h", "a", "b", "Nothing.", index=1, count=3)
    assert fault.apply("a a a") == "a b a"


@pytest.mark.parametrize(("text", "got"), [("nothing", 0), ("a + a", 2)])
def test_a_fault_that_does_not_apply_says_so(text: str, got: int) -> None:
    with pytest.raises(DoesNotApply, match=rf"f does not apply: expected 'a' 1 times in csrc/x.h, got {got}"):
        Fault("f", "x.h", "a", "b", "Nothing.").apply(text)


def test_a_tree_holds_the_fault_and_then_again_the_sources(tmp_path: Path) -> None:
    tree, fault = trial.Tree(tmp_path), FAULTS["forward-no-barrier"]
    original, copy = ROOT / "csrc" / fault.file, tmp_path / "csrc" / fault.file
    tree.restore()
    stamp = (tmp_path / "CMakeLists.txt").stat().st_mtime_ns
    (tmp_path / "csrc" / "left_over.h").write_text("")
    tree.apply(fault)
    assert copy.read_text() == fault.apply(original.read_text())
    tree.restore()
    assert copy.read_text() == original.read_text()
    assert not (tmp_path / "csrc" / "left_over.h").exists()
    # What is the same is not written, so that nothing else is compiled again.
    assert (tmp_path / "CMakeLists.txt").stat().st_mtime_ns == stamp


# --- judging what a check says ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "output", "how", "message"),
    [
        (1, "oracle: strides: expected 1.0 at 3, got 2.0\n", "values", "strides: expected 1.0 at 3, got 2.0"),
        (1, "oracle: x: upsample_concat forward: block 0, thread 3: misaligned read\n", "fault", "x: upsample_conc"),
        (1, "oracle: x: upsample_concat backward: level: never written\n", "fault", "x: upsample_concat backward"),
        (
            1,
            "F\n____ test ____\nE   AssertionError: expected 1, got 2\n",
            "values",
            "AssertionError: expected 1, got 2",
        ),
        # Hypothesis groups several failures, and prefixes their lines.
        (1, "  | ExceptionGroup: 2\nFAILED tests/x.py::test - Flaky\n", "values", "tests/x.py::test - Flaky"),
        (-11, "", "crash", "signal 11"),
        (1, "Traceback\nModuleNotFoundError: No module named 'torch'\n", "error", "ModuleNotFoundError: No module nam"),
        (4, "oracle: usage\n", "error", "oracle: usage"),
        (5, "", "error", "exit status 5"),
    ],
)
def test_the_end_of_a_check_is_read(code: int, output: str, how: str, message: str) -> None:
    result = trial.read_output(code, output)
    assert result is not None
    assert result[0] == how
    assert result[1].startswith(message)


def test_a_check_passes_fails_crashes_and_hangs(tmp_path: Path) -> None:
    def run(program: str, limit: float = 60) -> tuple[str, str] | None:
        return Check("oracle", ["-c", program, "LIBRARY"], limit).run(tmp_path / "library.so")

    assert run("pass") is None
    assert run("import sys; print('oracle:', sys.argv[1]); sys.exit(1)") == ("values", f"{tmp_path}/library.so")
    assert run("import os; os.abort()") == ("crash", "signal 6")
    assert run("import time; time.sleep(60)", 0.5) == ("hang", "expected an end within 0 s, got none")


class _Tree:
    """Takes the place of a tree: builds unless the fault breaks the build."""

    library = Path("library.so")

    def __init__(self, *_: object) -> None:
        self.fault = ""

    def restore(self) -> None:
        self.fault = ""

    def apply(self, fault: Fault) -> None:
        self.fault = fault.name

    def build(self) -> str | None:
        return "error: no such name" if self.fault == "breaks-the-build" else None


class _Check:
    """Takes the place of a check: notices one fault."""

    def __init__(self, name: str, tree: _Tree, notices: dict[str, tuple[str, str]]) -> None:
        self.name, self._tree, self._notices = name, tree, notices

    def run(self, _: Path) -> tuple[str, str] | None:
        return self._notices.get(self._tree.fault)


def _fake(name: str) -> Fault:
    return Fault(name, "x.h", "a", "b", "Breaks something.")


@pytest.mark.parametrize(
    ("name", "caught", "by", "how"),
    [
        ("breaks-the-build", True, "build", "build"),
        ("wrong-values", True, "oracle", "values"),
        ("left-to-the-tests", True, "tests", "fault"),
        ("check-goes-wrong", False, "", "error"),
        ("survives", False, "", ""),
    ],
)
def test_a_fault_is_caught_by_the_first_that_notices(name: str, caught: bool, by: str, how: str) -> None:
    tree = _Tree()
    checks = [
        _Check("oracle", tree, {"wrong-values": ("values", "v"), "check-goes-wrong": ("error", "no torch")}),
        _Check("tests", tree, {"wrong-values": ("values", "later"), "left-to-the-tests": ("fault", "f")}),
    ]
    verdict = trial.try_fault(tree, _fake(name), checks)  # type: ignore[arg-type]
    assert (verdict.caught, verdict.by, verdict.how) == (caught, by, how)


@pytest.mark.parametrize(("notices", "what"), [({"": ("values", "v")}, "pass the oracle, got v")])
def test_checks_that_refuse_sound_sources_end_the_run(notices: dict[str, tuple[str, str]], what: str) -> None:
    tree = _Tree()
    with pytest.raises(TrialError, match=what):
        trial.accept_original(tree, [_Check("oracle", tree, notices)])  # type: ignore[arg-type, list-item]


# --- the run ------------------------------------------------------------------------------------------


def _run(monkeypatch: pytest.MonkeyPatch, folder: Path, noticed: Sequence[str], missed: Sequence[str]) -> int:
    faults = [_fake(name) for name in (*noticed, *missed)]

    def try_fault(_: object, fault: Fault, checks: Sequence[Check]) -> Verdict:
        assert [check.name for check in checks] == ["oracle"]
        return Verdict(fault, True, "oracle", "values", "v", 1.0) if fault.name in noticed else Verdict(fault, False)

    monkeypatch.setattr(runner, "OUT", folder)
    monkeypatch.setattr(runner, "Tree", _Tree)
    monkeypatch.setattr(runner, "try_fault", try_fault)
    monkeypatch.setattr(runner, "accept_original", lambda *_: None)
    monkeypatch.setattr(runner, "chosen", lambda _: faults)
    monkeypatch.setattr(Fault, "apply", lambda self, text: text)
    monkeypatch.setattr(Path, "read_text", lambda self: "")
    monkeypatch.setattr(runner, "source_hash", lambda _: "0123")
    return runner.main(["--skip", "tests", "--jobs", "3"])


def test_survivors_are_reported_and_fail_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        code = _run(patched, tmp_path, ["noticed-one"], ["missed-one", "missed-two"])
    output = capsys.readouterr().out
    assert code == 1
    assert "not caught: missed-one" in output
    assert "noticed-one" not in output.partition("survivors")[2]
    assert "1 of 3 caught (33.3%)" in output
    written = json.loads((tmp_path / "mutants.json").read_text())
    assert (written["caught"], written["total"], written["source_hash"]) == (1, 3, "0123")
    # In the order of the list, whichever came first.
    assert [row["name"] for row in written["faults"]] == ["noticed-one", "missed-one", "missed-two"]
    assert [row["caught"] for row in written["faults"]] == [True, False, False]


@pytest.mark.parametrize(("missed", "code"), [(0, 0), (1, 0), (2, 1)])
def test_one_in_twenty_may_survive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missed: int, code: int) -> None:
    noticed = [f"noticed-{i}" for i in range(20 - missed)]
    with monkeypatch.context() as patched:
        assert _run(patched, tmp_path, noticed, [f"missed-{i}" for i in range(missed)]) == code


def test_a_run_without_survivors_has_no_table_of_them() -> None:
    text = io.StringIO()
    result = runner.report([Verdict(_fake("f"), True, "oracle", "values", "v", 1.0)], 2.0, Console(file=text))
    assert "survivors" not in text.getvalue()
    assert result["caught"] == result["total"] == 1


def test_faults_are_chosen_by_name() -> None:
    assert [fault.name for fault in runner.chosen(["forward-no-barrier"])] == ["forward-no-barrier"]
    assert len(runner.chosen(["backward-no-barrier-*"])) == 2
    assert runner.chosen([]) == runner.FAULTS
    with pytest.raises(TrialError, match="--only: expected the name of a fault, got 'nothing'"):
        runner.chosen(["nothing"])


# --- the oracle ---------------------------------------------------------------------------------------


@needs_host
@pytest.mark.parametrize("name", oracle.CHECKS)
def test_todays_kernels_pass_the_oracle(name: str) -> None:
    oracle.load(None)
    oracle.CHECKS[name]()
