"""The hash of sources and the description of the machine."""

import os
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks import environment


def _tree(root: Path) -> Path:
    files = {
        "setup.py": "setup()\n",
        "CMakeLists.txt": "project(jpu)\n",
        "csrc/device/mma.cuh": "// mma\n",
        "csrc/pyramid/kernel.cu": "// kernel\n",
        "README.md": "text\n",
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_source_hash_is_a_sha256_in_hexadecimal():
    assert len(bytes.fromhex(environment.source_hash())) == 32


def test_source_hash_does_not_depend_on_place_or_time(tmp_path):
    a, b = _tree(tmp_path / "a"), _tree(tmp_path / "elsewhere" / "b")
    os.utime(b / "csrc/pyramid/kernel.cu", (1, 1))
    assert environment.source_hash(a) == environment.source_hash(b)


def test_source_hash_does_not_depend_on_line_endings(tmp_path):
    a, b = _tree(tmp_path / "a"), _tree(tmp_path / "b")
    (b / "setup.py").write_bytes(b"setup()\r\n")
    assert environment.source_hash(a) == environment.source_hash(b)


@pytest.mark.parametrize("name", ["setup.py", "CMakeLists.txt", "csrc/device/mma.cuh", "csrc/pyramid/kernel.cu"])
def test_source_hash_changes_with_a_source(tmp_path, name):
    root = _tree(tmp_path)
    before = environment.source_hash(root)
    (root / name).write_text("changed\n")
    assert environment.source_hash(root) != before


def test_source_hash_changes_with_a_new_source(tmp_path):
    root = _tree(tmp_path)
    before = environment.source_hash(root)
    (root / "csrc/pyramid/config.h").write_text("")
    assert environment.source_hash(root) != before


def test_source_hash_changes_with_the_name_of_a_source(tmp_path):
    root = _tree(tmp_path)
    before = environment.source_hash(root)
    (root / "csrc/pyramid/kernel.cu").rename(root / "csrc/pyramid/other.cu")
    assert environment.source_hash(root) != before


def test_source_hash_tells_where_one_file_ends_and_the_next_begins(tmp_path):
    a, b = _tree(tmp_path / "a"), _tree(tmp_path / "b")
    for root, texts in ((a, ("xy", "z")), (b, ("x", "yz"))):
        for name, text in zip(("csrc/device/mma.cuh", "csrc/pyramid/kernel.cu"), texts, strict=True):
            (root / name).write_text(text)
    assert environment.source_hash(a) != environment.source_hash(b)


@pytest.mark.parametrize("name", ["README.md", "csrc/.swp", "csrc/__pycache__/x.py", "csrc/kernel.o"])
def test_source_hash_ignores_what_is_no_source(tmp_path, name):
    root = _tree(tmp_path)
    before = environment.source_hash(root)
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text("changed\n")
    assert environment.source_hash(root) == before


def test_source_hash_before_there_are_kernels(tmp_path):
    (tmp_path / "setup.py").write_text("setup()\n")
    assert len(environment.source_hash(tmp_path)) == 64


def test_source_hash_refuses_another_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected the repository root with setup.py, got .*"):
        environment.source_hash(tmp_path)


def test_device_name_of_a_cpu_says_its_threads():
    threads = torch.get_num_threads()
    name = environment.device_name(torch.device("cpu"))
    assert name.endswith(f", {threads} thread" + ("s" if threads != 1 else ""))


def test_versions_name_the_run_by_a_time_in_utc():
    found = environment.versions(torch.device("cpu"))
    assert found["run"].endswith("Z")
    assert found["torch"] == torch.__version__


def _git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(root), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def repository(tmp_path):
    root = _tree(tmp_path / "repository").resolve()
    _git(root, "init", "--quiet")
    _git(root, "add", ".")
    _git(root, "commit", "--quiet", "-m", "first")
    return root


def test_commit_of_a_clean_checkout(repository):
    assert _git(repository, "rev-parse", "HEAD").startswith(environment._commit(repository))


def test_commit_of_a_changed_checkout_says_so(repository):
    (repository / "setup.py").write_text("changed\n")
    assert environment._commit(repository).endswith("-dirty")


def test_commit_is_not_that_of_a_repository_around_it(repository):
    assert environment._commit(repository / "csrc") is None


def test_commit_outside_a_repository(tmp_path):
    assert environment._commit(tmp_path.resolve()) is None
