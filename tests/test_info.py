"""``python -m jpu_cuda info``."""

import pytest

from jpu_cuda import _extension
from jpu_cuda.__main__ import main


def test_it_says_which_kernels_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    assert f"kernels: {_extension.load().reason}" in capsys.readouterr().out
