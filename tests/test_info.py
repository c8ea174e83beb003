"""``python -m jpu_cuda info``."""

import subprocess
import sys

import pytest

import jpu_cuda
from jpu_cuda import _extension
from jpu_cuda.__main__ import main


def test_without_pillow_everything_works_that_needs_none_of_it() -> None:
    code = "import sys; sys.modules['PIL'] = None; from jpu_cuda.__main__ import main; sys.exit(main(sys.argv[1:]))"

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)

    assert run("--version").stdout == f"{jpu_cuda.__version__}\n"
    for words in (["info"], ["info", "-h"], ["--help"]):
        assert run(*words).returncode == 0
    refused = run("segment", "photo.jpg", "--weights", "x.pth")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: expected Pillow to be installed (pip install 'jpu-cuda[models]')")


def test_it_says_which_kernels_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    assert f"kernels: {_extension.load().reason}" in capsys.readouterr().out
