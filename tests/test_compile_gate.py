"""What the compile gate reads from compilers and tools; the samples are theirs, of nvcc 13.0."""

import os
import subprocess
import sys
from pathlib import Path

import compile_gate as gate
import pytest

CLEAN = """\
nvcc -O3 -c csrc/toy/shared.cu -o shared.o
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z6sharedPKfPf' for 'sm_80'
ptxas info    : Function properties for _Z6sharedPKfPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 1 barriers, 1024 bytes smem, 368 bytes cmem[0]
ptxas info    : Compile time = 4.138 ms
"""

SPILLING = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN3jpu8spillingIfEEvPKT_PS1_' for 'sm_80'
ptxas info    : Function properties for _ZN3jpu8spillingIfEEvPKT_PS1_
    968 bytes stack frame, 1556 bytes spill stores, 1912 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 968 bytes cumulative stack size, 368 bytes cmem[0]
ptxas info    : Compile time = 59.173 ms
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN3jpu8spillingIfEEvPKT_PS1_' for 'sm_90a'
ptxas info    : Function properties for _ZN3jpu8spillingIfEEvPKT_PS1_
    1064 bytes stack frame, 1704 bytes spill stores, 2056 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 1064 bytes cumulative stack size
ptxas info    : Compile time = 100.803 ms
"""

# An array that is indexed by what only the run knows lies in local memory without any spill.
INDEXED = """\
ptxas info    : Compiling entry function '_Z7indexedPKiPfi' for 'sm_80'
ptxas info    : Function properties for _Z7indexedPKiPfi
    136 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers, 136 bytes cumulative stack size, 372 bytes cmem[0]
ptxas info    : Compile time = 14.337 ms
"""

# The kernel has no frame; the function that it calls does, and follows it.
RECURSING = """\
ptxas info    : Compiling entry function '_Z9recursingPfi' for 'sm_90a'
ptxas info    : Function properties for _Z9recursingPfi
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 24 registers, used 0 barriers
ptxas info    : Compile time = 2.812 ms
ptxas info    : Function properties for _Z4deepfi
    16 bytes stack frame, 16 bytes spill stores, 16 bytes spill loads
"""

LOST = [
    "ptxas info    : (C7519) warpgroup.arrive is injected in around line 57 by compiler to allow use of registers in "
    "GMMA in function '_Z2wgPfmmi'",
    "ptxas info    : (C7517) warpgroup.wait is injected in around line 59 by compiler to allow use of registers "
    "defined by GMMA in function '_Z2wgPfmmi'",
    "ptxas info    : (C7511) Potential Performance Loss: wgmma.mma_async instructions are serialized due to "
    "insufficient register resources for the wgmma pipeline in the function '_Z2wgPfmmi'",
    "ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored; unable to determine register count at "
    "entry.",
]

WARNINGS = [
    "ptxas warning : Value of threads per SM for entry _Z1kPf is out of range. .minnctapersm will be ignored",
    "ptxas warning : For profile sm_90a adjusting per thread register count of 8 to lower bound of 24",
    'csrc/toy/toy.cu(1): warning #177-D: variable "unused" was declared but never referenced',
    "csrc/toy/binding.cpp:1:13: warning: unused variable ‘x’ [-Wunused-variable]",
]


def test_registers_and_shared_memory_of_a_kernel_are_read() -> None:
    assert gate.parse_ptxas(CLEAN) == [gate.Function("_Z6sharedPKfPf", "sm_80", registers=12, shared=1024)]


def test_a_kernel_is_read_once_for_each_architecture() -> None:
    assert [(f.arch, f.stack, f.spill_stores, f.spill_loads) for f in gate.parse_ptxas(SPILLING)] == [
        ("sm_80", 968, 1556, 1912),
        ("sm_90a", 1064, 1704, 2056),
    ]


def test_a_clean_kernel_passes() -> None:
    assert gate.complaints(CLEAN) == []


def test_a_spilling_kernel_is_refused_for_each_architecture() -> None:
    first, second = gate.complaints(SPILLING)
    assert first.endswith(
        "for sm_80: expected no local memory, got bytes: 968 of stack, 1556 of spill stores and 1912 of spill loads"
    )
    assert "sm_90a" in second


def test_local_memory_without_spills_is_refused() -> None:
    (complaint,) = gate.complaints(INDEXED)
    assert "136 of stack, 0 of spill stores" in complaint


def test_a_device_function_that_spills_is_refused_though_its_kernel_does_not() -> None:
    kernel, function = gate.parse_ptxas(RECURSING)
    assert kernel.complaint() is None
    assert (function.name, function.arch, function.registers) == ("_Z4deepfi", "sm_90a", None)
    assert gate.complaints(RECURSING) == [function.complaint()]


def test_local_memory_on_the_line_of_the_registers_is_refused() -> None:
    assert gate.complaints(CLEAN.replace("1024 bytes smem", "1024 bytes smem, 40 bytes lmem"))


@pytest.mark.parametrize("line", LOST)
def test_an_information_line_that_announces_lost_performance_is_refused(line: str) -> None:
    assert gate.complaints(line + "\n" + line + "\n" + CLEAN) == [line]


@pytest.mark.parametrize("line", WARNINGS)
def test_a_warning_of_a_compiler_is_refused(line: str) -> None:
    assert gate.complaints(CLEAN + line + "\n") == [line]


def test_what_setuptools_warns_about_is_no_complaint() -> None:
    assert gate.complaints("warning: install_lib: byte-compiling is disabled, skipping.\n" + CLEAN) == []


def test_an_architecture_without_code_is_reported() -> None:
    (complaint,) = gate.missing(gate.parse_ptxas(CLEAN), ["8.0", "9.0a", "12.0+PTX"])
    assert complaint.endswith("got none for ['sm_120', 'sm_90a']")
    assert gate.missing(gate.parse_ptxas(SPILLING), ["8.0", "9.0a"]) == []


def test_output_without_kernels_is_refused() -> None:
    assert gate.missing([], ["8.0"]) == ["expected ptxas to report kernels, got none"]


def _dynamic(*libraries: str) -> str:
    return "".join(f" 0x0000000000000001 (NEEDED)             Shared library: [{name}]\n" for name in libraries)


def test_libraries_of_c_and_torch_are_allowed() -> None:
    allowed = ["libtorch_cpu.so", "libtorch_cuda.so", "libtorch.so", "libc10.so", "libc10_cuda.so", "libstdc++.so.6"]
    allowed += ["libgcc_s.so.1", "libc.so.6", "libm.so.6", "librt.so.1", "libdl.so.2", "libpthread.so.0"]
    assert gate.wrong_libraries(_dynamic(*allowed, "ld-linux-x86-64.so.2")) == []


@pytest.mark.parametrize("name", ["libcudart.so.13", "libcublas.so.13", "libpython3.11.so.1.0", "libcuda.so.1"])
def test_other_libraries_are_refused(name: str) -> None:
    (complaint,) = gate.wrong_libraries(_dynamic("libc.so.6", name))
    assert complaint.endswith(f"got {name}")


def test_a_binary_without_a_list_of_libraries_is_refused() -> None:
    assert gate.wrong_libraries("There is no dynamic section in this file.\n")


@pytest.mark.parametrize(
    "line",
    [
        "                 U aoti_torch_get_current_cuda_stream",
        "                 U torch_library_impl",
        "                 U std::runtime_error::~runtime_error()@GLIBCXX_3.4",
        "                 U memcpy@GLIBC_2.14",
        "                 w __cxa_finalize@GLIBC_2.2.5",
    ],
)
def test_c_shims_and_the_standard_library_are_allowed(line: str) -> None:
    assert gate.wrong_symbols(line) == []


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("                 U PyGILState_Ensure", "PyGILState_Ensure"),
        ("                 U _PyObject_New", "_PyObject_New"),
        ("                 U c10::Error::what() const", "c10::Error::what() const"),
        ("                 U at::_ops::empty_like::call(at::Tensor const&)", "at::_ops"),
        ("                 U torch::Library::_impl(char const*)", "torch::Library"),
        ("                 w typeinfo for c10::Error", "typeinfo for c10::Error"),
        ("                 U std::vector<at::Tensor>::size() const", "at::Tensor"),
    ],
)
def test_python_and_the_unstable_interface_of_torch_are_refused(line: str, name: str) -> None:
    (complaint,) = gate.wrong_symbols(line)
    assert name in complaint


LOADED = """\
[W] a library prints a line of its own
gate: /built/lib/jpu_cuda/__init__.py
gate: available kernels built for CUDA 13.0, torch >= 2.10 and 8.0 are loaded
gate: jpu_cuda::upsample True
"""


def test_a_binary_that_serves_all_operators_passes() -> None:
    assert gate.wrong_operators(LOADED, Path("/built/lib")) == []


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("/built/lib", "/checkout", "import: expected the package that was built, in /built/lib, got /checkout"),
        ("available kernels", "unavailable kernels", "load: expected the kernels, got: kernels built for CUDA 13.0"),
        ("upsample True", "upsample False", "operators: expected a CUDA kernel of jpu_cuda::upsample, got none"),
        ("jpu_cuda::upsample True", "undefined jpu_cuda::twice", "operators: expected jpu_cuda::twice to be defined"),
        ("gate: jpu_cuda::upsample True\n", "", "operators: expected some in jpu_cuda::, got none"),
    ],
)
def test_a_binary_that_does_not_serve_all_operators_is_refused(old: str, new: str, complaint: str) -> None:
    assert old in LOADED
    (found,) = gate.wrong_operators(LOADED.replace(old, new), Path("/built/lib"))
    assert found.startswith(complaint)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("void jpu::upsample<float, 4>(jpu::Params<float>)", "jpu::upsample<float, 4>"),
        ("jpu::twice(float const*, float*)", "jpu::twice"),
        ("void (anonymous namespace)::kernel<int>(int)", "(anonymous namespace)::kernel<int>"),
        ("kernel", "kernel"),
    ],
)
def test_names_in_the_table_are_without_arguments(text: str, name: str) -> None:
    assert gate._short(text) == name


def test_a_compiler_that_fails_is_an_error_with_its_output() -> None:
    with pytest.raises(gate.GateError, match=r"failed \(3\):\nno such kernel"):
        gate.call([sys.executable, "-c", "print('no such kernel'); raise SystemExit(3)"])


def test_an_nvcc_that_is_too_old_is_replaced_by_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "NVCC_FOLDER", tmp_path)
    (tmp_path / "nvidia/cu13/bin").mkdir(parents=True)
    (tmp_path / "nvidia/cu13/bin/nvcc").touch()
    setup = {
        "find_nvcc": lambda: "/usr/bin/nvcc",
        "cuda_version": lambda _: "12.8",
        "numbers": lambda text: tuple(map(int, text.split("."))),
    }
    assert gate.toolkit(setup) == {"CUDA_HOME": str(tmp_path / "nvidia/cu13")}
    assert gate.toolkit({**setup, "cuda_version": lambda _: "13.0"}) == {}


def test_the_gate_says_how_it_is_called() -> None:
    command = [sys.executable, str(Path(gate.__file__)), "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "100"})
    assert "--archs" in text.stdout
