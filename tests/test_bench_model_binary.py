"""What the cost sheet reads from compilers and disassembly, and what it does without them."""

import shutil
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.model import __main__ as command
from benchmarks.model import binary, sass, training
from benchmarks.model.binary import BinaryUnavailableError, Compiler, Resources, find_disassembler, parse_resources
from benchmarks.model.kernels import KERNELS
from benchmarks.model.sass import Instruction, SassError, find, main_loop, matrix, mix, parse
from jpu_cuda import host

# In the form of nvdisasm -c, and made up: a loop over steps, which holds one over products; a branch in it whose
# body some warps pass by; a second loop that only copies; code that nothing reaches.
SAMPLE = """\
\t.target\tsm_80
\t.section\t.text.toy_product,"ax",@progbits
        .global         toy_product
toy_product:
.text.toy_product:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   S2R R0, SR_TID.X ;
.L_x_0:
        /*0020*/                   LDG.E.128.CONSTANT R4, [R2.64] ;
        /*0030*/               @P0 BRA `(.L_x_1) ;
        /*0040*/                   FFMA R8, R4, R5, R8 ;
        /*0050*/                   FFMA R9, R4, R5, R9 ;
        /*0060*/                   STS.128 [R10], R4 ;
.L_x_1:
        /*0070*/                   BAR.SYNC 0x0 ;
.L_x_2:
        /*0080*/                   LDSM.16.M88.4 R12, [R10] ;
        /*0090*/                   HMMA.16816.F32.BF16 R20, R12, R14, R20 ;
        /*00a0*/                   HMMA.1688.F32.TF32 R24, R12, R15, R24 ;
        /*00b0*/                   IADD3 R11, R11, 0x1, RZ ;
        /*00c0*/              @!P1 BRA `(.L_x_2) ;
        /*00d0*/               @P2 BRA P3, `(.L_x_0) ;
.L_x_3:
        /*00e0*/                   LDG.E R4, [R2.64] ;
        /*00f0*/                   STG.E [R6.64], R4 ;
        /*0100*/                   BRA.U UP0, `(.L_x_3) ;
        /*0110*/                   CALL.REL.NOINC `($toy_square_root) ;
        /*0120*/                   EXIT ;
.L_x_4:
        /*0130*/                   BRA `(.L_x_4);
        /*0140*/                   NOP;
\t.section\t.nv.info,"",@"SHT_CUDA_INFO"
\t.section\t.text.toy_copy,"ax",@progbits
.text.toy_copy:
        /*0000*/                   FROBNICATE R4, [R2.64] ;
        /*0010*/                   UFROBNICATE UR4, UR5 ;
        /*0020*/                   EXIT ;
"""


@pytest.fixture
def program() -> sass.Program:
    return find(parse(SAMPLE), "product")


def test_each_kernel_is_a_program():
    assert [(p.symbol, len(p.instructions)) for p in parse(SAMPLE)] == [("toy_product", 21), ("toy_copy", 3)]


def test_instructions_have_their_pipes(program):
    expected = {"integer": 3, "global": 3, "control": 9, "fp32": 2, "shared": 2, "tensor": 2}
    assert mix(program.instructions) == Counter(expected)


def test_unknown_instructions_are_shown_as_such_but_for_uniform_ones():
    assert mix(find(parse(SAMPLE), "copy").instructions) == {"other": 1, "integer": 1, "control": 1}


def test_every_opcode_has_one_pipe():
    listed = [opcode for opcodes in sass._PIPE_OF.values() for opcode in opcodes.split()]
    assert len(listed) == len(set(listed))
    assert set(sass._PIPE_OF) | {"other"} == set(sass.PIPES)


def test_loops_are_those_that_something_reaches(program):
    assert [loop.first for loop in program.loops] == [2, 8, 14]


def test_a_condition_among_the_operands_lets_code_go_on():
    text = SAMPLE.replace("@!P1 BRA `(.L_x_2)", "BRA.U UP0, `(.L_x_2)")
    assert [loop.first for loop in find(parse(text), "product").loops] == [2, 8, 14]
    # Without one, what follows is not reached, and so is the way back of the loop around it.
    text = SAMPLE.replace("@!P1 BRA `(.L_x_2)", "BRA `(.L_x_2)")
    assert [loop.first for loop in find(parse(text), "product").loops] == [8]


def test_what_one_of_two_ways_back_misses_is_met_sometimes():
    text = SAMPLE.replace("BAR.SYNC 0x0", "@P4 BRA `(.L_x_0)")
    outer = find(parse(text), "product").loops[0]
    assert [x.opcode for x in outer.always] == ["LDG", "BRA", "BRA"]
    assert [[x.opcode for x in block] for block in outer.sometimes] == [["FFMA", "FFMA", "STS"], ["BRA"]]


def test_a_loop_does_not_own_what_a_loop_in_it_has(program):
    outer, inner, _ = program.loops
    assert [x.opcode for x in inner.own] == ["LDSM", "HMMA", "HMMA", "IADD3", "BRA"]
    assert [x.opcode for x in outer.always] == ["LDG", "BRA", "BAR", "BRA"]


def test_a_branch_is_met_sometimes(program):
    outer = program.loops[0]
    assert [[x.opcode for x in block] for block in outer.sometimes] == [["FFMA", "FFMA", "STS"]]
    assert outer.sometimes_fused == outer.sometimes[0]
    assert program.loops[1].sometimes == ()


def test_the_main_loop_is_the_one_with_tensor_cores(program):
    assert main_loop(program) is program.loops[1]


def test_the_main_loop_without_tensor_cores_is_the_one_with_the_most_multiply_adds():
    text = SAMPLE.replace("HMMA.1", "IMAD.1")
    found = main_loop(find(parse(text), "product"))
    assert found is not None
    assert found.first == 2


def test_a_wide_loop_loads_and_stores_16_bytes_at_a_time():
    text = SAMPLE.replace("IADD3 R11, R11, 0x1, RZ", "STG.E.64 [R6.64], R4")
    narrow = find(parse(text.replace("LDSM.16.M88.4 R12, [R10]", "LDG.E.128 R12, [R2.64]")), "product")
    assert main_loop(narrow, wide=True) is None
    wide = text.replace("LDSM.16.M88.4 R12, [R10]", "LDG.E.128 R12, [R2.64]").replace("STG.E.64", "STG.E.128")
    found = main_loop(find(parse(wide), "product"), wide=True)
    assert found is not None
    assert found.first == 8
    # What only loads does not qualify.
    assert main_loop(find(parse(SAMPLE), "product"), wide=True) is None


def test_a_kernel_that_only_copies_has_no_main_loop():
    assert main_loop(find(parse(SAMPLE), "copy")) is None


@pytest.mark.parametrize(
    ("opcode", "modifiers", "expected"),
    [
        ("HMMA", ".16816.F32.BF16", 16 * 8 * 16),
        ("HMMA", ".1688.F32.TF32", 16 * 8 * 8),
        ("HMMA", ".1684.F32.TF32", 16 * 8 * 4),
        ("HGMMA", ".64x256x16.F32.BF16", 64 * 256 * 16 // 4),  # by four warps
        ("FFMA", "", 0),
        ("LDSM", ".16.M88.4", 0),
    ],
)
def test_a_tensor_core_instruction_says_how_much_it_multiplies(opcode, modifiers, expected):
    assert matrix([Instruction(opcode, modifiers)]) == expected


def test_text_that_is_no_disassembly_is_refused():
    with pytest.raises(SassError, match="expected sections .text.<kernel>, got 'nvdisasm fatal"):
        parse("nvdisasm fatal   : no such file")


@pytest.mark.parametrize("symbol", ["toy", "none"])
def test_a_symbol_must_match_one_kernel(symbol):
    with pytest.raises(SassError, match=f"expected one kernel that matches '{symbol}', got toy_product, toy_copy"):
        find(parse(SAMPLE), symbol)


PTXAS = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'toy_copy' for 'sm_80'
ptxas info    : Function properties for toy_copy
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers, 368 bytes cmem[0]
ptxas info    : Compiling entry function 'toy_product' for 'sm_80'
ptxas info    : Function properties for toy_product
    8 bytes stack frame, 16 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 96 registers, used 1 barriers, 4096 bytes smem, 368 bytes cmem[0]
"""


def test_resources_are_those_of_the_kernel_that_is_asked_for():
    assert parse_resources(PTXAS, "product") == Resources(registers=96, shared=4096, spills=40)
    assert parse_resources(PTXAS, "copy") == Resources(registers=12, shared=0, spills=0)


def test_resources_of_no_kernel_are_an_error():
    with pytest.raises(BinaryUnavailableError, match="expected a kernel that matches 'none', got 2 other kernels"):
        parse_resources(PTXAS, "none")


@pytest.fixture
def no_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Neither nvcc nor nvdisasm; returns a folder for what takes their place, which is on PATH."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(binary.importlib.util, "find_spec", lambda name: None)
    return tmp_path


def _tool(path: Path, script: str) -> str:
    path.write_text(f"#!{shutil.which('sh', path='/bin:/usr/bin')}\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_without_nvcc_the_message_says_so(no_tools):
    with pytest.raises(BinaryUnavailableError, match="nvcc: expected it in CUDA_HOME or on PATH, got none"):
        Compiler()


def test_without_a_disassembler_the_message_says_so(no_tools):
    with pytest.raises(BinaryUnavailableError, match="nvdisasm: expected it on PATH, in CUDA_HOME or with triton"):
        find_disassembler()


def test_the_disassembler_may_lie_beside_nvcc(no_tools, tmp_path):
    toolkit = tmp_path / "toolkit"
    toolkit.mkdir()
    expected = _tool(toolkit / "nvdisasm", "exit 0")
    assert find_disassembler(str(toolkit / "nvcc")) == expected


def test_a_compiler_that_fails_is_quoted(monkeypatch, tmp_path):
    compiler = Compiler.__new__(Compiler)
    compiler.__dict__.update(
        _nvcc=_tool(tmp_path / "nvcc", "echo 'toy.cu: error: expected a semicolon'; exit 3"),
        _flags=[],
        _disassembler="none",
        _done={},
        _tick=lambda what: None,
    )
    with pytest.raises(BinaryUnavailableError, match=r"nvcc failed \(3\): toy.cu: error: expected a semicolon"):
        compiler.compiled(KERNELS[0], "bfloat16", "80")


def _sheet(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[str, str]:
    small = ["--shapes", "64x64", "--batch", "16", "--dtype", "bfloat16"]
    assert command.main([*small, *options]) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_the_sheet_without_nvcc_says_once_why(no_tools, capsys):
    out, err = _sheet(capsys, "--no-counts", "--markdown")
    assert err == "not compiled: nvcc: expected it in CUDA_HOME or on PATH, got none\n"
    assert "Compiled for" not in out


def test_the_sheet_without_host_execution_says_once_why(capsys, monkeypatch, tmp_path):
    def fail() -> None:
        raise host.HostBuildError("host execution: expected cmake")

    monkeypatch.setattr(host, "load", fail)
    monkeypatch.setattr(host, "cache_folder", lambda: tmp_path)
    out, err = _sheet(capsys, "--no-binary", "--markdown")
    assert err == "not counted: backend 'host' is not available: host execution: expected cmake\n"
    assert "**Counted**" not in out


def test_floors_are_there_without_any_tool(capsys):
    out, err = _sheet(capsys, "--no-counts", "--no-binary", "--markdown")
    assert err == ""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("| 64")]
    stage = next(line for line in cells if "stage (b)" in line)
    assert stage[5:8] == ["206", "363", "0.517"]
    assert all(line[-1] == "–" for line in cells if not line[3].startswith("stage (b)"))
    # Of training as well.
    assert [line[3] for line in cells].count("backward: all launches") == 1


def test_kernels_and_devices_are_those_asked_for(capsys):
    out, _ = _sheet(capsys, "--no-counts", "--no-binary", "--device", "a100", "--kernels", "separable_pyramid mma")
    assert "A100 SXM 80 GB: milliseconds" in out
    assert "separable_pyramid mma" in out
    assert "separable_pyramid forward" not in out


@pytest.mark.parametrize("shape", ["64", "64x", "0x64", "64x64x3"])
def test_a_shape_has_height_and_width(shape, capsys):
    with pytest.raises(SystemExit):
        command.main(["--shapes", shape])
    assert f"expected height and width such as 64x64, got '{shape}'" in capsys.readouterr().err


# With the real tools, where they are.


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    try:
        return Compiler()
    except BinaryUnavailableError as error:
        pytest.skip(str(error))


# Whose steps are unrolled, or which only add.
WITHOUT_LOOP = ["norm_relu forward", "norm_statistics fold", "separable_pyramid training depthwise terms"]
ALL = dict.fromkeys(kernel for kernel in (*KERNELS, *training.KERNELS) if not kernel.vendor)


@pytest.mark.parametrize("kernel", ALL, ids=lambda kernel: f"{kernel.row} {kernel.direction or ''}".strip())
def test_real_kernels_are_found_and_every_instruction_known(compiler, kernel):
    found = compiler.compiled(kernel, "bfloat16", "80")
    assert 0 < found.resources.registers <= 255
    assert mix(found.program.instructions)["other"] == 0
    if kernel.row in WITHOUT_LOOP:
        assert found.loop is None
    else:
        assert found.loop is not None
        assert bool(matrix(found.loop.own)) == kernel.tensor
    assert kernel.dynamic_shared == 0 or found.resources.shared == 0
