"""Runs pytest with a given library for host execution: ``python -m mutants.run_pytest LIBRARY ARGUMENTS``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from . import oracle

if __name__ == "__main__":
    oracle.load(Path(sys.argv[1]))
    sys.exit(pytest.main(sys.argv[2:]))
