"""The loader of the compiled kernels: what it refuses, what it says, which devices it serves."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from jpu_cuda import _extension, _source
from jpu_cuda._extension import Here

INFO = {
    "built": True,
    "why_not": "",
    "source_hash": "a" * 64,
    "archs": ["8.0", "8.6", "8.9", "9.0a", "10.0", "12.0+PTX"],
    "cuda": "13.0",
    "torch": "2.14.1+cu130",
    "torch_target": "2.10",
}
HERE = Here(torch="2.11.0+cu130", cuda="13.0", source_hash=None)
BUILT_FOR = "kernels built for CUDA 13.0, torch >= 2.10 and 8.0, 8.6, 8.9, 9.0a, 10.0, 12.0+PTX"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package folder as an installation leaves it, with what only looks like a binary."""
    folder = tmp_path / "site-packages" / "jpu_cuda"
    folder.mkdir(parents=True)
    write(folder, INFO)
    (folder / "_kernels.abi3.so").write_bytes(b"\x7fELF, but no more than that")
    return folder


def write(folder: Path, info: object) -> None:
    (folder / "_build_info.json").write_text(json.dumps(info))


@pytest.fixture
def _torch_13(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")


def test_a_binary_that_fits_is_not_refused() -> None:
    assert _extension.refusal(INFO, True, HERE) is None


def test_a_binary_of_the_sources_in_the_checkout_is_not_refused() -> None:
    assert _extension.refusal(INFO, True, Here(HERE.torch, HERE.cuda, INFO["source_hash"])) is None


@pytest.mark.parametrize("cuda", ["13.0", "13.4"])
def test_any_torch_of_the_same_cuda_major_fits(cuda: str) -> None:
    assert _extension.refusal(INFO, True, Here("3.0.0", cuda, None)) is None


def test_no_binary_says_so_and_how_to_build_it() -> None:
    assert _extension.refusal({}, False, HERE) == (
        "this installation has no compiled CUDA kernels; install with nvcc >= 12 on PATH and JPU_CUDA_KERNELS=on "
        "to build them"
    )


def test_a_pure_python_installation_says_why_it_is_one() -> None:
    info = {"built": False, "why_not": "expected nvcc in CUDA_HOME or on PATH, got none"}
    reason = _extension.refusal(info, False, HERE)
    assert reason is not None
    assert "no compiled CUDA kernels (expected nvcc in CUDA_HOME or on PATH, got none);" in reason


def test_a_binary_that_nothing_describes_is_refused() -> None:
    reason = _extension.refusal({}, True, HERE)
    assert reason is not None
    assert reason.startswith("_kernels.abi3.so is there, but no _build_info.json says what it was built for")


@pytest.mark.parametrize(
    ("has_binary", "here", "reason"),
    [
        (False, HERE, f"{BUILT_FOR} are gone: expected _kernels.abi3.so beside the package, got none"),
        (True, Here("2.9.1+cu130", "13.0", None), f"{BUILT_FOR} need torch >= 2.10, got torch 2.9.1+cu130"),
        (True, Here("2.14.1+cpu", None, None), f"{BUILT_FOR} need a torch with CUDA, got torch 2.14.1+cpu without"),
        (
            True,
            Here("2.14.1+cu128", "12.8", None),
            f"{BUILT_FOR}: expected torch for CUDA 13, got torch 2.14.1+cu128 for CUDA 12.8",
        ),
        (
            True,
            Here("2.14.1+cu130", "13.0", "b" * 64),
            f"{BUILT_FOR} are stale: expected the sources here (bbbbbbbbbbbb), got a build of others (aaaaaaaaaaaa)",
        ),
    ],
)
def test_a_refusal_says_what_was_built_and_what_is_here(has_binary: bool, here: Here, reason: str) -> None:
    got = _extension.refusal(INFO, has_binary, here)
    assert got is not None
    assert got.startswith(reason)


def test_torch_2_10_is_newer_than_2_9() -> None:
    assert _extension.version_of("2.10.0a0+git") == (2, 10) > _extension.version_of("2.9.1")


@pytest.mark.usefixtures("_torch_13")
def test_loading_opens_the_binary_beside_the_package(package: Path) -> None:
    opened: list[str] = []
    status = _extension.load_from(package, opened.append)
    assert opened == [str(package / "_kernels.abi3.so")]
    assert status == _extension.Status(True, f"{BUILT_FOR} are loaded", INFO)


@pytest.mark.usefixtures("_torch_13")
def test_a_corrupt_binary_is_a_reason_and_no_exception(package: Path) -> None:
    status = _extension.load_from(package)
    assert not status.available
    assert status.reason.startswith(f"{BUILT_FOR} do not load in torch {torch.__version__}: ")
    assert "_kernels.abi3.so" in status.reason
    assert status.info == INFO


@pytest.mark.usefixtures("_torch_13")
def test_a_checkout_with_other_sources_makes_the_binary_stale(package: Path) -> None:
    for name in ("setup.py", "pyproject.toml"):
        (package.parent / name).write_text("")
    (package.parent / "csrc").mkdir()
    (package.parent / "csrc" / "kernel.cu").write_text("// edited\n")
    status = _extension.load_from(package, pytest.fail)
    here = _source.source_hash(package.parent)[:12]
    assert f"are stale: expected the sources here ({here}), got a build of others (aaaaaaaaaaaa)" in status.reason


def test_a_package_without_build_info_has_no_kernels(tmp_path: Path) -> None:
    status = _extension.load_from(tmp_path, pytest.fail)
    assert (status.available, status.info) == (False, {})
    assert status.reason.startswith("this installation has no compiled CUDA kernels;")


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("{", "got an unreadable file"),
        ("[]", r"expected a JSON object with \"built\", got '\[\]'"),
        ("{}", r"expected a JSON object with \"built\""),
        ('{"built": true}', "expected cuda, torch, source_hash and archs"),
        (json.dumps({**INFO, "archs": ["hopper"]}), "expected cuda, torch, source_hash and archs"),
        (json.dumps({**INFO, "cuda": 13}), "expected cuda, torch, source_hash and archs"),
    ],
)
def test_damaged_build_info_is_refused(package: Path, text: str, got: str) -> None:
    (package / "_build_info.json").write_text(text)
    with pytest.raises(ValueError, match=got):
        _extension.read_info(package)
    status = _extension.load_from(package, pytest.fail)
    assert (status.available, status.info) == (False, {})
    assert status.reason.startswith("_build_info.json: expected ")


def test_loading_never_raises_and_keeps_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []

    def broken(package: Path) -> None:
        calls.append(package)
        raise PermissionError("not for you")

    monkeypatch.setattr(_extension, "load_from", broken)
    _extension.load.cache_clear()
    try:
        first = _extension.load()
        assert _extension.load() is first
    finally:
        _extension.load.cache_clear()
    assert first == _extension.Status(False, "the compiled CUDA kernels cannot be looked for: not for you", {})
    assert len(calls) == 1


def test_importing_the_package_loads_no_binary() -> None:
    code = "import jpu_cuda, jpu_cuda._extension as e; print(e.load.cache_info().currsize)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "0\n"


@pytest.mark.parametrize(
    ("archs", "capability", "runs"),
    [
        (["8.0"], (8, 0), True),
        (["8.0"], (8, 9), True),  # machine code of an older minor version
        (["8.9"], (8, 6), False),
        (["8.0"], (9, 0), False),
        (["9.0a"], (9, 0), True),
        (["9.0a"], (9, 1), False),
        (["9.0a+PTX"], (10, 0), False),
        (["9.0"], (9, 0), True),
        (["10.0f"], (10, 3), True),
        (["10.0f+PTX"], (12, 0), False),
        (["12.0"], (13, 0), False),
        (["12.0+PTX"], (13, 0), True),
        (["12.0+PTX"], (12, 1), True),
        (["12.0+PTX"], (11, 0), False),
        (["8.0+PTX"], (7, 5), False),
        (["8.6", "12.0+PTX"], (8, 0), False),
        ([], (8, 0), False),
    ],
)
def test_code_runs_on_the_capabilities_that_cuda_promises(
    archs: list[str], capability: tuple[int, int], runs: bool
) -> None:
    assert _extension.runs_on(archs, capability) is runs


def test_a_device_without_code_is_named_with_what_there_is_code_for() -> None:
    assert _extension.device_refusal(INFO, "Tesla T4", (7, 5)) == (
        "expected a device for 8.0, 8.6, 8.9, 9.0a, 10.0, 12.0+PTX, which the kernels were built for, "
        "got Tesla T4 with compute capability 7.5"
    )


def test_a_device_that_pytorch_cannot_reach_is_told_which_driver_it_needs() -> None:
    assert _extension.no_device(INFO, "The NVIDIA driver on your system is too old (found version 12040).") == (
        f"{BUILT_FOR}: expected a CUDA device (CUDA 13 needs an NVIDIA driver >= 580), "
        "got 'The NVIDIA driver on your system is too old (found version 12040).'"
    )


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    _extension.supports.cache_clear()
    yield
    _extension.supports.cache_clear()


@pytest.fixture
def _loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_extension, "load", lambda: _extension.Status(True, "loaded", INFO))


def gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    fake = SimpleNamespace(get_device_name=lambda _: "some GPU", get_device_capability=lambda _: capability)
    monkeypatch.setattr(torch, "cuda", fake)


@pytest.mark.usefixtures("_loaded")
def test_a_device_with_code_is_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, (9, 0))
    assert _extension.supports(0) is None


@pytest.mark.usefixtures("_loaded")
def test_a_device_without_code_is_not_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, (7, 0))
    assert str(_extension.supports(0)).endswith("got some GPU with compute capability 7.0")


@pytest.mark.usefixtures("_loaded")
@pytest.mark.parametrize("error", [RuntimeError("CUDA driver initialization failed"), AssertionError("no CUDA")])
def test_a_driver_that_does_not_start_is_a_reason(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(_: int) -> None:
        raise error

    monkeypatch.setattr(torch, "cuda", SimpleNamespace(get_device_name=fail))
    assert str(_extension.supports(1)).endswith(f"a CUDA device (CUDA 13 needs an NVIDIA driver >= 580), got '{error}'")


def test_without_a_binary_no_device_is_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_extension, "load", lambda: _extension.Status(False, "no binary"))
    assert _extension.supports(0) == "no binary"
