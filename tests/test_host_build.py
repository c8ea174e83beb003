"""Building the library for host execution: cached by its sources, and clear when it cannot be built."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jpu_cuda import host

# Stands for cmake: notes each call, and "compiles" both libraries. `--build FOLDER` is its second form.
CMAKE = """#!/bin/sh
echo "$@" >> "{log}"
if [ "$1" = --build ]; then
    [ -e "{log}.error" ] && {{ echo "forward.h:7: error: no such thing"; exit 3; }}
    sleep 0.1
    touch "$2/_host{suffix}" "$2/_faulty{suffix}"
else
    while [ "$1" != -B ]; do shift; done
    [ -e "$2" ] && {{ echo "the folder is left over"; exit 4; }}
    mkdir -p "$2"
fi
"""


class Tools:
    """The tools on PATH, of which cmake only pretends."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log"
        self.folder = folder / "bin"
        self.folder.mkdir()
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        for name, text in (("cmake", CMAKE.format(log=self.log, suffix=suffix)), ("ninja", "#!/bin/sh\n")):
            (self.folder / name).write_text(text)
            (self.folder / name).chmod(0o755)

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def fail(self) -> None:
        Path(f"{self.log}.error").touch()

    def mend(self) -> None:
        Path(f"{self.log}.error").unlink()


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    tools = Tools(tmp_path)
    monkeypatch.setenv("PATH", f"{tools.folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tools


def checkout(folder: Path) -> Path:
    """A folder that holds what the hash covers."""
    (folder / "csrc").mkdir(parents=True)
    for name in ("setup.py", "CMakeLists.txt", "csrc/forward.h"):
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return checkout(tmp_path / "checkout")


def test_is_built_once(tools: Tools, root: Path) -> None:
    first = host.build(root=root)
    assert first.exists()
    assert len(tools.calls) == 2
    assert host.build(root=root) == first
    assert len(tools.calls) == 2


def test_another_source_is_another_library(tools: Tools, root: Path) -> None:
    first = host.build(root=root)
    (root / "csrc" / "forward.h").write_text("changed")
    second = host.build(root=root)
    assert second != first
    assert first.exists(), "an edit undone should find its library again"
    assert len(tools.calls) == 4


def test_checkouts_with_the_same_sources_share_it(tools: Tools, root: Path, tmp_path: Path) -> None:
    assert host.build(root=root) == host.build(root=checkout(tmp_path / "other"))
    assert len(tools.calls) == 2


def test_but_not_the_one_that_counts_lines_by_their_paths(tools: Tools, root: Path, tmp_path: Path) -> None:
    assert host.build("coverage", root=root) != host.build("coverage", root=checkout(tmp_path / "other"))
    assert len(tools.calls) == 4


def test_what_watches_the_kernels_is_part_of_the_key(tools: Tools, root: Path) -> None:
    found = {host.build(check, root=root) for check in ("shadow", "coverage", "address")}
    assert len(found | {host.build(root=root, faulty=True)}) == 4


def test_threads_that_want_it_at_once_build_it_once(tools: Tools, root: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: host.build(root=root), range(4)))
    assert len(paths) == 1
    assert len(tools.calls) == 2


def test_a_compilers_error_is_shown_and_the_next_build_begins_anew(tools: Tools, root: Path) -> None:
    tools.fail()
    with pytest.raises(host.HostBuildError, match="no such thing"):
        host.build(root=root)
    tools.mend()
    # The pretended cmake refuses a folder that an earlier build left.
    assert host.build(root=root).exists()


@pytest.mark.parametrize("missing", ["cmake", "ninja"])
def test_a_missing_tool_is_named(tools: Tools, root: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    (tools.folder / missing).unlink()
    monkeypatch.setenv("PATH", str(tools.folder))
    monkeypatch.setattr(sys, "executable", str(root / "python"))  # whose folder is looked into as well
    with pytest.raises(host.HostBuildError, match=rf"expected {missing} on PATH .* got none"):
        host.build(root=root)


def test_a_cache_that_cannot_be_written_is_named(tools: Tools, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "file"))
    with pytest.raises(host.HostBuildError, match="XDG_CACHE_HOME.*file"):
        host.build(root=root)


def test_a_library_that_does_not_load_is_named(root: Path) -> None:
    broken = root / "_host.so"
    broken.write_bytes(b"not a library")
    with pytest.raises(host.HostBuildError, match=r"expected a library that loads, got .* delete .*_host\.so"):
        host.load_module(broken)


def test_another_compiler_is_another_library(tools: Tools, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    libraries = {host.build(root=root)}
    for variable, value in (("CXXFLAGS", "-march=native"), ("CXX", "no-such-compiler")):
        monkeypatch.setenv(variable, value)
        libraries.add(host.build(root=root))
    assert len(libraries) == 3


@pytest.mark.parametrize("module", ["fcntl", "pybind11"])
def test_without_a_module_that_building_needs_the_package_works(module: str, tmp_path: Path) -> None:
    code = f"""
import sys
sys.modules[{module!r}] = None
import jpu_cuda
try:
    jpu_cuda.use_backend("host")
except jpu_cuda.backend.BackendUnavailableError as error:
    print(error)
"""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert "expected Linux and pybind11" in done.stdout
    assert module in done.stdout


def test_cmakes_own_error_is_shown(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (root / "CMakeLists.txt").write_text('cmake_minimum_required(VERSION 3.20)\nmessage(FATAL_ERROR "none of this")\n')
    with pytest.raises(host.HostBuildError, match="none of this"):
        host.build(root=root)
