"""Joint Pyramid Upsampling (FastFCN, arXiv 1903.11816) as a drop-in module.

``jpu_cuda.models`` loads on first use, and neither timm nor mmengine with the package, so that importing
it costs no more than torch.
"""

from importlib import import_module
from types import ModuleType

from . import functional, host
from ._version import __version__
from .backend import BackendUnavailableError, Explanation, use_backend
from .convert import convert_state_dict
from .explain import explain
from .modules import JPU, JPU_X
from .replace import replace_jpu

__all__ = [
    "JPU",
    "JPU_X",
    "BackendUnavailableError",
    "Explanation",
    "__version__",
    "convert_state_dict",
    "explain",
    "functional",
    "host",
    "identities",
    "mmseg",
    "models",
    "replace_jpu",
    "use_backend",
]

_LAZY = ("identities", "mmseg", "models")


def __getattr__(name: str) -> ModuleType:
    if name in _LAZY:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
