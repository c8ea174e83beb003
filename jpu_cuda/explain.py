"""Says which backend would serve a module, and why."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ._checks import is_autocasting
from .backend import Explanation, choose
from .modules.core import JointPyramid
from .modules.fastfcn import JPU_X
from .modules.plain import oddities


def explain(module: nn.Module, *inputs: Any) -> Explanation:
    """Says how a call of ``module`` with ``inputs`` would be served in this context, without making it.

    Args:
        module: a JPU of this package.
        inputs: what would be passed to it.

    Returns:
        An object with ``backend``, ``policy`` and ``reason``, whose ``str()`` is a sentence. A backend other
        than the reference serves the upsample-concat; stages and branches are PyTorch's.

    Raises:
        TypeError: not a JPU of this package.
        TypeError, ValueError: inputs that the module would refuse, with its message.
        BackendUnavailableError: a backend was asked for by name that cannot serve these inputs.
    """
    if not isinstance(module, JointPyramid | JPU_X):
        raise TypeError(
            f"module: expected a JPU of jpu_cuda (for one inside a model, pass that submodule; for one of "
            f"another package, call replace_jpu first), got {type(module).__name__}"
        )
    level = module.levels_of(*inputs)[0]
    pyramids = [part for part in module.modules() if isinstance(part, JointPyramid)]
    for pyramid in pyramids:
        if not pyramid.resizes_bilinearly:
            return Explanation(
                "reference", "torch", f"the kernels resize with mode 'bilinear', got up_kwargs {pyramid.up_kwargs}"
            )
    answer = choose(_as_features(level))
    if answer.backend == "reference":
        return answer
    found = list(oddities(module))
    as_they_are = f" ({'; '.join(found)})" if found else ""
    return replace(
        answer, reason=f"{answer.reason}: upsample_concat; PyTorch serves the stages and branches{as_they_are}"
    )


def _as_features(level: Tensor) -> Tensor:
    """A tensor like those that the stages make of ``level``: under autocast they have its dtype."""
    if is_autocasting(level.device) and level.dtype != torch.float64:
        return level.new_empty(0, dtype=torch.get_autocast_dtype(level.device.type))
    return level
