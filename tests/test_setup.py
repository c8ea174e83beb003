"""The build script: when it builds kernels, what it says, what its wheels hold. The compiler here is a fake."""

import json
import os
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from jpu_cuda import _source

ROOT = Path(__file__).resolve().parent.parent

FAKE_NVCC = """\
#!/bin/sh
echo "$*" >> "$(dirname "$0")/calls"
case "$*" in
*--version*) echo "Cuda compilation tools, release {version}, V{version}.88" ;;
*-dryrun*) echo '#$ TOP=/toolkit' >&2 ;;
*{fails}*) echo "error: no such thing"; exit 2 ;;
*) while [ "$1" != -o ]; do shift; done; echo code > "$2" ;;
esac
"""


def build_script() -> dict:
    return runpy.run_path(str(ROOT / "setup.py"))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """What a checkout holds, without what was built in it."""
    folder = tmp_path / "project"
    built = shutil.ignore_patterns("__pycache__", "*.so", "_build_info.json")
    shutil.copytree(ROOT / "jpu_cuda", folder / "jpu_cuda", ignore=built)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("csrc/op/kernel.cu", "csrc/op/binding.cpp", "csrc/op/op.h", "csrc/host/run.cpp"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"// {name}\n")
    (folder / "CMakeLists.txt").write_text("# host execution\n")
    return folder


@pytest.fixture
def plain() -> dict[str, str]:
    """Environment without a CUDA toolkit, on any machine."""
    drop = ("CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST", "JPU_CUDA_KERNELS", "NVCC_CCBIN", "MAX_JOBS")
    environment = {key: value for key, value in os.environ.items() if key not in drop}
    folders = os.environ["PATH"].split(os.pathsep)
    environment["PATH"] = os.pathsep.join(folder for folder in folders if not (Path(folder) / "nvcc").exists())
    return environment


@pytest.fixture
def cuda(tmp_path: Path, plain: dict[str, str]) -> dict[str, str]:
    """Environment with a fake toolkit of CUDA 13.0, a fake compiler and a fake torch for it."""
    environment = toolkit(tmp_path, plain)
    fake_torch(tmp_path, "2.12.0+cu130", "'13.0'")
    return {**environment, "PYTHONPATH": str(tmp_path / "libraries"), "NVCC_CCBIN": "true"}


def toolkit(folder: Path, environment: dict[str, str], version: str = "13.0", fails: str = "(") -> dict[str, str]:
    nvcc = folder / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True, exist_ok=True)
    nvcc.write_text(FAKE_NVCC.format(version=version, fails=fails.replace("(", "no-such-argument")))
    nvcc.chmod(0o755)
    return {**environment, "CUDA_HOME": str(folder / "cuda")}


def fake_torch(folder: Path, version: str, cuda: str) -> None:
    package = folder / "libraries" / "torch"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text("raise AssertionError('torch must not be imported while building')\n")
    (package / "version.py").write_text(f"__version__ = {version!r}\ncuda = {cuda}\n")


def backend(project: Path, environment: dict[str, str], call: str, code: int = 0) -> str:
    """Calls the build backend as pip does, in a process of its own."""
    script = f"from setuptools import build_meta as backend; print(backend.{call})"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def wheel(project: Path, environment: dict[str, str]) -> tuple[Path, str]:
    output = backend(project, environment, "build_wheel('dist')")
    (found,) = (project / "dist").glob("*.whl")
    return found, output


def info(path: Path) -> dict:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("jpu_cuda/_build_info.json"))


def test_pip_install_without_a_toolkit_gives_a_package_that_works(
    project: Path, plain: dict[str, str], tmp_path: Path
) -> None:
    target = tmp_path / "site"
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--verbose", "--target", str(target)]
    command = [sys.executable, "-m", "pip", "install", *options, str(project)]
    done = subprocess.run(command, env=plain, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    why_not = "expected nvcc in CUDA_HOME or on PATH, got none"
    assert f"jpu_cuda: this wheel is pure Python, without CUDA kernels: {why_not}" in done.stdout + done.stderr
    code = "import jpu_cuda; from jpu_cuda import _extension, _source; print(jpu_cuda.__file__)\n"
    code += "print(_extension.load().reason)\nprint(_source.source_root())"
    environment = {**plain, "PYTHONPATH": str(target)}
    text = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    place, reason, sources = text.stdout.splitlines()
    assert place == str(target / "jpu_cuda" / "__init__.py")
    assert reason.startswith(f"this installation has no compiled CUDA kernels ({why_not}); install with nvcc >= 12")
    assert sources == str(target / "jpu_cuda" / "_source")
    assert _source.source_hash(Path(sources)) == _source.source_hash(project)


def test_a_wheel_without_kernels_serves_every_platform(project: Path, plain: dict[str, str]) -> None:
    path, _ = wheel(project, plain)
    assert path.name.endswith("-py3-none-any.whl")
    found = info(path)
    assert (found["built"], found["archs"]) == (False, [])
    assert found["source_hash"] == _source.source_hash(project)


def test_a_wheel_with_kernels_is_for_every_python_of_its_platform(project: Path, cuda: dict[str, str]) -> None:
    path, output = wheel(project, cuda)
    assert "-cp310-abi3-" in path.name
    assert "none-any" not in path.name
    expected = "with CUDA kernels (CUDA 13.0, torch 2.12.0+cu130, for 8.0;8.6;8.9;9.0a;10.0;12.0+PTX)"
    assert f"jpu_cuda: building {expected}" in output
    assert f"jpu_cuda: this wheel is {expected}" in output
    assert info(path) == {
        "built": True,
        "why_not": "",
        "source_hash": _source.source_hash(project),
        "archs": ["8.0", "8.6", "8.9", "9.0a", "10.0", "12.0+PTX"],
        "cuda": "13.0",
        "torch": "2.12.0+cu130",
        "torch_target": "2.10",
    }


def test_a_wheel_holds_the_binary_and_all_sources(project: Path, cuda: dict[str, str]) -> None:
    path, _ = wheel(project, cuda)
    names = set(zipfile.ZipFile(path).namelist())
    assert "jpu_cuda/_kernels.abi3.so" in names
    assert {name for name in names if name.startswith("jpu_cuda/_source/")} == {
        "jpu_cuda/_source/" + str(name) for name in _source.source_files(project)
    }
    assert "jpu_cuda/_source/csrc/host/run.cpp" in names
    assert not [name for name in names if name.startswith(("csrc/", "tests/", "benchmarks/"))]


def test_a_deleted_source_leaves_the_next_wheel(project: Path, plain: dict[str, str]) -> None:
    wheel(project, plain)
    (project / "csrc/op/op.h").unlink()
    path, _ = wheel(project, plain)
    assert "jpu_cuda/_source/csrc/op/op.h" not in zipfile.ZipFile(path).namelist()


def test_an_sdist_holds_all_that_a_build_needs(project: Path, plain: dict[str, str]) -> None:
    backend(project, plain, "build_sdist('dist')")
    (path,) = (project / "dist").glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {str(name) for name in _source.source_files(project)} | {"jpu_cuda/_source.py", "pyproject.toml"} <= names


def test_each_kernel_is_compiled_once_and_nothing_of_the_host(
    project: Path, cuda: dict[str, str], tmp_path: Path
) -> None:
    wheel(project, cuda)
    calls = (tmp_path / "cuda/bin/calls").read_text().splitlines()
    compiled = sorted(call.partition(" -c ")[2].split()[0] for call in calls if " -c " in call)
    assert compiled == ["csrc/op/binding.cpp", "csrc/op/kernel.cu"]
    (link,) = (call for call in calls if "-shared" in call)
    assert "-cudart=static" in link
    assert "-L/toolkit/lib" in link
    assert "cublas" not in link


def test_compilers_get_the_flags_of_one_binary_for_every_torch(
    project: Path, cuda: dict[str, str], tmp_path: Path
) -> None:
    wheel(project, {**cuda, "TORCH_CUDA_ARCH_LIST": "9.0a 12.0+PTX"})
    calls = [call for call in (tmp_path / "cuda/bin/calls").read_text().splitlines() if " -c " in call]
    flags = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DUSE_CUDA", f"-isystem {tmp_path}/libraries/torch/include"]
    flags += [f"-gencode=arch=compute_{a},code={b}" for a, b in (("90a", "sm_90a"), ("120", "sm_120"))]
    for call in calls:
        assert [flag for flag in [*flags, "code=compute_120", "-Icsrc"] if flag not in call] == []
        assert "fast" not in call
        assert "compute_80" not in call


def test_a_compiler_error_is_shown_and_fails_the_build(project: Path, cuda: dict[str, str], tmp_path: Path) -> None:
    environment = toolkit(tmp_path, cuda, fails="kernel.cu")
    output = backend(project, environment, "build_wheel('dist')", code=1)
    assert "error: no such thing" in output
    assert "nvcc failed (2); JPU_CUDA_KERNELS=off installs without CUDA kernels" in output


def test_an_isolated_build_asks_for_torch_only_where_there_is_a_toolkit(
    project: Path, plain: dict[str, str], cuda: dict[str, str]
) -> None:
    assert "torch" not in backend(project, plain, "get_requires_for_build_wheel()")
    assert "torch" not in backend(project, {**cuda, "JPU_CUDA_KERNELS": "off"}, "get_requires_for_build_wheel()")
    assert "'torch>=2.10'" in backend(project, cuda, "get_requires_for_build_wheel()").splitlines()[-1]


def test_asking_what_a_build_needs_does_not_fail_because_torch_is_not_there_yet(
    project: Path, cuda: dict[str, str], tmp_path: Path
) -> None:
    environment = {**cuda, "JPU_CUDA_KERNELS": "on"}
    # The environment of these tests has a torch, which an isolated build has not.
    block = "import importlib.util as u; find = u.find_spec; "
    block += "u.find_spec = lambda name, *a: None if name == 'torch' else find(name, *a); "
    (tmp_path / "libraries/sitecustomize.py").write_text(block)
    assert "'torch>=2.10'" in backend(project, environment, "get_requires_for_build_wheel()")
    output = backend(project, environment, "build_wheel('dist')", code=1)
    assert "JPU_CUDA_KERNELS=on: expected torch to be importable while building, got none" in output


@pytest.mark.parametrize(
    ("version", "cuda_of_torch", "why_not"),
    [
        ("2.9.1+cu130", "'13.0'", "expected torch >= 2.10, got 2.9.1+cu130"),
        ("2.14.1+cpu", "None", "expected torch for CUDA 13, as nvcc is, got torch 2.14.1+cpu"),
        ("2.14.1+cu128", "'12.8'", "expected torch for CUDA 13, as nvcc is, got torch 2.14.1+cu128"),
    ],
)
def test_a_torch_that_could_not_load_the_binary_gives_a_pure_wheel(
    project: Path, cuda: dict[str, str], tmp_path: Path, version: str, cuda_of_torch: str, why_not: str
) -> None:
    fake_torch(tmp_path, version, cuda_of_torch)
    path, output = wheel(project, cuda)
    assert path.name.endswith("-py3-none-any.whl")
    assert info(path)["why_not"] == why_not
    assert f"without CUDA kernels: {why_not}" in output


def test_an_nvcc_that_is_too_old_gives_a_pure_wheel(project: Path, cuda: dict[str, str], tmp_path: Path) -> None:
    path, _ = wheel(project, toolkit(tmp_path, cuda, version="11.8"))
    assert info(path)["why_not"] == "expected nvcc >= 12.0, got 11.8"


def test_an_nvcc_before_blackwell_leaves_its_architectures_out(
    project: Path, cuda: dict[str, str], tmp_path: Path
) -> None:
    fake_torch(tmp_path, "2.12.0+cu126", "'12.6'")
    path, _ = wheel(project, toolkit(tmp_path, cuda, version="12.6"))
    assert info(path)["archs"] == ["8.0", "8.6", "8.9", "9.0a", "9.0+PTX"]


def test_without_kernels_in_the_checkout_there_are_none_to_build(project: Path, cuda: dict[str, str]) -> None:
    shutil.rmtree(project / "csrc/op")
    path, _ = wheel(project, cuda)
    assert info(path)["why_not"] == "csrc/ holds no kernels"


def test_kernels_demanded_without_a_toolkit_are_an_error(project: Path, plain: dict[str, str]) -> None:
    output = backend(project, {**plain, "JPU_CUDA_KERNELS": "on"}, "build_wheel('dist')", code=1)
    assert "JPU_CUDA_KERNELS=on: expected nvcc in CUDA_HOME or on PATH, got none" in output


def test_kernels_are_switched_off_by_name(project: Path, cuda: dict[str, str]) -> None:
    path, _ = wheel(project, {**cuda, "JPU_CUDA_KERNELS": "off"})
    assert info(path)["why_not"] == "JPU_CUDA_KERNELS=off"


def test_an_unknown_switch_is_an_error(project: Path, plain: dict[str, str]) -> None:
    output = backend(project, {**plain, "JPU_CUDA_KERNELS": "yes"}, "build_wheel('dist')", code=1)
    assert "JPU_CUDA_KERNELS: expected auto, off or on, got 'yes'" in output


def test_an_editable_install_leaves_binary_and_info_beside_the_package(project: Path, cuda: dict[str, str]) -> None:
    package = project / "jpu_cuda"
    backend(project, cuda, "build_editable('dist')")
    assert (package / "_kernels.abi3.so").is_file()
    assert json.loads((package / "_build_info.json").read_text())["built"] is True
    assert not (package / "_source").exists()


def test_an_editable_install_without_kernels_removes_the_binary_of_an_earlier_one(
    project: Path, cuda: dict[str, str]
) -> None:
    package = project / "jpu_cuda"
    backend(project, cuda, "build_editable('dist')")
    backend(project, {**cuda, "JPU_CUDA_KERNELS": "off"}, "build_editable('dist')")
    assert not (package / "_kernels.abi3.so").exists()
    assert json.loads((package / "_build_info.json").read_text())["why_not"] == "JPU_CUDA_KERNELS=off"


@pytest.mark.parametrize(
    ("text", "archs"),
    [
        ("8.0;9.0a;12.0+PTX", ("8.0", "9.0a", "12.0+PTX")),
        ("7.0 7.5 8.0 10.0f+PTX", ("8.0", "10.0f+PTX")),
        ("8.6, 8.9", ("8.6", "8.9")),
        ("5.2", ()),
    ],
)
def test_architectures_are_read_as_pytorch_writes_them(text: str, archs: tuple[str, ...]) -> None:
    assert build_script()["parse_archs"](text) == archs


def test_an_unknown_architecture_is_an_error() -> None:
    with pytest.raises(SystemExit, match=r"TORCH_CUDA_ARCH_LIST: expected entries such as 8\.0, .*, got 'Hopper'"):
        build_script()["parse_archs"]("8.0;Hopper")


def test_the_kernels_of_this_checkout_are_found_without_what_runs_on_the_host() -> None:
    names = [path.as_posix() for path in build_script()["kernel_sources"]()]
    assert not [name for name in names if name.startswith("csrc/host/")]
    assert {"csrc/upsample_concat/binding.cpp", "csrc/upsample_concat/forward_float32.cu"} <= set(names)
