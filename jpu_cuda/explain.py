"""Says which backend would serve a module, and why."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ._checks import as_convolved
from .backend import Explanation, choose, matrix_options
from .modules.branches import Branches
from .modules.core import JointPyramid
from .modules.fastfcn import JPU_X
from .modules.parts import Unfit


def explain(module: nn.Module, *inputs: Any) -> Explanation:
    """Says how a call of ``module`` with ``inputs`` would be served in this context, without making it.

    Args:
        module: a JPU of this package.
        inputs: what would be passed to it.

    Returns:
        An object with ``backend``, ``policy`` and ``reason``, whose ``str()`` is a sentence. A backend other
        than the reference serves all that follows the stages: in two launches where statistics are fixed and nothing
        needs a gradient, else in a few more; or, where the branches are more than their convolutions and norms, the
        upsample-concat alone. Of the stages, whose convolutions are PyTorch's, it serves all norms and ReLUs in one
        launch, where nothing needs a gradient and norms are fixed. The reason says which and why.

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
    levels = module.levels_of(*inputs)
    pyramids = [part for part in module.modules() if isinstance(part, JointPyramid)]
    features = as_convolved(levels[0])
    answer = choose(features)
    if answer.backend == "reference":
        return answer
    resize = all(pyramid.resizes_bilinearly for pyramid in pyramids)
    by_torch = f"PyTorch resizes, since the kernels do so with mode 'bilinear', got up_kwargs {pyramids[0].up_kwargs}"
    kernels = False  # whether anything is theirs
    try:
        for pyramid in pyramids:
            pyramid.fused_stages(levels)
    except Unfit as why_not:
        stages = f"PyTorch serves the stages ({why_not})"
    else:
        stages = "PyTorch convolves in the stages, and one launch does all their norms and ReLUs"
        kernels = True
    try:
        branches = [pyramid.fused_branches(features, levels[0].shape) for pyramid in pyramids]
    except Unfit as why_not:
        answer = replace(answer, policy="torch")
        served = [f"PyTorch serves the branches ({why_not})"]
        if resize:
            served.insert(0, "upsample_concat")
            kernels = True
    else:
        policy, why = _policy(features, branches[0])
        given = [*levels, *(parameter for pyramid in pyramids for parameter in pyramid.parameters())]
        if all(pyramid.infers(found, given) for pyramid, found in zip(pyramids, branches, strict=True)):
            first = "one launch resizes and folds the norms" if resize else "one launch folds the norms"
            then = "all branches in two launches at a time" if policy == "two-pass" else "all branches in one launch"
            served = [f"{first}, then {then} ({why})"]
        else:
            first = "one launch resizes, then " if resize else ""
            then = "in launches of two at a time" if policy == "two-pass" else "in one launch"
            served = [f"{first}the norms' statistics, all branches {then} ({why}), their last norms and ReLUs"]
            if any(found.needs_gradient(given) for found in branches):
                served.append("gradients by kernels and PyTorch's products of matrices")
        answer = replace(answer, policy=policy)
        kernels = True
    parts = "; ".join([*served, stages, *([] if resize else [by_torch])])
    return replace(answer, reason=f"{answer.reason}: {parts}") if kernels else Explanation("reference", "torch", parts)


def _policy(features: Tensor, branches: Branches) -> tuple[str, str]:
    """How the products of a pyramid's branches are done, and why."""
    outputs = branches.pointwise[0].shape[0]
    found: str = torch.ops.jpu_cuda.separable_pyramid_policy(features, outputs, *matrix_options())
    policy, _, why = found.partition(": ")
    return policy, why
