"""Says which backend would serve a module, and why."""

from typing import Any

from torch import nn

from .backend import Explanation, choose
from .modules.core import JointPyramid
from .modules.fastfcn import JPU_X


def explain(module: nn.Module, *inputs: Any) -> Explanation:
    """Says how a call of ``module`` with ``inputs`` would be served in this context, without making it.

    Args:
        module: a JPU of this package.
        inputs: what would be passed to it.

    Returns:
        An object with ``backend``, ``policy`` and ``reason``, whose ``str()`` is a sentence.

    Raises:
        TypeError: not a JPU of this package.
        TypeError, ValueError: inputs that the module would refuse, with its message.
    """
    if not isinstance(module, JointPyramid | JPU_X):
        raise TypeError(
            f"module: expected a JPU of jpu_cuda (for one inside a model, pass that submodule; for one of "
            f"another package, call replace_jpu first), got {type(module).__name__}"
        )
    module.levels_of(*inputs)
    return choose()
