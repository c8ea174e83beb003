"""Says which backend would serve a module, and why."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ._checks import is_autocasting
from .backend import Explanation, choose, matrix_options
from .modules.branches import Branches, Unfit
from .modules.core import JointPyramid
from .modules.fastfcn import JPU_X


def explain(module: nn.Module, *inputs: Any) -> Explanation:
    """Says how a call of ``module`` with ``inputs`` would be served in this context, without making it.

    Args:
        module: a JPU of this package.
        inputs: what would be passed to it.

    Returns:
        An object with ``backend``, ``policy`` and ``reason``, whose ``str()`` is a sentence. A backend other
        than the reference serves all that follows the stages, which are PyTorch's, in two launches; or, where the
        branches are more than their convolutions and norms of fixed statistics, the upsample-concat alone. The
        reason says which and why.

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
    features = _as_features(level)
    answer = choose(features)
    if answer.backend == "reference":
        return answer
    resize = all(pyramid.resizes_bilinearly for pyramid in pyramids)
    by_torch = f" and resizes, since the kernels do so with mode 'bilinear', got up_kwargs {pyramids[0].up_kwargs}"
    try:
        branches = [pyramid.fused_branches(features) for pyramid in pyramids]
    except Unfit as why_not:
        if not resize:
            return Explanation("reference", "torch", f"PyTorch serves the branches ({why_not}){by_torch}")
        served = f"upsample_concat; PyTorch serves the stages and the branches ({why_not})"
        answer = replace(answer, policy="torch")
    else:
        first = "one launch resizes and folds the norms" if resize else "one launch folds the norms"
        policy, why = _policy(features, branches[0])
        then = "all branches in two launches at a time" if policy == "two-pass" else "all branches in one launch"
        served = f"{first}, then {then} ({why}); PyTorch serves the stages{'' if resize else by_torch}"
        answer = replace(answer, policy=policy)
    return replace(answer, reason=f"{answer.reason}: {served}")


def _policy(features: Tensor, branches: Branches) -> tuple[str, str]:
    """How the products of a pyramid's branches are done, and why."""
    outputs = branches.pointwise[0].shape[0]
    found: str = torch.ops.jpu_cuda.separable_pyramid_policy(features, outputs, *matrix_options())
    policy, _, why = found.partition(": ")
    return policy, why


def _as_features(level: Tensor) -> Tensor:
    """A tensor like those that the stages make of ``level``: under autocast they have its dtype."""
    if is_autocasting(level.device) and level.dtype != torch.float64:
        return level.new_empty(0, dtype=torch.get_autocast_dtype(level.device.type))
    return level
