"""Which submodules are more than their class and parameters say, so that no kernel may stand in for them."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized


def oddities(module: nn.Module) -> Iterator[str]:
    """Says of each submodule what makes it other than plain: hooks, parametrisations, a foreign class.

    Pruning and weight norm of the older kind are hooks; LoRA and quantisation replace the class.
    """
    everywhere = torch.nn.modules.module
    if everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks:
        yield "all modules have hooks"
    for path, part in module.named_modules():
        name = path or "the module"
        if is_parametrized(part):
            yield f"{name} is parametrised"
        elif not type(part).__module__.startswith(("torch.nn.", "jpu_cuda.")):
            yield f"{name} is a {type(part).__module__}.{type(part).__name__}"
        if "forward" in vars(part):
            yield f"{name} has a forward of its own"
        if any(
            (
                part._forward_pre_hooks,
                part._forward_hooks,
                part._backward_pre_hooks,
                part._backward_hooks,
            )
        ):
            yield f"{name} has hooks"
