"""Coverage of the kernels: which lines only a GPU's compiler reads, and what gcovr's report is turned into."""

from pathlib import Path

import coverage_gate as gate
import pytest

BOTH = """\
#pragma once
#if JPU_CUDA
  // for the GPU

  asm volatile("bar.sync 0;");
#else
  host::barrier();
#endif
"""


def test_the_gpus_body_ends_at_else() -> None:
    assert gate.gpu_ranges(BOTH) == [gate.Range(3, 5, code=1)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("#if JPU_CUDA\na\n#endif\nb\n", [(2, 2)]),
        ("#if !JPU_CUDA\na\n#else\nb\nc\n#endif\n", [(4, 5)]),
        ("#if !JPU_CUDA\na\n#endif\n", []),
        ("#if defined(USE_CUDA)  // why\na\n#endif\n", [(2, 2)]),
        ("#ifdef __CUDACC__\na\n#else\nb\n#endif\n", [(2, 2)]),
        ("#ifndef __CUDACC__\na\n#else\nb\n#endif\n", [(4, 4)]),
        ("#if JPU_CUDA\n#else\nb\n#endif\n", []),
        ("#if OTHER\na\n#elif ANOTHER\nb\n#else\nc\n#endif\n", []),
        # Whatever stands inside belongs to the GPU.
        ("#if JPU_CUDA\n#if OTHER\na\n#else\nb\n#endif\nc\n#else\nd\n#endif\n", [(2, 7)]),
        ("#if OTHER\n#  if JPU_CUDA\na\n#  endif\nb\n#endif\n", [(3, 3)]),
        ("#if JPU_CUDA\na\n#endif\nb\n#if JPU_CUDA\nc\n#endif\n", [(2, 2), (6, 6)]),
        ("#define A 1\nif (a) {}\n", []),
    ],
)
def test_conditionals_are_followed(text: str, expected: list[tuple[int, int]]) -> None:
    assert [(r.first, r.last) for r in gate.gpu_ranges(text)] == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("#if JPU_CUDA\na\n", "expected #endif for every #if, got 1 less"),
        ("a\n#endif\n", "line 2: expected an #if before #endif, got none"),
        ("#if JPU_CUDA && OTHER\n#endif\n", "line 1: expected a condition on the GPU alone"),
        ("#if JPU_CUDA\n#elif OTHER\n#endif\n", "line 2: expected #else after a condition on the GPU, got #elif"),
    ],
)
def test_conditionals_that_cannot_be_followed_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gate.gpu_ranges(text)


def test_todays_sources_have_their_bodies_for_the_gpu_left_out() -> None:
    found = {path.name: gate.gpu_ranges(path.read_text()) for path in gate.kernel_files()}
    assert {"thread.h", "memory.h", "forward.h", "backward_float32.cu"} <= set(found)
    assert "shadow.h" not in found  # what runs the kernels is no kernel
    text = (gate.ROOT / "csrc" / "device" / "thread.h").read_text().splitlines()
    bodies = [line.strip() for r in found["thread.h"] for line in text[r.first - 1 : r.last]]
    indices = ["return static_cast<int>(threadIdx.x);", "return blockIdx.x;"]
    assert bodies == [*indices, "__syncwarp();", "__syncthreads();"]
    # Kernels themselves are one source for both.
    assert found["forward.h"] == found["backward.h"] == []


def _tree(folder: Path) -> Path:
    for name, text in {"op/kernel.h": BOTH, "op/unused.h": "int x;\n", "op/binding.cpp": "", "host/run.h": ""}.items():
        path = folder / "csrc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def _line(number: int, count: int, function: str) -> dict:
    return {"line_number": number, "count": count, "function_name": function}


def test_instantiations_add_up_to_lines(tmp_path: Path) -> None:
    lines = [_line(7, 3, "f<float>"), _line(7, 0, "f<double>"), _line(8, 0, "f<float>"), _line(8, 0, "f<double>")]
    kernel, unused = gate.read_gcovr({"files": [{"file": "csrc/op/kernel.h", "lines": lines}]}, _tree(tmp_path))
    assert (kernel.file, unused.file) == ("csrc/op/kernel.h", "csrc/op/unused.h")
    assert kernel.lines == {7: 3, 8: 0}
    assert kernel.missing == [8]
    assert kernel.share == 0.5
    assert gate.share(kernel.copies.values()) == 0.25
    assert kernel.gpu == [gate.Range(3, 5, code=1)]
    assert unused.lines == {}
    assert unused.share == 1.0


@pytest.mark.parametrize(("executed", "refused"), [(19, False), (18, True)])
def test_less_than_95_percent_of_a_file_is_refused(executed: int, refused: bool) -> None:
    file = gate.Coverage("csrc/op/kernel.h", {line: int(line <= executed) for line in range(1, 21)})
    whole = gate.Coverage("csrc/op/other.h", dict.fromkeys(range(1000), 1))
    assert bool(gate.complaints([file, whole])) == refused


def test_a_refusal_names_the_lines() -> None:
    file = gate.Coverage("csrc/op/kernel.h", {1: 5, 2: 0, 9: 0})
    (text,) = gate.complaints([file])
    assert text == "csrc/op/kernel.h: expected 95% of the lines, got 33.3%; never executed: 2, 9"


def test_a_report_of_nothing_is_refused() -> None:
    assert gate.complaints([gate.Coverage("csrc/op/kernel.h")]) == ["expected executed lines, got none"]


def test_tests_that_fail_end_the_gate() -> None:
    with pytest.raises(gate.CoverageError, match="the tests failed"):
        gate.call(["false"], "the tests")


def test_the_table_lists_what_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    gate.show([gate.Coverage("csrc/op/kernel.h", {7: 3, 8: 0}, {(7, "f"): 3, (8, "f"): 0}, gate.gpu_ranges(BOTH))])
    output = capsys.readouterr().out
    assert "50.0%" in output
    assert "never compiled here, since only GPUs run it (1 lines):\n  csrc/op/kernel.h:3-5" in output
