"""Where the kernels' sources are, their hash, and what is built from them.

Imports nothing but the standard library, since setup.py loads this file by its path: torch, and so
the package, may be absent while the package is built.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

# What setup.py puts into the package and _extension.py looks for.
BINARY, BUILD_INFO = "_kernels.abi3.so", "_build_info.json"
OLDEST_TORCH = (2, 10)  # whose stable ABI the binary uses; CMakeLists.txt compiles the bindings for it too

# Beside csrc/, what the hash covers and an installed package carries along.
BUILD_FILES = ("CMakeLists.txt", "setup.py")

_PACKAGE = Path(__file__).resolve().parent
_COMPILED = {".o", ".so", ".a", ".pyc"}


def checkout_root(package: Path = _PACKAGE) -> Path | None:
    """Root of the repository that ``package`` lies in; None for an installed package."""
    root = package.parent
    # Some other project's setup.py may lie beside an installed package, but not all of this.
    mine = all((root / name).is_file() for name in ("setup.py", "pyproject.toml")) and (root / "csrc").is_dir()
    return root if mine else None


def source_root(package: Path = _PACKAGE) -> Path:
    """Folder that holds ``csrc/`` and ``CMakeLists.txt``: the checkout, else the package's ``_source/``.

    Raises:
        FileNotFoundError: the package was installed without its kernels' sources.
    """
    checkout = checkout_root(package)
    if checkout is not None:
        return checkout
    shipped = package / "_source"
    if (shipped / "csrc").is_dir():
        return shipped
    raise FileNotFoundError(f"kernel sources: expected {shipped / 'csrc'} of an installed jpu_cuda, got no such folder")


def source_files(root: Path) -> list[Path]:
    """All that the hash covers, relative to ``root`` and sorted."""
    paths = [root / name for name in BUILD_FILES]
    paths += [path for path in (root / "csrc").rglob("*") if _is_source(path.relative_to(root))]
    found = [path.relative_to(root) for path in paths if path.is_file()]
    return sorted(found, key=lambda path: path.as_posix())


def source_hash(root: Path) -> str:
    """SHA-256 of the kernels' sources and build flags, in hexadecimal.

    Covers ``csrc/`` (all of it but hidden files and compiled ones), ``CMakeLists.txt`` and ``setup.py``
    by path and content, whatever the time stamps, the place of the checkout and its line endings.

    Raises:
        FileNotFoundError: ``root`` is neither the root of this repository nor a package's ``_source/``.
    """
    if not (root / "setup.py").is_file():
        raise FileNotFoundError(f"source hash: expected the repository root with setup.py, got {root}")
    digest = hashlib.sha256()
    for path in source_files(root):
        content = (root / path).read_bytes().replace(b"\r\n", b"\n")
        # The length keeps the end of one file apart from the beginning of the next.
        digest.update(f"{path.as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _is_source(path: Path) -> bool:
    hidden = any(part.startswith(".") or part == "__pycache__" for part in path.parts)
    return not hidden and path.suffix not in _COMPILED
