"""Whether a submodule is more than its class and parameters say, so that no kernel may stand in for it."""

from typing import Any

import torch
from torch import nn


def hooks_everywhere() -> bool:
    """Whether every module of the process has hooks."""
    everywhere = torch.nn.modules.module
    return bool(
        everywhere._global_forward_hooks
        or everywhere._global_forward_pre_hooks
        or everywhere._global_backward_hooks
        or everywhere._global_backward_pre_hooks
    )


def _has_own(attributes: dict[str, Any]) -> bool:
    """Whether an object has what its class computes with, to compute something else."""
    # One by one: torch.compile before torch 2.14 asks a module's attributes for single names only.
    own = "forward" in attributes or "_conv_forward" in attributes or "_check_input_dim" in attributes
    return own or "_call_impl" in attributes or attributes.get("_compiled_call_impl") is not None


def oddity(module: nn.Module) -> str | None:
    """What makes a module other than plain: "has hooks", "is parametrised", "has a forward of its own"; or None.

    Pruning and weight norm of the older kind are hooks; LoRA and quantisation replace the class.
    """
    if module._forward_pre_hooks or module._forward_hooks or module._backward_pre_hooks or module._backward_hooks:
        return "has hooks"
    if _has_own(vars(module)):
        return "has a forward of its own"
    return "is parametrised" if "parametrizations" in module._modules else None


def name_of(module: nn.Module) -> str:
    """The class of a module as messages have it."""
    kind = type(module)
    return kind.__name__ if kind.__module__.startswith("torch.nn.") else f"{kind.__module__}.{kind.__name__}"
