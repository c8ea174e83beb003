"""The choice of separable_pyramid's policy as a function of Python, for devices that host execution has none of."""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

CSRC = Path(__file__).resolve().parent.parent / "csrc"

_PROGRAM = """
#include "separable_pyramid/policy.cpp"

using namespace jpu::separable_pyramid;

extern "C" const char* jpu_choose(const char* requested, int arch, int type, int allow_tf32, int64_t outputs) {
  static std::string text;
  const Choice choice = choose(requested, {arch, 100, 0}, {static_cast<ElementType>(type), allow_tf32 != 0, outputs});
  text = name_of(choice.policy) + (": " + choice.reason);
  return text.c_str();
}

extern "C" int64_t jpu_tiles(int multiprocessors, int64_t cache_bytes, int64_t tile_bytes, int64_t shares) {
  return tiles_at_a_time({80, multiprocessors, 0}, cache_bytes, tile_bytes, shares);
}
"""
_TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Policies:
    """policy.h of some sources.

    Attributes:
        choose: "policy: reason" of a request, a compute capability, a dtype, whether TF32 is allowed, and outputs.
        tiles_at_a_time: of multiprocessors, bytes of cache, bytes of a tile, and blocks to one.
    """

    choose: Callable[[str, int, torch.dtype, bool, int], str]
    tiles_at_a_time: Callable[[int, int, int, int], int]


@cache
def policies(csrc: Path = CSRC) -> Policies:
    """Compiles policy.cpp, which needs nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "policies.cpp"), Path(folder, "policies.so")
        source.write_text(_PROGRAM)
        compiler = os.environ.get("CXX", "c++")
        command = [compiler, "-std=c++20", "-shared", "-fPIC", "-I", str(csrc), str(source), "-o", str(library)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
        loaded = ctypes.CDLL(str(library))
    loaded.jpu_choose.restype = ctypes.c_char_p
    loaded.jpu_choose.argtypes = [ctypes.c_char_p, *[ctypes.c_int] * 3, ctypes.c_int64]
    loaded.jpu_tiles.restype = ctypes.c_int64
    loaded.jpu_tiles.argtypes = [ctypes.c_int, *[ctypes.c_int64] * 3]

    def choose(requested: str, arch: int, dtype: torch.dtype, tf32: bool, outputs: int) -> str:
        text: bytes = loaded.jpu_choose(requested.encode(), arch, _TYPES.index(dtype), tf32, outputs)
        return text.decode()

    return Policies(choose, loaded.jpu_tiles)
