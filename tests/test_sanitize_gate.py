"""The sanitizers' gate: what counts as a report, and that the proofs are faults of the list."""

import os
from pathlib import Path

import pytest
import sanitize_gate as gate
from mutants import oracle
from mutants.upsample_concat import FAULTS

ADDRESS = """\
=================================================================
==123==ERROR: AddressSanitizer: heap-buffer-overflow on address 0x60 at pc 0x7f bp 0x7f sp 0x7f
WRITE of size 4 at 0x60 thread T0
"""
UNDEFINED = "/a/csrc/device/memory.h:39:25: runtime error: load of misaligned address 0x7 for type 'const Word16'\n"


def test_reports_of_both_sanitizers_are_found() -> None:
    reports = gate.Run(1, ADDRESS + UNDEFINED).reports
    assert reports[0].startswith("AddressSanitizer: heap-buffer-overflow on address")
    assert reports[1].startswith("/a/csrc/device/memory.h:39:25: runtime error: load of misaligned")
    assert gate.Run(0, "oracle: no ERROR here\n").reports == []


def test_sound_sources_must_pass_without_a_report() -> None:
    assert gate.complaint(gate.Run(0, "")) is None
    # A report counts even where the process went on.
    assert "expected no report, got /a/csrc" in str(gate.complaint(gate.Run(0, UNDEFINED)))
    assert "got exit status 1\noracle: strides" in str(gate.complaint(gate.Run(1, "oracle: strides: wrong\n")))


def test_a_fault_must_be_reported_by_a_sanitizer() -> None:
    assert gate.missed(gate.Run(1, ADDRESS), "AddressSanitizer: heap-buffer-overflow") is None
    # Wrong values are not enough: they say nothing about the sanitizers.
    wrong = gate.missed(gate.Run(1, "oracle: wrong values\n"), "AddressSanitizer")
    assert wrong == "expected a report of 'AddressSanitizer', got none, exit status 1"
    assert "misaligned" in str(gate.missed(gate.Run(1, UNDEFINED), "AddressSanitizer"))


@pytest.mark.parametrize(("name", "check", "report"), gate.PROOFS)
def test_proofs_are_faults_and_checks_that_exist(name: str, check: str, report: str) -> None:
    assert name in {fault.name for fault in FAULTS}
    assert check in oracle.CHECKS
    assert report


def test_the_environment_preloads_the_sanitizers() -> None:
    variables = gate.environment(["/lib/libasan.so", "/lib/libubsan.so"])
    assert variables["LD_PRELOAD"] == "/lib/libasan.so:/lib/libubsan.so"
    assert variables["JPU_CUDA_HOST_CHECK"] == "address"
    assert "detect_leaks=0" in variables["ASAN_OPTIONS"]
    assert variables["PATH"] == os.environ["PATH"]


def test_a_compiler_without_sanitizers_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho libasan.so\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(gate.SanitizeError, match="expected g\\+\\+ to have libasan.so, got none"):
        gate.preloaded()
